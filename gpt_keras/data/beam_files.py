"""Files on any of Beam's file systems: a disk, gs://, s3://, hdfs://."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Any

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from gpt_keras.data.errors import InputError
from gpt_keras.data.reading import ENDINGS
from gpt_keras.data.sources import open_source

UNFINISHED = "UNFINISHED"
"""A file that marks a folder as one that a preparation is writing, or was."""
_NEEDS = "; gs:// needs apache-beam[gcp], s3:// apache-beam[aws]"


@dataclass(frozen=True)
class Input:
    """A file, or a data set without files, which one worker reads."""

    number: int
    source: int
    name: str
    file: str | None


@dataclass(frozen=True)
class Folder:
    """A folder of any of Beam's file systems."""

    path: str

    def begin(self) -> None:
        """Make it, empty but for a mark; what an earlier preparation has left unfinished goes.

        Raises:
            InputError: It is there, or cannot be made.
        """
        try:
            if FileSystems.exists(self.join(UNFINISHED)):
                self.remove()
            # A bucket has no folders, only files with a folder's name.
            if FileSystems.exists(self.path) or self._files():
                raise InputError(f"{self.path} is there already: remove it, or choose another --output")
            FileSystems.mkdirs(self.path)
            self.write(UNFINISHED, b"")
        except InputError:
            raise
        except (BeamIOError, ValueError, OSError) as error:
            raise InputError(f"{self.path}: cannot be written ({error}){_NEEDS}") from error

    def join(self, name: str) -> str:
        """The path of a file in it."""
        return FileSystems.join(self.path, name)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with open_file(self.join(name)) as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        with self.create(name) as stream:
            stream.write(content)

    def create(self, name: str) -> Any:
        """A file to write to."""
        return FileSystems.create(self.join(name), compression_type=CompressionTypes.UNCOMPRESSED)

    def delete(self, names: list[str]) -> None:
        """Delete files."""
        FileSystems.delete([self.join(name) for name in names])

    def remove(self) -> None:
        """Delete it with all that is in it."""
        if files := self._files():
            FileSystems.delete(files)
        if FileSystems.exists(self.path):
            FileSystems.delete([self.path])

    def _files(self) -> list[str]:
        return [entry.path for entry in FileSystems.match([self.join("**")])[0].metadata_list]


def open_file(file: str) -> Any:
    """A file to read from, as it is, packed or not.

    Raises:
        InputError: There is none.
    """
    try:
        return FileSystems.open(file, compression_type=CompressionTypes.UNCOMPRESSED)
    except BeamIOError as error:
        raise InputError(f"{file}: cannot be read ({error})") from error


def find_files(name: str, text_key: str) -> list[tuple[str, str | None]]:
    """The files of a source, each with its name in there; for a data set its name and `None`."""
    if "://" not in name:
        found = open_source(name, text_key)
        return [(own, str(file.absolute())) for own, file in found.named_files] or [(name, None)]
    try:
        is_pattern = any(character in name for character in "*?[")
        matches = FileSystems.match([name] if is_pattern else [name, name.rstrip("/") + "/**"])
    except (BeamIOError, ValueError) as error:
        raise InputError(f"{name}: cannot be listed ({error}){_NEEDS}") from error
    paths = sorted({entry.path for match in matches for entry in match.metadata_list})
    paths = [path for path in paths if path.lower().endswith(ENDINGS)]
    if not paths:
        raise InputError(f"{name}: no file ending in {', '.join(ENDINGS)}")
    root = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return [(posixpath.relpath(path, root), path) for path in paths]
