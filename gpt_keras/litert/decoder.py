"""Rows of tokens being continued by a LiteRT file of `RowForm`: what `decoding.Decoder` does, without Keras.

A cache is memory that every function of its sizes takes as an input; after each step the new tokens' keys and values
are put into their places in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.litert.runtime import Buffer, LiteRTFile
from gpt_keras.litert.sizes import HIDDEN, ROWS, Sizes, cache_names, prefill_widths, row_name, slot_counts
from gpt_keras.rows import Rows
from gpt_keras.slots import Prefill, groups


@dataclass
class _Part:
    """Keys and values of up to `ROWS[-1]` rows: by layer, keys and values in turn, [rows, heads, slots, head_dim]."""

    rows: int
    slots: int
    buffers: dict[str, Buffer]

    @property
    def arrays(self) -> list[np.ndarray]:
        return [buffer.array for buffer in self.buffers.values()]


Cache = list[_Part]


class LiteRTDecoder:
    """Starts rows of one model.

    Args:
        file: With the functions of `sizes.row_sizes`.
        config: The model's.
    """

    in_background = False

    def __init__(self, file: LiteRTFile, config: GPTConfig) -> None:
        self._file, self.config = file, config
        self._names = cache_names(config.num_layers)
        self._slots = slot_counts(config.context_length)
        self._memory: dict[Sizes, tuple[dict[str, Buffer], dict[str, Buffer]]] = {}

    @property
    def num_compilations(self) -> int:
        """How many of the file's functions have been used."""
        return len(self._memory)

    def weights_may_have_changed(self) -> None:
        """They do not."""

    def start(self, prompts: Sequence[Sequence[int]], room: int) -> Rows:
        """As `Decoder.start`."""
        batch = self.batch_size(len(prompts))
        lengths = np.ones(batch, np.int32)
        lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
        cache = self.make_cache(batch, int(lengths.max()) + room)
        logits = np.zeros((batch, self.config.vocabulary_size), np.float32)
        for group in groups(prompts):
            prefill = Prefill(self, [prompts[i] for i in group])
            while not prefill.done:
                prefill.step()
            for row, slot in enumerate(group):
                self.insert(cache, prefill.cache, row, slot)
                logits[slot] = prefill.logits[row]
        return Rows(self, logits, _best(logits), cache, lengths, len(prompts))

    @staticmethod
    def batch_size(rows: int) -> int:
        """How many rows a batch has that holds so many."""
        most = ROWS[-1]
        return next((count for count in ROWS if count >= rows), most * -(-rows // most))

    @staticmethod
    def slots_of(cache: Cache) -> int:
        """How many tokens of each row fit in."""
        return cache[0].slots

    def make_cache(self, batch: int, slots: int) -> Cache:
        """An empty one for so many rows of at least so many tokens, or the context's length."""
        slots = next((count for count in self._slots if count >= slots), self._slots[-1])
        parts, most = [], ROWS[-1]
        for start in range(0, batch, most):
            rows = self.batch_size(min(most, batch - start))
            function = row_name(Sizes(rows, slots, 1))
            parts.append(_Part(rows, slots, {name: self._file.input(function, name) for name in self._names}))
        return parts

    def step(
        self, token_ids: np.ndarray, positions: np.ndarray, select: np.ndarray, cache: Cache
    ) -> tuple[tuple[np.ndarray, np.ndarray], Cache]:
        """As `Decoder.step`; the positions of a row follow each other."""
        found = []
        for number, part in enumerate(cache):
            rows = slice(number * ROWS[-1], number * ROWS[-1] + part.rows)
            tokens, starts, chosen = np.asarray(token_ids)[rows], positions[rows, 0], select[rows]
            count, fill = len(tokens), part.rows - len(tokens)
            if fill:
                tokens = np.pad(tokens, ((0, fill), (0, 0)))
                starts, chosen = np.pad(starts, (0, fill)), np.pad(chosen, (0, fill))
            found.append(self._step(tokens, starts, chosen, part)[:count])
        logits = found[0] if len(found) == 1 else np.concatenate(found)
        return (logits, _best(logits)), cache

    def _step(self, token_ids: np.ndarray, starts: np.ndarray, select: np.ndarray, part: _Part) -> np.ndarray:
        rows, width = token_ids.shape
        first = not starts.any() and width > 1
        sizes = Sizes(rows, 0 if first else part.slots, self._width(rows, width, first))
        inputs, outputs = self._memory_of(sizes)
        tokens = inputs["tokens"].array
        tokens[:, :width], tokens[:, width:] = token_ids, 0
        places = starts[:, None] + np.arange(sizes.length, dtype=np.int32)
        inputs["positions"].array[...] = np.minimum(places, self.config.context_length - 1)
        if sizes.slots:  # what is in the cache is before the first new token
            seen = np.arange(sizes.slots, dtype=np.int32) < starts[:, None]
            inputs["mask"].array[:, 0, :, : sizes.slots] = np.where(seen, 0.0, HIDDEN)[:, None]
        if sizes.length > 1:
            inputs["last"].array[...] = np.arange(sizes.length) == select[:, None, None]
        cache = part.buffers if sizes.slots else {}
        self._file.run(row_name(sizes), {**inputs, **cache}, outputs)
        new = outputs["new"].array
        if width == 1:
            every = np.arange(rows)
            for array, values in zip(part.arrays, new, strict=True):
                array[every, :, starts] = values[:, :, 0]
        else:
            start = int(starts[0])  # of all, as of one
            end = min(start + width, part.slots)
            for array, values in zip(part.arrays, new, strict=True):
                array[:, :, start:end] = values[:, :, : end - start]
        return outputs["logits"].array.copy()

    def _width(self, rows: int, width: int, first: bool) -> int:
        if width == 1:
            return 1
        widths = prefill_widths(rows, first, self.config.context_length)
        found = next((w for w in widths if w >= width), None)
        if found is None:
            raise InputError(f"{rows} rows of {width} tokens at a time are more than the LiteRT file has functions for")
        return found

    def _memory_of(self, sizes: Sizes) -> tuple[dict[str, Buffer], dict[str, Buffer]]:
        """Inputs but for the cache, and outputs, of one function."""
        if sizes not in self._memory:
            function = row_name(sizes)
            names = [name for name in self._file.shapes(function) if name not in self._names]
            inputs = {name: self._file.input(function, name) for name in names}
            length = sizes.length
            causal = np.triu(np.full((length, length), HIDDEN, np.float32), 1)
            inputs["mask"].array[..., sizes.slots :] = causal
            self._memory[sizes] = inputs, self._file.outputs(function)
        return self._memory[sizes]

    def take(
        self, logits: np.ndarray, best: np.ndarray, cache: Cache, index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Cache]:
        """As `Decoder.take`."""
        return logits[index], best[index], self.resized(cache, index, self.slots_of(cache))

    def resized(self, cache: Cache, index: np.ndarray, slots: int) -> Cache:
        """As `Decoder.resized`."""
        found = self.make_cache(len(index), slots)
        for row, source in enumerate(index):
            self.insert(found, cache, int(source), row)
        return found

    def insert(self, cache: Cache, other: Cache, row: int, slot: int) -> Cache:
        """As `Decoder.insert`."""
        most = ROWS[-1]
        for array, values in zip(cache[slot // most].arrays, other[row // most].arrays, strict=True):
            width = min(array.shape[2], values.shape[2])
            array[slot % most, :, :width] = values[row % most, :, :width]
        return cache


def _best(logits: Any) -> np.ndarray:
    return np.asarray(logits).argmax(-1).astype(np.int32)
