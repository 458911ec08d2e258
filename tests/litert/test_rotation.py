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
def test_in_float32_it_gives_the_same_logits(style, tmp_path):
    import tensorflow as tf

    from gpt_keras.litert import graph, rotation
    from gpt_keras.litert.assembly import Template, assemble, prime_sizes
    from gpt_keras.litert.runtime import LiteRTFile
    from gpt_keras.litert.sizes import Sizes, row_name

    model = build(GPTConfig(**SHAPE, **LLAMA, **style))
    for variable in model.weights:  # scales and biases that matter
        if len(variable.shape) == 1:
            variable.assign(variable + np.random.default_rng(0).uniform(-0.5, 2, variable.shape))
    values, head = rotation.rotated(model)
    named = {
        graph.weight_name(i): value.T if graph.is_kernel(variable) else value
        for i, (variable, value) in enumerate(zip(model.weights, values, strict=True))
    }
    named |= {graph.HEAD: head.T, graph.BLOCK: rotation.blocks(model.config.intermediate_dim)}
    primes = prime_sizes(model.config, slots=False)
    template = Template(graph.convert(model, graph.RowForm, primes, True, turned=True), primes)
    sizes = Sizes(3, 0, 20)
    (tmp_path / "model.tflite").write_bytes(assemble([(row_name(sizes), template, sizes)], named))
    file = LiteRTFile(tmp_path / "model.tflite")
    inputs = {name: file.input(row_name(sizes), name) for name in file.shapes(row_name(sizes))}
    tokens = random_ids((3, 20), 96)
    inputs["tokens"].array[:], inputs["positions"].array[:] = tokens, np.arange(20)
    inputs["mask"].array[:] = np.triu(np.full((20, 20), -1e9, np.float32), 1)
    inputs["last"].array[:, 0, -1] = 1
    outputs = file.outputs(row_name(sizes))
    file.run(row_name(sizes), inputs, outputs)
    theirs = np.asarray(model(tf.constant(tokens)))[:, -1]
    np.testing.assert_allclose(outputs["logits"].array, theirs, rtol=1e-3, atol=2e-3 * np.abs(theirs).max())


def test_what_does_not_normalize_so_is_left_alone():
    from gpt_keras.litert import rotation

    assert not rotation.suits(build(GPTConfig(**SHAPE)))
    assert rotation.suits(build(GPTConfig(**SHAPE, **LLAMA)))
