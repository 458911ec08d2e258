"""Work spread over processes, its results in the order of the work.

Each worker is a fresh Python (`python -m gpt_keras.data.workers`) that reads pickled work from its standard input and
writes pickled results to its standard output. So nothing of the caller's program runs a second time in it, and it ends
by itself when the caller is gone, killed or not.
"""

from __future__ import annotations

import collections
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from gpt_keras.data.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """`map(function, items)` in `workers` processes; with one, in this process.

    A few items for each worker are under way at a time, so memory does not grow with their number.

    Args:
        function: Can be pickled, as an instance of a module's class can.
        items: The work.
        workers: How many processes.

    Raises:
        InputError: From `function`, in place of its result; or a worker was killed.
        RuntimeError: `function` failed otherwise; the message has its traceback.
    """
    if workers == 1:
        yield from map(function, items)
        return
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    started = [_Worker(function) for _ in range(workers)]
    for worker in started:
        idle.put(worker)

    def call(item: Item) -> Result:
        worker = idle.get()
        try:
            return worker.call(item)
        finally:
            idle.put(worker)

    iterator = iter(items)
    pool = ThreadPoolExecutor(workers)
    under_way: collections.deque[Future[Result]] = collections.deque()
    try:
        while True:
            under_way.extend(
                pool.submit(call, item) for item in itertools.islice(iterator, 3 * workers - len(under_way))
            )
            if not under_way:
                return
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()
        for worker in started:
            worker.end()
        pool.shutdown()


class _Worker:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        # One thread each: the processes are the parallelism.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpt_keras.data.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._send(function)

    def call(self, item: Any) -> Any:
        assert self._process.stdout is not None
        try:
            self._send(item)
            succeeded, result = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise InputError(
                f"a worker process ended early (exit code {code}): it was killed, or the memory did not suffice; "
                "the same command goes on, fewer --workers need less memory"
            ) from error
        if not succeeded:
            raise result if isinstance(result, InputError) else RuntimeError(f"in a worker process:\n{result}")
        return result

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue

    def _send(self, item: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(item, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()


def _work() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the caller, who then ends this
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not get between the results
    function = pickle.load(sys.stdin.buffer)
    while True:
        try:
            item = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            result = (True, function(item))
        except InputError as error:
            result = (False, InputError(str(error)))
        except Exception:
            result = (False, traceback.format_exc())
        pickle.dump(result, output, pickle.HIGHEST_PROTOCOL)
        output.flush()


if __name__ == "__main__":
    _work()
