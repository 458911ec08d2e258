"""A prepared corpus: a folder of NumPy shards of token ids, with a manifest.

    corpus.json                     format, tokenizer fingerprint, sources, counts and bytes of text per split, shards
                                    with their SHA-256, what cleaning did
    tokenizer.model                 the tokenizer the ids belong to
    train-00000-of-00002.npy        token ids, uint16 (uint32 above 65,536 pieces)
    validation-00000-of-00001.npy
    validation.jsonl                the held-out documents themselves: {"name", "text"}, to score and to compress

A split is one long sequence: for each document the begin token, its tokens, the end token. The folder appears whole
or not at all, and is checked against its manifest when it is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedRandom
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.data.reading import Document
from gpt_keras.data.tokenizer import Tokenizer

FORMAT = 2
SHARD_TOKENS = 64 * 1024 * 1024
SPLITS = ("train", "validation")
_HEADER_BYTES = 128


def id_dtype(vocabulary_size: int) -> np.dtype:
    """What ids of this vocabulary are stored as: uint16, or uint32 above 65,536 pieces."""
    return np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)


def shard_header(dtype: np.dtype, tokens: int) -> bytes:
    """What a shard begins with; the ids follow."""
    buffer = io.BytesIO()
    shape = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(buffer, shape)
    assert buffer.tell() == _HEADER_BYTES
    return buffer.getvalue()


class ShardWriter:
    """Writes one split's tokens into shards of `SHARD_TOKENS`, and can go on where an earlier process was killed.

    A shard holds tokens of one source only, so that sources can be mixed by weight when they are read.

    Args:
        folder: Where the shards go.
        split: `train` or `validation`.
        dtype: uint16 or uint32.
        state: What `state` of an earlier writer gave; what was written after that is removed.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, state: dict[str, Any] | None = None) -> None:
        self._folder, self._split, self._dtype = folder, split, dtype
        self._shards: list[dict[str, Any]] = list(state["shards"]) if state else []
        self._held: int = state["held"] if state else 0
        self._source: int = state["source"] if state else 0
        self._stream: BufferedRandom | None = None
        for path in sorted(folder.glob(f"{split}-*-of-*.npy")):  # killed between giving names and the end
            path.rename(folder / f"{path.name.partition('-of-')[0]}.npy")
        for path in folder.glob(f"{split}-*.npy"):
            if int(path.stem.removeprefix(f"{split}-")) >= len(self._shards) + (self._held > 0):
                path.unlink()
        if self._held:
            self._stream = self._file(len(self._shards)).open("r+b")
            self._stream.truncate(_HEADER_BYTES + self._held * dtype.itemsize)
            self._stream.seek(0, os.SEEK_END)

    def add(self, tokens: np.ndarray, source: int) -> None:
        """Append tokens of a source; sources come in order."""
        if source != self._source:
            self._close()
            self._source = source
        while len(tokens):
            if self._stream is None:
                self._stream = self._file(len(self._shards)).open("w+b")
                self._stream.write(shard_header(self._dtype, 0))
            part = tokens[: SHARD_TOKENS - self._held]
            self._stream.write(part.astype(self._dtype).tobytes())
            self._held += len(part)
            tokens = tokens[len(part) :]
            if self._held >= SHARD_TOKENS:
                self._close()

    def state(self) -> dict[str, Any]:
        """What a later writer goes on from; all that it counts on is on the disk."""
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        return {"shards": list(self._shards), "held": self._held, "source": self._source}

    def finish(self) -> list[dict[str, Any]]:
        """Give the shards their final names; the manifest's entries."""
        self._close()
        count = len(self._shards)
        entries = []
        for i, shard in enumerate(self._shards):
            name = f"{self._split}-{i:05d}-of-{count:05d}.npy"
            self._file(i).rename(self._folder / name)
            entries.append({"file": name, **shard})
        return entries

    def _file(self, index: int) -> Path:
        return self._folder / f"{self._split}-{index:05d}.npy"

    def _close(self) -> None:
        if self._stream is None:
            return
        self._stream.seek(0)
        self._stream.write(shard_header(self._dtype, self._held))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.seek(0)
        digest = hashlib.file_digest(self._stream, "sha256").hexdigest()
        self._stream.close()
        self._stream = None
        self._shards.append({"tokens": self._held, "source": self._source, "sha256": digest})
        self._held = 0


class TokenStream:
    """One split, or one source of it, as a sequence of ids over memory-mapped shards, which are opened when first read.

    Args:
        paths: The shards.
        counts: Tokens of each.
        dtype: uint16 or uint32.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], dtype: np.dtype) -> None:
        self._paths, self._dtype = paths, dtype
        self._shards: list[np.ndarray | None] = [None] * len(paths)
        self._starts = np.cumsum([0, *counts])

    @classmethod
    def joined(cls, streams: Sequence[TokenStream]) -> TokenStream:
        """Streams of one tokenizer behind one another."""
        paths = [path for stream in streams for path in stream._paths]
        counts = [count for stream in streams for count in np.diff(stream._starts).tolist()]
        return cls(paths, counts, streams[0]._dtype)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` ids from index `start`, int32.

        Raises:
            IndexError: The range is not inside the stream.
        """
        return self.windows(np.array([start]), length)[0]

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` ids from each of `starts`, int32 [len(starts), length].

        Raises:
            IndexError: A range is not inside the stream.
        """
        out = np.empty((len(starts), length), np.int32)
        if len(starts) and (starts.min() < 0 or starts.max() + length > len(self)):
            raise IndexError(f"tokens {starts.min()} to {starts.max() + length} of a stream of {len(self)}")
        if not length:
            return out
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        for row, (shard, start) in enumerate(
            zip(shards.tolist(), (starts - self._starts[shards]).tolist(), strict=True)
        ):
            part = self._shard(shard)[start : start + length]
            if len(part) == length:
                out[row] = part
                continue
            filled = 0
            while True:
                out[row, filled : filled + len(part)] = part
                filled += len(part)
                if filled == length:
                    break
                shard += 1
                part = self._shard(shard)[: length - filled]
        return out

    def _shard(self, index: int) -> np.ndarray:
        shard = self._shards[index]
        if shard is None:
            path, count = self._paths[index], int(self._starts[index + 1] - self._starts[index])
            try:
                opened = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise InputError(f"{path}: damaged shard ({error}); prepare the corpus again") from error
            if opened.shape != (count,) or opened.dtype != self._dtype:
                raise InputError(
                    f"{path}: holds {opened.dtype} {opened.shape} where corpus.json says {self._dtype} ({count},)"
                )
            shard = self._shards[index] = opened.view(np.ndarray)  # np.memmap makes every slice slow
        return shard


class Corpus:
    """A prepared corpus, opened for reading. Opening looks at the files' sizes; `verify` reads them.

    Args:
        folder: A folder that `prepare` wrote.

    Attributes:
        manifest: corpus.json.
        tokenizer: Its own.
        streams: Each split as one sequence.

    Raises:
        InputError: It is not one, or its files contradict its manifest.
    """

    def __init__(self, folder: str | Path) -> None:
        if "://" in str(folder):
            raise InputError(
                f"{folder}: shards are memory-mapped, so they must be on a local disk; copy the folder first "
                f"(gcloud storage cp -r {folder} ., or aws s3 cp --recursive), or mount the bucket"
            )
        self.folder = Path(folder)
        try:
            self.manifest: dict[str, Any] = json.loads((self.folder / "corpus.json").read_text("utf-8"))
            if self.manifest["format"] != FORMAT:
                raise InputError(
                    f"{folder}: corpus format {self.manifest['format']}, this version reads {FORMAT}; prepare it again"
                )
            self.tokenizer = Tokenizer.load(self.folder)
            if self.tokenizer.fingerprint != self.manifest["tokenizer"]:
                raise InputError(f"{folder}: the tokenizer is not the one that this corpus was prepared with")
            self.dtype = np.dtype(self.manifest["dtype"])
            self.streams = {split: self._open(self._entries(split)) for split in SPLITS}
        except OSError as error:
            raise InputError(f"{folder}: not a prepared corpus ({error.strerror}: {error.filename})") from error
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{folder}/corpus.json: damaged ({error}); prepare the corpus again") from error

    def source_streams(self) -> list[TokenStream]:
        """The training split, each source by itself."""
        entries = self._entries("train")
        count = len(self.manifest["sources"])
        return [self._open([entry for entry in entries if entry["source"] == i]) for i in range(count)]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over those of the shards: the same for the same tokens in the same order."""
        digests = [entry["sha256"] for split in SPLITS for entry in self._entries(split)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def verify(self, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read every shard and compare it with its hash, unless it was found whole before and not touched since.

        Args:
            report: Called with (bytes done, bytes in all).

        Raises:
            InputError: Naming the first shard that is damaged, or another corpus's, or in another's place.
        """
        stamps_file = self.folder / ".verified.json"
        try:
            stamps = json.loads(stamps_file.read_text("utf-8"))
        except (OSError, ValueError):
            stamps = {}
        todo = {}
        for split in SPLITS:
            for entry in self._entries(split):
                stat = (self.folder / entry["file"]).stat()
                stamp = [entry["sha256"], stat.st_size, stat.st_mtime_ns, stat.st_ino]
                if stamps.get(entry["file"]) != stamp:
                    todo[entry["file"]] = stamp
        total, done = sum(stamp[1] for stamp in todo.values()), 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            hashes = zip(todo.items(), pool.map(lambda name: _sha256(self.folder / name), todo), strict=True)
            for (name, stamp), found in hashes:
                if found != stamp[0]:
                    raise InputError(
                        f"{self.folder / name}: damaged, or not this corpus's shard (its SHA-256 is not the one in "
                        "corpus.json); copy it again, or prepare the corpus again"
                    )
                done += stamp[1]
                report(done, total)
        if todo:
            with contextlib.suppress(InputError), whole_file(stamps_file) as partial:
                partial.write_text(json.dumps({**stamps, **todo}), "utf-8")

    def check_model(self, vocabulary_size: int) -> None:
        """See that a model has an embedding for every token.

        Raises:
            InputError: It has not.
        """
        if vocabulary_size <= self.manifest["largest_id"]:
            raise InputError(
                f"{self.folder} has token ids up to {self.manifest['largest_id']}, but the model's vocabulary is "
                f"{vocabulary_size}: the corpus was prepared for another model"
            )

    def _entries(self, split: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.manifest["splits"][split]["shards"]
        return entries

    def _open(self, entries: list[dict[str, Any]]) -> TokenStream:
        paths = [self.folder / entry["file"] for entry in entries]
        for path, entry in zip(paths, entries, strict=True):
            size, wanted = path.stat().st_size, _HEADER_BYTES + entry["tokens"] * self.dtype.itemsize
            if size != wanted:
                raise InputError(f"{path}: damaged shard ({size} bytes instead of {wanted}); prepare the corpus again")
        return TokenStream(paths, [entry["tokens"] for entry in entries], self.dtype)

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """Of each split `documents`, `tokens`, `bytes` of text, `lengths` and `shards`."""
        found: dict[str, dict[str, Any]] = self.manifest["splits"]
        return found

    def held_out_documents(self) -> Iterator[Document]:
        """The validation documents' text."""
        with open(self.folder / "validation.jsonl", encoding="utf-8") as lines:
            for line in lines:
                yield Document(**json.loads(line))


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
