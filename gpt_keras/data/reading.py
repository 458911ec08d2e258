"""Reading files: bytes to parts, which is cheap, and parts to documents, which is not, so that processes can share it.

Nothing is held in memory but the part at hand, and parts and documents come in the same order every time.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import zstandard

from gpt_keras.data.errors import InputError

_EVALUATE = "evaluate: --map text=FIELD"
PIECE_BYTES = 64 * 1024
"""Text files above this size become several documents, cut at blank lines."""

BLOCK_BYTES = 1024 * 1024
"""About how much text is handed from one process to another at a time."""

_TEXT_ENDINGS = (".txt", ".py", ".md", ".jsonl")
_PACKED = (".gz", ".zst")
ENDINGS = (*_TEXT_ENDINGS, *(text + packed for packed in _PACKED for text in _TEXT_ENDINGS), ".parquet")


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
        kind: `text`, one document as UTF-8; `lines`, whole lines of JSON; `records`, records or the texts of them.
        content: The bytes, or the records, or what their field held.
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
        return sum(map(_size, self.content))


def _size(value: Any) -> int:
    """Characters or bytes of a text, or of those in a record."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return len(value) if isinstance(value, str | bytes) else 0


Block = list[Part]


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


def file_parts(
    file: str | Path, name: str, text_key: str | None, opened: Callable[[Any], IO[bytes]] = io.FileIO
) -> Iterator[Part]:
    """The parts of one file.

    Args:
        file: Where it is.
        name: Its name in the source.
        text_key: The field of a Parquet file that holds the text; `None` for whole records.
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


def _parquet(stream: IO[bytes], file: str | Path, name: str, text_key: str | None) -> Iterator[Part]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet files need one more package: pip install 'gpt_keras[datasets]'") from error
    try:
        with pyarrow.parquet.ParquetFile(stream, buffer_size=BLOCK_BYTES, pre_buffer=False) as table:
            columns = table.schema_arrow.names
            if text_key is None:
                yield from record_parts((row for batch in table.iter_batches(256) for row in batch.to_pylist()), name)
                return
            if text_key not in columns:
                raise InputError(_no_field(name, text_key, columns))
            texts = (text.as_py() for batch in table.iter_batches(256, columns=[text_key]) for text in batch.column(0))
            yield from record_parts(texts, name)
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: damaged Parquet file ({first_line(error)}); fetch it again") from error


def record_parts(texts: Iterable[Any], name: str) -> Iterator[Part]:
    """Parts of some records each, out of all records, or out of the texts of all (whatever the field held)."""
    held: list[Any] = []
    size = first = 0
    for text in texts:
        held.append(text)
        size += _size(text)
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


def read_values(part: Part, key: str | None) -> Iterator[tuple[str, Any]]:
    """The field `key` of each record of a part, whatever it holds, with the record's name; `None` for whole records.

    Raises:
        InputError: It is not JSON, or a record has no such field.
    """
    if part.kind == "records":
        for number, value in enumerate(part.content, part.first):
            yield f"{part.name}:{number}", value
        return
    if part.kind == "text":
        what = "records" if key is None else f"records with a field {key!r}"
        raise InputError(f"{part.name}: expected {what}, as JSON lines (.jsonl) have, not text")
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
        yield f"{part.name}:{number}", field_of(record, f"{part.name}:{number}", key)


def field_of(record: Any, name: str, text_key: str | None) -> Any:
    """The field of a record, or with `None` the record; raises InputError where there is none."""
    if not isinstance(record, dict):
        what = "an object" if text_key is None else f"an object with a {text_key!r} field"
        raise InputError(f"{name}: expected {what}, found {type(record).__name__}")
    if text_key is None:
        return record
    if text_key not in record:
        raise InputError(_no_field(name, text_key, record))
    return record[text_key]


def _no_field(name: str, text_key: str, fields: Iterable[Any]) -> str:
    there = ", ".join(map(str, fields))
    return f"{name}: no field {text_key!r}; there are {there}: choose one with --text-key ({_EVALUATE})"


def _from_text(text: Any, name: str, text_key: str, repair: bool) -> Iterator[Document]:
    """The text of a record, in pieces where it is above PIECE_BYTES."""
    if isinstance(text, bytes):
        text = _decode(text, name, 0)
    if not isinstance(text, str):
        raise InputError(
            f"{name}: the field {text_key!r} is {type(text).__name__}, not text; choose one with --text-key "
            f"({_EVALUATE})"
        )
    if repair:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    elif "\0" in text:
        raise InputError(
            f"{name}: a NUL character in the field {text_key!r}; drop it, or have it removed by "
            "corpus prepare --normalize"
        )
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: half a character (a lone surrogate) at {error.start} of the field {text_key!r}; "
            "mend or drop it, or have it replaced by corpus prepare --normalize"
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


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
