"""A LiteRT decoder in a process of its own.

LiteRT's Python holds the interpreter while it computes: a server's event loop would wait for every step. Here it waits
for a pipe instead. Caches stay over there, and logits too unless somebody looks at them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.litert.decoder import LiteRTDecoder
from gpt_keras.litert.runtime import LiteRTFile
from gpt_keras.rows import Rows

_KEPT_LOGITS = 8


class WorkerError(Exception):
    """The other process failed; a new one takes its place, without the caches."""


class _Handle:
    """A cache of the other process, which is gone with that."""

    def __init__(self, number: int, slots: int, process: int) -> None:
        self.number, self.slots, self.process = number, slots, process


class _Logits:
    """Logits [batch, vocabulary_size] that are fetched when they are looked at."""

    def __init__(self, decoder: WorkerDecoder, number: int) -> None:
        self._decoder, self.number, self.process = decoder, number, decoder.process.pid
        self._value: np.ndarray | None = None

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self._value is None:
            self._value = self._decoder.call("logits", self._decoder.number_of(self))
        return self._value if dtype is None else self._value.astype(dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self)[index]

    @property
    def shape(self) -> tuple[int, ...]:
        return np.asarray(self).shape


class WorkerDecoder:
    """What `LiteRTDecoder` offers. One thread at a time may use it.

    Args:
        file: The LiteRT file.
        packed: As `LiteRTFile`'s `weight_cache`.
        config: The model's.
    """

    in_background = False
    batch_size = staticmethod(LiteRTDecoder.batch_size)

    def __init__(self, file: Path, packed: Path, config: GPTConfig) -> None:
        self.config, self._arguments = config, [str(file), str(packed), json.dumps(config.to_dict())]
        self._lock = threading.Lock()
        self._freed: list[int] = []
        self.num_compilations = 0
        self._start()
        try:
            self.call("ready")
        except WorkerError as error:
            self._finalizer()
            raise InputError(str(error)) from error

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "gpt_keras.litert.worker", str(theirs.fileno()), *self._arguments]
        # In a session of its own, for what is sent to all processes of this one's is this one's to handle.
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._freed = []
        self._finalizer = weakref.finalize(self, _end, self.process, self._connection)

    def call(self, method: str, *arguments: Any) -> Any:
        """What the other process makes of it.

        Raises:
            WorkerError: It failed, or it ended.
        """
        with self._lock:
            freed, self._freed = self._freed, []
            try:
                self._connection.send((method, freed, arguments))
                failure, result = self._connection.recv()
            except BaseException as error:  # what comes back to a call that was broken off is no other's answer
                self._finalizer()
                self._start()
                if isinstance(error, (EOFError, OSError)):
                    raise WorkerError("the process that runs LiteRT ended") from error
                raise
        if failure is not None:
            raise WorkerError(failure)
        return result

    def start(self, prompts: Sequence[Sequence[int]], room: int) -> Rows:
        """As `RowDecoder.start`."""
        number, slots, logits, best, lengths = self.call("start", [list(prompt) for prompt in prompts], room)
        return Rows(self, logits, best, self._handle(number, slots), lengths, len(prompts))

    def weights_may_have_changed(self) -> None:
        """They do not."""

    @staticmethod
    def slots_of(cache: _Handle) -> int:
        """How many tokens of each row fit in."""
        return cache.slots

    def make_cache(self, batch: int, slots: int) -> _Handle:
        """As `SlotDecoder.make_cache`."""
        return self._handle(*self.call("make_cache", batch, slots))

    def step(self, token_ids: Any, positions: np.ndarray, select: np.ndarray, cache: _Handle) -> Any:
        """As `RowDecoder.step`."""
        number, best = self.call("step", np.asarray(token_ids), positions, select, self.number_of(cache))
        return (_Logits(self, number), best), cache

    def take(self, logits: Any, best: np.ndarray, cache: _Handle, index: np.ndarray) -> Any:
        """As `RowDecoder.take`."""
        return np.asarray(logits)[index], best[index], self.resized(cache, index, cache.slots)

    def resized(self, cache: _Handle, index: np.ndarray, slots: int) -> _Handle:
        """As `SlotDecoder.resized`."""
        return self._handle(*self.call("resized", self.number_of(cache), index, slots))

    def insert(self, cache: _Handle, other: _Handle, row: int, slot: int) -> _Handle:
        """As `SlotDecoder.insert`."""
        self.call("insert", self.number_of(cache), self.number_of(other), row, slot)
        return cache

    def _handle(self, number: int, slots: int) -> _Handle:
        handle = _Handle(number, slots, self.process.pid)
        weakref.finalize(handle, self._free, number, self.process.pid)
        return handle

    def _free(self, number: int, process: int) -> None:
        if process == self.process.pid:
            self._freed.append(number)

    def number_of(self, held: _Handle | _Logits) -> int:
        """What the other process knows it by.

        Raises:
            WorkerError: It was another process.
        """
        if held.process != self.process.pid:
            raise WorkerError("the process that held these rows ended")
        return held.number


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()  # at which it ends
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Worker:
    """The other side."""

    def __init__(self, decoder: LiteRTDecoder) -> None:
        self._decoder = decoder
        self._caches: dict[int, Any] = {}
        self._logits: OrderedDict[int, np.ndarray] = OrderedDict()
        self._count = 0

    def free(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._caches.pop(number, None)

    def _number(self) -> int:
        self._count += 1
        return self._count

    def _keep(self, cache: Any) -> tuple[int, int]:
        number = self._number()
        self._caches[number] = cache
        return number, self._decoder.slots_of(cache)

    def ready(self) -> None:
        """The file is open."""

    def start(self, prompts: Any, room: int) -> Any:
        rows = self._decoder.start(prompts, room)
        return (*self._keep(rows.cache), rows.logits, rows.best, rows.lengths)

    def make_cache(self, batch: int, slots: int) -> Any:
        return self._keep(self._decoder.make_cache(batch, slots))

    def step(self, token_ids: Any, positions: Any, select: Any, cache: int) -> Any:
        (logits, best), _ = self._decoder.step(token_ids, positions, select, self._caches[cache])
        number = self._number()
        self._logits[number] = logits
        while len(self._logits) > _KEPT_LOGITS:
            self._logits.popitem(last=False)
        return number, best

    def logits(self, number: int) -> Any:
        return self._logits[number]

    def resized(self, cache: int, index: Any, slots: int) -> Any:
        return self._keep(self._decoder.resized(self._caches[cache], index, slots))

    def insert(self, cache: int, other: int, row: int, slot: int) -> None:
        self._decoder.insert(self._caches[cache], self._caches[other], row, slot)


def main() -> None:
    """Answer what the process at the other end of a socket, the first argument, asks for, until it is gone."""
    number, file, packed, config = sys.argv[1:]
    connection = Connection(int(number))
    worker: _Worker | None = None
    failure: str | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, freed, arguments = connection.recv()
            result = None
            try:
                worker = worker or _Worker(LiteRTDecoder(LiteRTFile(file, packed), GPTConfig(**json.loads(config))))
                worker.free(freed)
                result, failure = getattr(worker, method)(*arguments), None
            except Exception as error:
                failure = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            connection.send((failure, result))
    os._exit(0)  # LiteRT's own ending takes time, and has nothing to save


if __name__ == "__main__":
    main()
