"""What is done to a block of text in each pass over a corpus, in any process of one machine or many.

The first pass (`ScanBlock`) reduces documents to what decides their fate, the second (`EncodeBlock`) makes tokens of
those that are kept. `gpt_keras.data.preparation` runs them on one machine, `gpt_keras.data.beam` on a cluster.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_keras.data.cleaning import Cleaner, CleaningOptions
from gpt_keras.data.duplicates import features
from gpt_keras.data.errors import InputError
from gpt_keras.data.fast_encoding import FastEncoder
from gpt_keras.data.reading import Block, Document, read_part
from gpt_keras.data.shards import FORMAT, SPLITS, id_dtype
from gpt_keras.data.split import line_before
from gpt_keras.data.tokenizer import Tokenizer

EXAMPLES = 3
EXAMPLE_CHARACTERS = 200
REASONS = (
    "empty",
    "min_characters",
    "max_characters",
    "language_filter",
    "exact_duplicate",
    "near_duplicate",
)
"""Why documents are dropped."""

TRAIN, VALIDATION, CUT, DROPPED = 0, 1, 2, 16
"""Fates of documents; one that is dropped has DROPPED + 1 + the number of the reason."""
Totals = dict[str, Any]
NOTHING: Totals = {"documents": 0, "tokens": 0, "bytes": 0, "lengths": [0] * 32}
DOCUMENT = np.dtype([("digest", "<u8", 2), ("size", "<u4"), ("reason", "u1")])


@dataclass
class Work:
    """A block, and what becomes of its documents.

    Attributes:
        source: Its number.
        block: The text.
        size: Its bytes.
        first: The first document's number.
        fates: Of each document.
        tail: Which document is cut, and where, to hold out its end.
        shown: Which documents are to be named, as examples.
    """

    source: int
    block: Block
    size: int
    first: int
    fates: np.ndarray
    tail: tuple[int, int] | None
    shown: list[int]


@dataclass
class Side:
    """What a block gives to one split.

    Attributes:
        tokens: uint32; each document with its begin and end.
        totals: `documents`, `tokens` and `bytes` of text, and `lengths`: how many documents have 2^i tokens or more,
            but fewer than 2^(i + 1), for each i.
    """

    tokens: np.ndarray
    totals: Totals

    @property
    def largest_id(self) -> int:
        """0 where there is no token."""
        return int(self.tokens.max(initial=0))


@dataclass
class Encoded:
    """What a block gives to the corpus.

    Attributes:
        source: Its number.
        documents: How many were read.
        sides: By split.
        held_out: Lines of `validation.jsonl`.
        names: Name and text's beginning of documents to be shown, by number.
    """

    source: int
    documents: int
    sides: dict[str, Side]
    held_out: bytes
    names: dict[str, list[str]]


class ScanBlock:
    """The first pass over a block, in any process."""

    def __init__(self, text_key: str, cleaning: CleaningOptions) -> None:
        self._text_key, self._cleaning = text_key, cleaning

    def __call__(
        self, item: tuple[int, Block, int]
    ) -> tuple[int, int, tuple[np.ndarray, ...], Counter[str], dict[str, list]]:
        source, block, size = item
        cleaner = Cleaner(self._cleaning)
        texts, reasons = [], []
        shown: dict[str, list[dict[str, str]]] = {}
        for document in _documents(block, self._text_key, self._cleaning):
            text, reason = cleaner.clean(document.text)
            texts.append(text)
            reasons.append(0 if reason is None else 1 + REASONS.index(reason))
            if reason is not None and len(shown.setdefault(reason, [])) < EXAMPLES:
                shown[reason].append({"name": document.name, "text": text[:EXAMPLE_CHARACTERS]})
        records = np.zeros(len(texts), DOCUMENT)
        if not texts:
            return source, size, (records, np.zeros(0), np.zeros(0)), cleaner.counts, shown
        found = features(texts)
        records["digest"], records["reason"] = found.digests, reasons
        records["size"] = [len(text.encode()) for text in texts]
        return source, size, (records, found.bands, found.signatures), cleaner.counts, shown


class EncodeBlock:
    """The second pass over a block, in any process."""

    def __init__(self, text_key: str, cleaning: CleaningOptions, tokenizer: TokenizerFiles | None) -> None:
        self._text_key, self._cleaning, self._tokenizer = text_key, cleaning, tokenizer
        self._encoder: FastEncoder | None = None

    def __call__(self, work: Work) -> Encoded:
        assert self._tokenizer is not None
        self._encoder = self._encoder or FastEncoder(self._tokenizer.load())
        documents: dict[str, list[Document]] = {split: [] for split in SPLITS}
        names: dict[str, list[str]] = {}
        for side, document in self.sides(work, names):
            documents[side].append(document)
        lines = (
            json.dumps({"name": document.name, "text": document.text}, ensure_ascii=False) + "\n"
            for document in documents["validation"]
        )
        sides = {split: self._encode([document.text for document in documents[split]]) for split in SPLITS}
        return Encoded(work.source, len(work.fates), sides, "".join(lines).encode(), names)

    def sides(self, work: Work, names: dict[str, list[str]] | None = None) -> Iterator[tuple[str, Document]]:
        """The documents that are kept, cleaned, each with its split."""
        cleaner = Cleaner(self._cleaning)
        documents = list(_documents(work.block, self._text_key, self._cleaning))
        if len(documents) != len(work.fates):
            raise InputError(f"{work.block[0].name}: has changed since it was first read; prepare it again")
        for number in work.shown:
            text, _ = cleaner.clean(documents[number].text)
            if names is not None:
                names[str(work.first + number)] = [documents[number].name, text[:EXAMPLE_CHARACTERS]]
        for number, (document, fate) in enumerate(zip(documents, work.fates.tolist(), strict=True)):
            if fate >= DROPPED:
                continue
            document = Document(document.name, cleaner.clean(document.text)[0])
            if fate == CUT:
                assert work.tail is not None and work.tail[0] == number
                raw = document.text.encode()
                cut = line_before(raw, work.tail[1])
                if cut > 0:
                    yield "train", Document(document.name, raw[:cut].decode())
                yield "validation", Document(document.name + "#tail", raw[cut:].decode())
            else:
                yield "validation" if fate == VALIDATION else "train", document

    def _encode(self, texts: list[str]) -> Side:
        assert self._encoder is not None and self._tokenizer is not None
        ids, ends = self._encoder.encode(texts)
        lengths = np.diff(ends, prepend=0) + 2
        stops = np.cumsum(lengths)
        tokens = np.empty(len(ids) + 2 * len(texts), np.uint32)
        text = np.ones(len(tokens), bool)
        text[stops - lengths] = text[stops - 1] = False
        tokens[stops - lengths], tokens[stops - 1] = self._tokenizer.begin_id, self._tokenizer.end_id
        tokens[text] = ids
        bins = (
            np.bincount(np.log2(lengths).astype(int), minlength=len(NOTHING["lengths"])) if texts else np.zeros(0, int)
        )
        counts = {"documents": len(texts), "tokens": len(tokens), "bytes": sum(len(text.encode()) for text in texts)}
        return Side(tokens, {**counts, "lengths": bins.tolist() or NOTHING["lengths"]})


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer on its way to another process."""

    files: dict[str, bytes]
    begin_id: int
    end_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenizerFiles:
        assert tokenizer.begin_id is not None and tokenizer.end_id is not None
        return cls(dict(tokenizer.files), tokenizer.begin_id, tokenizer.end_id)

    def load(self) -> Tokenizer:
        tokenizer = Tokenizer.from_files(self.files, "the tokenizer")
        assert tokenizer is not None
        return tokenizer


def _documents(block: Block, text_key: str, cleaning: CleaningOptions) -> Iterator[Document]:
    return (document for part in block for document in read_part(part, text_key, cleaning.normalize))


def first_pairs(held: list[list[int]], pairs: np.ndarray) -> list[list[int]]:
    """The first few documents of `held` and `pairs`, each with the first one that it is like."""
    best: dict[int, int] = {}
    first = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))][: 100 * EXAMPLES]
    for document, earlier in [*held, *first.tolist()]:
        best[document] = min(earlier, best.get(document, earlier))
    return [list(pair) for pair in sorted(best.items())[:EXAMPLES]]


def add_totals(first: Totals, second: Totals) -> Totals:
    """The sum, field by field."""
    lengths = [a + b for a, b in zip(first["lengths"], second["lengths"], strict=True)]
    return {**{name: first[name] + second[name] for name in ("documents", "tokens", "bytes")}, "lengths": lengths}


def examples(
    cleaned: dict[str, Any], pairs: dict[str, list[list[int]]], names: dict[str, list[str]]
) -> dict[str, list[dict[str, str]]]:
    """For each reason the first few documents that it dropped.

    Args:
        cleaned: Those that cleaning dropped.
        pairs: For each kind of duplicate numbers of documents, each with the one that it is like.
        names: For each of these numbers name and text.
    """
    shown = dict(cleaned)
    for reason, found in pairs.items():
        shown[reason] = [
            {"name": names[str(number)][0], "text": names[str(number)][1], "like": names[str(earlier)][0]}
            for number, earlier in found
        ]
    return shown


def manifest(
    sources: Sequence[tuple[str, float | None]],
    rule: str,
    tokenizer: Tokenizer,
    cleaning: CleaningOptions,
    changed: dict[str, int],
    dropped: dict[str, dict[str, int]],
    shown: dict[str, list[dict[str, str]]],
    totals: dict[str, Totals],
    largest_id: int,
    shards: dict[str, list[dict[str, Any]]],
) -> str:
    """corpus.json.

    Args:
        sources: Each with its weight.
        rule: What was held out.
        tokenizer: Whose ids the shards hold.
        cleaning: What was done to the text.
        changed: How many documents each step changed.
        dropped: For each reason documents and bytes.
        shown: For each reason a few of them.
        totals: Of each split.
        largest_id: Of all tokens.
        shards: The entries of each split's shards.

    Raises:
        InputError: A split has no documents.
    """
    for split in SPLITS:
        if totals[split]["documents"] == 0:
            names = ", ".join(name for name, _ in sources)
            raise InputError(f"{names}: nothing is left for {split}; change what is held out with --validation")
    record = {
        "format": FORMAT,
        "sources": [{"source": name, "weight": weight} for name, weight in sources],
        "validation": rule,
        "tokenizer": tokenizer.fingerprint,
        "vocabulary_size": tokenizer.vocabulary_size,
        "begin_id": tokenizer.begin_id,
        "end_id": tokenizer.end_id,
        "largest_id": largest_id,
        "dtype": id_dtype(tokenizer.vocabulary_size).name,
        "cleaning": {
            "options": dataclasses.asdict(cleaning),
            "changed": changed,
            "dropped": dropped,
            "examples": shown,
        },
        "splits": {split: {**totals[split], "shards": shards[split]} for split in SPLITS},
    }
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
