"""Rows of tokens being continued: prefill, the key/value cache, one step after another.

`Decoder` runs `GPT.step` compiled for a handful of shapes: lengths, caches and batches are padded to buckets, and
`num_compilations` counts those in use. What comes out are logits; choosing from them is `sampling` and `generation`.
It is a `SlotDecoder`, as `litert.decoder` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from gpt_keras import sampling
from gpt_keras.compilation import TransposedKernels, compile_function, compile_step, hold, on_cpu
from gpt_keras.config import GPTConfig
from gpt_keras.model import GPT
from gpt_keras.rows import Rows

Tensor = Any
SMALLEST_BUCKET = 16


class Decoder:
    """Starts rows of one model; keeps its compiled functions.

    On a CPU they compute in float32 whatever the model's own dtype is: XLA's products are twice as fast in it there.

    Args:
        model: Any `GPT`.
    """

    def __init__(self, model: GPT) -> None:
        self.model = model
        self._shapes: set[tuple[int, ...]] = set()
        self._dtype = "float32" if on_cpu() else model.compute_dtype
        self._compile()
        self._take = compile_function(_take_rows)
        self._insert = _compile_insert()

    def _compile(self) -> None:
        """For the variables that the model has now."""
        self._variables = self.model.variables
        self._prefill = compile_step(self.model, self._forward, xla=False)
        self._kernels = TransposedKernels(self.model) if on_cpu() else None
        self._following = False
        self._step = compile_step(self.model, self._forward, self._kernels)

    @property
    def config(self) -> GPTConfig:
        """The model's."""
        return self.model.config

    @property
    def in_background(self) -> bool:
        """Whether a step goes on computing while Python goes on too, as it does on JAX."""
        return keras.backend.backend() == "jax"

    @property
    def num_compilations(self) -> int:
        """How many different shapes of the model's step have been compiled so far."""
        return len(self._shapes)

    def start(self, prompts: Sequence[Sequence[int]], room: int) -> Rows:
        """As `RowDecoder.start`."""
        if list(map(id, self._variables)) != list(map(id, self.model.variables)):  # it was given an adapter, say
            self._compile()
        context = self.model.config.context_length
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        longest = int(lengths.max())
        width = min(bucket(longest, SMALLEST_BUCKET), context)
        slots = max(width, min(bucket(longest + room, SMALLEST_BUCKET), context))
        batch = self.batch_size(len(prompts))
        token_ids = np.zeros((batch, width), np.int32)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = prompt
        lengths = np.concatenate([lengths, np.ones(batch - len(prompts), np.int32)])
        positions = np.tile(np.arange(width, dtype=np.int32), (batch, 1))
        (logits, best), cache = self.step(token_ids, positions, lengths - 1, self.make_cache(batch, slots))
        self.weights_may_have_changed()
        return Rows(self, logits, best, cache, lengths, len(prompts))

    def make_cache(self, batch: int, slots: int) -> Any:
        """As `SlotDecoder.make_cache`, of exactly so many slots."""
        with self.model.computing_in(self._dtype):
            return hold(self.model.make_cache(batch, slots))

    def weights_may_have_changed(self) -> None:
        """As `RowDecoder.weights_may_have_changed`."""
        self._following = False

    def step(
        self, token_ids: np.ndarray, positions: np.ndarray, select: np.ndarray, cache: Any
    ) -> tuple[tuple[Tensor, Tensor], Any]:
        """As `RowDecoder.step`."""
        self._shapes.add((*token_ids.shape, self.slots_of(cache)))
        if token_ids.shape[1] > 1:
            return self._prefill(cache, token_ids, positions, select)
        if self._kernels is not None and not self._following:  # only now: the first token need not wait for it
            self._kernels.refresh()
            self._following = True
        return self._step(cache, token_ids, positions, select)

    def _forward(self, cache: Any, token_ids: Tensor, positions: Tensor, select: Tensor) -> tuple[Any, Any]:
        with self.model.computing_in(self._dtype):
            logits, cache = self.model.step(token_ids, positions, cache=cache, select=select)
        return (logits[:, 0], sampling.greedy(logits[:, 0])), cache

    @staticmethod
    def batch_size(rows: int) -> int:
        """As `RowDecoder.batch_size`: a power of two."""
        return 1 << (rows - 1).bit_length()

    @staticmethod
    def slots_of(cache: Any) -> int:
        """As `RowDecoder.slots_of`."""
        return int(cache[0][0].shape[2])

    def take(self, logits: Tensor, best: Tensor, cache: Any, index: np.ndarray) -> tuple[Tensor, Tensor, Any]:
        """As `RowDecoder.take`."""
        logits, best, cache = self._take(logits, best, cache, index)
        return logits, best, hold(cache)

    def resized(self, cache: Any, index: np.ndarray, slots: int) -> Any:
        """As `SlotDecoder.resized`."""
        return hold([tuple(_resized(buffer, index, slots) for buffer in pair) for pair in cache])

    def insert(self, cache: Any, other: Any, row: int, slot: int) -> Any:
        """As `SlotDecoder.insert`."""
        return self._insert(cache, other, np.int32(row), np.int32(slot))


def _take_rows(logits: Tensor, best: Tensor, cache: Any, index: Tensor) -> tuple[Tensor, Tensor, Any]:
    cache = [tuple(ops.take(part, index, axis=0) for part in pair) for pair in cache]
    return ops.take(logits, index, axis=0), ops.take(best, index, axis=0), cache


def _resized(buffer: Tensor, index: np.ndarray, slots: int) -> Tensor:
    before = buffer.shape[2]
    taken = ops.take(buffer[:, :, : min(before, slots)], index, axis=0)
    return ops.pad(taken, ((0, 0), (0, 0), (0, max(0, slots - before)), (0, 0)))


def _compile_insert() -> Any:
    """`(cache, other, row, slot)` to the cache with a row of the other in a slot, in place."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False, reduce_retracing=False)
        def insert(cache: Any, other: Any, row: Tensor, slot: Tensor) -> None:
            for buffer, part in zip(tf.nest.flatten(cache), tf.nest.flatten(other), strict=True):
                width = min(buffer.shape[2], part.shape[2])
                buffer[slot, :, :width].assign(part[row, :, :width])

        def call(cache: Any, other: Any, row: Any, slot: Any) -> Any:
            insert(cache, other, row, slot)
            return cache

        return call
    import jax

    def insert_in_jax(cache: Any, other: Any, row: Tensor, slot: Tensor) -> Any:
        def one(buffer: Tensor, part: Tensor) -> Tensor:
            width = min(buffer.shape[2], part.shape[2])
            return buffer.at[slot, :, :width].set(part[row, :, :width])

        return jax.tree.map(one, cache, other)

    return jax.jit(insert_in_jax, donate_argnums=0)


def bucket(size: int, smallest: int) -> int:
    """The next of 1, 1.5, 2, 3, 4, 6, 8, 12, ... times a power of two, at least `smallest`: a third too large at most
    half of the time, and few enough that all of them get compiled once."""
    power = 1 << max(0, (size - 1).bit_length())
    between = power // 4 * 3
    return max(smallest, between if between >= size else power)
