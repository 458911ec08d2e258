"""Exported .gguf files against what reads them: this project, transformers and llama.cpp."""

import dataclasses

import numpy as np
import pytest

from gpt_keras.architectures import write_config
from gpt_keras.config import RopeScaling
from gpt_keras.data.errors import InputError
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.exporting.gguf import export_gguf
from gpt_keras.gguf_file import load_gguf
from gpt_keras.gguf_header import GGUFFile
from gpt_keras.gguf_tokenizer import SPLITTINGS

from ..conftest import build, program, random_ids
from ..test_gguf import KINDS, LLAMA, TEXTS, as_read, byte_level_tokenizer, config_of, varied
from ..test_model import BASE

DTYPES = ["f32", "f16", "q8_0"]


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_reads_back(kind, dtype, tokenizer, tmp_path):
    model = varied(config_of(kind))
    export_gguf(model, tokenizer, tmp_path / "model.gguf", dtype)
    loaded, same_tokenizer = load_gguf(tmp_path / "model.gguf")
    assert loaded.config == as_read(kind)
    assert same_tokenizer.fingerprint == tokenizer.fingerprint
    assert same_tokenizer.adds_begin == tokenizer.adds_begin
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        ours, theirs = np.array(ours), np.array(theirs)
        # Half a step of 11 bits, or of 8 bits of the largest of 32 weights and the rounding of its 16-bit scale.
        bound = {"f32": 0.0, "f16": 2**-11 * np.abs(ours), "q8_0": 0.57 / 127 * np.abs(ours).max()}[dtype]
        assert np.all(np.abs(ours - theirs) <= bound + (dtype != "f32") * 1e-7)


def test_norms_biases_and_positions_stay_whole_and_narrow_rows_fall_back_to_f16(tokenizer, tmp_path):
    path = tmp_path / "model.gguf"
    for kind in ("gpt2", "narrow"):
        export_gguf(varied(config_of(kind)), tokenizer, path, "q8_0")
        types = {name: stored.kind.name for name, stored in GGUFFile(path)._tensors.items()}
        for name, found in types.items():
            whole = "norm" in name or name.endswith("bias") or name == "position_embd.weight"
            narrow = kind == "narrow"  # rows of 40 and 72
            assert found == ("F32" if whole else "F16" if narrow else "Q8_0"), name


def test_transformers_computes_the_same(kind, tokenizer, tmp_path):
    import torch
    import transformers

    model = varied(config_of(kind))
    export_gguf(model, tokenizer, tmp_path / "model.gguf", "f32")
    # Its own reading of the metadata knows nothing of GPT-2's sizes, Qwen3's head_dim and Llama 3's frequencies.
    settings = write_config(model.config)
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, config=config, gguf_file="model.gguf", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    ids = random_ids((2, 20), 512)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(ids.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(np.asarray(model(ids)), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"norm_order": "post"}, "norm_order"),
        ({"position": "sinusoidal"}, "position"),
        ({"feed_forward": "gelu_exact"}, "feed_forward"),
        ({"feed_forward": "relu"}, "feed_forward"),
        ({**LLAMA, "qk_norm": True, "use_bias": "attention"}, "use_bias"),
        ({**LLAMA, "qk_norm": True, "rope_scaling": RopeScaling("llama3", 8.0)}, "rope_scaling"),
    ],
)
def test_what_llama_cpp_has_no_model_for_is_refused_naming_the_field(changes, field, tokenizer, tmp_path):
    config = dataclasses.replace(BASE, vocabulary_size=512, **changes)
    with pytest.raises(InputError, match=rf"llama.cpp has no GPT with {field}="):
        export_gguf(build(config), tokenizer, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer, tmp_path):
    for found, match in ((tokenizer, "512 pieces, the model 61"), (None, "needs a tokenizer")):
        with pytest.raises(InputError, match=match):
            export_gguf(build(BASE), found, tmp_path / "model.gguf")
    with pytest.raises(InputError, match="dtype must be one of f32, f16, q8_0"):
        export_gguf(build(BASE), tokenizer, tmp_path / "model.gguf", "q4_0")


def test_sentencepiece_models_that_llama_cpp_would_misread_are_refused(tokenizer, tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    model = build(config_of("llama"))
    for spec, field, value, match in (
        ("trainer_spec", "model_type", 1, "of the type unigram"),
        ("normalizer_spec", "remove_extra_whitespaces", True, "removes spaces"),
        ("normalizer_spec", "name", "nmt_nfkc", r"normalizes text \(nmt_nfkc\)"),
    ):
        changed = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
        setattr(getattr(changed, spec), field, value)
        with pytest.raises(InputError, match=match):
            export_gguf(model, SentencePieceTokenizer(changed.SerializeToString()), tmp_path / "model.gguf")


def test_a_tokenizer_json_that_llama_cpp_has_no_name_for_is_refused(tmp_path):
    odd = byte_level_tokenizer(dataclasses.replace(SPLITTINGS[0], patterns=(r"\w+",)))
    with pytest.raises(InputError, match=r"no name for the way this tokenizer\.json splits text"):
        export_gguf(build(config_of("gpt2")), odd, tmp_path / "model.gguf")


def test_a_sentencepiece_model_beside_the_tokenizer_that_is_used_is_not_written(tokenizer, tmp_path):
    """As in folders whose tokenizer.json has more tokens than the tokenizer.model that it was made of."""
    hub = byte_level_tokenizer(size=600)
    files = {**hub.files, "tokenizer.model": tokenizer.model}
    both = Tokenizer.from_files(files, "there")
    assert both.vocabulary_size == hub.vocabulary_size > tokenizer.vocabulary_size
    model = build(dataclasses.replace(config_of("gpt2"), vocabulary_size=hub.vocabulary_size))
    export_gguf(model, both, tmp_path / "model.gguf", "f16")
    _, again = load_gguf(tmp_path / "model.gguf")
    assert [again.token_bytes(i) for i in range(600)] == [hub.token_bytes(i) for i in range(600)]


# --- llama.cpp itself -------------------------------------------------------------------------------------------------


def open_in_llama_cpp(path):
    from llama_cpp import Llama

    return Llama(str(path), n_ctx=BASE_CONTEXT, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)


BASE_CONTEXT = 256


def llama_cpp_logits(llama, ids) -> np.ndarray:
    llama.reset()
    llama.eval(list(ids))
    return np.array(llama.scores[: len(ids)])


@pytest.mark.llama_cpp
@pytest.mark.parametrize("dtype", DTYPES)
def test_llama_cpp_computes_the_same(kind, dtype, tokenizer, tmp_path):
    """The bounds are on models whose logits have a standard deviation of about 1, as trained ones have or exceed."""
    config = dataclasses.replace(config_of(kind), context_length=BASE_CONTEXT, initializer_range=0.15)
    model = varied(config)
    export_gguf(model, tokenizer, tmp_path / "model.gguf", dtype)
    llama = open_in_llama_cpp(tmp_path / "model.gguf")
    ids = tokenizer.encode_prompt(TEXTS[0])
    error = np.abs(np.asarray(model(np.array([ids], np.int32)))[0] - llama_cpp_logits(llama, ids))
    assert error.mean() < {"f32": 0.01, "f16": 0.01, "q8_0": 0.1}[dtype]
    if dtype != "f32":
        return
    greedy = list(ids)
    for _ in range(64):
        greedy.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
        llama.eval(greedy[-1:])
    # One pass over all of it: each token is our first choice too, or within what the 16-bit cache there rounds off.
    ours = np.asarray(model(np.array([greedy], np.int32)))[0][len(ids) - 1 : -1]
    chosen = ours[np.arange(64), greedy[len(ids) :]]
    assert np.all(ours.max(axis=-1) - chosen < 0.02)
    assert np.mean(ours.max(axis=-1) == chosen) > 0.95


@pytest.mark.llama_cpp
def test_llama_cpp_makes_the_same_tokens_of_text(tokenizer, tmp_path):
    export_gguf(build(config_of("llama")), tokenizer, tmp_path / "model.gguf")
    llama = open_in_llama_cpp(tmp_path / "model.gguf")
    for text in [*TEXTS, *(program(seed) for seed in range(10))]:
        assert llama.tokenize(text.encode(), add_bos=True) == tokenizer.encode_prompt(text)
        assert llama.detokenize(tokenizer.encode(text)).decode() == text


@pytest.mark.llama_cpp
@pytest.mark.parametrize("splitting", SPLITTINGS, ids=lambda splitting: splitting.names[0])
def test_llama_cpp_splits_text_as_the_names_say(splitting, tmp_path):
    tokenizer = byte_level_tokenizer(splitting)
    export_gguf(build(config_of("gpt2")), tokenizer, tmp_path / "model.gguf")
    llama = open_in_llama_cpp(tmp_path / "model.gguf")
    for text in [*TEXTS, *(program(seed) for seed in range(10)), "<|im_start|>user<tool>", "\n \n\n  \n   x 1234567"]:
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text, special=True)
