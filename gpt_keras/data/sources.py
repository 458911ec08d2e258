"""Where text comes from: `open_source("...")` turns a SOURCE into a stream of documents.

    python-stdlib            the sources of the Python that runs this, without its tests: about 12 MB, always there
    PATH                     a .txt, .py, .md or .jsonl file, also .gz and .zst, or .parquet; a folder of them; a glob
                             such as 'books/*.txt'
    tfds:NAME[/SPLIT]        a TensorFlow Datasets data set (extra `datasets`)
    hf:ORG/NAME[/SPLIT]      a Hugging Face data set on the hub, or hf:FOLDER on disk, also one of `save_to_disk`
                             (extra `datasets`)

Reading has two halves, so that many processes can share the work: `Source.blocks` cuts the bytes, which is cheap, and
`read_block` makes documents of a block, which is not. Nothing is held in memory but the block at hand, and blocks and
documents come in the same order every time.
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
from typing import IO, Any, Literal

import zstandard

from gpt_keras.data.errors import InputError

PIECE_BYTES = 64 * 1024
"""Text files above this size become several documents, cut at blank lines."""

BLOCK_BYTES = 1024 * 1024
"""About how much text is handed from one process to another at a time."""

_TEXT_ENDINGS = (".txt", ".py", ".md", ".jsonl")
_PACKED = (".gz", ".zst")
ENDINGS = (*_TEXT_ENDINGS, *(text + packed for packed in _PACKED for text in _TEXT_ENDINGS), ".parquet")
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """A piece of text and where it came from, e.g. `json/decoder.py` or `novels.txt#12`."""

    name: str
    text: str


@dataclass(frozen=True)
class Part:
    """Some of a file or data set, as it was read.

    Attributes:
        name: Of the file or data set; of the document, where the part is one.
        kind: `text`, one document as UTF-8; `lines`, whole lines of JSON; `records`, the texts of records.
        content: The bytes, or the records' texts (whatever the field held).
        first: Number of the first line or record.
        offset: Where the bytes begin in the (unpacked) file.
    """

    name: str
    kind: Literal["text", "lines", "records"]
    content: bytes | list[Any]
    first: int = 0
    offset: int = 0

    @property
    def size(self) -> int:
        """Bytes, or characters of records."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return sum(len(text) for text in self.content if isinstance(text, str | bytes))


Block = list[Part]


@dataclass(frozen=True)
class Source:
    """A source that was found; call it for a pass over its documents.

    Attributes:
        name: What it was opened as.
        text_key: The field of records that holds the text.
        parts: Call it for a fresh pass over the parts.
        named_files: The files it reads, where it is files, each with its name in the source.
    """

    name: str
    text_key: str
    parts: Callable[[], Iterator[Part]]
    named_files: tuple[tuple[str, Path], ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it reads, where it is files."""
        return tuple(file for _, file in self.named_files)

    def __call__(self) -> Iterator[Document]:
        """The documents, one pass a call.

        Raises:
            InputError: While reading: something is not UTF-8 text or not JSON.
        """
        for part in self.parts():
            yield from read_part(part, self.text_key)

    def blocks(self) -> Iterator[Block]:
        """The parts in runs of about `BLOCK_BYTES`."""
        return in_blocks(self.parts())

    @property
    def total_bytes(self) -> int | None:
        """Bytes on disk, where the source is files."""
        return sum(file.stat().st_size for file in self.files) if self.files else None

    def state(self) -> list[Any]:
        """What changes if the source's files do: names, sizes and times."""
        stats = ((file, file.stat()) for file in self.files)
        return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def open_source(source: str, text_key: str = "text") -> Source:
    """Find `source`.

    Args:
        source: As in this module's description.
        text_key: The field of a JSON line, or of a data set's record, that holds the text.

    Raises:
        InputError: There is no such source.
    """
    if source.startswith("tfds:"):
        return Source(source, text_key, _tensorflow_dataset(source.removeprefix("tfds:"), text_key))
    if source.startswith("hf:"):
        return Source(source, text_key, _hugging_face_dataset(source.removeprefix("hf:"), text_key))
    files, root = _python_stdlib() if source == "python-stdlib" else _find_files(source)
    named = tuple((_name(file, root), file) for file in files)
    return Source(
        source,
        text_key,
        lambda: itertools.chain.from_iterable(file_parts(file, name, text_key) for name, file in named),
        named,
    )


def parse_weight(source: str) -> tuple[str, float | None]:
    """`SOURCE=WEIGHT` in two; a source without weight as it is.

    Raises:
        InputError: The weight is not a number above 0.
    """
    name, sign, number = source.rpartition("=")
    if not sign or Path(source).exists():
        return source, None
    try:
        weight = float(number)
    except ValueError:
        return source, None
    if not 0 < weight < float("inf"):
        raise InputError(f"{source}: the weight must be a number above 0")
    return name, weight


def in_blocks(parts: Iterable[Part]) -> Iterator[Block]:
    """Parts in runs of about `BLOCK_BYTES`."""
    block: Block = []
    size = 0
    for part in parts:
        block.append(part)
        size += part.size
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def read_part(part: Part, text_key: str, repair: bool = False) -> Iterator[Document]:
    """The documents of a part.

    Args:
        part: From `Source.parts`.
        text_key: The field of a JSON line that holds the text.
        repair: Whether to let pass what cleaning removes: NUL characters and lone surrogates in records.

    Raises:
        InputError: It is not text, or not JSON.
    """
    if part.kind == "text":
        assert isinstance(part.content, bytes)
        text = _decode(part.content, part.name.partition("#")[0], part.offset)
        if text.strip():
            yield Document(part.name, text)
    else:
        for name, text in read_values(part, text_key):
            yield from _from_text(text, name, text_key, repair)


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


def _python_stdlib() -> tuple[list[Path], Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return [p for p in sorted(root.rglob("*.py")) if not _NOT_LIBRARY.intersection(p.relative_to(root).parts)], root


def file_parts(
    file: str | Path, name: str, text_key: str, opened: Callable[[Any], IO[bytes]] = io.FileIO
) -> Iterator[Part]:
    """The parts of one file.

    Args:
        file: Where it is.
        name: Its name in the source.
        text_key: The field of a Parquet file that holds the text.
        opened: Opens `file`, wherever that is.

    Raises:
        InputError: It cannot be read, or is damaged.
    """
    try:
        if name.lower().endswith(".parquet"):
            with opened(file) as packed:
                yield from _parquet(packed, file, name, text_key)
            return
        with opened(file) as packed, _unpacked(packed, name) as stream:
            plain = name.lower()
            for ending in _PACKED:
                plain = plain.removesuffix(ending)
            yield from _line_parts(stream, name) if plain.endswith(".jsonl") else _text_parts(stream, name)
    except InputError:
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
        kind = "gzip" if name.lower().endswith(".gz") else "Zstandard"
        raise InputError(f"{file}: damaged {kind} file ({error}); fetch it again") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error


def _unpacked(stream: IO[bytes], name: str) -> IO[bytes]:
    if name.lower().endswith(".gz"):
        return gzip.open(stream, "rb")  # type: ignore[return-value]
    if name.lower().endswith(".zst"):
        return io.BufferedReader(_Zstandard(stream))
    return stream


class _Zstandard(io.RawIOBase):
    """The text of a .zst file of one or more frames. Unlike the library's reader it notices a file that ends early."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: Any = None
        self._packed = self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            self._packed = self._packed or self._file.read(PIECE_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends early")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._plain, self._packed = self._frame.decompress(self._packed), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        part, self._plain = self._plain[: len(buffer)], self._plain[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _text_parts(stream: IO[bytes], name: str) -> Iterator[Part]:
    """The file as one document, or, above PIECE_BYTES, as pieces of at most that size cut behind a blank line (a
    line's end where there is none, anywhere in a line that is itself too long)."""
    offset = 0
    for count, (raw, is_last) in enumerate(_cut(stream)):
        whole = is_last and count == 0
        yield Part(name if whole else f"{name}#{count}", "text", raw, offset=offset)
        offset += len(raw)


def _line_parts(stream: IO[bytes], name: str) -> Iterator[Part]:
    """Runs of whole lines; a line that is longer than a block is a run of its own."""
    first, offset, rest = 1, 0, [b""]
    while block := stream.read(BLOCK_BYTES):
        end = block.rfind(b"\n") + 1
        rest.append(block[:end])
        if end:
            raw = b"".join(rest)
            yield Part(name, "lines", raw, first, offset)
            first, offset, rest = first + raw.count(b"\n"), offset + len(raw), []
        rest.append(block[end:])
    if raw := b"".join(rest):
        yield Part(name, "lines", raw, first, offset)


def _parquet(stream: IO[bytes], file: str | Path, name: str, text_key: str) -> Iterator[Part]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet files need one more package: pip install 'gpt_keras[datasets]'") from error
    try:
        with pyarrow.parquet.ParquetFile(stream, buffer_size=BLOCK_BYTES, pre_buffer=False) as table:
            columns = table.schema_arrow.names
            if text_key not in columns:
                raise InputError(_no_field(name, text_key, columns))
            texts = (text.as_py() for batch in table.iter_batches(256, columns=[text_key]) for text in batch.column(0))
            yield from _record_parts(texts, name)
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: damaged Parquet file ({_first_line(error)}); fetch it again") from error


def _record_parts(texts: Iterable[Any], name: str) -> Iterator[Part]:
    held: list[Any] = []
    size = first = 0
    for text in texts:
        held.append(text)
        size += len(text) if isinstance(text, str | bytes) else 0
        if size >= BLOCK_BYTES or len(held) >= 65536:
            yield Part(name, "records", held, first)
            first, held, size = first + len(held), [], 0
    if held:
        yield Part(name, "records", held, first)


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


def read_values(part: Part, key: str) -> Iterator[tuple[str, Any]]:
    """The field `key` of each record of a part, whatever it holds, with the record's name.

    Raises:
        InputError: It is not JSON, or a record has no such field.
    """
    if part.kind == "records":
        for number, value in enumerate(part.content, part.first):
            yield f"{part.name}:{number}", value
        return
    if part.kind == "text":
        raise InputError(f"{part.name}: expected records with a field {key!r}, as JSON lines (.jsonl) have, not text")
    assert isinstance(part.content, bytes)
    offset = part.offset
    for number, raw in enumerate(part.content.split(b"\n"), part.first):
        line = _decode(raw, part.name, offset)
        offset += len(raw) + 1
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{part.name}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
        yield f"{part.name}:{number}", _field(record, f"{part.name}:{number}", key)


def _field(record: Any, name: str, text_key: str) -> Any:
    if not isinstance(record, dict):
        raise InputError(f"{name}: expected an object with a {text_key!r} field, found {type(record).__name__}")
    if text_key not in record:
        raise InputError(_no_field(name, text_key, record))
    return record[text_key]


def _no_field(name: str, text_key: str, fields: Iterable[Any]) -> str:
    return f"{name}: no field {text_key!r}; choose one with --text-key: {', '.join(map(str, fields))}"


def _from_text(text: Any, name: str, text_key: str, repair: bool) -> Iterator[Document]:
    """The text of a record, in pieces where it is above PIECE_BYTES."""
    if isinstance(text, bytes):
        text = _decode(text, name, 0)
    if not isinstance(text, str):
        raise InputError(f"{name}: the field {text_key!r} is {type(text).__name__}, not text; see --text-key")
    if repair:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    elif "\0" in text:
        raise InputError(f"{name}: a NUL character in the field {text_key!r}; drop it, or have it removed: --normalize")
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: half a character (a lone surrogate) at {error.start} of the field {text_key!r}; "
            "mend or drop it, or have it replaced: --normalize"
        ) from error
    if len(raw) <= PIECE_BYTES:
        if text.strip():
            yield Document(name, text)
        return
    for part in _text_parts(io.BytesIO(raw), name):
        assert isinstance(part.content, bytes)
        piece = part.content.decode()
        if piece.strip():
            yield Document(part.name, piece)


def _tensorflow_dataset(name: str, text_key: str) -> Callable[[], Iterator[Part]]:
    name, _, split = name.partition("/")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError("tfds: sources need one more package: pip install 'gpt_keras[datasets]'") from error

    def records() -> Iterable[Any]:
        return tfds.as_numpy(tfds.load(name, split=split or "train", shuffle_files=False))

    return lambda: _from_records(records, f"tfds:{name}", text_key)


def _hugging_face_dataset(name: str, text_key: str) -> Callable[[], Iterator[Part]]:
    try:
        import datasets
    except ImportError as error:
        raise InputError("hf: sources need one more package: pip install 'gpt_keras[datasets]'") from error
    parts = name.split("/")
    split = "train"
    if not Path(name).exists() and len(parts) == 3:
        name, split = "/".join(parts[:2]), parts[2]

    def records() -> Iterable[Any]:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(name)
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(name, split=split, streaming=True)

    return lambda: _from_records(records, f"hf:{name}", text_key)


def _from_records(records: Callable[[], Iterable[Any]], name: str, text_key: str) -> Iterator[Part]:
    try:
        texts = (_field(record, f"{name}:{number}", text_key) for number, record in enumerate(records()))
        yield from _record_parts(texts, name)
    except InputError:
        raise
    except Exception as error:  # these libraries raise dozens of kinds, from a typo to a lost network
        raise InputError(f"{name}: cannot be loaded ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
