"""The loss from hidden states in pieces, against the plain one from logits."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from gpt_keras import kernels
from gpt_keras.kernels import vocabulary_loss
from gpt_keras.training.loss import NextTokenLoss

from .conftest import TENSORFLOW, random_ids


def value_and_gradients(function, *inputs):
    if TENSORFLOW:
        import tensorflow as tf

        inputs = [tf.constant(x) for x in inputs]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(*inputs)
        return [value, *tape.gradient(value, inputs)]
    import jax

    value, gradients = jax.value_and_grad(function, argnums=tuple(range(len(inputs))))(*inputs)
    return [value, *gradients]


@settings(max_examples=25 if TENSORFLOW else 8, deadline=None)  # JAX compiles every operation of every shape
@given(
    st.integers(1, 4), st.integers(1, 24), st.integers(2, 90), st.sampled_from([None, 40, 300]),
    st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 1e-2]), st.sampled_from(["all", "some", "some, counted"]),
    st.integers(0, 99),
)  # fmt: skip
def test_pieces_equal_the_whole(batch, length, vocabulary, piece, smoothing, z_loss, weighted, seed):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(batch, length, 8)).astype(np.float32)
    table = random.normal(size=(vocabulary, 8)).astype(np.float32)
    targets = random_ids((batch, length), vocabulary, seed)
    weights = None if weighted == "all" else random.integers(0, 2, (batch, length)).astype(np.float32)
    most = int(weights.sum()) if weighted == "some, counted" else None
    loss = NextTokenLoss(smoothing, z_loss, most)

    def plain(hidden, table):
        return 3.0 * loss(targets, ops.matmul(hidden, ops.transpose(table)), weights)

    def in_pieces(hidden, table):
        return 3.0 * loss.of_hidden_states(targets, hidden, table, weights)

    kept = vocabulary_loss.PIECE
    try:
        vocabulary_loss.PIECE = piece or kept
        ours = value_and_gradients(in_pieces, hidden, table)
    finally:
        vocabulary_loss.PIECE = kept
    for a, b in zip(ours, value_and_gradients(plain, hidden, table), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(TENSORFLOW, reason="what JAX has")
@pytest.mark.parametrize("piece", [64, 4096])
@pytest.mark.parametrize("vocabulary", [90, 128, 300])
def test_a_vocabulary_filled_up_for_a_gpu_gives_the_same(vocabulary, piece, monkeypatch):
    from gpt_keras.kernels import jax_vocabulary_loss

    random = np.random.default_rng(0)
    arrays = [random.normal(size=shape).astype(np.float32) for shape in ((2, 12, 8), (vocabulary, 8))]
    targets, loss = random_ids((2, 12), vocabulary), NextTokenLoss(0.1, 1e-2)
    theirs = value_and_gradients(lambda *arrays: loss.of_hidden_states(targets, *arrays), *arrays)
    monkeypatch.setattr(kernels, "on_jax_gpu", lambda: True)
    monkeypatch.setattr(jax_vocabulary_loss, "_GPU_PIECE", piece)
    ours = value_and_gradients(lambda *arrays: loss.of_hidden_states(targets, *arrays), *arrays)
    for a, b in zip(ours, theirs, strict=True):
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_smoothing_equals_kerass():
    logits, targets = np.random.default_rng(0).normal(size=(3, 5, 11)).astype(np.float32), random_ids((3, 5), 11)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    ours = NextTokenLoss(label_smoothing=0.2)(targets, logits)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs(np.eye(11)[targets], logits)), rtol=1e-6)


def sizes_in_step(hidden, table, targets):
    """Elements of every tensor of the loss and its gradient."""
    function = NextTokenLoss().of_hidden_states
    if TENSORFLOW:
        import tensorflow as tf

        @tf.function
        def step(hidden, table):
            with tf.GradientTape() as tape:
                tape.watch([hidden, table])
                loss = function(targets, hidden, table)
            return loss, tape.gradient(loss, [hidden, table])

        graph = step.get_concrete_function(tf.constant(hidden), tf.constant(table)).graph
        return [tensor.shape.num_elements() for op in graph.get_operations() for tensor in op.outputs]
    import jax

    def within(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from within(inner)

    gradient = jax.grad(lambda hidden, table: function(targets, hidden, table), argnums=(0, 1))
    return list(within(jax.make_jaxpr(gradient)(hidden, table).jaxpr))


@pytest.mark.parametrize("pieces", [1, 4])
def test_nothing_is_as_large_as_the_logits(pieces, monkeypatch):
    batch, length, vocabulary = 4, 64, 512
    monkeypatch.setattr(vocabulary_loss, "PIECE", batch * length * vocabulary // pieces)
    hidden, table = np.zeros((batch, length, 8), np.float32), np.zeros((vocabulary, 8), np.float32)
    largest = max(sizes_in_step(hidden, table, random_ids((batch, length), vocabulary)))
    assert largest == batch * length * vocabulary // pieces


@pytest.mark.parametrize("weighted", [False, True])
def test_a_model_trains_and_evaluates_as_with_logits(config, weighted):
    """A metric makes the model hand out logits; without one the loss takes hidden states."""
    from .conftest import build

    tokens, targets = random_ids((4, 32), config.vocabulary_size), random_ids((4, 32), config.vocabulary_size, seed=1)
    weights = np.random.default_rng(0).integers(0, 2, (4, 32)).astype(np.float32) if weighted else None
    results = []
    for metrics in (None, ["sparse_categorical_accuracy"]):
        model = build(config)
        model.compile(keras.optimizers.SGD(0.1), NextTokenLoss(z_loss=1e-3), metrics=metrics)
        steps = [np.ravel(model.train_on_batch(tokens, targets, weights))[0] for _ in range(3)]
        results.append([*steps, np.ravel(model.test_on_batch(tokens, targets, weights))[0]])
    np.testing.assert_allclose(results[0][:3], results[1][:3], rtol=1e-5)
