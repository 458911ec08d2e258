"""Rows of tokens being continued by a LiteRT file of `RowForm`: what `decoding.Decoder` does, without Keras.

A cache is memory that the functions take as an input; after each step the new tokens' keys and values are put into
their places in it. With those of a prompt's piece it grows: a piece attends to what is before it and to nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpt_keras.config import GPTConfig
from gpt_keras.litert.runtime import Buffer, LiteRTFile
from gpt_keras.litert.sizes import HIDDEN, Sizes, cache_names, new_names
from gpt_keras.rows import Rows
from gpt_keras.slots import Prefill, groups

_ROUND = 64
"""Slots are made in multiples of it."""


@dataclass
class Cache:
    """Keys and values: by layer, keys and values in turn, [rows, heads, slots, head_dim]; none if they are all 0."""

    rows: int
    slots: int
    buffers: dict[str, Buffer] = field(default_factory=dict)


@dataclass
class _Memory:
    """Inputs but for the cache, and outputs, of a function at one of its sizes."""

    sizes: Sizes
    inputs: dict[str, Buffer]
    outputs: dict[str, Buffer]


class LiteRTDecoder:
    """Starts rows of one model.

    Args:
        file: With the functions of `sizes.row_functions`.
        config: The model's.
    """

    in_background = False

    def __init__(self, file: LiteRTFile, config: GPTConfig) -> None:
        self._file, self.config = file, config
        self._names = dict(zip(cache_names(config.num_layers), new_names(config.num_layers), strict=True))
        self._memory: dict[str, _Memory] = {}

    @property
    def num_compilations(self) -> int:
        """How many of the file's functions are in use."""
        return len(self._memory)

    def weights_may_have_changed(self) -> None:
        """They do not."""

    def start(self, prompts: Sequence[Sequence[int]], room: int) -> Rows:
        """As `RowDecoder.start`."""
        batch = self.batch_size(len(prompts))
        lengths = np.ones(batch, np.int32)
        lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
        slots = int(lengths.max()) + room
        cache: Cache | None = None
        logits = np.zeros((batch, self.config.vocabulary_size), np.float32)
        for group in groups(prompts):
            prefill = Prefill(self, [prompts[i] for i in group])
            while not prefill.done:
                prefill.step()
            if len(group) == len(prompts):
                cache, index = prefill.cache, np.zeros(batch, np.int64)
                index[: len(group)] = np.argsort(group)
                self._move(cache, index, self._rounded(slots))
            else:
                cache = cache or self.make_cache(batch, slots)
                for row, slot in enumerate(group):
                    self.insert(cache, prefill.cache, row, slot)
            logits[group] = prefill.logits[: len(group)]
        return Rows(self, logits, _best(logits), cache, lengths, len(prompts))

    @staticmethod
    def batch_size(rows: int) -> int:
        """As `RowDecoder.batch_size`. Any number would do; but what chooses tokens is compiled for each."""
        multiple = 1 if rows <= 4 else 4 if rows <= 16 else 16
        return -(-rows // multiple) * multiple

    @staticmethod
    def slots_of(cache: Cache) -> int:
        """How many tokens of each row fit in."""
        return cache.slots

    def make_cache(self, batch: int, slots: int) -> Cache:
        """As `SlotDecoder.make_cache`."""
        return Cache(batch, self._rounded(slots))

    def _rounded(self, slots: int) -> int:
        return min(-(-slots // _ROUND) * _ROUND, self.config.context_length)

    def _layer(self, name: str, rows: int, slots: int) -> Buffer:
        shape = rows, self.config.num_key_value_heads, slots, self.config.head_dim
        return self._file.input("decode", name, shape)

    def _buffers(self, cache: Cache) -> dict[str, Buffer]:
        if not cache.buffers:  # a function takes no cache without slots: one is there that nothing looks at
            cache.buffers = {name: self._layer(name, cache.rows, max(cache.slots, 1)) for name in self._names}
        return cache.buffers

    def step(
        self, token_ids: np.ndarray, positions: np.ndarray, select: np.ndarray, cache: Cache
    ) -> tuple[tuple[np.ndarray, np.ndarray], Cache]:
        """As `RowDecoder.step`."""
        starts, token_ids = positions[:, 0], np.asarray(token_ids)
        if token_ids.shape[1] == 1 and starts.max() < cache.slots:
            memory = self._run("decode", token_ids, starts, select, cache)
            every = np.arange(cache.rows)
            for name, new in self._names.items():
                cache.buffers[name].array[every, :, starts] = memory.outputs[new].array[:, :, 0]
        else:
            start, width = int(starts[0]), int(select.max()) + 1  # what follows only fills up
            assert (starts == start).all() and start <= cache.slots
            if start != cache.slots:
                self._move(cache, np.arange(cache.rows), start)
            function = f"prefill_{cache.rows}"
            memory = self._run(function, token_ids[:, :width], starts, select, cache)
            del self._memory[function]  # what it wrote becomes the cache
            self._append(cache, memory)
        logits = memory.outputs["logits"].array.copy()
        return (logits, _best(logits)), cache

    def _run(
        self, function: str, token_ids: np.ndarray, starts: np.ndarray, select: np.ndarray, cache: Cache
    ) -> _Memory:
        length, buffers = token_ids.shape[1], self._buffers(cache)
        sizes = Sizes(cache.rows, max(cache.slots, 1), length)
        memory = self._memory.get(function)
        if memory is None or memory.sizes != sizes:
            memory = self._memory[function] = self._made(function, sizes, buffers)
        inputs = memory.inputs
        inputs["tokens"].array[...] = token_ids
        places = starts[:, None] + np.arange(length, dtype=np.int32)
        inputs["positions"].array[...] = np.minimum(places, self.config.context_length - 1)
        seen = np.arange(sizes.slots, dtype=np.int32) < starts[:, None]  # what is before the first new token
        inputs["mask"].array[:, 0, :, length:] = np.where(seen, np.float32(0), np.float32(HIDDEN))[:, None]
        if "last" in inputs:
            inputs["last"].array[...] = np.arange(length) == select[:, None, None]
        self._file.run(function, {**inputs, **buffers}, memory.outputs)
        return memory

    def _made(self, function: str, sizes: Sizes, cache: dict[str, Buffer]) -> _Memory:
        self._memory.pop(function, None)
        rows, slots, length = sizes.rows, sizes.slots, sizes.length
        shapes = {"tokens": (rows, length), "positions": (rows, length), "mask": (rows, 1, length, length + slots)}
        shapes |= {} if function == "decode" else {"last": (rows, 1, length)}
        inputs = {name: self._file.input(function, name, shape) for name, shape in shapes.items()}
        inputs["mask"].array[..., :length] = np.triu(np.full((length, length), HIDDEN, np.float32), 1)
        return _Memory(sizes, inputs, self._file.outputs(function, {**inputs, **cache}))

    def _append(self, cache: Cache, memory: _Memory) -> None:
        """What is new behind the other slots."""
        slots, length = cache.slots, memory.sizes.length
        for name, new in self._names.items():
            buffer = memory.outputs.pop(new)
            if slots:
                longer = self._layer(name, cache.rows, slots + length)
                longer.array[:, :, :slots] = cache.buffers[name].array
                longer.array[:, :, slots:] = buffer.array
                buffer = longer
            cache.buffers[name] = buffer
        cache.slots += length

    def _move(self, cache: Cache, index: np.ndarray, slots: int) -> None:
        """`resized` in place, one layer after the other."""
        if not slots:
            cache.buffers.clear()
        for name, buffer in cache.buffers.items():
            cache.buffers[name] = self._copied(name, buffer.array, index, slots)
        cache.rows, cache.slots = len(index), slots

    def _copied(self, name: str, array: np.ndarray, index: np.ndarray, slots: int) -> Buffer:
        made, width = self._layer(name, len(index), slots), min(slots, array.shape[2])
        made.array[:, :, :width] = array[index, :, :width]
        return made

    def take(
        self, logits: np.ndarray, best: np.ndarray, cache: Cache, index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Cache]:
        """As `RowDecoder.take`."""
        return logits[index], best[index], self.resized(cache, index, cache.slots)

    def resized(self, cache: Cache, index: np.ndarray, slots: int) -> Cache:
        """As `SlotDecoder.resized`."""
        slots = self._rounded(slots)
        made = {name: self._copied(name, buffer.array, index, slots) for name, buffer in self._buffers(cache).items()}
        return Cache(len(index), slots, made)

    def insert(self, cache: Cache, other: Cache, row: int, slot: int) -> Cache:
        """As `SlotDecoder.insert`."""
        for name, buffer in self._buffers(cache).items():
            values = other.buffers[name].array[row]
            width = min(cache.slots, other.slots)
            buffer.array[slot, :, :width] = values[:, :width]
        return cache


def _best(logits: Any) -> np.ndarray:
    return np.asarray(logits).argmax(-1).astype(np.int32)
