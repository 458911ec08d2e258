"""The next-token loss."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from gpt_keras import kernels
from gpt_keras.kernels import vocabulary_loss

Tensor = Any
_ALIGNMENT = 64


@keras.saving.register_keras_serializable(package="gpt_keras")
class NextTokenLoss(keras.losses.Loss):
    """Mean cross-entropy of the next token in nats, from logits of any float dtype, computed in float32.

    A `GPT` that is compiled with it, and without metrics, hands its hidden states over instead of logits
    (`of_hidden_states`), so that the logits of a whole batch are never in memory.

    Args:
        label_smoothing: This share of the target's probability is spread evenly over the vocabulary (Szegedy et al.
            2016, https://arxiv.org/abs/1512.00567).
        z_loss: Factor of the squared log of the softmax's normalizer, which keeps logits from drifting; 1e-4 in PaLM
            (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, section 5).
        most_weighted: How many tokens of a batch have a weight other than 0 at most. In training only they then go
            through the output head, and what else is in their last piece; in fine-tuning most have none. `None` for
            all.
        **kwargs: `name` of `keras.losses.Loss`.
    """

    def __init__(
        self, label_smoothing: float = 0.0, z_loss: float = 0.0, most_weighted: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**{"name": "next_token_loss", "dtype": "float32", **kwargs})
        self.label_smoothing, self.z_loss, self.most_weighted = label_smoothing, z_loss, most_weighted

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        # Keras's own __call__ would first cast all logits to float32, twice their memory in bfloat16.
        losses = self.call(y_true, y_pred)
        if sample_weight is not None:
            losses = losses * ops.cast(sample_weight, "float32")
        return ops.sum(losses) / _total(y_true, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss of every token, float32 of `y_true`'s shape."""
        losses = kernels.cross_entropy(y_pred, y_true)
        if self.label_smoothing or self.z_loss:
            wide = ops.cast(y_pred, "float32")
            normalizer = ops.logsumexp(wide, axis=-1)
            evenly = normalizer - ops.mean(wide, axis=-1)
            losses = losses + self.label_smoothing * (evenly - losses) + self.z_loss * ops.square(normalizer)
        return losses

    def of_hidden_states(
        self, y_true: Tensor, hidden: Tensor, table: Tensor, sample_weight: Tensor | None = None, training: bool = True
    ) -> Tensor:
        """The same from what the output head sees.

        Args:
            y_true: int [batch, length].
            hidden: [batch, length, hidden_dim].
            table: The head's matrix, [vocabulary, hidden_dim].
            sample_weight: float [batch, length].
            training: Without it only the cross-entropy is computed, with no gradient.
        """
        total_weight = _total(y_true, sample_weight)
        ordered = False
        if sample_weight is not None and self.most_weighted is not None:
            ordered = True
            hidden, y_true, sample_weight = weighted_tokens(
                hidden, self.most_weighted, sample_weight, y_true, sample_weight
            )
        if training:
            numbers = self.label_smoothing, self.z_loss
            total = vocabulary_loss.summed_loss(hidden, table, y_true, sample_weight, *numbers, weighted_first=ordered)
        else:
            losses = vocabulary_loss.losses(hidden, table, y_true)
            total = ops.sum(losses if sample_weight is None else losses * ops.cast(sample_weight, "float32"))
        return total / total_weight

    def get_config(self) -> dict[str, Any]:
        own = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss, "most_weighted": self.most_weighted}
        return {**super().get_config(), **own}


def weighted_tokens(hidden: Tensor, most: int, weights: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The tokens of a batch that have a weight, as one row, and behind them some, or all, that have none.

    Args:
        hidden: [batch, length, hidden_dim].
        most: How many there are at most.
        weights: float [batch, length]; which they are.
        *others: What else is wanted of the tokens, each [batch, length].

    Returns:
        Hidden states [1, n, hidden_dim] and `others` [1, n]; n is `most`, rounded up, or all.
    """
    size = weights.shape[0] * weights.shape[1]
    count = min(size, -(-max(1, most) // _ALIGNMENT) * _ALIGNMENT)
    _, places = ops.top_k(ops.cast(ops.reshape(weights, (-1,)) != 0, "float32"), count)
    return tuple(ops.take(ops.reshape(x, (size, *x.shape[2:])), places, axis=0)[None] for x in (hidden, *others))


def _total(y_true: Tensor, sample_weight: Tensor | None) -> Tensor:
    """The weight of all tokens of the batch, over all devices."""
    if sample_weight is None:
        return _over_replicas(ops.cast(ops.size(y_true), "float32"))
    return ops.maximum(_over_replicas(ops.sum(ops.cast(sample_weight, "float32"))), 1.0)


def _over_replicas(total: Tensor) -> Tensor:
    """The sum over the replicas of a distribution strategy of TensorFlow, which add up their gradients."""
    if keras.backend.backend() != "tensorflow":
        return total
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return total
    return context.all_reduce(tf.distribute.ReduceOp.SUM, total)
