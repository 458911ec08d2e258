"""A batch of rows that some decoder continues; knows of no framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Tensor = Any


class Rows:
    """A batch in progress.

    Attributes:
        logits: [batch, vocabulary_size] for the next token of each row; rows beyond `num_rows` fill the bucket.
        best: int32 [batch], the most probable next token of each row.
        lengths: int32 [batch], tokens of each row that the cache holds.
        num_rows: How many rows count.
    """

    def __init__(
        self, decoder: Any, logits: Tensor, best: Tensor, cache: Any, lengths: np.ndarray, num_rows: int
    ) -> None:
        self._decoder, self.cache = decoder, cache
        self.logits, self.best, self.lengths, self.num_rows = logits, best, lengths, num_rows

    @property
    def batch_size(self) -> int:
        return len(self.lengths)

    def advance(self, tokens: Tensor) -> None:
        """Append one token, int32 [batch], to every row; `logits` are then those for the tokens that follow.

        Where the backend computes in the background this returns at once, and `tokens` need not be known yet.

        A row whose cache is full writes over its last entry: it must have ended.
        """
        slots = self._decoder.slots_of(self.cache)
        places = np.minimum(self.lengths, slots - 1)[:, None]
        first = np.zeros(self.batch_size, np.int32)
        (self.logits, self.best), self.cache = self._decoder.step(tokens[:, None], places, first, self.cache)
        self.lengths = self.lengths + 1

    def take(self, index: Sequence[int]) -> None:
        """Continue with these rows instead, any of them any number of times."""
        self.num_rows = len(index)
        padded = np.zeros(self._decoder.batch_size(len(index)), np.int32)
        padded[: len(index)] = index
        if len(padded) != self.batch_size or (padded != np.arange(len(padded))).any():
            self.logits, self.best, self.cache = self._decoder.take(self.logits, self.best, self.cache, padded)
            self.lengths = self.lengths[padded]
