"""Numbered batches that NumPy makes, as a `tf.data.Dataset` that makes them ahead of use."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_AT_ONCE = 8
_EXIT_SECONDS = 5.0


def numbered_dataset(
    load: Callable[[int], tuple[np.ndarray, ...]],
    finish: Callable[..., Any],
    shapes: Sequence[tuple[int, ...]],
    start: int = 0,
    stop: int | None = None,
) -> Any:
    """`finish(*load(number))` for the numbers from `start` on.

    Args:
        load: Makes int32 arrays of `shapes`; a pure function, called from several threads, for some numbers at a time,
            since a call from TensorFlow into Python takes longer than most batches do.
        finish: Makes the element of the tensors, in the graph; they have one more dimension in front, of some numbers.
        shapes: Of the arrays, static in the data set.
        start: The first number.
        stop: The number behind the last one; none by default.
    """
    import tensorflow as tf

    end = np.iinfo(np.int64).max if stop is None else stop

    def load_some(first: np.int64) -> list[np.ndarray]:
        with _CALLS:
            batches = [load(number) for number in range(int(first), min(int(first) + _AT_ONCE, end))]
            return [np.stack(parts) for parts in zip(*batches, strict=True)]

    def call(first: Any) -> Any:
        parts = tf.numpy_function(load_some, [first], [tf.int32] * len(shapes))
        return finish(*(tf.ensure_shape(part, (None, *shape)) for part, shape in zip(parts, shapes, strict=True)))

    numbers = tf.data.Dataset.range(start, end, _AT_ONCE)
    some = numbers.map(call, num_parallel_calls=2, deterministic=True).prefetch(2)
    return some.unbatch().prefetch(2)


class _Calls:
    """Counts the calls from TensorFlow's threads, and lets Python end only when there is none: TensorFlow would wait
    for a call that waits for the interpreter, which waits for TensorFlow."""

    def __init__(self) -> None:
        self._lock, self._count, self._last = threading.Lock(), 0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count, self._last = self._count - 1, time.monotonic()

    def wait(self) -> None:
        """Until there has been no call for a moment: what is made ahead of use is full."""
        deadline = time.monotonic() + _EXIT_SECONDS
        while (self._count or time.monotonic() - self._last < 0.1) and time.monotonic() < deadline:
            time.sleep(0.02)


_CALLS = _Calls()
atexit.register(_CALLS.wait)
