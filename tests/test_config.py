import subprocess
import sys

import pytest

from gpt_keras.config import PRESETS, GPTConfig


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_configuration(name):
    config = GPTConfig.from_preset(name)
    assert GPTConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "count"), [("gpt2", 124_439_808), ("gpt", 116_534_784), ("smollm2-135m", 134_515_008)]
)
def test_published_presets_have_the_published_size(name, count):
    c = GPTConfig.from_preset(name)
    heads = c.num_heads * c.head_dim
    bias = 1 if c.use_bias else 0
    matrices = 2 if c.feed_forward == "gelu" else 3
    norm = c.hidden_dim * (2 if c.normalization == "layer_norm" else 1)
    block = (
        c.hidden_dim * (heads + 2 * c.num_key_value_heads * c.head_dim)
        + heads * c.hidden_dim
        + matrices * c.hidden_dim * c.intermediate_dim
        + bias * (heads + 2 * c.num_key_value_heads * c.head_dim + 2 * c.hidden_dim + c.intermediate_dim)
        + 2 * norm
    )
    embedding = c.vocabulary_size * c.hidden_dim + (c.context_length * c.hidden_dim if c.position == "learned" else 0)
    assert c.num_layers * block + embedding + (norm if c.norm_order == "pre" else 0) == count


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_dim": 100, "num_heads": 12}, "hidden_dim=100 is not divisible by num_heads=12"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1"),
        ({"vocabulary_size": -5}, "vocabulary_size"),
        ({"num_key_value_heads": 5}, "num_heads=12 is not a multiple of num_key_value_heads=5"),
        ({"position": "relative"}, "position must be one of learned, sinusoidal, rotary"),
        ({"position": "rotary", "head_dim": 7}, "head_dim=7 must be even"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{"vocabulary_size": 100, **fields})


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean gpt2-medium"):
        GPTConfig.from_preset("gpt2-medum")


def test_importing_the_package_imports_no_framework():
    code = "import gpt_keras, sys; assert not {'keras', 'tensorflow', 'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_data_side_imports_no_model_side():
    code = (
        "import sys, gpt_keras.data.preparation, gpt_keras.data.pretraining;"
        "assert not [m for m in sys.modules if m == 'keras' or m.startswith('gpt_keras.') and '.data' not in m]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_model_runs_on_jax_without_tensorflow():
    code = "import gpt_keras.model, gpt_keras.generation, sys; assert 'tensorflow' not in sys.modules"
    import os

    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "KERAS_BACKEND": "jax"})
