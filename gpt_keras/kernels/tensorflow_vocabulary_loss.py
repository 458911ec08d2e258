"""`vocabulary_loss.summed_loss` on TensorFlow: products by oneDNN, what is between them one XLA cluster."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from gpt_keras import kernels
from gpt_keras.kernels import vocabulary_loss

Tensor = Any

_ALIGNMENT = 64


def summed_loss(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    label_smoothing: float,
    z_loss: float,
    weighted_first: bool,
    trains_table: bool,
) -> Tensor:
    """One piece after the other. The table is transposed once, and the vocabulary filled up to a multiple of 64, which
    makes products faster by up to a half."""
    vocabulary, width = table.shape
    behind = -vocabulary % _ALIGNMENT

    def loss_and_slope(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return vocabulary_loss.loss_and_slope(logits, targets, weights, label_smoothing, z_loss, vocabulary)

    def add(total: Tensor, slope: Tensor) -> Tensor:
        return tf.cast(total, tf.float32) + tf.cast(slope, tf.float32)

    def widened(slope: Tensor, factor: Tensor) -> Tensor:
        return tf.cast(factor * tf.cast(slope[:vocabulary], tf.float32), table.dtype)

    if kernels.fast() and None not in hidden.shape:  # each of them one pass over memory
        loss_and_slope, add, widened = (
            tf.function(function, jit_compile=True, autograph=False) for function in (loss_and_slope, add, widened)
        )

    @tf.custom_gradient
    def function(hidden: Tensor, table: Tensor) -> Any:
        columns = tf.pad(tf.transpose(tf.cast(table, hidden.dtype)), ((0, 0), (0, behind)))
        flat = [tf.reshape(hidden, (-1, width)), tf.reshape(targets, (-1,)), tf.reshape(weights, (-1,))]
        rows = flat[0].shape[0]
        sizes = [rows]
        if rows is not None:
            least = vocabulary_loss.least_pieces(rows, weighted_first)
            sizes = _even_sizes(rows, max(least, -(-rows * vocabulary // vocabulary_loss.PIECE)))
        total, hidden_slopes = tf.constant(0.0), []
        table_slope: list[Tensor] = []  # one, from the first piece on, which is never left out, if the table is trained
        before = None

        def of_piece(x: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
            loss, slope = loss_and_slope(tf.matmul(x, columns), target, weight)
            found = []
            if trains_table:
                part = tf.matmul(slope, x, transpose_a=True)
                first = tf.cast(part, tf.float32) if weighted_first else part
                found = [add(table_slope[0], part) if table_slope else first]
            return loss, tf.matmul(slope, columns, transpose_b=True), found

        def nothing(x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
            return tf.constant(0.0), tf.zeros_like(x), table_slope

        for x, target, weight in zip(
            *(tf.split(part, sizes) if len(sizes) > 1 else [part] for part in flat), strict=True
        ):
            if before is not None:
                with tf.control_dependencies([before]):  # else several pieces would be in memory at a time
                    x = tf.identity(x)
            if weighted_first and before is not None:
                loss, hidden_slope, table_slope = tf.cond(
                    tf.reduce_any(weight != 0),
                    functools.partial(of_piece, x, target, weight),
                    functools.partial(nothing, x),
                )
            else:
                loss, hidden_slope, table_slope = of_piece(x, target, weight)
            total += loss
            hidden_slopes.append(hidden_slope)
            before = table_slope[0] if trains_table else hidden_slope
        hidden_slope = tf.reshape(tf.concat(hidden_slopes, 0), tf.shape(hidden))

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            table_gradient = widened(table_slope[0], upstream) if table_slope else None
            return tf.cast(upstream, hidden.dtype) * hidden_slope, table_gradient

        return total, gradient

    return function(hidden, tf.convert_to_tensor(table))


def _even_sizes(total: int, count: int) -> list[int]:
    """Sizes of so many parts, of which all but the last are equal."""
    size = -(-total // count)
    return [min(size, total - start) for start in range(0, total, size)]
