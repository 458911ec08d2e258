"""Our optimizers against Keras's own, and batches in parts against whole ones."""

import dataclasses

import keras
import numpy as np
import pytest

from gpt_keras.training.loss import NextTokenLoss
from gpt_keras.training.optimizer import AdamW, Muon, averaged_weights, make_optimizer
from gpt_keras.training.options import TrainOptions

from ..conftest import build, random_ids

TOKENS, TARGETS = random_ids((8, 32), 512), random_ids((8, 32), 512, seed=1)


def trained(config, optimizer, steps=4, weights=None, **attributes):
    model = build(config)
    for name, value in attributes.items():
        setattr(model, name, value)
    model.compile(optimizer, NextTokenLoss())
    losses = [np.ravel(model.train_on_batch(TOKENS, TARGETS, weights))[0] for _ in range(steps)]
    return model, losses


def assert_same_weights(a, b, atol):
    for one, other in zip(a.trainable_variables, b.trainable_variables, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=atol, err_msg=one.path)


@pytest.mark.parametrize(("ours", "kerass", "options"), [
    (AdamW, keras.optimizers.AdamW, {"beta_2": 0.95, "weight_decay": 0.1}),
    (Muon, keras.optimizers.Muon, {"adam_beta_2": 0.95, "weight_decay": 0.1, "exclude_layers": ["output_embedding"]}),
])  # fmt: skip
@pytest.mark.parametrize("clip", [None, 0.3])
def test_updates_equal_kerass(config, ours, kerass, options, clip):
    mine, my_losses = trained(config, ours(1e-2, global_clipnorm=clip, **options))
    theirs, their_losses = trained(config, kerass(1e-2, global_clipnorm=clip, **options))
    np.testing.assert_allclose(my_losses, their_losses, rtol=1e-4)
    assert_same_weights(mine, theirs, 2e-4)


@pytest.mark.tensorflow
@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_a_step_is_traced_once(config, optimizer):
    model = build(config)
    traced = []
    step = model.train_step
    model.train_step = lambda *arguments: traced.append(1) or step(*arguments)
    model.compile(optimizer(1e-2, global_clipnorm=1.0), NextTokenLoss())
    model.fit(TOKENS, TARGETS, batch_size=4, verbose=0)
    assert len(traced) == 1


def test_weight_decay_is_on_matrices_only(config):
    config = dataclasses.replace(config, use_bias=True, normalization="layer_norm")
    model = build(config)
    for optimizer in ("adamw", "muon"):
        optimizer = make_optimizer(TrainOptions(optimizer=optimizer, weight_decay=0.1))
        optimizer.build(model.trainable_variables)
        for variable in model.trainable_variables:
            decays = optimizer._use_weight_decay(variable)
            if isinstance(optimizer, Muon):
                decays = decays and not optimizer._should_use_adamw(variable)
                assert decays == (len(variable.shape) == 2 and "embedding" not in variable.path), variable.path
            else:
                assert decays == (len(variable.shape) == 2), variable.path


def test_muon_in_bfloat16_points_where_float32_does():
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 16, 24)).astype(np.float32)
    x /= np.linalg.norm(x, axis=(1, 2), keepdims=True)
    exact = np.stack([u @ v for u, _, v in (np.linalg.svd(matrix, full_matrices=False) for matrix in x)])
    for dtype in ("float32", "bfloat16"):
        found = Muon(product_dtype=dtype)._orthogonalized(keras.ops.cast(x, dtype))
        found = np.asarray(keras.ops.cast(found, "float32"))
        cosine = (found * exact).sum() / np.linalg.norm(found) / np.linalg.norm(exact)
        assert cosine > 0.97


@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_in_parts_equals_a_whole_one(config, weighted):
    weights = np.random.default_rng(0).integers(0, 2, TOKENS.shape).astype(np.float32) if weighted else None
    whole, whole_losses = trained(config, keras.optimizers.SGD(0.1), weights=weights)
    parts, part_losses = trained(config, keras.optimizers.SGD(0.1), weights=weights, num_parts=4)
    np.testing.assert_allclose(part_losses, whole_losses, rtol=1e-5)
    assert_same_weights(whole, parts, 1e-5)


def test_the_gradient_norm_is_logged_before_clipping(config):
    norms = []
    for optimizer in (AdamW(1e-3, global_clipnorm=0.01), AdamW(1e-3)):
        model = build(config)
        model.watch_gradient_norm = True
        model.compile(optimizer, NextTokenLoss())
        norms.append(model.train_on_batch(TOKENS, TARGETS, return_dict=True)["gradient_norm"])
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)

    model = build(config)
    model.compile(keras.optimizers.SGD(1.0), NextTokenLoss())
    before = [np.array(variable) for variable in model.trainable_variables]
    model.train_on_batch(TOKENS, TARGETS)
    moved = [(np.array(v) - b).ravel() for v, b in zip(model.trainable_variables, before, strict=True)]
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(moved)), norms[0], rtol=1e-3)


def test_averages_follow_the_weights_and_can_be_looked_at(config):
    model = build(config)
    model.compile(make_optimizer(TrainOptions(ema=0.5, learning_rate=0.01)), NextTokenLoss())
    expected = None
    for _ in range(3):
        model.train_on_batch(TOKENS, TARGETS)
        now = [np.array(variable) for variable in model.trainable_variables]
        expected = now if expected is None else [0.5 * e + 0.5 * n for e, n in zip(expected, now, strict=True)]
    with averaged_weights(model):
        for variable, value in zip(model.trainable_variables, expected, strict=True):
            np.testing.assert_allclose(np.array(variable), value, atol=1e-6)
    for variable, value in zip(model.trainable_variables, now, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)


def test_rates_and_losses_of_a_fit_are_its_steps_own(config):
    """Against steps one by one; the step is compiled once, also where JAX holds the state."""
    rates, batches = [1e-2, 1e-3, 0.0, 2e-3], [random_ids((8, 33), 512, seed=i) for i in range(4)]

    def model_and_losses(steps):
        model, losses = build(config), []
        model.compile(AdamW(1.0, global_clipnorm=1.0), NextTokenLoss())
        steps(model, losses)
        return model, losses

    class Rates(keras.callbacks.Callback):
        losses = None

        def on_train_batch_begin(self, batch, logs=None):
            self._model.prepare_step(rates[batch])

        def on_train_batch_end(self, batch, logs=None):
            self.losses.append(float(logs["loss"]))

    def in_fit(model, losses):
        rates = Rates()
        rates.losses = losses
        data = ((batch[:, :-1], batch[:, 1:]) for batch in batches)
        model.fit(data, steps_per_epoch=4, epochs=1, verbose=0, callbacks=[rates])

    def one_by_one(model, losses):
        for rate, batch in zip(rates, batches, strict=True):
            model.optimizer.learning_rate = rate
            model.reset_metrics()
            losses.append(float(np.ravel(model.train_on_batch(batch[:, :-1], batch[:, 1:]))[0]))

    (ours, our_losses), (theirs, their_losses) = model_and_losses(in_fit), model_and_losses(one_by_one)
    np.testing.assert_allclose(our_losses, their_losses, rtol=1e-5)
    assert_same_weights(ours, theirs, atol=1e-4)  # Adam makes much of the rounding of small gradients
