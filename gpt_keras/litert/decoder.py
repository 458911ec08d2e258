"""Rows of tokens being continued by a LiteRT file of `RowForm`: what `decoding.Decoder` does, without Keras.

A cache is memory that the functions take as an input; after each step the new tokens' keys and values are put into
their places in it. With those of a prompt's piece it grows: a piece attends to what is before it and to nothing else.
What a piece wrote is copied once it is known how long the cache becomes, and not at all if nothing is before it.
"""

from __future__ import annotations

import threading
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
    """Keys and values: by layer, keys and values in turn, [rows, heads, slots, head_dim]; none if they are all 0.

    Attributes:
        newest: Those of the last slots, where they are not in `buffers` yet.
    """

    rows: int
    slots: int
    buffers: dict[str, Buffer] = field(default_factory=dict)
    newest: dict[str, Buffer] = field(default_factory=dict)


@dataclass
class _Memory:
    """Inputs but for the cache, and outputs, of a function at one of its sizes."""

    sizes: Sizes
    inputs: dict[str, Buffer]
    outputs: dict[str, Buffer]


class LiteRTDecoder:
    """Starts rows of one model; several threads may, and take turns.

    Args:
        file: With the functions of `sizes.row_functions`.
        config: The model's.
    """

    in_background = False

    def __init__(self, file: LiteRTFile, config: GPTConfig) -> None:
        self._file, self.config = file, config
        self._names = dict(zip(cache_names(config.num_layers), new_names(config.num_layers), strict=True))
        self._memory: dict[str, _Memory] = {}
        self._turn = threading.RLock()  # the sizes of the file's functions are the same for all

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
        with self._turn:
            return self._file.input("decode", name, shape)

    def _buffers(self, cache: Cache) -> dict[str, Buffer]:
        if cache.newest:
            self._move(cache, np.arange(cache.rows), cache.slots)
        if not cache.buffers:  # a function takes no cache without slots: one is there that nothing looks at
            cache.buffers = {name: self._layer(name, cache.rows, max(cache.slots, 1)) for name in self._names}
        return cache.buffers

    def step(
        self, token_ids: np.ndarray, positions: np.ndarray, select: np.ndarray, cache: Cache
    ) -> tuple[tuple[np.ndarray, np.ndarray], Cache]:
        """As `RowDecoder.step`."""
        with self._turn:
            logits = self._step(np.asarray(token_ids), positions, select, cache)
        return (logits, _best(logits)), cache

    def _step(self, token_ids: np.ndarray, positions: np.ndarray, select: np.ndarray, cache: Cache) -> np.ndarray:
        starts = positions[:, 0]
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
            cache.newest = {name: memory.outputs.pop(new) for name, new in self._names.items()}
            if not start:
                cache.buffers = {}
            cache.slots += width
        return memory.outputs["logits"].array.copy()

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

    def _move(self, cache: Cache, index: np.ndarray, slots: int) -> None:
        """`resized` in place, one layer after the other."""
        as_it_is = not cache.buffers and slots == cache.slots and np.array_equal(index, np.arange(cache.rows))
        before = cache.buffers, cache.newest
        cache.buffers, cache.newest = {}, {}
        for name in self._names if slots else ():
            parts = [buffers.pop(name) for buffers in before if buffers]
            if parts:
                cache.buffers[name] = parts[0] if as_it_is else self._copied(name, parts, index, slots)
        cache.rows, cache.slots = len(index), slots

    def _copied(self, name: str, parts: Sequence[Buffer], index: np.ndarray, slots: int) -> Buffer:
        made = self._layer(name, len(index), slots)
        _fill(made.array, parts, index)
        return made

    def take(
        self, logits: np.ndarray, best: np.ndarray, cache: Cache, index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Cache]:
        """As `RowDecoder.take`."""
        return logits[index], best[index], self.resized(cache, index, cache.slots)

    def resized(self, cache: Cache, index: np.ndarray, slots: int) -> Cache:
        """As `SlotDecoder.resized`."""
        slots = self._rounded(slots)
        made = {name: self._copied(name, _parts(cache, name), index, slots) for name in self._names}
        return Cache(len(index), slots, made)

    def insert(self, cache: Cache, other: Cache, row: int, slot: int) -> Cache:
        """As `SlotDecoder.insert`."""
        for name, buffer in self._buffers(cache).items():
            _fill(buffer.array[slot : slot + 1], _parts(other, name), np.array([row]))
        return cache


def _parts(cache: Cache, name: str) -> list[Buffer]:
    return [buffers[name] for buffers in (cache.buffers, cache.newest) if name in buffers]


def _fill(array: np.ndarray, parts: Sequence[Buffer], index: np.ndarray) -> None:
    """Put rows of a layer's parts into its slots, one part behind the other, as far as there is room."""
    start = 0
    for part in parts:
        end = min(start + part.array.shape[2], array.shape[2])
        array[:, :, start:end] = part.array[index, :, : end - start]
        start = end


def _best(logits: Any) -> np.ndarray:
    return np.asarray(logits).argmax(-1).astype(np.int32)
