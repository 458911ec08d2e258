"""Direct preference optimization: of two answers to a prompt, the preferred one is made more probable than the other.

    loss = -log sigmoid(beta * (log p(chosen) / p_0(chosen) - log p(rejected) / p_0(rejected)))

p_0 is the model as it was before. Its probabilities of all answers are found once, so that it need not stay in memory.

Source: Rafailov et al. 2023, https://arxiv.org/abs/2305.18290.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from gpt_keras.data.finetuning import INPUTS, PackedBatches
from gpt_keras.data.pipeline import numbered_dataset
from gpt_keras.kernels import vocabulary_loss
from gpt_keras.training.loss import NextTokenLoss, weighted_tokens

Tensor = Any


def preference_losses(margins: np.ndarray, reference_margins: np.ndarray, beta: float) -> np.ndarray:
    """The loss of each pair in nats, float64.

    Args:
        margins: log p(chosen) - log p(rejected) of each pair.
        reference_margins: The same of the model as it was.
        beta: How strongly the model is held to that.
    """
    return np.logaddexp(0.0, -beta * (margins - reference_margins))


def margins_of(nats: np.ndarray) -> np.ndarray:
    """log p(chosen) - log p(rejected) of pairs, from the negative log-likelihoods of chosen, rejected, chosen, ..."""
    return nats[1::2] - nats[0::2]


@dataclass(frozen=True)
class PairBatches:
    """Batches of pairs for `PreferenceLoss`; batch number n is a pure function of the arguments and n.

    Attributes:
        packed: Of pairs (`group=2`): in each row the segments 1, 3, ... are chosen, 2, 4, ... rejected.
        reference_margins: float [pairs].
    """

    packed: PackedBatches
    reference_margins: np.ndarray

    @property
    def most_pairs(self) -> int:
        """Of a row."""
        return max(map(len, self.packed.rows)) // 2

    def dataset(self, start: int = 0, stop: int | None = None) -> Any:
        """Elements are (inputs, targets, weights): inputs and weights as `PackedBatches.batch` has them, targets a
        dictionary of `targets` and `segment_ids`, int32 [rows, context_length], and `reference_margins`, float32
        [rows, most_pairs]."""
        import tensorflow as tf

        tokens, pairs = (self.packed.batch_size, self.packed.context_length), (self.packed.batch_size, self.most_pairs)

        def finish(*parts: Any) -> Any:
            *inputs, targets, weights, margins = parts
            named = dict(zip(INPUTS, inputs, strict=True))
            of_pairs = {
                "targets": targets,
                "segment_ids": named["segment_ids"],
                "reference_margins": tf.bitcast(margins, tf.float32),
            }
            return named, of_pairs, tf.cast(weights, tf.float32)

        return numbered_dataset(self._load, finish, [tokens] * (len(INPUTS) + 2) + [pairs], start, stop)

    def _load(self, number: int) -> tuple[np.ndarray, ...]:
        rows = self.packed.rows_of(number)
        margins = np.zeros((len(rows), self.most_pairs), np.float32)
        for row, examples in enumerate(rows):
            margins[row, : len(examples) // 2] = self.reference_margins[np.array(examples[::2]) // 2]
        return (*self.packed.fill(rows), margins.view(np.int32))


@keras.saving.register_keras_serializable(package="gpt_keras")
class PreferenceLoss(NextTokenLoss):
    """The mean loss of the pairs of a batch, from hidden states alone.

    The gradient goes the way of `NextTokenLoss`: the slope of the loss in each token's log-likelihood, found in a pass
    over the output head without gradients, is that token's weight.

    Args:
        beta: How strongly the model is held to what it was.
        **kwargs: `most_weighted` of `NextTokenLoss`.
    """

    def __init__(self, beta: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**{"name": "preference_loss", **kwargs})
        self.beta = beta

    def of_hidden_states(
        self,
        y_true: dict[str, Tensor],
        hidden: Tensor,
        table: Tensor,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """The loss of a batch of `PairBatches`.

        Args:
            y_true: The targets there.
            hidden: [rows, length, hidden_dim].
            table: The head's matrix, [vocabulary, hidden_dim].
            sample_weight: float [rows, length]; 1 for what the answers say, else 0.
            training: Without it there is no gradient.
        """
        assert sample_weight is not None
        reference = y_true["reference_margins"]
        rows, pairs = reference.shape
        segments = y_true["segment_ids"]
        signs = ops.where(segments % 2 == 1, 1.0, -1.0) * ops.cast(sample_weight, "float32")
        # Every token's pair, and behind all pairs one for what belongs to none.
        places = ops.arange(rows, dtype="int32")[:, None] * pairs + (segments - 1) // 2
        places = ops.where(segments > 0, places, rows * pairs)
        targets, most = y_true["targets"], self.most_weighted
        if most is None:
            most = targets.shape[0] * targets.shape[1]
        hidden, targets, signs, places = weighted_tokens(hidden, most, signs, targets, signs, places)
        frozen = ops.stop_gradient(ops.convert_to_tensor(table))
        losses = vocabulary_loss.losses(ops.stop_gradient(hidden), frozen, targets)
        flat = ops.reshape(places, (-1,))

        def summed(x: Tensor) -> Tensor:
            return ops.segment_sum(ops.reshape(x, (-1,)), flat, num_segments=rows * pairs + 1)[:-1]

        there = ops.cast(summed(ops.abs(signs)) > 0, "float32")
        count = ops.maximum(ops.sum(there), 1.0)
        advantage = self.beta * (-summed(signs * losses) - ops.reshape(reference, (-1,)))
        value = ops.sum(there * ops.softplus(-advantage)) / count
        if not training:
            return value
        slopes = ops.append(there * ops.sigmoid(-advantage), 0.0) * (self.beta / count)
        weights = ops.stop_gradient(signs * ops.take(slopes, places, axis=0))
        total = vocabulary_loss.summed_loss(hidden, table, targets, weights, weighted_first=True)
        return ops.stop_gradient(value) + total - ops.stop_gradient(total)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {"name": config["name"], "beta": self.beta, "most_weighted": self.most_weighted}
