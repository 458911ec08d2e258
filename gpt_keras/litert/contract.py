"""Rows continued by a LiteRT file in LiteRT-LM's contract (`graph.EngineForm`), one row at a time.

Keys and values of a row are in two sets of buffers, which are input and output of a step in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_keras.config import GPTConfig
from gpt_keras.litert.runtime import Buffer, LiteRTFile
from gpt_keras.litert.sizes import HIDDEN, cache_names
from gpt_keras.rows import Rows


@dataclass
class _Row:
    """One row's cache: what is read, and what the next step writes."""

    now: dict[str, Buffer]
    next: dict[str, Buffer]


Cache = list[_Row]


class ContractDecoder:
    """Starts rows of one model, as `decoding.Decoder` does; several threads may, and take turns.

    Args:
        file: With `decode` and `prefill_<length>` functions.
        config: The model's; its context's length is how many slots the file's cache has.
    """

    in_background = False

    def __init__(self, file: LiteRTFile, config: GPTConfig) -> None:
        self._file, self.config = file, config
        self._names = cache_names(config.num_layers)
        found = {int(name.removeprefix("prefill_")): name for name in file.functions if name.startswith("prefill_")}
        self._functions = {1: "decode", **found}
        self._memory: dict[str, dict[str, Buffer]] = {}
        outputs = file.outputs("decode")
        self._logits = {"logits": outputs["logits"]}
        self._turn = threading.Lock()  # all write their inputs and read their logits in the same places

    @property
    def num_compilations(self) -> int:
        """How many of the file's functions have been used."""
        return len(self._memory)

    def weights_may_have_changed(self) -> None:
        """They do not."""

    @staticmethod
    def batch_size(rows: int) -> int:
        """How many rows a batch has that holds so many."""
        return rows

    def slots_of(self, cache: Cache) -> int:
        """How many tokens of each row fit in."""
        return self.config.context_length

    def make_cache(self, batch: int, slots: int) -> Cache:
        """An empty one for so many rows, each of the context's length."""
        both = [[{name: self._file.input("decode", name) for name in self._names} for _ in "12"] for _ in range(batch)]
        return [_Row(*pair) for pair in both]

    def start(self, prompts: Sequence[Sequence[int]], room: int) -> Rows:
        """As `RowDecoder.start`."""
        cache, logits = self.make_cache(len(prompts), 0), []
        for prompt, row in zip(prompts, cache, strict=True):
            place = 0
            while place < len(prompt) - 1:
                end = len(prompt) - 1
                length = max((n for n in self._functions if n <= end - place), default=1)
                # Reading some tokens once more is quicker than the rest in small pieces.
                longer = min((n for n in self._functions if end - place <= n <= end), default=length)
                place = min(place, end - longer) if longer > length else place
                length = longer
                self._run(row, np.array(prompt[place : place + length], np.int32), place, self._functions[length])
                place += length
            logits.append(self._run(row, np.array(prompt[-1:], np.int32), place, "decode"))
        found = np.stack(logits)
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        return Rows(self, found, found.argmax(-1).astype(np.int32), cache, lengths, len(prompts))

    def step(self, token_ids: Any, positions: np.ndarray, select: np.ndarray, cache: Cache) -> Any:
        """As `RowDecoder.step`, of one token for each row."""
        rows = zip(np.asarray(token_ids), positions, cache, strict=True)
        logits = np.stack([self._run(row, tokens, int(place[0]), "decode") for tokens, place, row in rows])
        return (logits, logits.argmax(-1).astype(np.int32)), cache

    def _run(self, row: _Row, tokens: np.ndarray, start: int, function: str) -> np.ndarray:
        """Tokens of one row through the model; the logits behind the last, float32 [vocabulary_size], of `decode`."""
        with self._turn:
            if function not in self._memory:
                names = [name for name in self._file.shapes(function) if name not in self._names]
                self._memory[function] = {name: self._file.input(function, name) for name in names}
            inputs = self._memory[function]
            places = np.arange(start, start + len(tokens), dtype=np.int32)
            inputs["tokens"].array[0], inputs["input_pos"].array[:] = tokens, places
            visible = np.arange(self.config.context_length) <= places[:, None]
            inputs["mask"].array[0, 0] = np.where(visible, np.float32(0), np.float32(HIDDEN))
            outputs = {**row.next, **self._logits} if function == "decode" else row.next
            self._file.run(function, {**inputs, **row.now}, outputs)
            row.now, row.next = row.next, row.now
            return self._logits["logits"].array.reshape(-1).copy()

    def take(self, logits: np.ndarray, best: np.ndarray, cache: Cache, index: np.ndarray) -> Any:
        """As `RowDecoder.take`."""
        found = self.make_cache(len(index), 0)
        for row, source in zip(found, index, strict=True):
            for name in self._names:
                row.now[name].array[...] = cache[source].now[name].array
        return logits[index], best[index], found
