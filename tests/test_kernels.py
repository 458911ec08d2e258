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
    "gelu with bias": ([3 * normal(4, 16, 32), normal(32, seed=1)], []),
    "linear": ([normal(4, 16, 32), normal(32, 24, seed=1), normal(24, seed=2)], []),
    "swiglu": ([3 * normal(4, 16, 32), normal(4, 16, 32, seed=1)], []),
    "rotate": ([normal(2, 4, 8, 16)], [np.cos(normal(1, 1, 8, 8)), np.sin(normal(1, 1, 8, 8))]),
    "cross_entropy": ([3 * normal(4, 8, 64)], [random_ids((4, 8), 64)]),
}


def run(function, inputs, constants):
    """The result, and the gradients of the inputs for a random gradient from above."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        result = tf.cast(function(*inputs, *constants), tf.float32)
        loss = tf.reduce_sum(result * tf.constant(normal(*result.shape, seed=9)))
    return [result, *tape.gradient(loss, inputs)]


def assert_equal_with_fast_kernels(function, inputs, constants, dtype):
    import tensorflow as tf

    plain = run(function, inputs, constants)
    with kernels.fast_kernels():
        fast = run(function, inputs, constants)
    tolerance = 2e-5 if dtype == "float32" else 4e-2
    for a, b in zip(plain, fast, strict=True):
        assert a.dtype == b.dtype
        a, b = (tf.cast(x, tf.float32).numpy() for x in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(a).max()), rtol=tolerance)


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_fast_kernels_equal_plain_ones_in_value_and_gradient(name, dtype):
    import tensorflow as tf

    assert TENSORFLOW
    inputs, constants = CASES[name]
    # Parameters stay in float32, activations come in the dtype; gradients follow from random upstream ones.
    inputs = [tf.constant(x) if x.ndim == 1 else tf.cast(tf.constant(x), dtype) for x in inputs]
    assert_equal_with_fast_kernels(getattr(kernels, name.split()[0]), inputs, constants, dtype)


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
def test_what_goes_past_a_norm_adds_to_its_gradient(norm, dtype):
    import tensorflow as tf

    parameters = [tf.constant(normal(16, seed=i)) for i in range(1 if norm == "rms_norm" else 2)]

    def function(x, *parameters):
        kept, normed = getattr(kernels, norm)(x, *parameters, 1e-5, True)
        return tf.concat([3 * kept, normed], -1)

    assert_equal_with_fast_kernels(function, [tf.cast(normal(2, 8, 16), dtype), *parameters], [], dtype)


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("biased", [True, False])
def test_a_residual_is_added_to_a_product(biased, dtype):
    import tensorflow as tf

    x, kernel, residual = (tf.cast(normal(*shape), dtype) for shape in ((2, 8, 16), (16, 24), (2, 8, 24)))
    bias = [tf.constant(normal(24, seed=5))] if biased else []

    def function(x, kernel, residual, bias=None):
        return kernels.linear(x, kernel, bias, residual)

    assert_equal_with_fast_kernels(function, [x, kernel, residual, *bias], [], dtype)


@pytest.mark.skipif(TENSORFLOW, reason="what JAX has")
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_the_attention_of_gpus_equals_the_plain_one(key_value_heads, masked):
    """By the code that takes cuDNN's where there is a GPU, and XLA's here."""
    import jax

    from gpt_keras.kernels import jax_gpu

    inputs = [normal(2, heads, 24, 8, seed=i) for i, heads in enumerate((4, key_value_heads, key_value_heads))]
    documents = np.cumsum(np.random.default_rng(0).random((2, 24)) < 0.2, axis=1)
    mask = documents[:, :, None] == documents[:, None, :] if masked else None
    upstream = normal(2, 4, 24, 8, seed=9)

    def results(attention):
        value, back = jax.vjp(lambda *inputs: attention(*inputs, mask), *inputs)
        return [value, *back(upstream)]

    for ours, theirs in zip(results(jax_gpu.causal_attention), results(kernels.causal_attention), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("biased", [True, False])
def test_heads_are_projected_together_as_one_by_one(biased, dtype):
    import tensorflow as tf

    x, matrices = normal(2, 8, 16), [normal(16, heads * 4, seed=heads) for heads in (6, 2, 2)]
    biases = [tf.constant(normal(matrix.shape[1], seed=5)) for matrix in matrices]
    inputs = [tf.cast(tf.constant(part), dtype) for part in (x, *matrices)] + (biases if biased else [])

    def function(x, *weights):
        pairs = zip(weights[:3], weights[3:] if biased else [None] * 3, strict=True)
        return tf.concat(kernels.project_heads(x, list(pairs), 4), 1)

    assert_equal_with_fast_kernels(function, inputs, [], dtype)


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("length", "key_value_heads"), [(24, 4), (256, 2), (768, 1)])
def test_attention_in_blocks_equals_the_whole(length, key_value_heads, masked, dtype):
    """At lengths that make one block, two and three."""
    import tensorflow as tf

    shapes = ((2, 4, length, 8), (2, key_value_heads, length, 8), (2, key_value_heads, length, 8))
    inputs = [tf.cast(tf.constant(normal(*shape, seed=i)), dtype) for i, shape in enumerate(shapes)]
    documents = np.cumsum(np.random.default_rng(0).random((2, length)) < 0.05, axis=1)
    mask = documents[:, :, None] == documents[:, None, :]
    assert_equal_with_fast_kernels(kernels.causal_attention, inputs, [mask] if masked else [], dtype)


@pytest.mark.tensorflow
def test_attention_in_blocks_drops_the_same_in_value_and_gradient():
    """A difference quotient: with one seed the dropout is a fixed function."""
    import tensorflow as tf

    query, key, value = (tf.constant(normal(1, 2, 256, 4, seed=i)) for i in range(3))
    seed, direction = tf.constant([1, 2], tf.uint32), tf.constant(normal(1, 2, 256, 4, seed=7))

    def loss(query, key, value):
        with kernels.fast_kernels():
            result = kernels.causal_attention(query, key, value, None, 0.5, seed)
        return tf.reduce_sum(tf.cast(result, tf.float64) ** 2)

    for place in range(3):
        inputs = [query, key, value]
        with tf.GradientTape() as tape:
            tape.watch(inputs[place])
            found = loss(*inputs)
        slope = float(tf.reduce_sum(tape.gradient(found, inputs[place]) * direction))
        ends = [
            loss(*(x + step * direction if i == place else x for i, x in enumerate(inputs))) for step in (-1e-3, 1e-3)
        ]
        assert slope == pytest.approx(float(ends[1] - ends[0]) / 2e-3, rel=2e-2, abs=0.2)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_drops_its_share(rate):
    seed = keras.ops.convert_to_tensor([3, 4], "uint32")
    x = np.asarray(kernels.dropout(keras.ops.ones((101, 303)), rate, seed))
    assert np.mean(x == 0) == pytest.approx(rate, abs=0.01)
    np.testing.assert_allclose(x[x != 0], 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_array_equal(x, np.asarray(kernels.dropout(keras.ops.ones((101, 303)), rate, seed)))
    other = np.asarray(kernels.dropout(keras.ops.ones((101, 303)), rate, kernels.fold_seed(seed, 1)))
    assert np.mean((x == 0) & (other == 0)) == pytest.approx(rate * rate, abs=0.01)


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
