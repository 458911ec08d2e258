"""Which functions a LiteRT file has; imports neither Keras nor TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HIDDEN = -0.7 * float(np.finfo(np.float32).max)
"""What is added to the scores of slots that a token must not look at; LiteRT-LM's value."""

ROWS = (1, 4, 16)
"""Rows that a function of `RowForm` takes."""
PIECE = 256
"""Most tokens of a step of several."""
SMALLEST_SLOTS = 128


@dataclass(frozen=True)
class Sizes:
    """Of one function: how many rows it takes, how many tokens of each, and how many slots their cache has."""

    rows: int
    slots: int
    length: int


def cache_names(num_layers: int) -> list[str]:
    return [f"kv_cache_{part}_{layer}" for layer in range(num_layers) for part in "kv"]


def row_name(sizes: Sizes) -> str:
    """The name of a function of `RowForm`."""
    return f"rows_{sizes.rows}_slots_{sizes.slots}_tokens_{sizes.length}"


def slot_counts(context_length: int) -> list[int]:
    """Powers of two from `SMALLEST_SLOTS` up to the context's length, and that."""
    found, count = [], SMALLEST_SLOTS
    while count < context_length:
        found.append(count)
        count *= 2
    return [*found, context_length]


def prefill_widths(rows: int, first: bool, context_length: int) -> list[int]:
    """How many tokens a function for so many rows takes of each, for the first tokens or for those that follow."""
    widths = (16, 32, 64, 128, 256) if first else (64, 256)
    if rows > 1 and not first:
        return []
    found = [width for width in widths if width < context_length]
    found += [context_length] * (context_length <= PIECE)
    return [width for width in found if rows * width <= PIECE]


def row_sizes(context_length: int) -> list[Sizes]:
    """All functions of a file of `RowForm`."""
    slots = slot_counts(context_length)
    found = [Sizes(rows, 0, width) for rows in ROWS for width in prefill_widths(rows, True, context_length)]
    more = [count for count in slots if count > PIECE]  # fewer hold no prompt that is longer than a piece
    found += [Sizes(1, count, width) for count in more for width in prefill_widths(1, False, context_length)]
    return found + [Sizes(rows, count, 1) for rows in ROWS for count in slots]
