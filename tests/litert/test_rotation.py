"""A rotated model computes what it did."""

import numpy as np
import pytest

from gpt_keras.config import GPTConfig

from ..conftest import build, random_ids

pytestmark = pytest.mark.tensorflow
SHAPE = {"vocabulary_size": 96, "num_layers": 2, "hidden_dim": 48, "num_heads": 4, "context_length": 64}
LLAMA = {"position": "rotary", "normalization": "rms_norm", "num_key_value_heads": 2, "initializer_range": 0.3}


@pytest.mark.parametrize(
    "style",
    [
        {"feed_forward": "swiglu", "use_bias": False},
        {"feed_forward": "gelu", "use_bias": True, "tie_embeddings": False},
        {"feed_forward": "swiglu", "use_bias": "attention", "qk_norm": True, "head_dim": 24, "intermediate_dim": 80},
    ],
)
def test_in_float32_it_gives_the_same_logits(style):
    import tensorflow as tf

    from gpt_keras.litert import graph, rotation

    model = build(GPTConfig(**SHAPE, **LLAMA, **style))
    for variable in model.weights:  # scales and biases that matter
        if len(variable.shape) == 1:
            variable.assign(variable + np.random.default_rng(0).uniform(-0.5, 2, variable.shape))
    tokens = random_ids((3, 20), 96)
    expected = np.asarray(model(tokens))
    values, head = rotation.rotated(model)
    named = {
        graph.weight_name(i): tf.constant(value.T if graph.is_kernel(variable) else value)
        for i, (variable, value) in enumerate(zip(model.weights, values, strict=True))
    }
    named |= {graph.HEAD: head.T, graph.BLOCK: rotation.blocks(model.config.intermediate_dim)}
    with graph.computing_with(model, named):
        found = np.asarray(model(tokens))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3 * np.abs(expected).max())


def test_what_does_not_normalize_so_is_left_alone():
    from gpt_keras.litert import rotation

    assert not rotation.suits(build(GPTConfig(**SHAPE)))
    assert rotation.suits(build(GPTConfig(**SHAPE, **LLAMA)))
