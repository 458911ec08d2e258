"""The next-token loss."""

from __future__ import annotations

from typing import Any

import keras

from gpt_keras import kernels


@keras.saving.register_keras_serializable(package="gpt_keras")
class NextTokenLoss(keras.losses.Loss):
    """Mean cross-entropy of the next token in nats, from logits of any float dtype, computed in float32."""

    def __init__(self, name: str = "next_token_loss", reduction: str = "sum_over_batch_size", **kwargs: Any) -> None:
        super().__init__(name=name, reduction=reduction, dtype="float32", **kwargs)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        # Keras's own __call__ would first cast all logits to float32, twice their memory in bfloat16.
        losses = kernels.cross_entropy(y_pred, y_true)
        if sample_weight is None:
            return keras.ops.mean(losses)
        sample_weight = keras.ops.cast(sample_weight, "float32")
        return keras.ops.sum(losses * sample_weight) / keras.ops.maximum(keras.ops.sum(sample_weight), 1.0)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return kernels.cross_entropy(y_pred, y_true)
