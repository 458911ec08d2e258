"""A batch of rows that some decoder continues, and what a decoder is; knows of no framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gpt_keras.config import GPTConfig

Tensor = Any


class RowDecoder(Protocol):
    """What continues rows of tokens: Keras (`decoding.Decoder`), or LiteRT, here or in a process of its own (`litert`).

    A cache, of a form that only its decoder knows, holds the keys and values of its rows.
    """

    @property
    def config(self) -> GPTConfig:
        """The model's."""

    @property
    def in_background(self) -> bool:
        """Whether a step goes on computing while Python goes on too."""

    @property
    def num_compilations(self) -> int:
        """How many different shapes of the model's step are ready."""

    def start(self, prompts: Sequence[Sequence[int]], room: int) -> Rows:
        """Prefill: run the prompts through the model.

        Args:
            prompts: Token ids of each row, at least one each, at most the context's length.
            room: How many tokens will follow at most.
        """

    def weights_may_have_changed(self) -> None:
        """Have the next step of one token look whether its copies of the model's weights are still right."""

    def batch_size(self, rows: int) -> int:
        """How many rows a batch has that holds so many."""

    def slots_of(self, cache: Any) -> int:
        """How many tokens of each row fit in."""

    def step(
        self, token_ids: np.ndarray, positions: np.ndarray, select: np.ndarray, cache: Any
    ) -> tuple[tuple[Tensor, Tensor], Any]:
        """`GPT.step` with a cache.

        Args:
            token_ids: int32 [batch, length].
            positions: int32 [batch, length], their places, which follow each other in every row.
            select: int32 [batch], the token of each row behind which logits are wanted.
            cache: Holds what is before. Several tokens begin at the same place in all rows, and the cache then holds
                what is before them and them, until rows of it are inserted elsewhere or it is resized.

        Returns:
            Logits [batch, vocabulary_size] with the most probable tokens int32 [batch], and the new cache; the old one
            must not be used again.
        """

    def take(self, logits: Tensor, best: Tensor, cache: Any, index: np.ndarray) -> tuple[Tensor, Tensor, Any]:
        """The rows of logits, tokens and cache that `index` int32 [rows] names, in that order."""


class SlotDecoder(RowDecoder, Protocol):
    """A `RowDecoder` for `slots`: rows can join a batch that is running, and leave it."""

    def make_cache(self, batch: int, slots: int) -> Any:
        """An empty one for so many rows of at least so many tokens, or the context's length."""

    def resized(self, cache: Any, index: np.ndarray, slots: int) -> Any:
        """The rows of a cache that `index` int32 [rows] names, in that order, with so many slots."""

    def insert(self, cache: Any, other: Any, row: int, slot: int) -> Any:
        """A cache with a row of another one, as far as it goes, in place of its row `slot`, in the same memory."""


class Rows:
    """A batch in progress.

    Attributes:
        logits: [batch, vocabulary_size] for the next token of each row; rows beyond `num_rows` fill the bucket.
        best: int32 [batch], the most probable next token of each row.
        lengths: int32 [batch], tokens of each row that the cache holds.
        num_rows: How many rows count.
    """

    def __init__(
        self, decoder: RowDecoder, logits: Tensor, best: Tensor, cache: Any, lengths: np.ndarray, num_rows: int
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
