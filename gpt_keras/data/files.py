"""Files and folders that are whole or absent: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from gpt_keras.data.errors import InputError

PARTIAL = ".partial-"
"""Names with this inside are unfinished work: never read, swept when their writer runs again."""


_OLD = "-old"
_OF_MODELS = (".json", ".safetensors", ".model", ".jinja", ".txt", ".md")
FULL_BYTES = 1 << 20
"""A disk with less than this free counts as full when writing to it failed."""

_FULL = "no space left on the disk while writing {}: free some, or choose another folder"


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well it takes `path`'s place, otherwise nothing stays behind.

    Raises:
        InputError: The disk is full, or the place cannot be written or is a folder.
    """
    _refuse_folder(path)
    with _replacing(Path(path)) as partial:
        yield partial


def check_writable(path: str | Path) -> None:
    """See that `whole_file` could write there now, before long work whose result goes there.

    Raises:
        InputError: It could not.
    """
    try:
        _refuse_folder(path)
        probe = _partial_name(Path(path).absolute())
        while not os.path.lexists(probe.parent):  # it will be made
            probe = probe.parent.with_name(probe.name)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        error.filename = None
        raise readable(error, path) from error


def _refuse_folder(path: str | Path) -> None:
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; name a file to write")


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """As `whole_file` for a folder: yields an empty one that takes `path`'s place (an old one goes) at the end."""
    with _replacing(Path(path)) as partial:
        partial.mkdir()
        yield partial


def _partial_name(path: Path) -> Path:
    return path.parent / f"{path.name}{PARTIAL}{os.getpid()}-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    partial = _partial_name(path)
    old: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        old = partial.with_name(partial.name + _OLD)
        put_in_place(partial, path, old)
    except InputError:
        raise
    except Exception as error:
        # Not every library says so in a way one could tell, so ask the disk.
        if path.parent.is_dir() and shutil.disk_usage(path.parent).free < FULL_BYTES:
            raise InputError(_FULL.format(path)) from error
        if isinstance(error, OSError):
            raise readable(error, path) from error
        raise
    finally:
        if old is not None and old.exists() and not path.exists():
            os.replace(old, path)
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def check_replaceable(path: str | Path) -> None:
    """See that nothing but a model would be lost if a model folder took this place.

    Raises:
        InputError: There is a folder with more in it than a model's files.
    """
    there = list(Path(path).iterdir()) if Path(path).is_dir() else []
    known = [entry.is_file() and (entry.suffix in _OF_MODELS or entry.name.startswith(".")) for entry in there]
    if there and not (all(known) and "config.json" in {entry.name for entry in there}):
        raise InputError(f"{path}: there is a folder of more than a model; name a new one, or remove what is in it")


def put_in_place(partial: Path, path: Path, old: Path) -> None:
    """Rename a file or folder to `path`; a folder that is there goes to `old` first and is then removed."""
    if path.is_dir():  # os.replace cannot put one folder over another
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: str | Path) -> None:
    """Remove what killed writers left in `folder`, except of processes that still run, and put back what they had
    put away."""
    for path in list(Path(folder).glob(f"*{PARTIAL}*")):
        name, _, rest = path.name.rpartition(PARTIAL)
        process = rest.split("-")[0]
        if process.isdigit() and int(process) != os.getpid() and _alive(int(process)):
            continue
        if rest.endswith(_OLD) and not (path.parent / name).exists():  # killed between putting away and replacing
            path.rename(path.parent / name)
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def readable(error: OSError, path: str | Path) -> InputError:
    """An operating system error as one line of advice."""
    if error.errno == errno.ENOSPC:
        return InputError(_FULL.format(path))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{error.filename or path} cannot be written ({error.strerror}): choose another folder")
    return InputError(f"{error.filename or path}: {error.strerror or error}")


def _sync(path: Path) -> None:
    """Flush a file, or every file of a folder, to the disk."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
