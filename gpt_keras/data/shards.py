"""A prepared corpus: a folder of NumPy shards of token ids, with a manifest.

    corpus.json                     format, tokenizer fingerprint, source, counts and bytes of text per split, shards
    tokenizer.model                 the tokenizer the ids belong to
    train-00000-of-00002.npy        token ids, uint16 (uint32 above 65,536 pieces)
    validation-00000-of-00001.npy
    validation.jsonl                the held-out documents themselves: {"name", "text"}, to score and to compress

A split is one long sequence: for each document the begin token, its tokens, the end token. The folder appears whole
or not at all, and is checked against its manifest when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.data.sources import Document
from gpt_keras.data.tokenizer import Tokenizer

FORMAT = 1
SHARD_TOKENS = 64 * 1024 * 1024
SPLITS = ("train", "validation")


class ShardWriter:
    """Collects one split's documents into shards of `SHARD_TOKENS` in `folder`.

    Args:
        folder: Where the shards go; a partial folder of the writer's own.
        split: `train` or `validation`.
        tokenizer: Gives the ids of begin and end, and the width of an id.
    """

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer) -> None:
        self._folder, self._split, self._tokenizer = folder, split, tokenizer
        self._dtype = np.dtype(np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.uint32)
        self._parts: list[np.ndarray] = []
        self._held = 0
        self._shards: list[int] = []
        self.tokens = self.documents = self.bytes = 0

    def add(self, document: Document, ids: list[int]) -> None:
        """Append one document whose text encodes to `ids`."""
        part = np.array([self._tokenizer.begin_id, *ids, self._tokenizer.end_id], self._dtype)
        self._parts.append(part)
        self._held += len(part)
        self.tokens += len(part)
        self.documents += 1
        self.bytes += len(document.text.encode())
        while self._held >= SHARD_TOKENS:
            self._write(SHARD_TOKENS)

    def finish(self) -> dict[str, Any]:
        """Write what is left, give the shards their final names, return the split's entry of the manifest."""
        if self._held or not self._shards:
            self._write(self._held)
        names = [f"{self._split}-{i:05d}-of-{len(self._shards):05d}.npy" for i in range(len(self._shards))]
        for i, name in enumerate(names):
            self._file(i).rename(self._folder / name)
        shards = [{"file": name, "tokens": count} for name, count in zip(names, self._shards, strict=True)]
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes, "shards": shards}

    def _file(self, index: int) -> Path:
        return self._folder / f"{self._split}-{index:05d}.npy"

    def _write(self, count: int) -> None:
        tokens = np.concatenate(self._parts) if self._parts else np.zeros(0, self._dtype)
        np.save(self._file(len(self._shards)), tokens[:count])
        self._shards.append(count)
        self._parts = [tokens[count:]]
        self._held = len(tokens) - count


@dataclass(frozen=True)
class TokenStream:
    """One split as a sequence of ids over memory-mapped shards."""

    shards: tuple[np.ndarray, ...]
    starts: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` ids from index `start`, int32.

        Raises:
            IndexError: The range is not inside the stream.
        """
        if start < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of a stream of {len(self)}")
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        while length > 0:
            offset = start - int(self.starts[shard])
            part = self.shards[shard][offset : offset + length]
            parts.append(part)
            start, length, shard = start + len(part), length - len(part), shard + 1
        return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)


class Corpus:
    """A prepared corpus, opened for reading.

    Args:
        folder: A folder that `prepare` wrote.

    Raises:
        InputError: It is not one, or its files contradict its manifest.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.manifest: dict[str, Any] = json.loads((self.folder / "corpus.json").read_text("utf-8"))
            if self.manifest["format"] != FORMAT:
                raise InputError(f"{folder}: corpus format {self.manifest['format']}, this version reads {FORMAT}")
            self.tokenizer = Tokenizer.load(self.folder)
            if self.tokenizer.fingerprint != self.manifest["tokenizer"]:
                raise InputError(f"{folder}: the tokenizer is not the one that this corpus was prepared with")
            self.streams = {split: self._open(split) for split in SPLITS}
        except OSError as error:
            raise InputError(f"{folder}: not a prepared corpus ({error.strerror}: {error.filename})") from error
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{folder}/corpus.json: damaged ({error}); prepare the corpus again") from error

    def _open(self, split: str) -> TokenStream:
        shards = []
        for entry in self.manifest["splits"][split]["shards"]:
            path = self.folder / entry["file"]
            try:
                shard = np.load(path, mmap_mode="r" if entry["tokens"] else None, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise InputError(f"{path}: damaged shard ({error}); prepare the corpus again") from error
            if shard.shape != (entry["tokens"],):
                raise InputError(f"{path}: holds {shard.shape} tokens where corpus.json says {entry['tokens']}")
            shards.append(shard)
        return TokenStream(tuple(shards), np.cumsum([0, *(len(shard) for shard in shards)]))

    def bytes(self, split: str) -> int:
        """UTF-8 bytes of the split's text."""
        return self.manifest["splits"][split]["bytes"]

    def held_out_documents(self) -> Iterator[Document]:
        """The validation documents' text."""
        with open(self.folder / "validation.jsonl", encoding="utf-8") as lines:
            for line in lines:
                yield Document(**json.loads(line))
