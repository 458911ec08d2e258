"""The faster kernels against the plain ones, in value and gradient; the plain ones against Keras."""

import keras
import numpy as np
import pytest

from gpt_keras import kernels

from .conftest import TENSORFLOW, random_ids


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_norms_equal_keras_layers():
    x = normal(2, 5, 16)
    ours = np.asarray(kernels.rms_norm(keras.ops.convert_to_tensor(x), keras.ops.ones(16), 1e-6))
    np.testing.assert_allclose(ours, np.asarray(keras.layers.RMSNormalization(epsilon=1e-6)(x)), atol=1e-5)
    ones, zeros = keras.ops.ones(16), keras.ops.zeros(16)
    ours = np.asarray(kernels.layer_norm(keras.ops.convert_to_tensor(x), ones, zeros, 1e-5))
    np.testing.assert_allclose(ours, np.asarray(keras.layers.LayerNormalization(epsilon=1e-5)(x)), atol=1e-5)


def test_attention_equals_keras_attention():
    query, key, value = (keras.ops.convert_to_tensor(normal(2, 4, 6, 8, seed=i)) for i in range(3))
    mask = np.tril(np.ones((1, 6, 6), bool))
    ours = kernels.weighted_values(kernels.attention_probabilities(query, key, mask), value)
    theirs = keras.ops.dot_product_attention(
        *(keras.ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value)), is_causal=True
    )
    np.testing.assert_allclose(np.asarray(ours), np.asarray(keras.ops.transpose(theirs, (0, 2, 1, 3))), atol=1e-5)


def test_grouped_heads_equal_repeated_ones():
    query = keras.ops.convert_to_tensor(normal(2, 6, 5, 8))
    key, value = normal(2, 2, 5, 8, seed=1), normal(2, 2, 5, 8, seed=2)
    mask = np.tril(np.ones((1, 5, 5), bool))

    def attend(key, value):
        key, value = keras.ops.convert_to_tensor(key), keras.ops.convert_to_tensor(value)
        return np.asarray(kernels.weighted_values(kernels.attention_probabilities(query, key, mask), value))

    np.testing.assert_allclose(attend(key, value), attend(key.repeat(3, 1), value.repeat(3, 1)), atol=1e-6)


def test_cross_entropy_equals_keras_loss():
    logits, targets = normal(3, 7, 50) * 5, random_ids((3, 7), 50)
    ours = np.asarray(kernels.cross_entropy(keras.ops.convert_to_tensor(logits), targets))
    theirs = keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)
    np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-5)


def test_the_cache_is_written_where_asked_and_nowhere_else():
    buffer, new = normal(2, 3, 10, 4), normal(2, 3, 2, 4, seed=1)
    positions = np.array([[0, 1], [7, 8]], np.int32)
    written = np.asarray(
        kernels.write_cache(keras.ops.convert_to_tensor(buffer), keras.ops.convert_to_tensor(new), positions)
    )
    expected = buffer.copy()
    expected[0, :, 0:2], expected[1, :, 7:9] = new[0], new[1]
    np.testing.assert_array_equal(written, expected)


CASES = {
    "rms_norm": ([normal(4, 16, 32), 1 + normal(32, seed=1)], [1e-6]),
    "layer_norm": ([normal(4, 16, 32), 1 + normal(32, seed=1), normal(32, seed=2)], [1e-5]),
    "gelu": ([3 * normal(4, 16, 32)], []),
    "swiglu": ([3 * normal(4, 16, 32), normal(4, 16, 32, seed=1)], []),
    "rotate": ([normal(2, 4, 8, 16)], [np.cos(normal(1, 1, 8, 8)), np.sin(normal(1, 1, 8, 8))]),
    "masked_softmax": ([3 * normal(2, 4, 8, 8)], [np.tril(np.ones((1, 8, 8), bool))]),
    "cross_entropy": ([3 * normal(4, 8, 64)], [random_ids((4, 8), 64)]),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_fast_kernels_equal_plain_ones_in_value_and_gradient(name, dtype):
    import tensorflow as tf

    assert TENSORFLOW
    inputs, constants = CASES[name]
    function = getattr(kernels, name)
    # Parameters stay in float32, activations come in the dtype; gradients follow from random upstream ones.
    inputs = [tf.constant(x) if x.ndim == 1 else tf.cast(tf.constant(x), dtype) for x in inputs]

    def run(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            result = tf.cast(function(*inputs, *constants), tf.float32)
            loss = tf.reduce_sum(result * tf.constant(normal(*result.shape, seed=9)))
        return [result, *tape.gradient(loss, inputs)]

    plain = run(inputs)
    with kernels.fast_kernels():
        fast = run(inputs)
    tolerance = 2e-5 if dtype == "float32" else 4e-2
    for a, b in zip(plain, fast, strict=True):
        assert a.dtype == b.dtype
        a, b = (tf.cast(x, tf.float32).numpy() for x in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(a).max()), rtol=tolerance)


@pytest.mark.tensorflow
def test_a_training_step_is_the_same_with_and_without_fast_kernels(config):
    from gpt_keras.training.loss import NextTokenLoss

    from .conftest import build

    tokens, targets = random_ids((4, 32), 512), random_ids((4, 32), 512, seed=1)

    def losses(model):
        model.compile(keras.optimizers.SGD(0.1), NextTokenLoss(), jit_compile=False)
        return [float(model.train_on_batch(tokens, targets)) for _ in range(3)]

    class Plain(type(build(config))):
        train_step = keras.Model.train_step

    plain = Plain(config)
    fast = build(config)
    plain.set_weights(fast.get_weights())
    np.testing.assert_allclose(losses(plain), losses(fast), rtol=1e-4)
