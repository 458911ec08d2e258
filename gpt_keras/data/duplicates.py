"""Equal and nearly equal documents, found by sorting on disk.

A document is reduced to `Features`: a digest of its text, and a MinHash signature (Broder 1997) of its sequences of
five words. Signatures that agree in all rows of one of 20 bands of six are compared; two texts with 80 % of their
sequences in common share a band with probability 0.998. Compared are one byte a row (b-bit MinHash, Li and König 2010).

Which document is dropped depends on the documents and their order alone: one that is nearly equal to an earlier one
that leads a band's group, without following chains. So every group can be judged by itself, on one machine or many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rensa

from gpt_keras.data.work_files import forget

BANDS, ROWS = 20, 6
SHINGLE_WORDS = 5
MARGIN = 0.15
"""A document is not held out if it is this much below the limit of being nearly equal to another one."""
SORT_BYTES = 1 << 25
"""How much is sorted in memory at a time."""
MAPPED_BYTES = 1 << 29
"""Signatures up to this are kept in memory once they are read; larger tables are read again and again."""


@dataclass(frozen=True)
class Features:
    """What is compared.

    Attributes:
        digests: uint64 [documents, 2]; 128 bits of BLAKE2b of the text.
        bands: uint64 [documents, BANDS]; a hash of each band of the signature.
        signatures: uint8 [documents, BANDS * ROWS].
    """

    digests: np.ndarray
    bands: np.ndarray
    signatures: np.ndarray


def features(texts: Sequence[str]) -> Features:
    """The features of some documents; those of each depend on its own text alone."""
    raws = [text.encode() for text in texts]
    digests = np.frombuffer(b"".join(hashlib.blake2b(raw, digest_size=16).digest() for raw in raws), ">u8")
    shingles, ends = _shingles(raws, texts)
    rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        shingles, np.append(0, ends).astype(np.uint64), BANDS * ROWS, 1
    ).to_rows()
    signatures = np.array(rows, np.uint64).reshape(len(texts), BANDS * ROWS)
    bands = np.zeros((len(texts), BANDS), np.uint64)
    for row in range(ROWS):
        bands += signatures[:, row::ROWS]
        _mix(bands)
    return Features(digests.astype(np.uint64).reshape(-1, 2), bands, signatures.astype(np.uint8))


def _shingles(raws: list[bytes], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of each text's sequences of five words (of all its words, where they are fewer) and where they end.

    Words are runs of letters and digits in lower case; a character of three or more bytes is a word of its own, which
    suits scripts without spaces.
    """
    lowered = [raw.lower() if raw.isascii() else text.lower().encode() for raw, text in zip(raws, texts, strict=True)]
    joined = b" ".join(lowered) + bytes(17)
    text_ends = np.cumsum([len(raw) + 1 for raw in lowered], dtype=np.int64)
    data = np.frombuffer(joined, np.uint8)
    inside = _IS_WORD[data]
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    begins |= data >= 0xE0
    starts = np.flatnonzero(begins)
    ends = np.flatnonzero(inside[:-1] & (~inside[1:] | (data[1:] >= 0xE0))) + 1
    lengths = ends - starts
    eights = np.ndarray(len(data) - 7, np.uint64, data, strides=(1,))
    shown = np.minimum(lengths, 16)
    words = eights[starts] & _LOW[np.minimum(shown, 8)]
    _mix(words)
    words += eights[starts + 8 * (shown > 8)] & _LOW[np.maximum(shown - 8, 0)]
    words += lengths.astype(np.uint64)
    _mix(words)
    # Word i of a text of n begins a sequence if i <= n - 5; a shorter text has one sequence, of all its words.
    word_ends = np.searchsorted(starts, text_ends)
    counts = np.diff(word_ends, prepend=0)
    amounts = np.maximum(counts - SHINGLE_WORDS + 1, 1)
    sums = np.zeros(len(words), np.uint64)
    number = np.arange(len(words)) - np.repeat(word_ends - counts, counts)
    remaining = np.repeat(counts, counts) - number
    padded = np.append(words, np.zeros(SHINGLE_WORDS, np.uint64))
    for i in range(SHINGLE_WORDS):
        sums += np.where(remaining > i, padded[i : i + len(words)] * _MULTIPLIERS[i], np.uint64(0))
    _mix(sums)
    chosen = sums[(remaining >= SHINGLE_WORDS) | (number == 0)]
    ends = np.cumsum(amounts)
    if not counts.all():  # a text without words still has one (empty) sequence: its bytes
        empty = np.flatnonzero(counts == 0)
        digests = [int.from_bytes(hashlib.blake2b(raws[i], digest_size=8).digest(), "big") for i in empty]
        places = ends[empty] - 1 - np.arange(len(empty))
        chosen = np.insert(chosen, places, np.array(digests, np.uint64))
    return chosen, ends


_IS_WORD = np.zeros(256, bool)
_IS_WORD[[*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B), *range(0x80, 0x100)]] = True
_LOW = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)


def _mix(values: np.ndarray) -> None:
    values *= _MULTIPLIERS[0]
    values ^= values >> np.uint64(29)
    values *= _MULTIPLIERS[1]
    values ^= values >> np.uint64(32)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The estimated share of sequences in common (Jaccard) of rows of signatures [pairs, BANDS * ROWS]."""
    agree = (first == second).mean(axis=1)
    return (agree - 1 / 256) / (1 - 1 / 256)


def pairs_in_groups(
    keys: np.ndarray, documents: np.ndarray, signatures: np.ndarray, limit: float, lowest: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Nearly equal documents among those that share a key, some at a time: int64 [pairs, 2] of a document and the
    earlier one that it is compared with, and float64 [pairs], how similar they are.

    The first document of a group leads it. Those that are not nearly equal to it form a group of their own, and so on,
    so that every document is compared with all that were not nearly equal to an earlier one.

    Args:
        keys: uint64 [entries].
        documents: int64 [entries]; each key's documents must be in ascending order behind one another.
        signatures: uint8 [all documents, rows], by number of document.
        limit: The similarity from which on documents are nearly equal.
        lowest: The similarity from which on pairs are given.
    """
    while len(keys):
        first = np.append(True, keys[1:] != keys[:-1])
        lead = np.maximum.accumulate(np.where(first, np.arange(len(keys)), 0))
        rest = np.flatnonzero(~first)
        other = np.zeros(len(rest), bool)
        for start in range(0, len(rest), 65536):  # signatures are large
            part = rest[start : start + 65536]
            alike = similarity(signatures[documents[part]], signatures[documents[lead[part]]])
            if signatures.nbytes > MAPPED_BYTES:
                forget(signatures)
            other[start : start + 65536] = alike < limit
            given = alike >= lowest
            yield np.stack([documents[part[given]], documents[lead[part[given]]]], axis=1), alike[given]
        keys, documents = keys[rest[other]], documents[rest[other]]


class Sorter:
    """Entries of a key and a document's number, sorted on disk: spread over files by the key's first bits, each of
    which is then sorted in memory.

    Args:
        folder: For the files, which are gone when they have been read.
        entries: About how many there will be.
    """

    def __init__(self, folder: Path, entries: int) -> None:
        self._parts = 1 << max(0, (16 * entries // SORT_BYTES).bit_length())
        self._paths = [folder / f"sort-{number}" for number in range(self._parts)]
        for path in self._paths:
            path.write_bytes(b"")

    def add(self, keys: np.ndarray, documents: np.ndarray) -> None:
        """Add uint64 keys and their documents, which must come in ascending order."""
        entries = np.stack([keys, documents.astype(np.uint64)], axis=1)
        if self._parts == 1:
            parts = [(0, entries)]
        else:
            shift = np.uint64(64 - (self._parts.bit_length() - 1))
            where = keys >> shift
            order = np.argsort(where, kind="stable")
            bounds = np.searchsorted(where[order], np.arange(self._parts + 1))
            parts = [(i, entries[order[bounds[i] : bounds[i + 1]]]) for i in range(self._parts)]
        for number, part in parts:
            if len(part):
                with open(self._paths[number], "ab") as stream:
                    stream.write(part.tobytes())

    def groups(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Keys and documents sorted by both, without keys that only one document has, some at a time."""
        for path in self._paths:
            entries = np.fromfile(path, np.uint64).reshape(-1, 2)
            path.unlink()
            order = np.argsort(entries[:, 0], kind="stable")
            keys, documents = entries[order, 0], entries[order, 1].astype(np.int64)
            same = keys[1:] == keys[:-1]
            shared = np.append(False, same) | np.append(same, False)
            yield keys[shared], documents[shared]
