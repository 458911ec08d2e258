"""The files that a preparation works with: notes that are whole or absent, and tables too large for memory."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file

_CHUNK = 1 << 18


def table(path: Path, dtype: np.dtype, columns: int | None = None) -> np.ndarray:
    """A file of records as an array [records] or [records, columns], which is read as it is used."""
    if path.stat().st_size == 0:
        return np.zeros(0 if columns is None else (0, columns), dtype)
    flat = np.memmap(path, dtype, "r")
    return flat if columns is None else flat.reshape(-1, columns)


def chunks(count: int, *tables: np.ndarray) -> Iterator[slice]:
    """Some of `count` records at a time; what was read of `tables` for one chunk is not kept for the next."""
    for start in range(0, count, _CHUNK):
        yield slice(start, min(start + _CHUNK, count))
        forget(*tables)


def forget(*tables: np.ndarray) -> None:
    """Give back the memory of what was read of mapped files; arrays that are none stay as they are."""
    for array in tables:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def open_at(path: Path, size: int) -> IO[bytes]:
    """Open a file to append at `size`; what is behind was written by a process that was killed."""
    stream: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
    stream.truncate(size)
    stream.seek(size)
    return stream


def sync(files: Iterable[IO[bytes]]) -> None:
    """See that what was written is on the disk."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def read_note(path: Path) -> dict[str, Any] | None:
    """A JSON object, or `None` where there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def must_read_note(path: Path) -> dict[str, Any]:
    """As `read_note`; raises InputError where there is none."""
    value = read_note(path)
    if value is None:
        raise InputError(f"{path}: damaged; give --restart to begin again")
    return value


def write_note(path: Path, value: dict[str, Any]) -> None:
    """Put a JSON object in the file's place, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value), "utf-8")
