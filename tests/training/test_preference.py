"""Direct preference optimization: the published formula, by hand and through the model."""

import math

import keras
import numpy as np
import pytest

from gpt_keras.config import GPTConfig
from gpt_keras.data.finetuning import Examples, PackedBatches
from gpt_keras.evaluation.example_scoring import ExampleScorer
from gpt_keras.model import GPT
from gpt_keras.training.optimizer import make_optimizer
from gpt_keras.training.options import TrainOptions
from gpt_keras.training.preference import PairBatches, PreferenceLoss, margins_of, preference_losses

from ..test_vocabulary_loss import value_and_gradients

CONFIG = GPTConfig.from_preset("nano", vocabulary_size=40, context_length=32, dropout=0.0)


def pairs(count: int = 12, seed: int = 0) -> Examples:
    """Pairs of examples that share their first half."""
    random = np.random.default_rng(seed)
    tokens, trained = [], []
    for _ in range(count):
        prompt = random.integers(1, 40, random.integers(2, 5))
        for _ in range(2):
            answer = random.integers(1, 40, random.integers(2, 6))
            tokens.append(np.concatenate([prompt, answer]))
            trained.append(np.arange(len(prompt) + len(answer)) >= len(prompt))
    ends = np.cumsum([len(ids) for ids in tokens])
    return Examples(np.concatenate(tokens).astype(np.int32), np.concatenate(trained), ends, {})


def test_the_loss_is_the_published_one_by_hand():
    # The policy finds the chosen answer e^-2 and the rejected one e^-3 probable, the reference e^-2.5 both; beta 0.5:
    # -log sigmoid(0.5 * ((-2 + 2.5) - (-3 + 2.5))) = -log sigmoid(0.5) = log(1 + e^-0.5)
    margins, reference = margins_of(np.array([2.0, 3.0])), margins_of(np.array([2.5, 2.5]))
    assert preference_losses(margins, reference, 0.5)[0] == pytest.approx(0.4740769841801067)
    assert preference_losses(reference, reference, 0.5)[0] == pytest.approx(math.log(2))


@pytest.mark.parametrize("most", [None, 1000])
def test_the_loss_of_a_batch_is_that_of_its_pairs(most):
    keras.utils.set_random_seed(0)
    model, examples = GPT(CONFIG), pairs()
    packed = PackedBatches(examples, 32, 4, 0, group=2)
    reference = np.random.default_rng(1).normal(size=12)
    batches = PairBatches(packed, reference)
    nats = ExampleScorer(model, examples, 32, 4, 0).nats()
    inputs, targets, weights = next(iter(batches.dataset(0, 1).as_numpy_iterator()))
    chosen = [example // 2 for row in packed.rows_of(0) for example in row[::2]]
    expected = preference_losses(margins_of(nats)[chosen], reference[chosen], 0.3).mean()
    same = inputs["segment_ids"][:, :, None] == inputs["segment_ids"][:, None, :]
    hidden, _ = model.hidden_states(inputs["token_ids"], inputs["positions"], same)
    most = packed.most_trained(4) if most else None
    loss = PreferenceLoss(0.3, most_weighted=most)
    for training in (True, False):
        found = loss.of_hidden_states(targets, hidden, model.output_head.table, weights, training)
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_the_gradient_is_that_of_the_formula():
    random = np.random.default_rng(2)
    packed = PackedBatches(pairs(), 32, 4, 0, group=2)
    batches = PairBatches(packed, random.normal(size=12))
    _, targets, weights = next(iter(batches.dataset(0, 1).as_numpy_iterator()))
    hidden = random.normal(size=(4, 32, 16)).astype(np.float32)
    table = random.normal(size=(40, 16)).astype(np.float32)

    def formula(hidden, table):
        """Plain log-probabilities of every pair, one after the other."""
        log_probabilities = keras.ops.log_softmax(keras.ops.matmul(hidden, keras.ops.transpose(table)))
        chosen = keras.ops.one_hot(targets["targets"], 40, dtype="float32")
        said = keras.ops.sum(log_probabilities * chosen, axis=-1) * weights
        losses = []
        for row, examples in enumerate(packed.rows_of(0)):
            for pair in range(len(examples) // 2):
                here = [(targets["segment_ids"][row] == 2 * pair + i).astype(np.float32) for i in (1, 2)]
                margin = keras.ops.sum(said[row] * here[0]) - keras.ops.sum(said[row] * here[1])
                losses.append(keras.ops.softplus(-0.3 * (margin - targets["reference_margins"][row, pair])))
        return sum(losses) / len(losses)

    def ours(hidden, table):
        loss = PreferenceLoss(0.3, most_weighted=packed.most_trained(4))
        return loss.of_hidden_states(targets, hidden, table, weights)

    for a, b in zip(value_and_gradients(ours, hidden, table), value_and_gradients(formula, hidden, table), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_training_raises_the_margin():
    keras.utils.set_random_seed(0)
    model, examples = GPT(CONFIG), pairs(6)
    scorer = ExampleScorer(model, examples, 32, 4, 0)
    before = margins_of(scorer.nats())
    packed = PackedBatches(examples, 32, 4, 0, group=2)
    loss = PreferenceLoss(0.1, most_weighted=packed.most_trained(4))
    model.compile(make_optimizer(TrainOptions(optimizer="adamw", learning_rate=1e-3)), loss)
    history = model.fit(PairBatches(packed, before).dataset(0, 30), verbose=0, steps_per_epoch=30, shuffle=False)
    after = margins_of(scorer.nats())
    assert history.history["loss"][-1] < math.log(2)
    assert (after > before).all()
    assert preference_losses(after, before, 0.1).mean() < 0.6
