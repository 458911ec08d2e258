"""The stages of `gpt_keras.data.preparation` on Apache Beam, for corpora that are too large for one machine.

The same documents are read, cleaned, found to be duplicates, held out and tokenized as on one machine, by the same
code; what differs is which shard they go to. Files and folders may be anything that Beam's file systems know: gs://,
s3://, hdfs:// or a disk that all workers share. `corpus.json` is written last: without it a folder is no corpus.

    files > cut into blocks ─┬─> reduce documents ─> equal? ─> nearly equal? ─> held out? ─┐
                             └───────────────── tokenize, with the fates <─────────────────┘ ─> shards ─> corpus.json

A document's number holds its file's number, its block's in the file and its own in the block, so that "the first of
equal documents" means the same on every machine.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import posixpath
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.pvalue import AsDict, AsList, AsSingleton, TaggedOutput

from gpt_keras.data.duplicates import BANDS, MARGIN, pairs_in_groups
from gpt_keras.data.errors import InputError
from gpt_keras.data.preparation import PreparationOptions
from gpt_keras.data.shards import SPLITS, id_dtype, shard_header
from gpt_keras.data.sources import ENDINGS, Block, file_parts, in_blocks, open_source, parse_weight
from gpt_keras.data.split import Split, Tally, parse_rule
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
from gpt_keras.data.tokenizer import Tokenizer

SHARD_BYTES = 256 * 1024 * 1024
"""About how much text goes to a shard: 64 Mi tokens of four bytes."""

_BLOCK_BITS, _DOCUMENT_BITS = 21, 20
_UNFINISHED = "UNFINISHED"
"""A file that marks a folder as one that an earlier preparation was writing."""
_FILES = 1 << 63 - _BLOCK_BITS - _DOCUMENT_BITS
_EXACT = DROPPED + 1 + REASONS.index("exact_duplicate")
_NEAR = DROPPED + 1 + REASONS.index("near_duplicate")


def prepare_on_beam(
    sources: str | Sequence[str],
    tokenizer: Tokenizer,
    output: str,
    options: PreparationOptions = PreparationOptions(),
    runner: str = "DirectRunner",
    runner_options: Sequence[str] = (),
) -> dict[str, Any]:
    """Tokenize `sources` into the folder `output`.

    Args:
        sources: As `gpt_keras.data.preparation.prepare` takes them, or globs and folders of a file system of Beam's,
            such as gs://bucket/text/*.jsonl.zst.
        tokenizer: Must be the one that training will use.
        output: The corpus folder, which must not be there; also gs:// and the like.
        options: What to do with the text; `workers` is for DirectRunner.
        runner: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner, or another one of Beam's.
        runner_options: Its flags.

    Returns:
        corpus.json.

    Raises:
        InputError: As for `prepare`; a flag is unknown; `output` is there; or a tail is to be held out.
    """
    if tokenizer.begin_id is None or tokenizer.end_id is None:
        raise InputError("the tokenizer has no begin or no end token, which mark where documents begin and end")
    if parse_rule(options.validation)[0]:
        raise InputError(f"--validation {options.validation}: on Beam, where text has no order, use auto or a fraction")
    given = [parse_weight(source) for source in ([sources] if isinstance(sources, str) else sources)]
    if len({weight is None for _, weight in given}) > 1:
        raise InputError("give every source a weight, as SOURCE=WEIGHT, or none")
    pipeline_options = _pipeline_options(runner, runner_options, options.workers)
    inputs = [
        _Input(number, source, name, file)
        for number, (source, name, file) in enumerate(
            (source, *found) for source, (name, _) in enumerate(given) for found in _files(name, options.text_key)
        )
    ]
    if len(inputs) > _FILES:
        raise InputError(f"{len(inputs):,} files; at most {_FILES:,} can be told apart: join small ones")
    folder = _Folder(output.rstrip("/"))
    if folder.exists(_UNFINISHED):
        folder.remove()
    folder.make()
    folder.write(_UNFINISHED, b"")
    for name, content in tokenizer.files.items():
        folder.write(name, content)
    try:
        with _quiet(runner), beam.Pipeline(runner=_runner(runner), options=pipeline_options) as pipeline:
            _build(pipeline, inputs, given, TokenizerFiles.of(tokenizer), folder, options)
        return json.loads(folder.read("corpus.json"))
    except BaseException as error:
        folder.remove()
        bad_input = re.findall(_BAD_INPUT, f"{_ERROR}{error}" if isinstance(error, InputError) else str(error))
        if bad_input:  # in a worker, of which the text alone may come here
            raise InputError(bad_input[-1]) from error
        if runner != "DirectRunner" and isinstance(error, Exception):
            raise InputError(f"{runner}: {error} (its own logs say more)".replace("\n", " ")) from error
        raise


_ERROR = f"{InputError.__module__}.{InputError.__qualname__}: "
_BAD_INPUT = re.compile(re.escape(_ERROR) + r"(.*?)(?: \[while running .*)?$", re.MULTILINE)


@contextlib.contextmanager
def _quiet(runner: str) -> Iterator[None]:
    """Keep what Beam's own processes on this machine say from the terminal, unless they fail."""
    if runner != "DirectRunner":
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except Exception as error:
            if _ERROR not in str(error) and not isinstance(error, InputError):
                log.seek(0)
                os.write(terminal, log.read()[-10_000:])
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _runner(name: str) -> Any:
    if name == "DirectRunner":  # under that name Beam would first try to fetch another runner from the network
        return "apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner"
    return name


def split_flags(arguments: Sequence[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """A command line in two: what is not Beam's, and the flags of Beam's runners with their values.

    Args:
        arguments: The command line. All that is behind a `--` is for the runner.
        own: Flags that are not Beam's, even where it has such.
    """
    before, _, behind = _partition(arguments, "--")
    actions = _beam_parser()._option_string_actions
    ours, theirs = [], []
    rest = iter(before)
    for argument in rest:
        action = None if argument.split("=")[0] in own else actions.get(argument.split("=")[0])
        if action is None:
            ours.append(argument)
            continue
        theirs.append(argument)
        if "=" not in argument and action.nargs != 0:
            theirs += itertools.islice(rest, 1)
    return ours, [*theirs, *behind]


def _partition(arguments: Sequence[str], mark: str) -> tuple[Sequence[str], str, Sequence[str]]:
    place = arguments.index(mark) if mark in arguments else len(arguments)
    return arguments[:place], mark, arguments[place + 1 :]


def _beam_parser() -> argparse.ArgumentParser:
    """Knows every flag that Beam itself has."""
    parsers: list[argparse.ArgumentParser] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    return parsers[0]


def _pipeline_options(runner: str, flags: Sequence[str], workers: int | None) -> PipelineOptions:
    try:
        _, unknown = _beam_parser().parse_known_args(list(flags))
    except SystemExit as error:  # argparse has said what is wrong
        raise InputError(f"{runner} cannot use {' '.join(flags)}") from error
    if unknown and runner in ("DirectRunner", "DataflowRunner"):  # the others' job servers know more flags
        raise InputError(f"{' '.join(unknown)}: {runner} has no such option")
    options = PipelineOptions(list(flags))
    options.view_as(StandardOptions).runner = runner
    if runner == "DirectRunner":
        direct = options.view_as(DirectOptions)
        if workers is not None:
            direct.direct_num_workers = workers
        if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
            direct.direct_running_mode = "multi_processing"
    elif workers is not None:
        raise InputError(f"--workers is for one machine; {runner} has options of its own")
    return options


# === Files ===


@dataclass(frozen=True)
class _Input:
    """A file, or a data set without files, which one worker reads."""

    number: int
    source: int
    name: str
    file: str | None


@dataclass(frozen=True)
class _Folder:
    """A folder of any of Beam's file systems."""

    path: str

    def make(self) -> None:
        """Raises InputError if it is there."""
        # A bucket has no folders, only files with a folder's name.
        if FileSystems.exists(self.path) or FileSystems.match([self.join("**")])[0].metadata_list:
            raise InputError(f"{self.path} is there already: remove it, or choose another --output")
        FileSystems.mkdirs(self.path)

    def join(self, name: str) -> str:
        return FileSystems.join(self.path, name)

    def exists(self, name: str) -> bool:
        return FileSystems.exists(self.join(name))

    def read(self, name: str) -> bytes:
        with _open(self.join(name)) as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        with self.create(name) as stream:
            stream.write(content)

    def create(self, name: str) -> Any:
        return FileSystems.create(self.join(name), compression_type=CompressionTypes.UNCOMPRESSED)

    def remove(self) -> None:
        FileSystems.delete([self.path])


def _open(file: str) -> Any:
    try:
        return FileSystems.open(file, compression_type=CompressionTypes.UNCOMPRESSED)
    except BeamIOError as error:
        raise InputError(f"{file}: cannot be read ({error})") from error


def _files(name: str, text_key: str) -> list[tuple[str, str | None]]:
    """The files of a source, each with its name in there; for a data set its name and `None`."""
    if "://" not in name:
        found = open_source(name, text_key)
        return [(own, str(file.absolute())) for own, file in found.named_files] or [(name, None)]
    try:
        is_pattern = any(character in name for character in "*?[")
        matches = FileSystems.match([name] if is_pattern else [name, name.rstrip("/") + "/**"])
    except (BeamIOError, ValueError) as error:
        raise InputError(
            f"{name}: cannot be listed ({error}); needs apache-beam[gcp] for gs://, [aws] for s3://"
        ) from error
    paths = sorted({entry.path for match in matches for entry in match.metadata_list})
    paths = [path for path in paths if path.lower().endswith(ENDINGS)]
    if not paths:
        raise InputError(f"{name}: no file ending in {', '.join(ENDINGS)}")
    root = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return [(posixpath.relpath(path, root), path) for path in paths]


# === The first pass ===


def _first_document(block: int) -> int:
    return block << _DOCUMENT_BITS


def _place(document: int) -> tuple[int, int]:
    """A document's block and its number in there."""
    return document >> _DOCUMENT_BITS, document & (1 << _DOCUMENT_BITS) - 1


class _Cut(beam.DoFn):
    """Files to (number of the block, (source, block))."""

    def __init__(self, text_key: str) -> None:
        self._text_key = text_key

    def process(self, file: _Input) -> Iterator[tuple[int, tuple[int, Block]]]:
        if file.file is None:
            parts = open_source(file.name, self._text_key).parts()
        else:
            parts = file_parts(file.file, file.name, self._text_key, _open)
        for number, block in enumerate(in_blocks(parts)):
            if number >> _BLOCK_BITS:
                raise InputError(
                    f"{file.name}: more than {1 << _BLOCK_BITS:,} blocks of text; give it as several files"
                )
            yield file.number << _BLOCK_BITS | number, (file.source, block)


@dataclass
class _Notes:
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
    def merge(several: Iterable[_Notes]) -> _Notes:
        merged = _Notes()
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


class _Scan(beam.DoFn):
    """Blocks to (digest, facts) of their documents, with fates of those that cleaning drops, and notes."""

    def __init__(self, options: PreparationOptions) -> None:
        self._scan = ScanBlock(options.text_key, options.cleaning)

    def process(self, item: tuple[int, tuple[int, Block]]) -> Iterator[Any]:
        number, (_, block) = item
        first = _first_document(number)
        *_, (records, bands, signatures), changed, shown = self._scan((0, block, 0))
        notes = _Notes(changed)
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


class _Equal(beam.DoFn):
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
        notes = _Notes(pairs={"exact_duplicate": [(number, first.number) for number in numbers[1 : 1 + EXAMPLES]]})
        for number in numbers[1:]:
            block, i = _place(number)
            yield TaggedOutput("fates", (block, (i, _EXACT)))
            notes.drop("exact_duplicate", first.size)
        if numbers[1:]:
            yield TaggedOutput("notes", notes)


def _bands(facts: _Facts) -> Iterator[tuple[bytes, tuple[int, bytes]]]:
    signature = facts.compared[8 * BANDS :]
    for band in range(BANDS):
        yield bytes([band]) + facts.compared[8 * band : 8 * band + 8], (facts.number, signature)


def _alike(
    item: tuple[bytes, Iterable[tuple[int, bytes]]], similarity: float, drop: bool
) -> Iterator[tuple[int, int | None]]:
    """Documents that share a band to (document, the one for which it is dropped; `None`: not to be held out)."""
    entries = sorted(item[1])
    if len(entries) < 2:
        return
    numbers = [number for number, _ in entries]
    signatures = np.frombuffer(b"".join(signature for _, signature in entries), np.uint8).reshape(len(entries), -1)
    keys = np.zeros(len(entries), np.uint64)
    pairs, degrees = pairs_in_groups(keys, np.arange(len(entries)), signatures, similarity, similarity - MARGIN)
    for (document, earlier), degree in zip(pairs.tolist(), degrees.tolist(), strict=True):
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


class _Near(beam.DoFn):
    """(document, {its facts, marks}) to what is kept, with the fates of nearly equal documents."""

    def process(self, item: tuple[int, dict[str, Any]]) -> Iterator[Any]:
        number, joined = item
        (facts,) = joined["facts"]
        marks = set(joined["marks"])
        earlier = marks - {None}
        if not earlier:
            yield _Kept((number, *facts.copies), facts.digest, facts.size, not marks)
            return
        notes = _Notes(pairs={"near_duplicate": [(number, min(earlier))]})
        notes.drop("near_duplicate", facts.size)
        block, i = _place(number)
        yield TaggedOutput("fates", (block, (i, _NEAR)))
        yield TaggedOutput("notes", notes)


class _TallyUp(beam.CombineFn):
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


def _in_last_bin(kept: _Kept, tally: Tally, rule: str) -> Iterator[tuple[int, int]]:
    if tally.documents and kept.alone and kept.digest >> 48 == tally.last_bin(rule):
        yield kept.digest, kept.size * len(kept.numbers)


def _decide(_: None, tally: Tally, inside: list[tuple[int, int]], rule: str) -> Split:
    if tally.documents == 0:
        raise InputError("the corpus is empty: no document with any text in it")
    sizes: Counter[int] = Counter()
    for digest, size in inside:
        sizes[digest] += size
    return tally.split(rule, sizes)


class _HoldOut(beam.DoFn):
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
class _Encoding:
    """Sums over blocks."""

    totals: dict[str, Totals] = field(default_factory=lambda: {split: dict(NOTHING) for split in SPLITS})
    largest_id: int = 0
    names: dict[str, list[str]] = field(default_factory=dict)

    @staticmethod
    def merge(several: Iterable[_Encoding]) -> _Encoding:
        merged = _Encoding()
        for one in several:
            merged.totals = {split: add_totals(merged.totals[split], one.totals[split]) for split in SPLITS}
            merged.largest_id = max(merged.largest_id, one.largest_id)
            merged.names |= one.names
        return merged


class _Encode(beam.DoFn):
    """(block, {its text, fates}) to ((split, source, shard), piece), with sums."""

    def __init__(self, options: PreparationOptions, tokenizer: TokenizerFiles, dtype: np.dtype) -> None:
        self._options, self._tokenizer, self._dtype = options, tokenizer, dtype

    def setup(self) -> None:
        self._encode = EncodeBlock(self._options.text_key, self._options.cleaning, self._tokenizer)

    def process(
        self, item: tuple[int, dict[str, Any]], notes: _Notes, sizes: dict[tuple[int, str], int]
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
        yield TaggedOutput("sums", _Encoding(totals, largest, encoded.names))


def num_shards(size: int) -> int:
    """How many shards `size` bytes of text make."""
    return -(-size // SHARD_BYTES)


class _WriteShard(beam.DoFn):
    """((split, source, shard), pieces) to (split, number of the shard, entry of corpus.json)."""

    def __init__(self, folder: _Folder, dtype: np.dtype) -> None:
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


def _write_manifest(
    _: None,
    notes: _Notes,
    split: Split,
    encoding: _Encoding,
    entries: list[tuple[str, int, dict[str, Any]]],
    folder: _Folder,
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
    FileSystems.delete([folder.join(name) for name in texts])
    folder.write("corpus.json", corpus.encode())
    FileSystems.delete([folder.join(_UNFINISHED)])


def _build(
    pipeline: beam.Pipeline,
    inputs: list[_Input],
    sources: Sequence[tuple[str, float | None]],
    tokenizer: TokenizerFiles,
    folder: _Folder,
    options: PreparationOptions,
) -> None:
    """The pipeline."""
    cleaning, rule = options.cleaning, options.validation
    dtype = id_dtype(tokenizer.load().vocabulary_size)
    first_files = [next(file.number for file in inputs if file.source == i) for i in range(len(sources))]
    nothing = pipeline | "Nothing" >> beam.Create([None])

    blocks = (
        pipeline
        | "Files" >> beam.Create(inputs)
        | "Spread files" >> beam.Reshuffle()
        | beam.ParDo(_Cut(options.text_key))
    )
    scanned = (
        blocks
        | "Spread blocks" >> beam.Reshuffle()
        | beam.ParDo(_Scan(options)).with_outputs("fates", "notes", main="facts")
    )
    equal = (
        scanned.facts
        | "By digest" >> beam.GroupByKey()
        | beam.ParDo(_Equal(keep=cleaning.deduplicate == "none")).with_outputs("fates", "notes", main="facts")
    )
    marks = (
        equal.facts
        | "Bands" >> beam.FlatMap(_bands)
        | "By band" >> beam.GroupByKey()
        | "Compare" >> beam.FlatMap(_alike, cleaning.similarity, cleaning.deduplicate == "near")
    )
    facts = equal.facts | "Numbered" >> beam.Map(lambda facts: (facts.number, dataclasses.replace(facts, compared=b"")))
    near = (
        {"facts": facts, "marks": marks}
        | "By document" >> beam.CoGroupByKey()
        | beam.ParDo(_Near()).with_outputs("fates", "notes", main="kept")
    )
    tally = AsSingleton(near.kept | beam.CombineGlobally(_TallyUp()))
    inside = near.kept | "In the last bin" >> beam.FlatMap(_in_last_bin, tally, rule)
    split = AsSingleton(nothing | "Decide" >> beam.Map(_decide, tally, AsList(inside), rule))
    held_out = near.kept | beam.ParDo(_HoldOut(first_files), split).with_outputs("sizes", main="fates")
    sizes = AsDict(held_out.sizes | beam.CombinePerKey(sum))
    all_notes = (scanned.notes, equal.notes, near.notes) | "All notes" >> beam.Flatten()
    notes = AsSingleton(all_notes | "Merge notes" >> beam.CombineGlobally(_Notes.merge))
    fates = (scanned.fates, equal.fates, near.fates, held_out.fates) | "All fates" >> beam.Flatten()

    encoded = (
        {"text": blocks, "fates": fates}
        | "By block" >> beam.CoGroupByKey()
        | beam.ParDo(_Encode(options, tokenizer, dtype), notes, sizes).with_outputs("sums", main="pieces")
    )
    entries = encoded.pieces | "By shard" >> beam.GroupByKey() | beam.ParDo(_WriteShard(folder, dtype), sizes)
    sums = AsSingleton(encoded.sums | "Merge sums" >> beam.CombineGlobally(_Encoding.merge))
    _ = nothing | "Manifest" >> beam.Map(
        _write_manifest, notes, split, sums, AsList(entries), folder, sources, tokenizer, options
    )
