"""Which functions a LiteRT file has; imports neither Keras nor TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HIDDEN = -0.7 * float(np.finfo(np.float32).max)
"""What is added to the scores of slots that a token must not look at; LiteRT-LM's value."""

FREE = -1
"""A size that is whatever the inputs have."""
PROMPTS = (1, 4, 16)
"""Prompts that `RowForm` takes at a time."""


@dataclass(frozen=True)
class Sizes:
    """Of one function: how many rows it takes, how many tokens of each, and how many slots their cache has."""

    rows: int
    slots: int
    length: int


def cache_names(num_layers: int) -> list[str]:
    return [f"kv_cache_{part}_{layer}" for layer in range(num_layers) for part in "kv"]


def new_names(num_layers: int) -> list[str]:
    """What `RowForm` calls that which is new in a cache."""
    return [f"new_{name}" for name in cache_names(num_layers)]


def row_functions() -> dict[str, Sizes]:
    """All functions of a file of `RowForm`, by name."""
    prompts = {f"prefill_{rows}": Sizes(rows, FREE, FREE) for rows in PROMPTS}
    return {"decode": Sizes(FREE, FREE, 1), **prompts}
