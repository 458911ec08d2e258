"""What `gpt_keras.data.beam` does to documents, stage by stage.

A document's number holds its file's number, its block's in the file and its own in the block, so that "the first of
equal documents" means the same on every machine.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from gpt_keras.data.beam_files import UNFINISHED, Folder, Input, open_file
from gpt_keras.data.duplicates import BANDS, MARGIN, pairs_in_groups
from gpt_keras.data.errors import InputError
from gpt_keras.data.preparation import PreparationOptions
from gpt_keras.data.reading import Block, file_parts, in_blocks
from gpt_keras.data.shards import SPLITS, shard_header
from gpt_keras.data.sources import open_source
from gpt_keras.data.split import Split, Tally
from gpt_keras.data.stages import (
    DROPPED,
    EXAMPLES,
    NOTHING,
    REASONS,
    TRAIN,
    VALIDATION,
    EncodeBlock,
    Encoded,
    ScanBlock,
    TokenizerFiles,
    Totals,
    Work,
    add_totals,
    examples,
    manifest,
)

SHARD_BYTES = 256 * 1024 * 1024
"""About how much text goes to a shard: 64 Mi tokens of four bytes."""

_BLOCK_BITS, _DOCUMENT_BITS = 21, 20
MAX_FILES = 1 << 63 - _BLOCK_BITS - _DOCUMENT_BITS
_EXACT = DROPPED + 1 + REASONS.index("exact_duplicate")
_NEAR = DROPPED + 1 + REASONS.index("near_duplicate")


# === The first pass ===


def _first_document(block: int) -> int:
    return block << _DOCUMENT_BITS


def _place(document: int) -> tuple[int, int]:
    """A document's block and its number in there."""
    return document >> _DOCUMENT_BITS, document & (1 << _DOCUMENT_BITS) - 1


class Cut(beam.DoFn):
    """Files to (number of the block, (source, block))."""

    def __init__(self, text_key: str) -> None:
        self._text_key = text_key

    def process(self, file: Input) -> Iterator[tuple[int, tuple[int, Block]]]:
        if file.file is None:
            parts = open_source(file.name, self._text_key).parts()
        else:
            parts = file_parts(file.file, file.name, self._text_key, open_file)
        for number, block in enumerate(in_blocks(parts)):
            if number >> _BLOCK_BITS:
                raise InputError(
                    f"{file.name}: more than {1 << _BLOCK_BITS:,} blocks of text; give it as several files"
                )
            yield file.number << _BLOCK_BITS | number, (file.source, block)


@dataclass
class Notes:
    """What corpus.json says of what was done, of any part of the work.

    Attributes:
        changed: Documents that each step has changed.
        dropped: Documents and bytes by reason.
        examples: Documents that cleaning dropped, by reason: (number, name, text), the first few.
        pairs: Duplicates by reason: (document, the one that it is like), the first few.
    """

    changed: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    examples: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    pairs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def drop(self, reason: str, size: int) -> None:
        documents, dropped_bytes = self.dropped.get(reason, [0, 0])
        self.dropped[reason] = [documents + 1, dropped_bytes + size]

    @staticmethod
    def merge(several: Iterable[Notes]) -> Notes:
        merged = Notes()
        for notes in several:
            merged.changed += notes.changed
            for reason, counts in notes.dropped.items():
                merged.dropped[reason] = [
                    a + b for a, b in zip(merged.dropped.get(reason, [0, 0]), counts, strict=True)
                ]
            for reason, shown in notes.examples.items():
                merged.examples[reason] = sorted([*merged.examples.get(reason, []), *shown])[:EXAMPLES]
            for reason, pairs in notes.pairs.items():
                merged.pairs[reason] = sorted([*merged.pairs.get(reason, []), *pairs])[:EXAMPLES]
        return merged


@dataclass(frozen=True)
class _Facts:
    """What decides a document's fate; where equal documents are kept, that of all of them.

    Attributes:
        number: The document's number.
        digest: The first half of its digest.
        size: Bytes of text.
        copies: Numbers of later documents that equal it and share its fate.
        compared: What it is compared by: keys of bands, then the signature.
    """

    number: int
    digest: int
    size: int
    compared: bytes
    copies: tuple[int, ...] = ()


class Scan(beam.DoFn):
    """Blocks to (digest, facts) of their documents, with fates of those that cleaning drops, and notes."""

    def __init__(self, options: PreparationOptions) -> None:
        self._scan = ScanBlock(options.text_key, options.cleaning)

    def process(self, item: tuple[int, tuple[int, Block]]) -> Iterator[Any]:
        number, (_, block) = item
        first = _first_document(number)
        *_, (records, bands, signatures), changed, shown = self._scan((0, block, 0))
        notes = Notes(changed)
        Metrics.counter("gpt_keras", "documents").inc(len(records))
        Metrics.counter("gpt_keras", "bytes").inc(int(records["size"].sum()))
        counted = {reason: iter(texts) for reason, texts in shown.items()}
        for i, record in enumerate(records):
            reason, size = int(record["reason"]), int(record["size"])
            if reason == 0:
                compared = bands[i].tobytes() + signatures[i].tobytes()
                yield record["digest"].tobytes(), _Facts(first + i, int(record["digest"][0]), size, compared)
                continue
            name = REASONS[reason - 1]
            yield TaggedOutput("fates", (number, (i, DROPPED + reason)))
            notes.drop(name, size)
            for text in itertools.islice(counted[name], 1):
                notes.examples.setdefault(name, []).append((first + i, text["name"], text["text"]))
        yield TaggedOutput("fates", (number, (len(records), TRAIN)))  # says how many there are
        yield TaggedOutput("notes", notes)


class Equal(beam.DoFn):
    """(digest, facts of equal documents) to those of the first one, with the fates of the others."""

    def __init__(self, keep: bool) -> None:
        self._keep = keep

    def process(self, item: tuple[bytes, Iterable[_Facts]]) -> Iterator[Any]:
        first: _Facts | None = None
        numbers = []
        for facts in item[1]:
            numbers.append(facts.number)
            if first is None or facts.number < first.number:
                first = facts
        assert first is not None
        numbers.sort()
        if self._keep:
            yield dataclasses.replace(first, copies=tuple(numbers[1:]))
            return
        yield first
        notes = Notes(pairs={"exact_duplicate": [(number, first.number) for number in numbers[1 : 1 + EXAMPLES]]})
        for number in numbers[1:]:
            block, i = _place(number)
            yield TaggedOutput("fates", (block, (i, _EXACT)))
            notes.drop("exact_duplicate", first.size)
        if numbers[1:]:
            yield TaggedOutput("notes", notes)


def bands_of(facts: _Facts) -> Iterator[tuple[bytes, tuple[int, bytes]]]:
    signature = facts.compared[8 * BANDS :]
    for band in range(BANDS):
        yield bytes([band]) + facts.compared[8 * band : 8 * band + 8], (facts.number, signature)


def alike(
    item: tuple[bytes, Iterable[tuple[int, bytes]]], similarity: float, drop: bool
) -> Iterator[tuple[int, int | None]]:
    """Documents that share a band to (document, the one for which it is dropped; `None`: not to be held out)."""
    entries = sorted(item[1])
    if len(entries) < 2:
        return
    numbers = [number for number, _ in entries]
    signatures = np.frombuffer(b"".join(signature for _, signature in entries), np.uint8).reshape(len(entries), -1)
    keys = np.zeros(len(entries), np.uint64)
    found = pairs_in_groups(keys, np.arange(len(entries)), signatures, similarity, similarity - MARGIN)
    for (document, earlier), degree in (
        (pair, d) for pairs, degrees in found for pair, d in zip(pairs, degrees, strict=True)
    ):
        if drop and degree >= similarity:
            yield numbers[document], numbers[earlier]
        else:
            yield numbers[document], None
            yield numbers[earlier], None


@dataclass(frozen=True)
class _Kept:
    """A document that is kept, with its copies."""

    numbers: tuple[int, ...]
    digest: int
    size: int
    alone: bool


class Near(beam.DoFn):
    """(document, {its facts, marks}) to what is kept, with the fates of nearly equal documents."""

    def process(self, item: tuple[int, dict[str, Any]]) -> Iterator[Any]:
        number, joined = item
        (facts,) = joined["facts"]
        marks = set(joined["marks"])
        earlier = marks - {None}
        if not earlier:
            yield _Kept((number, *facts.copies), facts.digest, facts.size, not marks)
            return
        notes = Notes(pairs={"near_duplicate": [(number, min(earlier))]})
        notes.drop("near_duplicate", facts.size)
        block, i = _place(number)
        yield TaggedOutput("fates", (block, (i, _NEAR)))
        yield TaggedOutput("notes", notes)


class TallyUp(beam.CombineFn):
    """What is kept to a tally."""

    def create_accumulator(self) -> Tally:
        return Tally()

    def add_input(self, tally: Tally, kept: _Kept) -> Tally:
        count = len(kept.numbers)
        digests, sizes = np.full(count, kept.digest, np.uint64), np.full(count, kept.size)
        tally.add(digests, sizes, np.full(count, kept.alone))
        return tally

    def merge_accumulators(self, tallies: Iterable[Tally]) -> Tally:
        merged = Tally()
        for tally in tallies:
            merged.merge(tally)
        return merged

    def extract_output(self, tally: Tally) -> Tally:
        return tally


def in_last_bin(kept: _Kept, tally: Tally, rule: str) -> Iterator[tuple[int, int]]:
    if tally.documents and kept.alone and kept.digest >> 48 == tally.last_bin(rule):
        yield kept.digest, kept.size * len(kept.numbers)


def decide_split(_: None, tally: Tally, inside: list[tuple[int, int]], rule: str) -> Split:
    if tally.documents == 0:
        raise InputError("the corpus is empty: no document with any text in it")
    sizes: Counter[int] = Counter()
    for digest, size in inside:
        sizes[digest] += size
    return tally.split(rule, sizes)


class HoldOut(beam.DoFn):
    """What is kept to the fates of what is held out; and ((source, split), bytes) of everything."""

    def __init__(self, first_files: list[int]) -> None:
        self._first_files = first_files

    def process(self, kept: _Kept, split: Split) -> Iterator[Any]:
        held_out = kept.alone and bool(split.held_out(0, np.array([kept.digest], np.uint64))[0])
        for number in kept.numbers:
            block, i = _place(number)
            if held_out:
                yield block, (i, VALIDATION)
            source = bisect.bisect_right(self._first_files, block >> _BLOCK_BITS) - 1
            yield TaggedOutput("sizes", ((source, SPLITS[held_out]), kept.size))


# === The second pass ===


@dataclass
class _Piece:
    """What a block gives to a shard."""

    block: int
    tokens: bytes
    held_out: bytes


@dataclass
class Encoding:
    """Sums over blocks."""

    totals: dict[str, Totals] = field(default_factory=lambda: {split: dict(NOTHING) for split in SPLITS})
    largest_id: int = 0
    names: dict[str, list[str]] = field(default_factory=dict)

    @staticmethod
    def merge(several: Iterable[Encoding]) -> Encoding:
        merged = Encoding()
        for one in several:
            merged.totals = {split: add_totals(merged.totals[split], one.totals[split]) for split in SPLITS}
            merged.largest_id = max(merged.largest_id, one.largest_id)
            merged.names |= one.names
        return merged


class Encode(beam.DoFn):
    """(block, {its text, fates}) to ((split, source, shard), piece), with sums."""

    def __init__(self, options: PreparationOptions, tokenizer: TokenizerFiles, dtype: np.dtype) -> None:
        self._options, self._tokenizer, self._dtype = options, tokenizer, dtype

    def setup(self) -> None:
        self._encode = EncodeBlock(self._options.text_key, self._options.cleaning, self._tokenizer)

    def process(
        self, item: tuple[int, dict[str, Any]], notes: Notes, sizes: dict[tuple[int, str], int]
    ) -> Iterator[Any]:
        number, joined = item
        ((source, block),) = joined["text"]
        fates = dict(joined["fates"])
        count = max(fates)
        of_all = np.array([fates.get(i, TRAIN) for i in range(count)], np.uint8)
        wanted = {place for pairs in notes.pairs.values() for pair in pairs for place in pair}
        shown = [i for block_number, i in map(_place, wanted) if block_number == number]
        encoded: Encoded = self._encode(Work(source, block, 0, _first_document(number), of_all, None, shown))
        for split in SPLITS:
            side = encoded.sides[split]
            if len(side.tokens):
                shard = zlib.crc32(number.to_bytes(8, "little")) % num_shards(sizes[source, split])
                held_out = encoded.held_out if split == "validation" else b""
                yield (split, source, shard), _Piece(number, side.tokens.astype(self._dtype).tobytes(), held_out)
        totals = {split: encoded.sides[split].totals for split in SPLITS}
        largest = max(encoded.sides[split].largest_id for split in SPLITS)
        yield TaggedOutput("sums", Encoding(totals, largest, encoded.names))


def num_shards(size: int) -> int:
    """How many shards `size` bytes of text make."""
    return -(-size // SHARD_BYTES)


class WriteShard(beam.DoFn):
    """((split, source, shard), pieces) to (split, number of the shard, entry of corpus.json)."""

    def __init__(self, folder: Folder, dtype: np.dtype) -> None:
        self._folder, self._dtype = folder, dtype

    def process(
        self, item: tuple[tuple[str, int, int], Iterable[_Piece]], sizes: dict[tuple[int, str], int]
    ) -> Iterator[tuple[str, int, dict[str, Any]]]:
        (split, source, shard), pieces = item[0], sorted(item[1], key=lambda piece: piece.block)
        counts = [num_shards(size) for (_, its_split), size in sorted(sizes.items()) if its_split == split]
        number = shard + sum(
            num_shards(size) for (s, its_split), size in sizes.items() if its_split == split and s < source
        )
        name = f"{split}-{number:05d}-of-{sum(counts):05d}"
        tokens = sum(len(piece.tokens) for piece in pieces) // self._dtype.itemsize
        digest = hashlib.sha256()
        with self._folder.create(name + ".npy") as stream:
            for part in (shard_header(self._dtype, tokens), *(piece.tokens for piece in pieces)):
                stream.write(part)
                digest.update(part)
        if split == "validation":
            self._folder.write(name + ".jsonl", b"".join(piece.held_out for piece in pieces))
        entry = {"file": name + ".npy", "tokens": tokens, "source": source, "sha256": digest.hexdigest()}
        yield split, number, entry


def write_manifest(
    _: None,
    notes: Notes,
    split: Split,
    encoding: Encoding,
    entries: list[tuple[str, int, dict[str, Any]]],
    folder: Folder,
    sources: Sequence[tuple[str, float | None]],
    tokenizer: TokenizerFiles,
    options: PreparationOptions,
) -> None:
    shards: dict[str, list[dict[str, Any]]] = {side: [] for side in SPLITS}
    for side, _number, entry in sorted(entries, key=lambda item: item[:2]):
        shards[side].append(entry)
    cleaned = {
        reason: [{"name": name, "text": text} for _, name, text in shown] for reason, shown in notes.examples.items()
    }
    dropped = {
        reason: dict(zip(("documents", "bytes"), notes.dropped[reason], strict=True))
        for reason in REASONS
        if reason in notes.dropped
    }
    corpus = manifest(
        sources,
        split.rule,
        tokenizer.load(),
        options.cleaning,
        dict(sorted(notes.changed.items())),
        dropped,
        examples(cleaned, {r: [list(pair) for pair in pairs] for r, pairs in notes.pairs.items()}, encoding.names),
        encoding.totals,
        encoding.largest_id,
        shards,
    )
    texts = [entry["file"].removesuffix(".npy") + ".jsonl" for entry in shards["validation"]]
    with folder.create("validation.jsonl") as stream:
        for name in texts:
            stream.write(folder.read(name))
    folder.delete(texts)
    folder.write("corpus.json", corpus.encode())
    folder.delete([UNFINISHED])
