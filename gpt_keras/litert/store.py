"""Where LiteRT files are kept: made once for what a model's files hold, by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from gpt_keras.backend import start_backend
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import sweep, whole_folder
from gpt_keras.language_model import load, model_files
from gpt_keras.litert.bundle import text_files
from gpt_keras.litert.runtime import LiteRTFile

CACHE = "GPT_KERAS_CACHE"
"""Environment variable: the folder in which LiteRT files are kept, by default ~/.cache/gpt_keras."""
MOST_BYTES = 1.9e9
"""A LiteRT file holds no more."""

KEPT_DAYS = 30
"""A file that has not been opened for so long is removed when another is made."""

_NOTED = 10_000_000
"""Bytes above which what a file holds is noted."""
_FORMAT = 4
"""Counted up whenever the files that are made change."""
_FILE, _CONFIG = "model.tflite", "gpt_config.json"


def place(path: str, weights: str) -> Path:
    """The folder of a model's LiteRT file, there or not, by what the model's files hold.

    Raises:
        InputError: There is no model, or nowhere to keep anything.
    """
    digest = hashlib.sha256(f"{_FORMAT} {weights}".encode())
    for file in model_files(path):
        digest.update(file.name.encode() + _digest(file))
    return _base() / digest.hexdigest()[:32]


def _digest(file: Path) -> bytes:
    """What a file holds, in 32 bytes; noted, for reading a large one takes a while, until the file changes."""
    stat = file.stat()
    seen = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    note = _base() / "digests" / hashlib.sha256(seen.encode()).hexdigest()[:32]
    with contextlib.suppress(OSError):
        known = note.read_bytes()
        if len(known) == 32:
            return known
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").digest()
    changed = file.stat().st_ctime_ns != stat.st_ctime_ns or time.time() - stat.st_ctime < 2  # or may be, unnoticed
    if stat.st_size > _NOTED and not changed:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_bytes(found)
    return found


def _base() -> Path:
    try:
        return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "gpt_keras") / "litert"
    except RuntimeError as error:
        raise InputError(f"there is no home to keep LiteRT files in; set {CACHE} to a folder") from error


def is_there(path: str, weights: str) -> bool:
    """Whether a model's file has been made."""
    return _base().is_dir() and (place(path, weights) / _FILE).is_file()


def obtain(path: str, weights: str, say: Callable[[str], None] | None = None) -> Path:
    """The folder of a model's LiteRT file, which is made now if it is not there.

    Raises:
        InputError: It cannot be.
    """
    folder = place(path, weights)
    _hold(folder)
    if (folder / _FILE).is_file():
        return folder
    if weights == "float32" and sum(file.stat().st_size for file in model_files(path)) > MOST_BYTES:
        raise InputError(f"{path}: a LiteRT file holds at most 2 GB, and this model is larger")
    with _alone(folder):
        if not (folder / _FILE).is_file():
            if say is not None:
                say(f"making the LiteRT file of {path} ({weights}), once")
            _make(path, folder, weights)
    return folder


_held: list[Any] = []


def _hold(folder: Path) -> None:
    """While this process lives the folder stays, and from now on again for `KEPT_DAYS`."""
    import fcntl

    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        used = open(folder.with_name(f"{folder.name}.used"), "w")  # noqa: SIM115
        fcntl.flock(used, fcntl.LOCK_SH)
        _held.append(used)
        os.utime(folder)


def _forget(base: Path) -> None:
    """Remove what nobody has opened for long, and nobody has open."""
    import fcntl

    for folder in base.iterdir():
        with contextlib.suppress(OSError):
            if not folder.is_dir() or time.time() - folder.stat().st_mtime < KEPT_DAYS * 24 * 3600:
                continue
            with open(folder.with_name(f"{folder.name}.used"), "w") as used:
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


def read(folder: Path) -> tuple[Path, GPTConfig]:
    """The file in such a folder, and the model's configuration; `Tokenizer.find` gives its tokenizer."""
    try:
        config = GPTConfig(**json.loads((folder / _CONFIG).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: damaged; delete it, and it is made anew ({error})") from error
    return folder / _FILE, config


def packed(file: Path, folder: Path) -> Path:
    """The weights of a LiteRT file as this version of LiteRT packs them on this machine, packed now if need be.

    Whoever runs the file maps it, so that it is never written where it is.
    """
    found = folder / _packed_name()
    _hold(folder)
    if not found.is_file():
        with _alone(folder):
            if not found.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                partial = folder / f"{found.name}.partial"
                partial.unlink(missing_ok=True)
                LiteRTFile(file, partial)
                os.replace(partial, found)
    return found


def _packed_name() -> str:
    flags = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        flags += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    version = importlib.metadata.version("ai-edge-litert")
    return f"packed_{version}_{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time is inside for a folder.

    Raises:
        InputError: Nothing can be written there.
    """
    import fcntl

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(folder.with_name(f"{folder.name}.lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"{folder.parent}: LiteRT files cannot be kept there ({error.strerror}); set GPT_KERAS_CACHE to a folder "
            "where they can"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(path: str, folder: Path, weights: str) -> None:
    """In a process of its own: what conversion takes of memory is then given back."""
    command = [sys.executable, "-m", "gpt_keras.litert.store", path, str(folder), weights]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise InputError(f"{path}: making its LiteRT file was ended by {name}, for want of memory perhaps")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"making its LiteRT file ended with {done.returncode}"]
        raise InputError(said[-1])


def main() -> None:
    """Make the folder of a model's LiteRT file: the arguments are the model, the folder and the weights' dtype."""
    path, folder, weights = sys.argv[1], Path(sys.argv[2]), cast(Any, sys.argv[3])
    try:
        start_backend("tensorflow")
        lm = load(path, dtype="float32")
        try:
            from gpt_keras.litert.conversion import row_file
        except ImportError as error:
            raise InputError(f"LiteRT files need {error.name}: pip install 'gpt_keras[litert]'") from error
        content = row_file(lm.model, weights)
        sweep(folder.parent)
        _forget(folder.parent)
        with whole_folder(folder) as partial:
            (partial / _FILE).write_bytes(content)
            (partial / _CONFIG).write_text(json.dumps(lm.config.to_dict()) + "\n", "utf-8")
            for name, data in text_files(lm.tokenizer).items():
                (partial / name).write_bytes(data)
            LiteRTFile(partial / _FILE, partial / _packed_name())
            _leave_memory(partial / _FILE)
    except (InputError, OSError) as error:
        sys.exit(str(error))


def _leave_memory(path: Path) -> None:
    """Have the system hold nothing of a file that has just been written.

    It holds that in large pieces, and to whoever maps the file a whole piece counts as memory if a byte of it is read.
    """
    with contextlib.suppress(OSError, AttributeError), open(path, "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
