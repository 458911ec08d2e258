"""Logits to the next token: greedy, temperature, top-k and top-p.

Randomness comes in as one uniform number a row, so sampling itself is a pure function, the same on every backend and
in an exported graph. `uniforms` makes those numbers from a seed, row and position, whatever else is in the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

Tensor = Any


def greedy(logits: Tensor) -> Tensor:
    """The most probable token, int32 [batch], of `logits` [batch, vocabulary]; the smallest id among equals."""
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Draw a token from softmax(logits / temperature), cut to the `top_k` most probable and the `top_p` nucleus.

    The nucleus is the smallest set of most probable tokens whose probabilities add up to at least `top_p`, measured
    after the cut to `top_k` (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751).

    Args:
        logits: [batch, vocabulary].
        uniform: float32 [batch], in [0, 1): where in the distribution to draw.
        temperature: float32 scalar or [batch, 1], above 0.
        top_k: int32 scalar or [batch, 1]; 0 keeps all.
        top_p: float32 scalar or [batch, 1]; 1 keeps all.

    Returns:
        int32 [batch].
    """
    logits = ops.cast(logits, "float32") / temperature
    vocabulary = logits.shape[-1]
    values, tokens = ops.top_k(logits, vocabulary)  # all of them, in falling order
    rank = ops.arange(vocabulary, dtype="int32")[None]
    values = ops.where(ops.logical_and(top_k > 0, rank >= top_k), -1e30, values)
    probabilities = ops.softmax(values, axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    kept = ops.where(ops.logical_or(before < top_p, rank == 0), probabilities, 0.0)
    cumulative = ops.cumsum(kept, axis=-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    drawn = ops.sum(ops.cast(cumulative <= threshold, "int32"), axis=-1)
    last = ops.sum(ops.cast(kept > 0.0, "int32"), axis=-1) - 1  # rounding must not step behind the nucleus
    choice = ops.minimum(drawn, last)
    return ops.cast(ops.take_along_axis(tokens, choice[:, None], axis=-1)[:, 0], "int32")


def uniforms(seed: int, rows: int, position: int) -> np.ndarray:
    """One number in [0, 1) for each of `rows` rows, float32 [rows], depending on (seed, row, position) alone.

    Philox counters (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
    """
    draws = [np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, row, position])) for row in range(rows)]
    return np.array([draw.random(dtype=np.float32) for draw in draws], np.float32)
