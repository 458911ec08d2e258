"""A running batch that rows join and leave: what continuous batching is made of (Yu et al. 2022, "Orca").

`Prefill` takes prompts through the model, a long one in pieces, so that others need not wait for all of it. `Slots`
holds the keys and values of the rows that are being continued, one row in each slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_keras.rows import SlotDecoder

Tensor = Any

PIECE = 256
"""Tokens of prompts that go through the model at a time: a long prompt's piece, or several short prompts."""
SMALLEST_WIDTH = 16
SMALLEST_LENGTH = 128


def groups(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Which prompts, by their places among these, go through the model together; the shortest come first."""
    found: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        width = _power(len(prompts[i]), SMALLEST_WIDTH)
        if found and _batch_size(len(found[-1]) + 1) * width <= PIECE:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def _batch_size(rows: int) -> int:
    return 1 if rows == 1 else 4 if rows <= 4 else 16 * -(-rows // 16)


class Prefill:
    """Prompts on their way through the model.

    Args:
        decoder: Of the model.
        prompts: Token ids, of one prompt or of some that `groups` has put together.

    Attributes:
        logits: [batch, vocabulary_size], those of the last tokens, when it is done.
        best: int32 [batch], the most probable next tokens.
        cache: Keys and values of the prompts.
    """

    def __init__(self, decoder: SlotDecoder, prompts: Sequence[Sequence[int]]) -> None:
        self._decoder, self._prompts = decoder, prompts
        self._longest = max(map(len, prompts))
        self.batch_size = _batch_size(len(prompts))
        self._slots = min(_power(self._longest, SMALLEST_WIDTH), decoder.config.context_length)
        self._done = 0
        self.cache: Any = None
        self.logits: Tensor = None
        self.best: Tensor = None

    @staticmethod
    def sizes(context: int) -> list[tuple[int, int]]:
        """Rows and widths of the usual ones."""
        return [
            (rows, width)
            for width in (16, 32, 64, 128, 256)
            for rows in (1, 4, 16)
            if rows * width <= PIECE and width <= context
        ]

    @property
    def done(self) -> bool:
        return self._done >= self._longest

    def step(self) -> None:
        """Take the next piece through the model."""
        if self.cache is None:
            self.cache = self._decoder.make_cache(self.batch_size, self._slots)
        start = self._done
        width = min(_power(min(self._longest - start, PIECE), SMALLEST_WIDTH), self._slots - start)
        token_ids = np.zeros((self.batch_size, width), np.int32)
        last = np.zeros(self.batch_size, np.int32)
        for row, prompt in enumerate(self._prompts):
            piece = prompt[start : start + width]
            token_ids[row, : len(piece)] = piece
            last[row] = max(0, len(piece) - 1)
        positions = np.tile(np.arange(start, start + width, dtype=np.int32), (self.batch_size, 1))
        (self.logits, self.best), self.cache = self._decoder.step(token_ids, positions, last, self.cache)
        self._done = start + width


class Slots:
    """The cache of a running batch, and one step after another of all its rows.

    There are 1, 4, 16, ... slots, as many as are in use ask for, and their length is a power of two: a step of few and
    short rows takes less time, and each size is compiled once.

    Args:
        decoder: Of the model.
        most: How many slots there are at most.

    Attributes:
        count: Slots at present.
        length: Tokens that a slot holds.
        lengths: int32 [count], tokens that are in each; 0 in a free one.
    """

    def __init__(self, decoder: SlotDecoder, most: int) -> None:
        self._decoder, self.most = decoder, most
        self.count = self.length = 0
        self.lengths = np.zeros(0, np.int32)
        self._cache: Any = []

    def size_for(self, rows: int, length: int) -> tuple[int, int]:
        """Count and length of the slots that so many rows of up to so many tokens are kept in."""
        count = 1
        while count < rows:
            count *= 4
        context = self._decoder.config.context_length
        return min(count, self.most), min(_power(length, SMALLEST_LENGTH), context)

    def resize(self, kept: Sequence[int], count: int, length: int) -> None:
        """Have so many slots of such a length instead; the rows in slots `kept` are then in the first ones."""
        index = np.zeros(count, np.int32)
        index[: len(kept)] = kept
        if not kept:
            self._cache = self._decoder.make_cache(count, length)
        elif (count, length) != (self.count, self.length) or list(kept) != list(range(len(kept))):
            self._cache = self._decoder.resized(self._cache, index, length)
        lengths = np.zeros(count, np.int32)
        lengths[: len(kept)] = self.lengths[list(kept)]
        self.count, self.length, self.lengths = count, length, lengths

    def insert(self, cache: Any, row: int, slot: int, tokens: int) -> None:
        """Put a row of a `Prefill`'s cache, which holds so many tokens, into a slot."""
        self._cache = self._decoder.insert(self._cache, cache, row, slot)
        self.lengths[slot] = tokens

    def free(self, slot: int) -> None:
        self.lengths[slot] = 0

    def advance(self, tokens: np.ndarray) -> tuple[Tensor, Tensor]:
        """Append one token, of int32 [count], to the row in every slot; what is in free ones means nothing.

        Returns:
            Logits [count, vocabulary_size] of the next tokens, and the most probable ones, int32 [count].
        """
        used = self.lengths > 0
        places = np.where(used, np.minimum(self.lengths, self.length - 1), 0).astype(np.int32)[:, None]
        first = np.zeros(self.count, np.int32)
        result, self._cache = self._decoder.step(tokens[:, None], places, first, self._cache)
        self.lengths = np.where(used, self.lengths + 1, 0).astype(np.int32)
        return result


def _power(size: int, smallest: int) -> int:
    return max(smallest, 1 << max(0, size - 1).bit_length())
