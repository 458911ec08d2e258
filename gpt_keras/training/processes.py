"""The processes of one run, on one host or several. Imports no keras; with one process, nothing here does anything.

They are told of each other by `--coordinator`, by KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID, or
by what SLURM and Cloud TPU set in the environment. All see one file system, with the run folder in it. The first
process alone writes there, but for the checkpoints, of which each writes what it holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_keras.data.errors import InputError

HEARTBEAT_SECONDS = 30
"""A process that is not heard of for so long counts as gone."""
JOIN_SECONDS = 300
LOST = "another process of this run is gone ({}); start all of them again to go on from the last checkpoint"
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


class LostProcessError(Exception):
    """Another process of the run is gone."""


@dataclass(frozen=True)
class Processes:
    """Attributes:
    index: This one's number.
    count: How many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes the files and talks to the user."""
        return self.index == 0


_processes = Processes()


def processes() -> Processes:
    """Those of this run."""
    return _processes


def join(coordinator: str | None, count: int | None, index: int | None, backend: str) -> bool:
    """Meet the other processes, if there are any: before the backend does anything.

    Args:
        coordinator: HOST:PORT of the first process; where it is not given, the environment is asked.
        count: How many processes there are.
        index: The number of this one.
        backend: It must be jax.

    Returns:
        Whether there are others.

    Raises:
        InputError: Some of it is missing or makes no sense, or the others do not answer.
    """
    global _processes
    coordinator = coordinator or os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES", "").split(",")[0] or None
    count = _number("KERAS_DISTRIBUTION_NUM_PROCESSES") if count is None else count
    index = _number("KERAS_DISTRIBUTION_PROCESS_ID") if index is None else index
    given = {"coordinator": coordinator, "processes": count, "process": index}
    missing = [name for name, value in given.items() if value is None]
    if missing and not _launched():
        if len(missing) == len(given):
            return False
        raise InputError(f"--{missing[0]} is missing: give --coordinator HOST:PORT, --processes N and --process I")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise InputError(f"--coordinator must be HOST:PORT, not {coordinator}")
    if count is not None and count < 1:
        raise InputError(f"--processes must be 1 or more, not {count}")
    if index is not None and count is not None and not 0 <= index < count:
        raise InputError(f"--process must be from 0 to {count - 1}, not {index}")
    if backend != "jax":
        raise InputError("several processes need JAX: --backend jax")
    import jax

    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        where = coordinator or "the coordinator that the environment names"
        raise InputError(f"the processes did not meet at {where} ({str(error).splitlines()[0]})") from error
    _end_aborts_with_a_line()
    _processes = Processes(jax.process_index(), jax.process_count())
    return _processes.count > 1


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise InputError(f"{name}={text}: expected a number")
    return None if text is None else int(text)


def _launched() -> bool:
    """Whether SLURM or Cloud TPU started several of us."""
    slurm = all(name in os.environ for name in _SLURM) and int(os.environ["SLURM_NTASKS"]) > 1
    return slurm or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def meet() -> None:
    """Wait until every process is here."""
    largest([0.0])


def largest(values: Sequence[float]) -> list[float]:
    """The largest that any process gives, of each of `values`. Every process calls it, and gets the same."""
    if _processes.count == 1:
        return list(values)
    import numpy as np
    from jax.experimental import multihost_utils

    everyone = multihost_utils.process_allgather(np.asarray(values, np.float64).view(np.uint32))
    return [float(value) for value in everyone.view(np.float64).max(axis=0)]


def leave() -> None:
    """Part from the others, all at once. What follows, the first process does alone."""
    global _processes
    if _processes.count > 1:
        import jax

        jax.distributed.shutdown()
        _processes = Processes(_processes.index, 1)


@contextlib.contextmanager
def telling_of_lost_ones() -> Iterator[None]:
    """Raises `LostProcessError` for what the backend says when another process is gone."""
    if _processes.count == 1:
        yield
        return
    from jax.errors import JaxRuntimeError

    try:
        yield
    except JaxRuntimeError as error:
        raise LostProcessError(LOST.format(str(error).splitlines()[0])) from error


def _end_aborts_with_a_line() -> None:
    """Where the first process is gone, JAX aborts the others from a thread of its own, with a stack trace: put a line
    behind it. Python's signal handlers would not run then."""

    def tell(_: int) -> None:
        line = LOST.format("JAX ended this one; the reason is above")
        os.write(2, f"\nerror: {line}\n".encode())
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(tell)
    _kept.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


_kept: list[Any] = []


def end(code: int) -> int:
    """End the program: without waiting for the others, where this one has not left them in order."""
    if _processes.count > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
