"""The model folder against transformers, both ways, and against damage."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpt_keras
from gpt_keras.architectures import ARCHITECTURES, architecture_for
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.folder import _Safetensors, check_tensors, fill_model, load_folder, read_folder_config, save_folder

from .conftest import build, random_ids
from .test_model import BASE

LLAMA = {"position": "rotary", "normalization": "rms_norm", "feed_forward": "swiglu", "use_bias": False}
TYPES = {
    "gpt2": {},
    "openai-gpt": {"norm_order": "post"},
    "llama": {**LLAMA, "num_key_value_heads": 2},
    "qwen3": {**LLAMA, "num_key_value_heads": 2, "head_dim": 16, "qk_norm": True, "tie_embeddings": False},
}


def config_of(name: str) -> GPTConfig:
    changes = {"vocabulary_size": 512, "head_dim": None, "num_key_value_heads": None, **TYPES[name]}
    return dataclasses.replace(BASE, **changes)


@pytest.fixture(params=TYPES)
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(kind, tokenizer, tmp_path):
    save_folder(build(config_of(kind)), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_what_is_written_reads_back_equal(kind, folder, tokenizer):
    model = build(config_of(kind))
    loaded, same_tokenizer = load_folder(folder)
    assert loaded.config == model.config
    assert same_tokenizer.fingerprint == tokenizer.fingerprint
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


def test_transformers_opens_what_is_written(kind, folder, tokenizer):
    import torch
    import transformers

    assert json.loads((folder / "config.json").read_text())["model_type"] == kind
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = random_ids((2, 20), 512)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(ids.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(np.asarray(load_folder(folder)[0](ids)), expected, atol=1e-4)
    hub = transformers.AutoTokenizer.from_pretrained(folder)
    text = "def f(x):\n        return [x, 'é🎉']\n\n\n"
    assert hub.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert hub.decode(tokenizer.encode(text)) == text
    assert (hub.bos_token_id, hub.eos_token_id, hub.pad_token_id) == (
        tokenizer.begin_id,
        tokenizer.end_id,
        tokenizer.padding_id,
    )


def test_what_transformers_writes_opens_here(kind, folder, tmp_path):
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(folder / "tokenizer.model", tmp_path / "theirs")
    ids = random_ids((2, 20), 512)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(np.asarray(gpt_keras.load(tmp_path / "theirs").model(ids)), expected, atol=1e-4)


def test_a_configuration_beyond_hugging_face_round_trips_as_our_own_type(tokenizer, tmp_path):
    config = dataclasses.replace(BASE, vocabulary_size=512, position="sinusoidal")
    assert architecture_for(config) == (None, "position")
    save_folder(build(config), tokenizer, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "gpt_keras"
    ids = random_ids((1, 9), 512)
    loaded, _ = load_folder(tmp_path / "model")
    np.testing.assert_array_equal(np.asarray(loaded(ids)), np.asarray(build(config)(ids)))


def test_a_head_that_has_no_halves_is_no_rotary_one(tmp_path):
    config = GPTConfig(vocabulary_size=100, hidden_dim=30, num_heads=6, num_layers=1, feed_forward="swiglu")
    save_folder(build(config), None, tmp_path / "model")
    assert load_folder(tmp_path / "model")[0].config == config


def damage_tensors(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


NAME = {
    "gpt2": "transformer.h.1.attn.c_proj.weight",
    "openai-gpt": "transformer.h.1.attn.c_proj.weight",
    "llama": "model.layers.1.self_attn.o_proj.weight",
    "qwen3": "model.layers.1.self_attn.o_proj.weight",
}


def test_a_missing_tensor_is_named(kind, folder):
    damage_tensors(folder, lambda tensors: tensors.pop(NAME[kind]))
    with pytest.raises(InputError, match=f"{NAME[kind]} is missing"):
        load_folder(folder)


def test_an_unknown_tensor_is_named(kind, folder):
    damage_tensors(folder, lambda tensors: tensors.update(surprise=np.zeros(3, np.float32)))
    with pytest.raises(InputError, match="unknown tensor surprise"):
        load_folder(folder)


def test_a_misshapen_tensor_is_named(kind, folder):
    damage_tensors(folder, lambda tensors: tensors.update({NAME[kind]: np.zeros((3, 5), np.float32)}))
    with pytest.raises(InputError, match=NAME[kind]):
        load_folder(folder)


def test_a_cut_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        load_folder(folder)


def test_a_pickle_is_never_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle, which is never opened"):
        load_folder(folder)


def test_a_config_that_contradicts_the_tensors_is_an_error(kind, folder):
    raw = json.loads((folder / "config.json").read_text())
    raw["n_layer" if kind in ("gpt2", "openai-gpt") else "num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="unknown tensor"):
        load_folder(folder)


def test_no_folder_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"no model folder there \(config\.json is missing\)"):
        gpt_keras.load(tmp_path / "nothing")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_are_read(folder, dtype):
    import safetensors.torch
    import torch

    path = folder / "model.safetensors"
    tensors = {k: v.to(getattr(torch, dtype)) for k, v in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(tensors, path)
    exact, _ = load_folder(folder)
    expected = {k: v.float().numpy() for k, v in tensors.items()}
    embedding = next(
        v for k, v in expected.items() if any(name in k for name in ("embed_tokens", "tokens_embed", "wte"))
    )
    np.testing.assert_array_equal(np.array(exact.embedding.token_embedding), embedding)


# --- Damage of every other sort, on one small Llama -------------------------------------------------------------------


@pytest.fixture(scope="session")
def whole_llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "model"
    save_folder(build(dataclasses.replace(BASE, **LLAMA, num_layers=1, tie_embeddings=False)), None, path)
    return path


@pytest.fixture
def llama(whole_llama, tmp_path):
    return shutil.copytree(whole_llama, tmp_path / "llama")


@pytest.fixture
def shards(llama):
    """The same in two files: every other tensor, in alphabetical order, lies in the second."""
    tensors = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    places = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: value for name, value in tensors.items() if places[name] == file}, llama / file)
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return llama


def change_json(file, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def refused(folder, *words: str) -> None:
    """Loading fails with one line that has these words in it."""
    with pytest.raises(InputError) as error:
        load_folder(folder)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


HEAD, EMBEDDING, DOWN = "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_shards_are_read(shards, whole_llama):
    for ours, theirs in zip(load_folder(shards)[0].weights, load_folder(whole_llama)[0].weights, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


def test_a_missing_shard_is_named(shards):
    (shards / SECOND).unlink()
    refused(shards, SECOND, "is missing")


def test_a_tensor_in_two_shards_is_named(shards):
    tensors = load_file(shards / FIRST)
    save_file({**load_file(shards / SECOND), HEAD: tensors[HEAD]}, shards / SECOND)
    refused(shards, HEAD, FIRST, SECOND)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index["weight_map"].pop(HEAD), [HEAD, "no file", FIRST]),
        (lambda index: index["weight_map"].update({HEAD: SECOND}), [HEAD, SECOND, FIRST]),
        (lambda index: index["weight_map"].update(ghost=SECOND), ["ghost", SECOND]),
        (lambda index: index["weight_map"].update({HEAD: "../elsewhere.safetensors"}), ["leads out of the folder"]),
        (lambda index: index["weight_map"].update({HEAD: 3}), ["weight_map"]),
        (lambda index: index.pop("weight_map"), ["weight_map"]),
        (lambda index: index.update(weight_map=["a"]), ["weight_map"]),
        (lambda index: index.update(weight_map={}), [EMBEDDING, "is missing"]),
    ],
)
def test_an_index_that_contradicts_its_files_is_an_error(shards, change, words):
    index = shards / "model.safetensors.index.json"
    change_json(index, change)
    refused(shards, str(index), *words)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_finite_numbers_are_named(llama, value):
    damage_tensors(llama, lambda tensors: tensors[DOWN].__setitem__((3, 5), value))
    refused(llama, DOWN, "not finite")


@pytest.mark.parametrize(("dtype", "name"), [("int8", "I8"), ("float8_e4m3fn", "F8_E4M3"), ("bool", "BOOL")])
def test_tensors_of_other_types_are_named(llama, dtype, name):
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load_file(llama / "model.safetensors")
    tensors[DOWN] = tensors[DOWN].to(getattr(torch, dtype))
    safetensors.torch.save_file(tensors, llama / "model.safetensors")
    refused(llama, DOWN, f"is of type {name}; expected F32, F16, BF16, F64")


def test_a_tied_head_may_be_there_if_it_is_the_embedding(llama):
    change_json(llama / "config.json", lambda raw: raw.update(tie_word_embeddings=True))
    refused(llama, HEAD, "differs from", EMBEDDING)
    damage_tensors(llama, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING]}))
    assert load_folder(llama)[0].config.tie_embeddings


def test_an_untied_head_must_be_there(llama):
    damage_tensors(llama, lambda tensors: tensors.pop(HEAD))
    refused(llama, HEAD, "is missing")


def test_checkpoints_of_the_model_without_its_head_are_read(kind, folder):
    exact, _ = load_folder(folder)

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.").removeprefix("model.")] = tensors.pop(name)

    damage_tensors(folder, strip)
    for ours, theirs in zip(load_folder(folder)[0].weights, exact.weights, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


def test_buffers_of_old_checkpoints_are_passed_over(kind, folder):
    ones = np.ones((1, 1, 4, 4), np.float32)
    buffers = {
        "h.0.attn.bias": ones,
        "h.1.attn.masked_bias": ones,
        "model.layers.0.self_attn.rotary_emb.inv_freq": ones,
    }
    damage_tensors(folder, lambda tensors: tensors.update(buffers))
    load_folder(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("vocab_size", 2**31 - 1, [EMBEDDING, "(61, 32)", "(2147483647, 32)"]),
        ("hidden_size", 2**30, [EMBEDDING, "(61, 32)"]),
        ("intermediate_size", 2**31 - 1, ["mlp.gate_proj.weight", "2147483647"]),
        ("num_hidden_layers", 2**31 - 1, ["model.layers.1.self_attn.q_proj.weight is missing"]),
        ("head_dim", 2**20, ["q_proj.weight", "(32, 32)"]),
        ("num_hidden_layers", 10**400, ["num_hidden_layers"]),
        ("attention_bias", True, ["q_proj.bias is missing"]),
        ("num_hidden_layers", "two", ["num_hidden_layers must be a whole number"]),
    ],
)
def test_a_config_that_asks_for_other_tensors_is_refused_before_a_model_is_built(llama, monkeypatch, key, value, words):
    monkeypatch.setattr("gpt_keras.folder.GPT", None)
    change_json(llama / "config.json", lambda raw: raw.update({key: value}))
    refused(llama, str(llama), *words)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe{}", b"{", b"[]", b"[" * 100_000, b'{"a": 1, "a": 2}', None])
def test_a_file_of_something_else_is_named(llama, name, content):
    (llama / name).unlink()
    if content is None:
        (llama / name).mkdir()
    else:
        (llama / name).write_bytes(content)
    refused(llama, f"{llama}/{name}")


def test_no_flipped_bit_of_a_header_is_a_traceback_or_a_silent_change(llama):
    """Every byte of the header, one bit each: refused in one line that names the file, or of no consequence."""
    file = llama / "model.safetensors"
    healthy = file.read_bytes()
    exact = load_file(file)
    length = 8 + int.from_bytes(healthy[:8], "little")
    survivors = 0
    for place in range(length):
        damaged = bytearray(healthy)
        damaged[place] ^= 1 << place % 7
        file.write_bytes(damaged)
        try:
            with _Safetensors(llama) as stored:
                check_tensors(*read_folder_config(llama), stored.shapes, stored.where)
                read = {name: stored.read(name) for name in stored.shapes}
        except InputError as error:
            assert str(file) in str(error)
            assert "\n" not in str(error)
            continue
        survivors += 1
        for name, value in read.items():
            np.testing.assert_array_equal(value, exact[name])
    assert survivors < 60


def test_a_file_that_lies_elsewhere_is_followed(llama, tmp_path):
    shutil.move(llama / "model.safetensors", tmp_path / "blob")
    (llama / "model.safetensors").symlink_to(tmp_path / "blob")
    load_folder(llama)
    (tmp_path / "blob").unlink()
    refused(llama, "model.safetensors is missing")


def test_another_reader_can_fill_a_model(llama):
    """What reads other formats hands over names, shapes and a function."""
    tensors = load_file(llama / "model.safetensors")
    exact, _ = load_folder(llama)
    model = build(exact.config, seed=1)
    read: list[str] = []
    fill_model(
        model,
        ARCHITECTURES["llama"],
        {name: value.shape for name, value in tensors.items()},
        lambda name: read.append(name) or tensors[name],
        "elsewhere",
    )
    assert sorted(read) == sorted(tensors)
    for ours, theirs in zip(model.weights, exact.weights, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))
    with pytest.raises(InputError, match=r"elsewhere: the tensor model\.embed_tokens\.weight is missing"):
        fill_model(model, ARCHITECTURES["llama"], {}, tensors.__getitem__, "elsewhere")


def test_a_tokenizer_of_another_size_is_refused(tokenizer, tmp_path):
    with pytest.raises(InputError, match="the tokenizer has 512 pieces, the model 61"):
        save_folder(build(BASE), tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    assert keras.backend.backend() in ("tensorflow", "jax")


def test_a_flipped_bit_in_a_tensor_is_noticed(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1001] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: \S+ is damaged, or was changed"):
        load_folder(folder)


def test_swapped_tensors_are_noticed(kind, folder):
    """Names exchanged in the header, the bytes as they were."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    first, second = NAME[kind], NAME[kind].replace(".1.", ".0.")
    header[first], header[second] = header[second], header[first]
    changed = json.dumps(header).encode().ljust(size)
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + size :])
    with pytest.raises(InputError, match="is damaged, or was changed"):
        load_folder(folder)


def test_tensors_of_other_writers_need_no_checksum(folder):
    damage_tensors(folder, lambda tensors: None)  # written again by safetensors alone
    load_folder(folder)
