"""Every architecture against `transformers`, over configurations drawn at random, both ways."""

import copy
import dataclasses
import json
import random
import re

import numpy as np
import pytest

from gpt_keras.architectures import ARCHITECTURES, architecture_for, read_config, write_config
from gpt_keras.attention import rotary_frequencies
from gpt_keras.config import PRESETS, GPTConfig, RopeScaling
from gpt_keras.data.errors import InputError
from gpt_keras.folder import load_folder, save_folder
from gpt_keras.model import GPT

from .conftest import random_ids
from .test_model import BASE, CHANGES, DERIVED

VOCABULARY, LENGTH = 67, 24

# --- Random configurations --------------------------------------------------------------------------------------------


def draw_gpt(draw: random.Random) -> dict:
    heads = draw.choice([1, 2, 4])
    return {
        "vocab_size": VOCABULARY,
        "n_positions": LENGTH,
        "n_layer": draw.choice([1, 2, 3]),
        "n_head": heads,
        "n_embd": heads * draw.choice([3, 8]),
        "layer_norm_epsilon": draw.choice([1e-5, 1e-2]),
        "tie_word_embeddings": draw.choice([True, False]),
    }


def draw_gpt2(draw: random.Random) -> dict:
    return {
        **draw_gpt(draw),
        "n_inner": draw.choice([None, 20]),
        "activation_function": draw.choice(["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]),
    }


def draw_openai_gpt(draw: random.Random) -> dict:
    return {**draw_gpt(draw), "afn": draw.choice(["gelu", "relu"])}


def draw_rope(draw: random.Random) -> dict:
    kind = draw.choice(["default", "linear", "llama3"])
    rope = {"rope_type": kind}
    if kind != "default":
        rope["factor"] = draw.choice([2.0, 8])
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    return {**rope, "rope_theta": draw.choice([100.0, 10000.0])}


def draw_llama(draw: random.Random) -> dict:
    heads = draw.choice([2, 4])
    return {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": LENGTH,
        "num_hidden_layers": draw.choice([1, 2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, 2, heads]),
        "head_dim": draw.choice([4, 10]),
        "hidden_size": heads * draw.choice([6, 8]),
        "intermediate_size": draw.choice([20, 40]),
        "rms_norm_eps": draw.choice([1e-6, 1e-2]),
        "tie_word_embeddings": draw.choice([True, False]),
        "attention_bias": draw.choice([True, False]),
        "mlp_bias": draw.choice([True, False]),
        "rope_parameters": draw_rope(draw),
    }


def draw_qwen3(draw: random.Random) -> dict:
    return {**draw_llama(draw), "hidden_size": 30}


def draw_mistral(draw: random.Random) -> dict:
    return {**draw_llama(draw), "hidden_size": 30, "sliding_window": draw.choice([None, LENGTH, 4096])}


DRAW = {
    "gpt2": draw_gpt2,
    "openai-gpt": draw_openai_gpt,
    "llama": draw_llama,
    "qwen3": draw_qwen3,
    "mistral": draw_mistral,
}


def hub_model(kind: str, seed: int, folder):
    """Their model of a random configuration, in float32, and saved in `folder` in a random dtype and style.

    Every weight is random, those that start as 0 or 1 too.
    """
    import torch
    import transformers

    draw = random.Random(f"{kind} {seed}")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **DRAW[kind](draw)))
    dtype = draw.choice([torch.float32, torch.float16, torch.bfloat16])
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((weight + 0.3 * torch.randn_like(weight)).to(dtype))
    copy.deepcopy(model).to(dtype).save_pretrained(folder, max_shard_size=draw.choice(["50KB", "5GB"]))
    if draw.choice([True, False]):
        use_older_rope_keys(folder / "config.json", draw.choice(["type", "rope_type"]))
    return model.eval()


def use_older_rope_keys(file, key: str) -> None:
    """Rewrite a config.json as transformers 4 wrote it."""
    raw = json.loads(file.read_text())
    rope = raw.pop("rope_parameters", None)
    if rope is not None:
        raw["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        raw["rope_scaling"] = None if kind == "default" else {key: kind, **rope}
    file.write_text(json.dumps(raw))


def assert_same_logits(ours: GPT, theirs) -> None:
    """At every token of rows of different lengths, padded on the right and on the left."""
    import torch

    ids = random_ids((3, LENGTH), VOCABULARY)
    lengths = np.array([LENGTH, 7, 15])
    for real in (np.arange(LENGTH) < lengths[:, None], np.arange(LENGTH) >= LENGTH - lengths[:, None]):
        positions = np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32)
        logits, _ = ours.step(ids, positions, np.tile(real[:, None], (1, LENGTH, 1)))
        with torch.no_grad():
            expected = theirs(
                input_ids=torch.tensor(ids.astype(np.int64)),
                attention_mask=torch.tensor(real.astype(np.int64)),
                position_ids=torch.tensor(positions.astype(np.int64)),
            ).logits
        np.testing.assert_allclose(np.asarray(logits)[real], expected.numpy()[real], atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", DRAW)
def test_any_configuration_goes_both_ways(kind, seed, tmp_path):
    import transformers

    theirs = hub_model(kind, seed, tmp_path / "theirs")
    ours, _ = load_folder(tmp_path / "theirs")
    assert_same_logits(ours, theirs)

    save_folder(ours, None, tmp_path / "ours")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert_same_logits(ours, again.eval())
    assert read_config(json.loads((tmp_path / "ours" / "config.json").read_text()))[0] == ours.config


# --- Configurations ---------------------------------------------------------------------------------------------------

ROTARY = {"position": "rotary", "normalization": "rms_norm", "feed_forward": "swiglu", "use_bias": False}
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 16)


@pytest.mark.parametrize(
    "change",
    [
        *CHANGES.values(),
        {"feed_forward": "gelu_exact"},
        {"feed_forward": "relu"},
        {**ROTARY, "use_bias": "attention"},
        {**ROTARY, "use_bias": "feed_forward"},
        {**ROTARY, "rope_scaling": LLAMA3},
    ],
    ids=str,
)
def test_the_shapes_of_a_configuration_are_those_of_its_model(change):
    config = dataclasses.replace(BASE, **{**DERIVED, **change})
    model = GPT(config)
    assert list(config.weight_shapes()) == [(weight.path, tuple(weight.shape)) for weight in model.weights]
    again = GPT.from_config(json.loads(json.dumps(model.get_config())))
    assert again.config == config and hash(again.config) == hash(config)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_hugging_face_type(name):
    config = GPTConfig.from_preset(name)
    assert architecture_for(config)[0] is not None
    assert read_config(json.loads(json.dumps(write_config(config))))[0] == config


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"position": "sinusoidal"}, "position"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"head_dim": 16}, "head_dim"),
        ({"norm_order": "post", "intermediate_dim": 48}, "intermediate_dim"),
        ({"norm_order": "post", "feed_forward": "gelu_exact"}, "feed_forward"),
        ({**ROTARY, "feed_forward": "relu"}, "feed_forward"),
        ({**ROTARY, "qk_norm": True, "use_bias": "feed_forward"}, "use_bias"),
    ],
    ids=str,
)
def test_what_no_hugging_face_type_can_express_is_named_and_kept_as_our_own(change, field):
    config = dataclasses.replace(BASE, **{**DERIVED, "intermediate_dim": None, **change})
    assert architecture_for(config) == (None, field)
    written = json.loads(json.dumps(write_config(config)))
    assert written["model_type"] == "gpt_keras"
    assert read_config(written) == (config, None)


def test_heads_that_do_not_divide_the_width_are_written_as_a_type_that_allows_it():
    config = dataclasses.replace(BASE, **ROTARY, hidden_dim=30, head_dim=8)
    assert architecture_for(config)[0] is ARCHITECTURES["mistral"]


@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_scaled_rotary_frequencies_are_those_of_transformers(kind):
    import torch
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = RopeScaling(kind, 8.0, 1.0, 4.0, 8192)
    config = dataclasses.replace(BASE, **ROTARY, head_dim=64, rope_theta=500000.0, rope_scaling=scaling)
    theirs = transformers.LlamaConfig(**ARCHITECTURES["llama"].to_keys(config))
    expected, _ = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"))
    np.testing.assert_allclose(rotary_frequencies(config), expected.numpy(), rtol=1e-6)


def hub_config(kind: str, **changes) -> dict:
    raw = {"model_type": kind, **DRAW[kind](random.Random(0)), **changes}
    return {key: value for key, value in raw.items() if value is not ...}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gpt2", {"n_layer": "12"}, "n_layer must be a whole number of at least 1 and below 2**31, not '12'"),
        ("gpt2", {"n_layer": None}, "n_layer must be a whole number of at least 1 and below 2**31, not None"),
        ("gpt2", {"n_layer": -1}, "n_layer must be a whole number"),
        ("gpt2", {"n_layer": 2.0}, "n_layer must be a whole number"),
        ("gpt2", {"n_layer": True}, "n_layer must be a whole number"),
        ("gpt2", {"n_layer": [2]}, "n_layer must be a whole number"),
        ("gpt2", {"n_positions": 10**30}, "n_positions must be a whole number of at least 1 and below 2**31"),
        ("gpt2", {"n_embd": ...}, "the key 'n_embd' is missing"),
        ("gpt2", {"n_embd": 33, "n_head": 4}, "n_embd=33 is not divisible by n_head=4"),
        ("gpt2", {"n_inner": "big"}, "n_inner must be"),
        ("gpt2", {"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon must be a number of at least 0, not '1e-5'"),
        ("gpt2", {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be a number"),
        ("gpt2", {"layer_norm_epsilon": True}, "layer_norm_epsilon must be a number"),
        ("gpt2", {"layer_norm_epsilon": -1.0}, "layer_norm_epsilon must be a number"),
        ("gpt2", {"resid_pdrop": 1.5}, "resid_pdrop must be at least 0 and below 1"),
        ("gpt2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, not 'yes'"),
        ("gpt2", {"activation_function": "mish"}, "activation_function='mish' is not supported"),
        ("gpt2", {"activation_function": {}}, "activation_function={} is not supported"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("openai-gpt", {"afn": "silu"}, "afn='silu' is not supported, only 'gelu'"),
        ("llama", {"num_key_value_heads": 3, "num_attention_heads": 4}, "num_attention_heads=4 is not a multiple of"),
        ("llama", {"head_dim": 5}, "head_dim=5 must be even"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ("llama", {"attention_bias": "no"}, "attention_bias and mlp_bias must be true or false"),
        ("llama", {"rope_parameters": [1]}, "rope_parameters must be an object"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2}}, "rope_scaling of type 'yarn' is not supported"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters of type 'dynamic' is not supported"),
        ("llama", {"rope_parameters": {"rope_type": ["x"]}}, "rope_parameters of type"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling of type 'linear' needs the key 'factor'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be above 0"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor must be a number"),
        (
            "llama",
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            "high_freq_factor=1 must be above low_freq_factor=4",
        ),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is not supported"),
        ("llama", {"rope_parameters": {"rope_theta": 10**400}}, "rope_theta must be a number"),
        ("mistral", {"sliding_window": 8}, "sliding_window=8 is not supported"),
        ("mistral", {"sliding_window": ..., "max_position_embeddings": 8192}, "sliding_window=4096 is not supported"),
        ("mistral", {"sliding_window": "x"}, "sliding_window='x' is not supported"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8}, "sliding_window=8 is not supported"),
        ("qwen3", {"layer_types": ["sliding_attention"]}, "layer_types="),
        ("qwen3", {"attention_bias": 7}, "attention_bias=7 is not supported"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_used_names_its_key(kind, changes, message):
    with pytest.raises(InputError, match=rf"^config\.json: .*{re.escape(message)}") as error:
        read_config(hub_config(kind, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("raw", [{}, {"model_type": "bert"}, {"model_type": ["gpt2"]}, {"model_type": "gpt_keras"}])
def test_a_config_of_no_known_type_is_an_error(raw):
    with pytest.raises(InputError, match=r"model_type|vocabulary_size"):
        read_config(raw)


def test_keys_that_change_nothing_are_accepted():
    raw = hub_config("llama", pretraining_tp=4, use_cache=False, rope_scaling=None, hidden_act="swish")
    assert read_config(raw)[0] == read_config(hub_config("llama"))[0]


@pytest.mark.parametrize("kind", DRAW)
def test_absent_keys_mean_what_they_mean_to_transformers(kind):
    import transformers

    needed = {"n_positions", "n_layer", "n_head", "n_embd", "vocab_size"} | {
        *("max_position_embeddings", "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    }
    raw = {key: value for key, value in hub_config(kind).items() if key in needed or key == "model_type"}
    raw |= {"n_embd": 64, "n_head": 4} if "gpt" in kind else {"hidden_size": 256, "num_attention_heads": 32}
    theirs = transformers.AutoConfig.for_model(**raw).to_dict()
    assert read_config(raw) == read_config({key: value for key, value in theirs.items() if value is not None} | raw)
