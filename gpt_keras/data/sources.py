"""Where text comes from: `open_source("...")` turns a SOURCE into a stream of documents.

python-stdlib            the sources of the Python that runs this, without its tests: about 12 MB, always there
PATH                     a .txt, .py, .md or .jsonl file, also .gz and .zst, or .parquet; a folder of them; a glob
                         such as 'books/*.txt'
tfds:NAME[/SPLIT]        a TensorFlow Datasets data set (extra `datasets`)
hf:ORG/NAME[/SPLIT]      a Hugging Face data set on the hub, or hf:FOLDER on disk, also one of `save_to_disk`
                         (extra `datasets`)
"""

from __future__ import annotations

import glob
import itertools
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_keras.data.errors import InputError
from gpt_keras.data.reading import (
    ENDINGS,
    Block,
    Document,
    Part,
    field_of,
    file_parts,
    first_line,
    in_blocks,
    read_part,
    record_parts,
)

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """A source that was found; call it for a pass over its documents.

    Attributes:
        name: What it was opened as.
        text_key: The field of records that holds the text; `None` where whole records are wanted.
        parts: Call it for a fresh pass over the parts.
        named_files: The files it reads, where it is files, each with its name in the source.
    """

    name: str
    text_key: str | None
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
        assert self.text_key is not None
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


def open_source(source: str, text_key: str | None = "text") -> Source:
    """Find `source`.

    Args:
        source: As in this module's description.
        text_key: The field of a JSON line, or of a data set's record, that holds the text; `None` for parts of whole
            records, in which the classes of a data set go by their names.

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


def parse_weights(sources: str | Sequence[str]) -> list[tuple[str, float | None]]:
    """As `parse_weight`, of one source or several.

    Raises:
        InputError: Only some have weights, or one is not a number above 0.
    """
    given = [parse_weight(source) for source in ([sources] if isinstance(sources, str) else sources)]
    if len({weight is None for _, weight in given}) > 1:
        raise InputError("give every source a weight, as SOURCE=WEIGHT, or none")
    return given


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


def _find_files(source: str) -> tuple[list[Path], Path]:
    path = Path(source)
    if "://" in source:
        copy = {"gs": "gcloud storage cp -r", "s3": "aws s3 cp --recursive"}.get(source.partition("://")[0])
        how = f" ({copy} does), or give text to corpus prepare --runner" if copy else ""
        raise InputError(f"{source}: is not on a local disk: copy it first{how}")
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


def _tensorflow_dataset(name: str, text_key: str | None) -> Callable[[], Iterator[Part]]:
    name, _, split = name.partition("/")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError("tfds: sources need one more package: pip install 'gpt_keras[datasets]'") from error

    def records() -> Iterable[Any]:
        data, info = tfds.load(name, split=split or "train", shuffle_files=False, with_info=True)
        classes = {key: f for key, f in _items(info.features) if isinstance(f, tfds.features.ClassLabel)}
        return (_named_classes(record, classes) for record in tfds.as_numpy(data))

    return lambda: _from_records(records, f"tfds:{name}", text_key)


def _hugging_face_dataset(name: str, text_key: str | None) -> Callable[[], Iterator[Part]]:
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
            data = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            data = datasets.load_dataset(name, split=split, streaming=True)
        classes = {key: f for key, f in _items(data.features) if isinstance(f, datasets.ClassLabel)}
        return (_named_classes(record, classes) for record in data)

    return lambda: _from_records(records, f"hf:{name}", text_key)


def _items(features: Any) -> Iterable[tuple[str, Any]]:
    """A data set's features by name; a stream may not know them."""
    return features.items() if hasattr(features, "items") else ()


def _named_classes(record: Any, classes: dict[str, Any]) -> Any:
    """The record with the names of its classes in place of their numbers; -1 is no class."""
    named = {key: f.int2str(int(record[key])) for key, f in classes.items() if key in record and record[key] >= 0}
    return {**record, **named} if named else record


def _from_records(records: Callable[[], Iterable[Any]], name: str, text_key: str | None) -> Iterator[Part]:
    try:
        texts = (field_of(record, f"{name}:{number}", text_key) for number, record in enumerate(records()))
        yield from record_parts(texts, name)
    except InputError:
        raise
    except Exception as error:  # these libraries raise dozens of kinds, from a typo to a lost network
        raise InputError(f"{name}: cannot be loaded ({first_line(error)})") from error
