"""Where text comes from: `open_source("...")` turns a SOURCE into a stream of documents.

    python-stdlib            the sources of the Python that runs this, without its tests: about 12 MB, always there
    PATH                     a .txt, .py, .md or .jsonl file, also .gz; a folder of them; a glob such as 'books/*.txt'
    tfds:NAME[/SPLIT]        a TensorFlow Datasets data set (extra `datasets`)
    hf:ORG/NAME[/SPLIT]      a Hugging Face data set on the hub, or hf:FOLDER on disk (extra `datasets`)

Nothing is held in memory but the document at hand. The order is the same every time.
"""

from __future__ import annotations

import glob
import gzip
import io
import itertools
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from gpt_keras.data.errors import InputError

PIECE_BYTES = 64 * 1024
"""Text files above this size become several documents, cut at blank lines."""

_TEXT_ENDINGS = (".txt", ".py", ".md", ".jsonl")
ENDINGS = _TEXT_ENDINGS + tuple(ending + ".gz" for ending in _TEXT_ENDINGS)
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """A piece of text and where it came from, e.g. `json/decoder.py` or `novels.txt#12`."""

    name: str
    text: str


Source = Callable[[], Iterator[Document]]
"""Call it for a fresh pass over the documents."""


def open_source(source: str, text_key: str = "text") -> Source:
    """Find `source` and return a function that yields its documents, one pass a call.

    Args:
        source: As in this module's description.
        text_key: The field of a JSON line, or of a data set's record, that holds the text.

    Raises:
        InputError: Now, if there is no such source; while reading, if something is not UTF-8 text or not JSON.
    """
    if source == "python-stdlib":
        return _python_stdlib
    if source.startswith("tfds:"):
        return _tensorflow_dataset(source.removeprefix("tfds:"), text_key)
    if source.startswith("hf:"):
        return _hugging_face_dataset(source.removeprefix("hf:"), text_key)
    files, root = _find_files(source)
    return lambda: itertools.chain.from_iterable(_read(file, _name(file, root), text_key) for file in files)


def _find_files(source: str) -> tuple[list[Path], Path]:
    path = Path(source)
    if path.is_file():
        if not path.name.lower().endswith(ENDINGS) and path.suffix:
            raise InputError(f"{source}: a file ending in {path.suffix} is not read; endings are {', '.join(ENDINGS)}")
        return [path], path.parent
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(ENDINGS))
        if not files:
            raise InputError(f"{source}: the folder holds no file ending in {', '.join(ENDINGS)}")
        return files, path
    if any(character in source for character in "*?["):
        files = sorted(p for p in map(Path, glob.glob(source, recursive=True)) if p.is_file())
        if not files:
            raise InputError(f"{source}: no file matches this pattern (from {Path.cwd()})")
        return files, Path(os.path.commonpath([file.parent for file in files]))
    raise InputError(
        f"{source}: no such file or folder; a source is a path, a glob, python-stdlib, tfds:NAME or hf:NAME"
    )


def _name(file: Path, root: Path) -> str:
    name = file.relative_to(root).as_posix()
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _python_stdlib() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        if not _NOT_LIBRARY.intersection(file.relative_to(root).parts):
            yield from _read(file, _name(file, root), "text")


def _read(file: Path, name: str, text_key: str) -> Iterator[Document]:
    plain = name.lower().removesuffix(".gz")
    try:
        with cast(IO[bytes], (gzip.open if plain != name.lower() else open)(file, "rb")) as stream:
            yield from (_json_lines(stream, name, text_key) if plain.endswith(".jsonl") else _pieces(stream, name))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file}: damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error


def _decode(raw: bytes, name: str, offset: int) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: not UTF-8 text (byte {raw[error.start]:#04x} at offset {offset + error.start}); "
            "convert it to UTF-8 or leave it out"
        ) from error
    if "\0" in text:
        where = offset + len(text[: text.index("\0")].encode())
        raise InputError(f"{name}: binary data (a NUL byte at offset {where}); only UTF-8 text can be learned from")
    return text


def _pieces(stream: IO[bytes], name: str) -> Iterator[Document]:
    """The file as one document, or, above PIECE_BYTES, as pieces of at most that size cut behind a blank line (a
    line's end where there is none, anywhere in a line that is itself too long)."""
    offset = 0
    for count, (raw, is_last) in enumerate(_cut(stream)):
        text = _decode(raw, name, offset)
        if text.strip():
            yield Document(name if is_last and count == 0 else f"{name}#{count}", text)
        offset += len(raw)


def _cut(stream: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    rest = b""
    while True:
        block = stream.read(PIECE_BYTES)
        rest += block
        while len(rest) > PIECE_BYTES:
            place = _place_to_cut(rest)
            yield rest[:place], False
            rest = rest[place:]
        if not block:
            if rest:
                yield rest, True
            return


def _place_to_cut(raw: bytes) -> int:
    for blank in (b"\n\n", b"\r\n\r\n", b"\n"):
        place = raw.rfind(blank, 0, PIECE_BYTES)
        if place >= 0:
            return place + len(blank)
    place = PIECE_BYTES
    while place > 1 and raw[place] & 0xC0 == 0x80:  # not inside a UTF-8 character
        place -= 1
    return place


def _json_lines(stream: IO[bytes], name: str, text_key: str) -> Iterator[Document]:
    offset = 0
    for number, raw in enumerate(stream, start=1):
        line = _decode(raw, name, offset)
        offset += len(raw)
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
        yield from _from_record(record, f"{name}:{number}", text_key)


def _from_record(record: Any, name: str, text_key: str) -> Iterator[Document]:
    if not isinstance(record, dict):
        raise InputError(f"{name}: expected an object with a {text_key!r} field, found {type(record).__name__}")
    if text_key not in record:
        raise InputError(f"{name}: no field {text_key!r}; choose one with --text-key: {', '.join(map(str, record))}")
    text = record[text_key]
    if isinstance(text, bytes):
        text = _decode(text, name, 0)
    if not isinstance(text, str):
        raise InputError(f"{name}: the field {text_key!r} is {type(text).__name__}, not text; see --text-key")
    if "\0" in text:
        raise InputError(f"{name}: a NUL character in the field {text_key!r}; only text can be learned from")
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: half a character (a lone surrogate) at {error.start} of the field {text_key!r}; mend or drop it"
        ) from error
    yield from _pieces(io.BytesIO(raw), name)


def _tensorflow_dataset(name: str, text_key: str) -> Source:
    name, _, split = name.partition("/")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError("tfds: sources need one more package: pip install 'gpt_keras[datasets]'") from error

    def records() -> Iterable[Any]:
        return tfds.as_numpy(tfds.load(name, split=split or "train", shuffle_files=False))

    return lambda: _from_records(records, f"tfds:{name}", text_key)


def _hugging_face_dataset(name: str, text_key: str) -> Source:
    try:
        import datasets
    except ImportError as error:
        raise InputError("hf: sources need one more package: pip install 'gpt_keras[datasets]'") from error
    parts = name.split("/")
    split = "train"
    if not Path(name).exists() and len(parts) == 3:
        name, split = "/".join(parts[:2]), parts[2]

    def records() -> Iterable[Any]:
        return datasets.load_dataset(name, split=split, streaming=True)

    return lambda: _from_records(records, f"hf:{name}", text_key)


def _from_records(records: Callable[[], Iterable[Any]], name: str, text_key: str) -> Iterator[Document]:
    try:
        for number, record in enumerate(records()):
            yield from _from_record(record, f"{name}:{number}", text_key)
    except InputError:
        raise
    except Exception as error:  # these libraries raise dozens of kinds, from a typo to a lost network
        raise InputError(f"{name}: cannot be loaded ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
