"""Reading .gguf files: what was written comes back, what others write is understood, and damage is one clear line."""

import dataclasses
import json
import random
import struct

import gguf
import numpy as np
import pytest

from gpt_keras.config import GPTConfig, RopeScaling
from gpt_keras.data.errors import InputError
from gpt_keras.data.hub_tokenizer import HubTokenizer
from gpt_keras.data.tokenizer import Tokenizer, TokenizerSettings
from gpt_keras.exporting.gguf import _add, export_gguf
from gpt_keras.gguf_file import GGUFModel, find_llama3_scaling, llama3_factors, load_gguf
from gpt_keras.gguf_header import GGUFFile
from gpt_keras.gguf_tokenizer import SPLITTINGS

from .conftest import build, program
from .test_model import BASE

LLAMA = {"position": "rotary", "normalization": "rms_norm", "feed_forward": "swiglu", "use_bias": False}
KINDS = {
    "gpt2": {},
    "gpt2_untied": {"tie_embeddings": False, "intermediate_dim": 96},
    "llama": {**LLAMA, "num_key_value_heads": 2},
    "llama_biases": {**LLAMA, "use_bias": True, "tie_embeddings": False},
    "llama_attention_bias": {**LLAMA, "use_bias": "attention", "num_key_value_heads": 1},
    "llama3": {**LLAMA, "rope_scaling": RopeScaling("llama3", 8.0, original_context_length=16), "head_dim": 16},
    "linear": {**LLAMA, "rope_scaling": RopeScaling("linear", 2.0)},
    "narrow": {**LLAMA, "hidden_dim": 40, "num_heads": 2, "head_dim": 20, "intermediate_dim": 72},
    "qwen3": {**LLAMA, "num_key_value_heads": 2, "head_dim": 16, "qk_norm": True},
    "qwen3_untied": {**LLAMA, "qk_norm": True, "tie_embeddings": False, "rope_theta": 1e6, "norm_epsilon": 1e-6},
}
TEXTS = [
    "def parse_line(token, limit=42):\n    return len(token)\n",
    "  two  spaces,\t a tab and\r\n a return ",
    "I've 12345 apples; they'll DON'T cost 3.14159",
    "é 你好 🎉 naïve ﬁ ½ नमस्ते",
    "",
]


def config_of(kind: str) -> GPTConfig:
    derived = {"head_dim": None, "num_key_value_heads": None, "intermediate_dim": None}
    # Fewer tokens than rows, as published tables are padded.
    return dataclasses.replace(BASE, **{**derived, "vocabulary_size": 520, **KINDS[kind]})


def as_read(kind: str) -> GPTConfig:
    """What the file says of the configuration; how to initialize weights is not in it."""
    return dataclasses.replace(config_of(kind), initializer_range=0.02)


def varied(config: GPTConfig):
    """A model none of whose weights is at its initial zero or one."""
    model, draw = build(config), np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(np.array(weight) + 0.1 * draw.standard_normal(weight.shape).astype(np.float32))
    return model


def byte_level_tokenizer(splitting=SPLITTINGS[0], size: int = 500) -> HubTokenizer:
    """A small tokenizer.json that splits text in llama.cpp's way of that name."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    hub = tokenizers.Tokenizer(models.BPE(ignore_merges=splitting.ignore_merges))
    if splitting.normal_form_c:
        hub.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in splitting.patterns]
    hub.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    hub.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    hub.train_from_iterator([program(seed) for seed in range(20)] + TEXTS, trainer)
    hub.add_tokens([tokenizers.AddedToken("<tool>", special=False, normalized=False)])
    config = {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "add_bos_token": False,
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    files = {"tokenizer_config.json": json.dumps(config).encode()}
    return HubTokenizer(hub.to_str().encode(), "tokenizer.json", TokenizerSettings.read(files, "there"))


def edit(path, changed=None, tensors=None):
    """Write the file anew with other keys and tensors; `None` leaves one out.

    Args:
        path: The file.
        changed: Key to new value.
        tensors: Name to the new values, or to the type to store the old ones in.
    """
    file = GGUFFile(path)
    values = {name: file.read(name) for name in file.shapes} | (tensors or {})
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "replaced")
    for key, value in {**file.metadata, **(changed or {})}.items():
        if key != "general.architecture" and value is not None:
            if isinstance(value, np.ndarray):
                value = value.tobytes() if value.dtype == np.uint8 else value.tolist()
            _add(writer, key, value)
    architecture = (changed or {}).get("general.architecture", file.metadata["general.architecture"])
    writer.kv_data[0].pop("general.architecture")
    if architecture is not None:
        writer.add_string("general.architecture", architecture)
    for name, value in values.items():
        if isinstance(value, gguf.GGMLQuantizationType):
            writer.add_tensor(name, gguf.quantize(file.read(name), value), raw_dtype=value)
        elif value is not None:
            writer.add_tensor(name, np.ascontiguousarray(value))
    del file
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)
    return path


@pytest.fixture(scope="session")
def whole(tokenizer, tmp_path_factory) -> bytes:
    """A Llama type file with a SentencePiece tokenizer."""
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    export_gguf(varied(config_of("llama")), tokenizer, path, "f32")
    return path.read_bytes()


@pytest.fixture(scope="session")
def whole_byte_level(tmp_path_factory) -> bytes:
    """A GPT-2 type file with a byte-level tokenizer."""
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    export_gguf(varied(config_of("gpt2")), byte_level_tokenizer(), path, "f32")
    return path.read_bytes()


@pytest.fixture
def llama(whole, tmp_path):
    (tmp_path / "model.gguf").write_bytes(whole)
    return tmp_path / "model.gguf"


@pytest.fixture
def gpt2(whole_byte_level, tmp_path):
    (tmp_path / "model.gguf").write_bytes(whole_byte_level)
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4"])
def test_quantized_tensors_are_widened(llama, name):
    exact = GGUFModel(llama)
    kind = gguf.GGMLQuantizationType[name]
    before = exact.read("model.layers.1.self_attn.q_proj.weight").copy()
    edit(llama, tensors={"blk.1.attn_q.weight": kind})
    read = GGUFModel(llama).read("model.layers.1.self_attn.q_proj.weight")
    assert read.dtype == np.float32 and read.shape == before.shape
    assert 0 < np.abs(read - before).mean() < 0.15 * np.abs(before).mean()


def test_loading_goes_through_the_suffix(llama):
    import gpt_keras

    assert gpt_keras.load(llama).config == as_read("llama")


# --- Rotary frequencies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [8, 16, 32, 64])
@pytest.mark.parametrize(
    ("theta", "factor", "low", "high", "original"),
    [(500000.0, 8.0, 1.0, 4.0, 8192), (500000.0, 32.0, 1.0, 4.0, 8192), (10000.0, 4.0, 1.0, 4.0, 512)],
)
def test_llama3_scaling_is_recovered_from_its_outcome(half, theta, factor, low, high, original):
    factors = llama3_factors(theta, half, factor, low, high, original)
    found = find_llama3_scaling(factors, theta)
    again = llama3_factors(
        theta,
        half,
        *(found[k] for k in ("factor", "low_freq_factor", "high_freq_factor")),
        found["original_max_position_embeddings"],
    )
    np.testing.assert_allclose(again, factors, rtol=2e-5)
    assert found["factor"] == factor


def test_unusual_parameters_of_llama3_scaling_are_recovered_up_to_a_common_multiple():
    found = find_llama3_scaling(llama3_factors(500000.0, 64, 16.0, 2.0, 16.0, 5000), 500000.0)
    assert (found["high_freq_factor"], found["original_max_position_embeddings"]) == (8.0, 2500)


def test_other_frequency_factors_are_refused(llama):
    edit(llama, tensors={"rope_freqs.weight": np.linspace(1, 3, 4, dtype=np.float32)})
    with pytest.raises(InputError, match=r"rope_freqs.weight scales the rotary frequencies in a way that is not"):
        load_gguf(llama)


def test_frequency_factors_of_one_change_nothing(llama):
    edit(llama, tensors={"rope_freqs.weight": np.ones(4, np.float32)})
    assert load_gguf(llama)[0].config == as_read("llama")


def test_other_kinds_of_scaling_are_named(llama):
    edit(llama, {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0})
    with pytest.raises(InputError, match="'yarn' is not supported"):
        load_gguf(llama)


def test_the_old_key_of_linear_scaling_is_read(llama):
    edit(llama, {"llama.rope.scale_linear": 4.0})
    assert load_gguf(llama)[0].config.rope_scaling == RopeScaling("linear", 4.0)


def test_a_sliding_window_below_the_context_is_refused(llama):
    edit(llama, {"llama.attention.sliding_window": as_read("llama").context_length})
    assert load_gguf(llama)[0].config == as_read("llama")
    edit(llama, {"llama.attention.sliding_window": as_read("llama").context_length - 1})
    with pytest.raises(InputError, match="sliding_window is below the context's length"):
        load_gguf(llama)


# --- Tokenizers -------------------------------------------------------------------------------------------------------


def test_the_sentencepiece_model_comes_back_byte_for_byte(llama, tokenizer):
    assert GGUFModel(llama).tokenizer_files["tokenizer.model"] == tokenizer.model


def test_a_sentencepiece_model_is_rebuilt_from_what_every_file_has(llama, tokenizer):
    """Files of llama.cpp's own converter hold tokens, scores and types alone."""
    edit(llama, {"gpt_keras.sentencepiece": None})
    read = Tokenizer.from_files(GGUFModel(llama).tokenizer_files, str(llama))
    assert (read.begin_id, read.end_id, read.padding_id) == (
        tokenizer.begin_id,
        tokenizer.end_id,
        tokenizer.padding_id,
    )
    for text in [*TEXTS, *(program(seed) for seed in range(5))]:
        assert read.encode(text) == tokenizer.encode(text)
        assert read.decode(read.encode(text)) == text
    assert read.special == tokenizer.special


def test_a_space_before_the_text_is_kept(llama, tokenizer):
    edit(llama, {"gpt_keras.sentencepiece": None, "tokenizer.ggml.add_space_prefix": True})
    read = Tokenizer.from_files(GGUFModel(llama).tokenizer_files, str(llama))
    assert read.encode("token") == tokenizer.encode(" token")


@pytest.mark.parametrize("splitting", SPLITTINGS, ids=lambda splitting: splitting.names[0])
def test_byte_level_tokenizers_come_back_with_the_same_ids(splitting, tmp_path):
    tokenizer = byte_level_tokenizer(splitting)
    export_gguf(varied(config_of("gpt2")), tokenizer, tmp_path / "model.gguf", "f32")
    assert GGUFFile(tmp_path / "model.gguf").metadata["tokenizer.ggml.pre"] == splitting.names[0]
    _, read = load_gguf(tmp_path / "model.gguf")
    assert read.vocabulary_size == tokenizer.vocabulary_size
    for text in [*TEXTS, program(99), "<|im_start|>user<tool>"]:
        assert read.encode(text) == tokenizer.encode(text)
        assert read.encode(text, special=True) == tokenizer.encode(text, special=True)
        assert read.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    for what in ("special", "begin_id", "end_id", "end_ids", "adds_begin", "chat_template", "padding_id"):
        assert getattr(read, what) == getattr(tokenizer, what), what


def test_every_end_of_a_text_or_turn_is_kept(gpt2):
    edit(gpt2, {"tokenizer.ggml.eot_token_id": 0})
    _, read = load_gguf(gpt2)
    assert (read.end_id, read.end_ids) == (2, {0, 2})


def test_an_unknown_way_to_split_text_is_named(gpt2):
    edit(gpt2, {"tokenizer.ggml.pre": "kimi-k2"})
    with pytest.raises(InputError, match=r"tokenizer.ggml.pre 'kimi-k2' is not supported"):
        load_gguf(gpt2)


def test_another_kind_of_tokenizer_is_named(gpt2):
    edit(gpt2, {"tokenizer.ggml.model": "t5"})
    with pytest.raises(InputError, match=r"tokenizer.ggml.model 't5' is not supported"):
        load_gguf(gpt2)


def test_a_file_without_a_tokenizer_is_a_model_without_one(llama):
    edit(llama, {"tokenizer.ggml.model": "no_vocab"})
    assert load_gguf(llama)[1] is None


# --- Damage -----------------------------------------------------------------------------------------------------------


def refused(path, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        load_gguf(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_what_is_not_a_gguf_file_is_refused(tmp_path):
    refused(tmp_path / "nothing.gguf", "no file there")
    refused(tmp_path, "cannot be read")
    for content in (b"", b"GG", b"PK\3\4" + bytes(100)):
        (tmp_path / "other.gguf").write_bytes(content)
        refused(tmp_path / "other.gguf", "not a GGUF file|cannot be read")


def test_other_versions_and_byte_orders_are_named(llama):
    content = llama.read_bytes()
    for version, match in ((1, "version 1 is not supported"), (0x03000000, "a big-endian file")):
        llama.write_bytes(content[:4] + struct.pack("<I", version) + content[8:])
        refused(llama, match)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.05, 0.5, 0.999])
def test_a_cut_file_is_named(llama, share):
    content = llama.read_bytes()
    llama.write_bytes(content[: 8 + int(share * len(content))])
    refused(llama, "cut")


@pytest.mark.parametrize("at", [8, 16])
@pytest.mark.parametrize("count", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_absurd_counts_end_at_once(llama, at, count):
    content = llama.read_bytes()
    llama.write_bytes(content[:at] + struct.pack("<Q", count) + content[at + 8 :])
    refused(llama, "damaged|cut")


def test_an_absurd_length_of_an_array_ends_at_once(llama):
    content = bytearray(llama.read_bytes())
    for key, where in ((b"tokenizer.ggml.tokens", 8), (b"tokenizer.ggml.scores", 8)):
        damaged = bytearray(content)
        at = content.index(key) + len(key) + where
        damaged[at : at + 8] = struct.pack("<Q", 1 << 60)
        llama.write_bytes(damaged)
        refused(llama, key.decode())


NEEDED = {
    "llama": ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"],
    "tokenizer.ggml": ["tokens"],
}


@pytest.mark.parametrize("key", [f"{group}.{key}" for group, keys in NEEDED.items() for key in keys])
def test_a_missing_key_is_named(llama, key):
    refused(edit(llama, {key: None}), f"the key {key} is missing")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.context_length", 0),
        ("llama.embedding_length", "32"),
        ("llama.attention.head_count", [4, 4]),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.layer_norm_rms_epsilon", float("nan")),
        ("llama.attention.key_length", 7),
        ("llama.attention.value_length", 4),
        ("llama.rope.dimension_count", 4),
        ("llama.rope.freq_base", 0.0),
        ("llama.expert_count", 8),
        ("tokenizer.ggml.bos_token_id", 512),
        ("tokenizer.ggml.token_type", [1, 2, 3]),
        ("tokenizer.ggml.token_type", [9] * 520),
        ("tokenizer.ggml.token_type", [1.0] * 520),
        ("tokenizer.ggml.scores", [0.5]),
        ("tokenizer.ggml.scores", [float("nan")] * 520),
        ("tokenizer.ggml.add_bos_token", "yes"),
        ("gpt_keras.sentencepiece", bytes([255] * 9)),
        ("gpt_keras.sentencepiece", [1, 2, 3]),
    ],
)
def test_a_key_that_cannot_be_is_named(llama, key, value):
    word = "num_key_value_heads" if key.endswith("kv") else "rope_theta" if key.endswith("freq_base") else key
    word = "llama.attention.value_length" if key.endswith("key_length") else word
    refused(edit(llama, {key: value}), word)


def test_tokens_that_cannot_be_are_named(gpt2):
    metadata = GGUFFile(gpt2).metadata
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    content = gpt2.read_bytes()
    for key, value in (("tokens", ["twice", "twice", *tokens[2:]]), ("merges", [*merges, "un known"])):
        gpt2.write_bytes(content)
        refused(edit(gpt2, {f"tokenizer.ggml.{key}": value}), f"tokenizer.ggml.{key} has")
    gpt2.write_bytes(content)
    refused(edit(gpt2, {"tokenizer.ggml.merges": None}), r"tokenizer.ggml.merges is missing")


def test_more_tokens_than_rows_are_named(llama):
    smaller = GGUFFile(llama).read("token_embd.weight")[:500].copy()
    refused(edit(llama, tensors={"token_embd.weight": smaller}), "512 tokens, token_embd.weight 500")


@pytest.mark.parametrize("architecture", ["gemma3", "replaced", ""])
def test_another_architecture_is_named(llama, architecture):
    refused(edit(llama, {"general.architecture": architecture or None}), "is not supported, only gpt2, llama, qwen3")


def test_a_missing_tensor_is_named_as_in_the_file(llama):
    refused(edit(llama, tensors={"blk.1.attn_output.weight": None}), r"blk\.1\.attn_output\.weight is missing")
    refused(edit(llama, tensors={"token_embd.weight": None}), r"token_embd\.weight is missing")


def test_an_unknown_tensor_is_named(llama):
    refused(edit(llama, tensors={"blk.1.surprise.weight": np.zeros(32, np.float32)}), "unknown tensor blk.1.surprise")


def test_a_misshapen_tensor_is_named_as_in_the_file(llama):
    refused(edit(llama, tensors={"blk.0.ffn_up.weight": np.zeros((3, 32), np.float32)}), r"blk\.0\.ffn_up\.weight has")


def test_a_number_that_is_not_finite_is_named(llama):
    refused(edit(llama, tensors={"output_norm.weight": np.full(32, np.nan, np.float32)}), r"output_norm\.weight holds")


def test_integers_are_no_weights(llama):
    refused(edit(llama, tensors={"output_norm.weight": np.ones(32, np.int32)}), r"output_norm\.weight is of a type")


@pytest.mark.parametrize(
    ("key", "value"),
    [("llama.embedding_length", 1 << 30), ("llama.block_count", 2**31 - 1), ("llama.feed_forward_length", 1 << 30)],
)
def test_absurd_sizes_cost_no_memory(llama, key, value, monkeypatch):
    monkeypatch.setattr("gpt_keras.gguf_file.GPT", None)  # not even tried
    refused(edit(llama, {key: value}), "has shape|is missing|must be")


def test_tensors_that_do_not_lie_one_behind_the_other_are_refused(llama):
    content = llama.read_bytes()
    at = content.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 16 + 4
    llama.write_bytes(content[:at] + struct.pack("<Q", 32) + content[at + 8 :])
    refused(llama, r"blk\.0\.attn_q\.weight .* does not lie where it should")


@pytest.mark.parametrize("whole_file", ["whole", "whole_byte_level"])
def test_a_flipped_bit_in_the_header_gives_an_error_or_a_model(whole_file, request, tmp_path):
    content = bytearray(request.getfixturevalue(whole_file))
    path, draw = tmp_path / "model.gguf", random.Random(0)
    end = len(content) - sum(4 * int(np.prod(shape)) for shape in _shapes(content, path).values())
    for _ in range(300):
        at, bit = draw.randrange(end), 1 << draw.randrange(8)
        content[at] ^= bit
        path.write_bytes(content)
        try:
            model = GGUFModel(path)
            model.check()
            Tokenizer.from_files(model.tokenizer_files, str(path))
        except InputError as error:
            assert "\n" not in str(error)
        content[at] ^= bit


def _shapes(content: bytes, path) -> dict[str, tuple[int, ...]]:
    path.write_bytes(content)
    return GGUFFile(path).shapes
