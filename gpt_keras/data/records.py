"""Records of named fields, to fine-tune on and to evaluate with: CSV, JSON lines, Parquet, tfds: and hf:."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.data.reading import Part, read_values, record_parts
from gpt_keras.data.sources import Source, open_source

_TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Fields:
    """What a record must have, and under which names a file has it.

    Attributes:
        names: Of the fields.
        optional: Fields that may be missing, and what they then are.
        columns: Field to column, for those that go by another name in the file.
    """

    names: tuple[str, ...]
    optional: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)

    def take(self, record: Any, name: str) -> dict[str, Any]:
        """The fields out of a record as it was read.

        Raises:
            InputError: One is missing; the message names those there are.
        """
        if not isinstance(record, Mapping):
            raise InputError(f"{name}: expected an object with the fields {', '.join(self.names)}")
        found = {}
        for wanted in (*self.names, *self.optional):
            column = self.columns.get(wanted, wanted)
            if column in record:
                found[wanted] = _plain(record[column])
            elif wanted in self.optional and wanted not in self.columns:
                found[wanted] = self.optional[wanted]
            else:
                raise InputError(
                    f"{name}: no field {column!r}; there are {', '.join(map(str, record))}: choose with --map "
                    f"{wanted}=NAME"
                )
        return found


def parse_columns(pairs: Iterable[str], fields: Sequence[str]) -> dict[str, str]:
    """`field=column` pairs, as given to --map.

    Raises:
        InputError: One is not such a pair, or its field is none of `fields`.
    """
    columns = {}
    for pair in pairs:
        name, sign, column = pair.partition("=")
        if not sign or not column:
            raise InputError(f"--map {pair}: expected FIELD=COLUMN, as in {fields[0]}=sentence")
        if name not in fields:
            raise InputError(f"--map {pair}: there is no field {name}; fields are {', '.join(fields)}")
        columns[name] = column
    return columns


def open_records(source: str) -> Source:
    """Find a source of records: those of `open_source`, and tables (.csv, .tsv, also .gz) with a line of names.

    Raises:
        InputError: There is no such source.
    """
    path = Path(source)
    ending = _ending(path.name)
    if ending not in _TABLES or not path.is_file():
        if path.is_file() and ending in (".txt", ".py", ".md"):
            raise InputError(f"{source}: text; records are .jsonl, .csv, .tsv or .parquet files, tfds:NAME or hf:NAME")
        return open_source(source, None)
    return Source(source, None, lambda: record_parts(_table(path, _TABLES[ending]), path.name), ((path.name, path),))


def read_records(sources: str | Sequence[str], fields: Fields) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record's name, `file:line` say, and its fields.

    Raises:
        InputError: There is no such source, it is damaged, or a record lacks a field.
    """
    for source in [sources] if isinstance(sources, str) else sources:
        for part in open_records(source).parts():
            yield from fields_of(part, fields)


def fields_of(part: Part, fields: Fields) -> Iterator[tuple[str, dict[str, Any]]]:
    """As `read_records`, of one part of a source."""
    for name, record in read_values(part, None):
        yield name, fields.take(record, name)


def _ending(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _table(path: Path, delimiter: str) -> Iterator[dict[str, str]]:
    """The rows of a table as its first line names them."""
    csv.field_size_limit(1 << 30)
    try:
        with (
            gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb") as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream,
        ):
            rows = csv.DictReader(stream, delimiter=delimiter, strict=True)
            for row in rows:
                if None in row or None in row.values():
                    columns = len(rows.fieldnames or ())
                    raise InputError(f"{path}, line {rows.line_num}: not {columns} columns, as in its first line")
                yield row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.object[error.start]:#04x}); save it as UTF-8") from error
    except (csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged table ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _plain(value: Any) -> Any:
    """NumPy's and bytes, in which data sets hold texts, as Python's own."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value
