"""The next-token loss straight from hidden states, in pieces, so that no [batch, length, vocabulary] is ever held.

Logits of a piece of the tokens are made, turned into losses and gradients, and dropped. The gradients are found in the
forward pass, since what comes from above is one number: the logits are never made twice.

Sources: Wijmans et al. 2024, https://arxiv.org/abs/2411.09009, for the idea of not keeping logits; label smoothing,
Szegedy et al. 2016; z-loss, Chowdhery et al. 2022 (PaLM), section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from gpt_keras import kernels

Tensor = Any

PIECE = 1 << 26
"""Most logits at a time: 128 MiB in bfloat16."""

_SKIPPED = 256
"""Tokens of a piece, where pieces without weight are left out: with fewer, going through the table takes the time."""


def summed_loss(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    weighted_first: bool = False,
) -> Tensor:
    """The sum over all tokens of weight * loss, in nats.

    Args:
        hidden: What the output head sees, [batch, length, hidden_dim]; with its gradient.
        table: The head's matrix [vocabulary, hidden_dim]; with its gradient, unless it is a frozen variable.
        targets: int [batch, length].
        weights: float [batch, length]; 1 for all where `None`.
        label_smoothing: This share of the target's probability is spread evenly over the vocabulary.
        z_loss: Factor of the squared log of the softmax's normalizer, which keeps logits from drifting.
        weighted_first: Tokens without weight stand behind all others: pieces of nothing but them are left out.

    Returns:
        float32 scalar.
    """
    weights = ops.ones(ops.shape(targets), "float32") if weights is None else ops.cast(weights, "float32")
    numbers = (label_smoothing, z_loss, weighted_first)
    arguments = (hidden, ops.convert_to_tensor(table), ops.cast(targets, "int32"), weights, *numbers)
    if keras.backend.backend() == "jax":
        from gpt_keras.kernels import jax_vocabulary_loss

        return jax_vocabulary_loss.summed_loss(*arguments)
    from gpt_keras.kernels import tensorflow_vocabulary_loss

    return tensorflow_vocabulary_loss.summed_loss(*arguments, getattr(table, "trainable", True))


def losses(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """The loss of every token, float32 [batch, length], without gradients. Arguments as `summed_loss`."""
    parts = [
        kernels.cross_entropy(kernels.project_to_vocabulary(part, ops.cast(table, part.dtype)), target)
        for part, target in zip(*(_pieces(x, hidden, table) for x in (hidden, targets)), strict=True)
    ]
    return ops.concatenate(parts, axis=1)


def least_pieces(tokens: int, weighted_first: bool) -> int:
    """Into how many pieces tokens are cut at least."""
    return min(8, max(1, tokens // _SKIPPED)) if weighted_first else 1


def num_pieces(batch: int, length: int, vocabulary: int, least: int = 1, most_logits: int | None = None) -> int:
    """The smallest divisor of `length` that cuts the logits into pieces of at most `most_logits` (default: `PIECE`),
    but no smaller than the largest divisor up to `least`."""
    most_logits = most_logits or PIECE
    least = next(n for n in range(least, 0, -1) if length % n == 0)
    return next(
        n
        for n in range(least, length + 1)
        if length % n == 0 and (batch * length * vocabulary <= n * most_logits or n == length)
    )


def loss_and_slope(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    label_smoothing: float,
    z_loss: float,
    vocabulary: int | None = None,
    reduce: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """The summed loss of a piece, and its gradient with respect to the logits, in their dtype.

    Args:
        logits: [..., vocabulary].
        targets: int32 [...].
        weights: float32 [...].
        label_smoothing: As `summed_loss`.
        z_loss: As `summed_loss`.
        vocabulary: How many of the logits mean something, by default all; the others' gradient is 0.
        reduce: What `max_sum_and_chosen` does, by default that.
    """
    wide = ops.cast(logits, "float32")
    columns = ops.arange(logits.shape[-1], dtype="int32")
    vocabulary = vocabulary or logits.shape[-1]
    there = columns < vocabulary
    if vocabulary < logits.shape[-1]:
        wide = ops.where(there, wide, -1e30)
    chosen = columns == targets[..., None]
    largest, total, picked = (reduce or max_sum_and_chosen)(wide, chosen)
    exponents = ops.exp(wide - largest)
    normalizer = (largest + ops.log(total))[..., 0]
    loss = normalizer - (1.0 - label_smoothing) * picked
    if label_smoothing:
        loss = loss - (label_smoothing / vocabulary) * ops.sum(ops.where(there, wide, 0.0), axis=-1)
    factor = weights
    if z_loss:
        loss = loss + z_loss * ops.square(normalizer)
        factor = weights * (1.0 + 2.0 * z_loss * normalizer)
    slope = exponents * (factor[..., None] / total) - ops.where(
        chosen, ((1.0 - label_smoothing) * weights)[..., None], 0.0
    )
    if label_smoothing:
        slope = slope - ops.where(there, (label_smoothing / vocabulary) * weights[..., None], 0.0)
    return ops.sum(loss * weights), ops.cast(slope, logits.dtype)


def max_sum_and_chosen(wide: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `wide` [..., vocabulary], the largest m and the sum of exp(wide - m), both [..., 1], and the one that is
    `chosen`, [...]."""
    largest = ops.max(wide, axis=-1, keepdims=True)
    total = ops.sum(ops.exp(wide - largest), axis=-1, keepdims=True)
    return largest, total, ops.sum(ops.where(chosen, wide, 0.0), axis=-1)


def _pieces(x: Tensor, hidden: Tensor, table: Tensor) -> list[Tensor]:
    batch, length, _ = hidden.shape
    if batch is None or length is None:
        return [x]
    return ops.split(x, num_pieces(batch, length, table.shape[0]), axis=1)
