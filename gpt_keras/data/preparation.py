"""Documents to a prepared corpus: read and clean, find duplicates, hold out, tokenize, write shards.

The text is read twice. The first pass (`scan`) notes of every document what decides its fate; the decisions are then
made on disk; the second pass (`encode`) tokenizes what is left. Both passes share their work over processes and write
results in the order of the text, with a note of how far they are, so that a preparation that is killed goes on from
there and gives the same bytes, as does one with another number of workers.

    OUTPUT.preparing/   plan.json  scan.json  documents  bands  signatures  split.json  decisions  encode.json  corpus/
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras.data.cleaning import CleaningOptions
from gpt_keras.data.decisions import BLOCK, decide, place_in_sample, sample_shares
from gpt_keras.data.duplicates import BANDS, ROWS
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import put_in_place, sweep
from gpt_keras.data.reading import Block
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer, train_tokenizer
from gpt_keras.data.shards import SPLITS, Corpus, ShardWriter, id_dtype
from gpt_keras.data.sources import Source, open_source, parse_weights
from gpt_keras.data.split import Split, parse_rule
from gpt_keras.data.stages import (
    DOCUMENT,
    DROPPED,
    EXAMPLES,
    NOTHING,
    EncodeBlock,
    ScanBlock,
    TokenizerFiles,
    Work,
    add_totals,
    examples,
    manifest,
)
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.data.work_files import must_read_note, open_at, read_note, sync, table, write_note
from gpt_keras.data.workers import map_in_order

SUFFIX = ".preparing"
_REPLACED = "replaced"
"""Where an old corpus is for a moment while the new one takes its place."""
NOTE_SECONDS = 2.0
SAMPLE_BYTES = 200_000_000
"""How much text a tokenizer is trained on, by default."""


@dataclass(frozen=True)
class Progress:
    """How far a preparation is.

    Attributes:
        stage: `reading`, `deciding`, `tokenizing`, or `training` for a tokenizer.
        documents: Documents done in this stage.
        bytes: Bytes of text done in this stage.
        total_bytes: Of how many, where that is known.
    """

    stage: str
    documents: int
    bytes: int
    total_bytes: int | None


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class PreparationOptions:
    """What shapes a prepared corpus, apart from its text and tokenizer.

    Attributes:
        validation: What to hold out (`gpt_keras.data.split`).
        text_key: Field of records that holds the text.
        cleaning: What is done to the text.
        workers: Processes; the processor's number by default. Does not change the result.
    """

    validation: str = "auto"
    text_key: str = "text"
    cleaning: CleaningOptions = field(default_factory=CleaningOptions)
    workers: int | None = None

    def __post_init__(self) -> None:
        parse_rule(self.validation)
        if self.workers is not None and not 1 <= self.workers <= 1024:
            raise InputError(f"--workers must be from 1 to 1024, not {self.workers}")


def prepare(
    sources: str | Sequence[str],
    tokenizer: Tokenizer,
    output: str | Path,
    options: PreparationOptions = PreparationOptions(),
    report: Report = lambda progress: None,
    restart: bool = False,
) -> Corpus:
    """Tokenize `sources` into the folder `output`, which appears whole or not at all.

    Until then work is kept in `OUTPUT.preparing`, from where the same call goes on.

    Args:
        sources: As `open_source` takes them, each also as SOURCE=WEIGHT.
        tokenizer: Must be the one that training will use.
        output: The corpus folder; an old one is replaced.
        options: What to do with the text.
        report: Called as work is done.
        restart: Forget what an earlier, other preparation for `output` had done.

    Raises:
        InputError: A source cannot be read, is empty, or has changed; the disk is full; `output` is being prepared by
            another process, or was begun with other options.
    """
    if tokenizer.begin_id is None or tokenizer.end_id is None:
        raise InputError("the tokenizer has no begin or no end token, which mark where documents begin and end")
    output = Path(output)
    with _Preparation(sources, options, output.with_name(output.name + SUFFIX), report, restart) as preparation:
        preparation.scan()
        preparation.decide()
        preparation.encode(tokenizer, output)
    return Corpus(output)


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer, and how well it does on text that it has not seen.

    Attributes:
        tokenizer: It.
        sample_bytes: Of text that it was trained on.
        held_out_bytes: Of held-out text, the first 10 MB of it.
        held_out_tokens: Of the same text.
    """

    tokenizer: SentencePieceTokenizer
    sample_bytes: int
    held_out_bytes: int
    held_out_tokens: int

    @property
    def bytes_per_token(self) -> float:
        """Compression: how much text a token stands for."""
        return self.held_out_bytes / self.held_out_tokens


def split_and_train_tokenizer(
    sources: str | Sequence[str],
    vocabulary_size: int,
    options: PreparationOptions = PreparationOptions(),
    report: Report = lambda progress: None,
    model_type: str = "bpe",
    sample_bytes: int = SAMPLE_BYTES,
) -> TrainedTokenizer:
    """A tokenizer that has seen a sample of the training part of `sources` and nothing of the held-out part.

    Args:
        sources: As `prepare` takes them.
        vocabulary_size: Number of pieces.
        options: What to hold out, and what to do with the text first.
        report: Called as work is done.
        model_type: `bpe` or `unigram`.
        sample_bytes: Train on at most about this much text. Documents are drawn by a digest of their text, so the
            sample is spread evenly over each source, and the same in every call. Sources with weights share it so.

    Raises:
        InputError: As for `prepare`, or as for `train_tokenizer`.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        with _Preparation(sources, options, work, report, False) as preparation:
            preparation.scan()
            preparation.decide()
            report(Progress("training", 0, 0, None))
            sample = _Counted(preparation.texts("train", sample_bytes))
            tokenizer = train_tokenizer(sample, vocabulary_size, model_type)
            held_out = _Counted(preparation.texts("validation"), 10_000_000)
            tokens = sum(len(tokenizer.encode(text)) for text in held_out)
            return TrainedTokenizer(tokenizer, sample.bytes, held_out.bytes, tokens)


class _Counted:
    """Texts, until there are `limit` bytes of them, and how many bytes there were."""

    def __init__(self, texts: Iterable[str], limit: int | None = None) -> None:
        self._texts, self._limit, self.bytes = texts, limit, 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            yield text
            self.bytes += len(text.encode())
            if self._limit is not None and self.bytes >= self._limit:
                return


class _Preparation:
    """The stages, in a folder of their own."""

    def __init__(
        self, sources: str | Sequence[str], options: PreparationOptions, folder: Path, report: Report, restart: bool
    ) -> None:
        given = parse_weights(sources)
        self.names, self.weights = [name for name, _ in given], [weight for _, weight in given]
        self.options, self.folder, self._report = options, folder, report
        self._sources: list[Source] = [open_source(name, options.text_key) for name in self.names]
        self._restart = restart
        self._workers = options.workers or os.cpu_count() or 1

    def __enter__(self) -> _Preparation:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(self.folder.parent)
        fresh = not self.folder.exists()
        self.folder.mkdir(exist_ok=True)
        self._lock = open(self.folder / "lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise InputError(f"{self.folder}: another process is preparing this corpus") from error
        try:
            self._adopt_plan(fresh)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        try:
            if error is not None and shutil.disk_usage(self.folder.parent).free < 1 << 20:
                raise InputError(
                    f"no space left on the disk while writing {self.folder}: free some; the same command then goes on"
                ) from error
            if isinstance(error, InputError) and read_note(self.folder / "scan.json") is None:
                shutil.rmtree(self.folder, ignore_errors=True)  # nothing was done that is worth keeping
        finally:
            self._lock.close()

    def _adopt_plan(self, fresh: bool) -> None:
        """Note what is to be done, or see that what was begun is the same."""
        cleaning = dataclasses.asdict(self.options.cleaning)
        plan = {
            "sources": [[s.name, weight, s.state()] for s, weight in zip(self._sources, self.weights, strict=True)],
            "validation": self.options.validation,
            "text_key": self.options.text_key,
            **cleaning,
        }
        plan = json.loads(json.dumps(plan))
        begun = None if fresh else read_note(self.folder / "plan.json")
        if begun == plan:
            return
        if begun is not None and not self._restart and read_note(self.folder / "scan.json") is not None:
            changed = next((name for name in plan if begun.get(name) != plan[name]), "options")
            what = "the sources have changed" if changed == "sources" else f"it had another --{changed}"
            raise InputError(
                f"{self.folder} holds an unfinished preparation that is not this one ({what.replace('_', '-')}): "
                "give the same to go on, or --restart to begin again"
            )
        output = self.folder.with_name(self.folder.name.removesuffix(SUFFIX))
        if (self.folder / _REPLACED).exists() and not output.exists():  # killed between the last two renames
            os.replace(self.folder / _REPLACED, output)
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_note(self.folder / "plan.json", plan)

    # === Reading ===

    def scan(self) -> None:
        """Note digest, size, signature and reason to drop of every document."""
        note = read_note(self.folder / "scan.json")
        note = note or {"blocks": 0, "documents": 0, "bytes": 0, "counts": {}, "examples": {}, "done": False}
        if note["done"]:
            return
        totals = [source.total_bytes for source in self._sources]
        packed = any(file.suffix in (".gz", ".zst", ".parquet") for s in self._sources for file in s.files)
        total = None if packed or None in totals else sum(size for size in totals if size is not None)
        counts, examples = Counter(note["counts"]), note["examples"]
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(open_at(self.folder / name, count))
                for name, count in (
                    ("documents", note["documents"] * DOCUMENT.itemsize),
                    ("bands", note["documents"] * BANDS * 8),
                    ("signatures", note["documents"] * BANDS * ROWS),
                    ("blocks", note["blocks"] * BLOCK.itemsize),
                )
            ]
            noted = time.monotonic()
            work = ScanBlock(self.options.text_key, self.options.cleaning)
            blocks = self._blocks(note["blocks"])
            with contextlib.closing(map_in_order(work, blocks, self._workers)) as results:
                for source, size, rows, changed, shown in results:
                    for file, part in zip(files, (*rows, np.array([(len(rows[0]), source)], BLOCK)), strict=True):
                        file.write(part.tobytes())
                    counts.update(changed)
                    for reason, texts in shown.items():
                        examples[reason] = [*examples.get(reason, []), *texts][:EXAMPLES]
                    note["blocks"] += 1
                    note["documents"] += len(rows[0])
                    note["bytes"] += size
                    self._report(Progress("reading", note["documents"], note["bytes"], total))
                    if time.monotonic() - noted > NOTE_SECONDS:
                        sync(files)
                        write_note(self.folder / "scan.json", {**note, "counts": dict(counts)})
                        noted = time.monotonic()
            sync(files)
        note |= {"counts": dict(sorted(counts.items())), "done": True}
        write_note(self.folder / "scan.json", note)

    def _blocks(self, first: int = 0) -> Iterator[tuple[int, Block, int]]:
        """The blocks from number `first` on: source, parts, bytes."""
        everything = ((number, block) for number, source in enumerate(self._sources) for block in source.blocks())
        for number, block in itertools.islice(everything, first, None):
            yield number, block, sum(part.size for part in block)

    def decide(self) -> None:
        """Find duplicates, and hold out."""
        try:
            decide(
                self.folder,
                self.options.validation,
                self.options.cleaning,
                lambda documents: self._report(Progress("deciding", documents, 0, None)),
            )
        except InputError as error:
            raise InputError(f"{', '.join(self.names)}: {error}") from error

    # === Tokenizing ===

    def texts(self, side: str, sample_bytes: int | None = None) -> Iterator[str]:
        """The texts of one side, in order; of at most about `sample_bytes` of them."""
        work = EncodeBlock(self.options.text_key, self.options.cleaning, None)
        documents = table(self.folder / "documents", DOCUMENT)
        shares = sample_shares(self.folder, self.weights, sample_bytes) if sample_bytes is not None else None
        for item in self._decided(0):
            if shares is not None:
                here = slice(item.first, item.first + len(item.fates))
                item.fates[place_in_sample(documents[here]) >= shares[item.source]] = DROPPED
            if (item.fates >= DROPPED).all():
                continue
            for kept, document in work.sides(item):
                if kept == side:
                    yield document.text

    def _decided(self, first: int, shown: dict[int, str] | None = None) -> Iterator[Work]:
        """The blocks from number `first` on with the fates of their documents."""
        split = Split(**must_read_note(self.folder / "split.json")["split"])
        counts = table(self.folder / "blocks", BLOCK)["documents"]
        fates = np.memmap(self.folder / "decisions", np.uint8, "r")
        start = int(counts[:first].sum())
        interesting = np.array(sorted(shown or {}), np.int64)
        for number, (source, block, size) in enumerate(self._blocks(first), first):
            if number >= len(counts):
                raise InputError(f"{self.names[source]}: has changed since it was first read; prepare it again")
            count = int(counts[number])
            here = interesting[(interesting >= start) & (interesting < start + count)] - start
            cut = (split.tail_document or 0) - start
            tail = (cut, split.tail_byte) if split.tail_document is not None and 0 <= cut < count else None
            fate = np.array(fates[start : start + count])
            yield Work(source, block, size, start, fate, tail, here.tolist())
            start += count

    def encode(self, tokenizer: Tokenizer, output: Path) -> None:
        """Tokenize what is kept, write shards and manifest, and put the corpus in its place."""
        record = must_read_note(self.folder / "split.json")
        note = read_note(self.folder / "encode.json")
        if note is not None and note["tokenizer"] != tokenizer.fingerprint:
            if not self._restart:
                raise InputError(
                    f"{self.folder} holds an unfinished preparation with another tokenizer: give the same to go on, or "
                    "--restart to begin again"
                )
            note = None
        folder = self.folder / "corpus"
        if note is None or not folder.exists():  # killed just behind the end: the corpus is in its place already
            shutil.rmtree(folder, ignore_errors=True)
            note = {"tokenizer": tokenizer.fingerprint, "blocks": 0, "documents": 0, "held_out_bytes": 0}
            note |= {"writers": dict.fromkeys(SPLITS), "names": {}, "largest_id": 0}
            note |= {"totals": {split: dict(NOTHING) for split in SPLITS}}
        folder.mkdir(exist_ok=True)
        dtype = id_dtype(tokenizer.vocabulary_size)
        writers = {split: ShardWriter(folder, split, dtype, note["writers"][split]) for split in SPLITS}
        wanted = {number: "" for pairs in record["pairs"].values() for pair in pairs for number in pair}
        done = sum(note["totals"][split]["bytes"] for split in SPLITS)
        with open_at(folder / "validation.jsonl", note["held_out_bytes"]) as held_out_text:

            def take_note() -> None:
                sync([held_out_text])
                note["held_out_bytes"] = held_out_text.tell()
                note["writers"] = {split: writer.state() for split, writer in writers.items()}
                write_note(self.folder / "encode.json", note)

            noted = time.monotonic()
            work = EncodeBlock(self.options.text_key, self.options.cleaning, TokenizerFiles.of(tokenizer))
            items = self._decided(note["blocks"], wanted)
            with contextlib.closing(map_in_order(work, items, self._workers)) as results:
                for result in results:
                    for split in SPLITS:
                        side = result.sides[split]
                        writers[split].add(side.tokens, result.source)
                        note["totals"][split] = add_totals(note["totals"][split], side.totals)
                        note["largest_id"] = max(note["largest_id"], side.largest_id)
                    held_out_text.write(result.held_out)
                    note["names"] |= result.names
                    note["blocks"] += 1
                    note["documents"] += result.documents
                    done += sum(result.sides[split].totals["bytes"] for split in SPLITS)
                    self._report(Progress("tokenizing", note["documents"], done, record["bytes"]))
                    if time.monotonic() - noted > NOTE_SECONDS:
                        take_note()
                        noted = time.monotonic()
            if note["blocks"] != len(table(self.folder / "blocks", BLOCK)):
                raise InputError(f"{', '.join(self.names)}: has changed since it was first read; prepare it again")
            take_note()
        for name, content in tokenizer.files.items():
            (folder / name).write_bytes(content)
        shards = {split: writer.finish() for split, writer in writers.items()}
        corpus = manifest(
            list(zip(self.names, self.weights, strict=True)),
            record["split"]["rule"],
            tokenizer,
            self.options.cleaning,
            must_read_note(self.folder / "scan.json")["counts"],
            record["dropped"],
            examples(must_read_note(self.folder / "scan.json")["examples"], record["pairs"], note["names"]),
            note["totals"],
            note["largest_id"],
            shards,
        )
        (folder / "corpus.json").write_text(corpus, "utf-8")
        for path in folder.iterdir():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
        put_in_place(folder, output, self.folder / _REPLACED)
        (self.folder / "plan.json").unlink()  # without it a later call takes the rest for what it is
        shutil.rmtree(self.folder)
