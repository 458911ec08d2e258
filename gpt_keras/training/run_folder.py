"""The run folder before any model is built: its options, its tokenizer and its corpus. Imports no keras.

runs/NAME/  config.yaml  corpus/  metrics.jsonl  logs/  loss.png  checkpoints/
            model/  samples.md  summary.json
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import readable
from gpt_keras.data.mixture import Mixture
from gpt_keras.data.preparation import PreparationOptions, prepare, split_and_train_tokenizer
from gpt_keras.data.pretraining import Batches
from gpt_keras.data.sentencepiece_tokenizer import SmallCorpusError
from gpt_keras.data.shards import Corpus
from gpt_keras.data.sources import open_source, parse_weight
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.progress import preparation_progress
from gpt_keras.training.options import FIXED, SHAPE, UNTOLD, TrainOptions, flag
from gpt_keras.training.processes import processes
from gpt_keras.training.recorded import (
    changes,
    damaged,
    differing,
    plain,
    read_recorded,
    refuse_differences,
    write_recorded,
)

_FINGERPRINTS = ("tokenizer_sha256", "corpus_sha256")


@dataclass(frozen=True)
class Begun:
    """A run that was begun earlier, and can go on.

    Attributes:
        fingerprints: Of its tokenizer and its corpus, by the names in config.yaml.
        changed: In words, the options that now differ.
    """

    fingerprints: dict[str, str | None]
    changed: list[str]


@dataclass
class PreparedRun:
    """A run folder that is ready to train in.

    Attributes:
        corpus: Tokenized.
        started: When preparation began, on the clock of `time.perf_counter`.
        seconds: How long each stage took.
    """

    corpus: Mixture
    started: float
    seconds: dict[str, float] = field(default_factory=dict)


def prepare_run(options: TrainOptions, console: Console) -> PreparedRun:
    """Train the tokenizer and tokenize the corpus, or find them done, and record the options; of several processes,
    the first one does, before the others come here.

    Raises:
        InputError: Bad options or data: one line that says what is wrong. Told before any long work where it can be.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    options.model_config()
    begun = check_options(options)
    corpus = _given_corpora(options, begun is not None) or _new_corpus(options, console, seconds)
    fingerprints = dict(zip(_FINGERPRINTS, (corpus.tokenizer.fingerprint, corpus.fingerprint), strict=True))
    for name, fingerprint in begun.fingerprints.items() if begun else ():
        if fingerprint not in (None, fingerprints[name]):
            what = "another tokenizer" if name.startswith("tokenizer") else "other contents"
            raise InputError(f"{corpus.name} has {what} than when {options.run_dir} was begun; use --restart")
    if begun and begun.changed:
        say(console, f"changed     {', '.join(begun.changed)}")
    with bytes_bar(console, "checking the corpus") as (bar, task):
        corpus.verify(lambda done, total: bar.update(task, completed=done, total=total))
    corpus.tokenizer.check_writable(d.text[:2000] for d in itertools.islice(corpus.held_out_documents(), 20))
    config = options.model_config(corpus.tokenizer.vocabulary_size)
    corpus.check_model(config.vocabulary_size)
    Batches.of(corpus, config.context_length, options.batch_size)  # is there enough of it
    if processes().first:
        # Only now, when nothing is left to go wrong with them, are the options those of the run.
        write_recorded(options, fingerprints)
    return PreparedRun(corpus, started, seconds)


def finished_summary(options: TrainOptions) -> dict[str, Any] | None:
    """The summary of the run in the folder, if it has done all that the options ask for."""
    try:
        summary = json.loads((options.run_dir / "summary.json").read_text("utf-8"))
        metrics = summary["metrics"]
        if options.steps is not None:
            return summary if metrics["steps"] >= options.steps else None
        assert options.minutes is not None
        return summary if metrics["train_seconds"] >= 60.0 * options.minutes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_data(options: TrainOptions) -> None:
    """See that there is such data, and that no option is given that it makes meaningless.

    Raises:
        InputError: Naming what is wrong.
    """
    given = [parse_weight(name)[0] for name in options.data]
    prepared = [name for name in given if _is_corpus(name)]
    if not prepared:
        for name in given:
            open_source(name, options.text_key)
        both = options.tokenizer is not None and options.vocabulary_size is not None
        if both and (options.restart or read_recorded(options.run_dir) is None):  # runs that were begun so go on
            raise InputError("--vocabulary-size is that of --tokenizer, where one is given: leave it out")
        return
    if len(prepared) < len(given):
        raise InputError(
            f"--data: {prepared[0]} is a prepared corpus and others are not; prepare them with its tokenizer first: "
            "python -m gpt_keras.corpus prepare"
        )
    for name, default in (("tokenizer", None), ("vocabulary_size", None), ("validation", "auto")):
        if getattr(options, name) != default:
            raise InputError(f"{prepared[0]} is a prepared corpus, which fixes {flag(name)}: leave it out")


def known_vocabulary_size(options: TrainOptions) -> int | None:
    """Of the tokenizer that the options name, themselves or with a corpus; `None` where one is to be trained.

    Raises:
        InputError: It cannot be opened.
    """
    if options.tokenizer is not None:
        return Tokenizer.load(options.tokenizer).vocabulary_size
    folder = parse_weight(options.data[0])[0]
    return Corpus(folder).tokenizer.vocabulary_size if _is_corpus(folder) else None


def check_options(options: TrainOptions) -> Begun | None:
    """See that the run in the folder, if there is one, can go on with these options.

    Raises:
        InputError: With all differences that make that meaningless.
    """
    given, recorded = plain(options), read_recorded(options.run_dir)
    if recorded is None:
        return None
    try:
        fingerprints = {name: recorded.pop(name, None) for name in _FINGERPRINTS}
        recorded = {**plain(TrainOptions()), **{k: v for k, v in recorded.items() if k in given}}  # older ones differ
        if isinstance(recorded["data"], str):
            recorded["data"] = [recorded["data"]]
        shape = _shape(TrainOptions(**{name: recorded[name] for name in SHAPE}))
    except (TypeError, InputError) as error:
        raise damaged(options.run_dir, error) from error
    now = _shape(options)
    differences = differing(recorded, given, FIXED)
    differences += [f"{name} {shape[name]}, not {now[name]}" for name in shape if shape[name] != now[name]]
    if bool(recorded["ema"]) != bool(given["ema"]):  # the average is of all steps, or there is none
        differences.append(f"--ema {recorded['ema']}, not {given['ema']}")
    refuse_differences(options.run_dir, differences)
    return Begun(fingerprints, changes(recorded, given, {*FIXED, *SHAPE, *UNTOLD} - {"dropout"}))


def _shape(options: TrainOptions) -> dict[str, Any]:
    """The model's configuration without what may change when a run goes on."""
    config = options.model_config().to_dict()
    return {name: value for name, value in config.items() if name not in ("dropout", "initializer_range")}


def put_aside(folder: Path) -> Path:
    """Rename an existing run to the first free `NAME-old-N`; where it went."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}-old-{number}")).exists():
        number += 1
    try:
        folder.rename(aside)
    except OSError as error:
        raise readable(error, aside) from error
    return aside


def say(console: Console, words: str) -> None:
    """One plain line."""
    console.print(words, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def bytes_bar(console: Console, words: str) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar over bytes on a terminal, nothing elsewhere."""
    columns = (TextColumn(words), BarColumn(), DownloadColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar, bar.add_task("", total=None)


def _is_corpus(folder: str) -> bool:
    return (Path(folder) / "corpus.json").is_file()


def _given_corpora(options: TrainOptions, begun: bool) -> Mixture | None:
    """The corpora that the options name, or the one this run has made."""
    if _is_corpus(parse_weight(options.data[0])[0]):
        return Mixture.open(options.data)
    return Mixture([(Corpus(options.run_dir / "corpus"), None)]) if begun else None


def _new_corpus(options: TrainOptions, console: Console, seconds: dict[str, float]) -> Mixture:
    folder = options.run_dir / "corpus"
    tokenizer = _tokenizer(options, console, seconds)
    start = time.perf_counter()
    with preparation_progress(console) as report:
        corpus = prepare(options.data, tokenizer, folder, _preparation(options), report, restart=True)
    seconds["corpus"] = round(time.perf_counter() - start, 1)
    train, held_out = (corpus.splits[split] for split in ("train", "validation"))
    say(
        console,
        f"corpus      {train['bytes'] / 1e6:.1f} MB, {train['tokens']:,} tokens in {train['documents']} documents "
        f"to train on, {held_out['bytes'] / 1e6:.2f} MB in {held_out['documents']} documents held out",
    )
    return Mixture([(corpus, None)])


def _preparation(options: TrainOptions) -> PreparationOptions:
    return PreparationOptions(options.validation, options.text_key)


def _tokenizer(options: TrainOptions, console: Console, seconds: dict[str, float]) -> Tokenizer:
    if options.tokenizer is not None:
        return Tokenizer.load(options.tokenizer)
    start = time.perf_counter()
    size, note = options.model_config().vocabulary_size, ""
    with console.status("training the tokenizer") if console.is_terminal else contextlib.nullcontext():
        try:
            tokenizer = split_and_train_tokenizer(options.data, size, _preparation(options)).tokenizer
        except SmallCorpusError as error:
            if options.vocabulary_size is not None:
                raise
            size, note = error.most, ", as many as so little text bears"
            tokenizer = split_and_train_tokenizer(options.data, size, _preparation(options)).tokenizer
    seconds["tokenizer"] = round(time.perf_counter() - start, 1)
    say(console, f"tokenizer   SentencePiece, {size:,} pieces{note}, trained in {seconds['tokenizer']:.0f} s")
    return tokenizer
