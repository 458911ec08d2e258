"""The stages of `gpt_keras.data.preparation` on Apache Beam, for corpora that are too large for one machine.

The same documents are read, cleaned, found to be duplicates, held out and tokenized as on one machine, by the same
code; what differs is which shard they go to. Files and folders may be anything that Beam's file systems know: gs://,
s3://, hdfs:// or a disk that all workers share. `corpus.json` is written last: without it a folder is no corpus.

    files > cut into blocks ─┬─> reduce documents ─> equal? ─> nearly equal? ─> held out? ─┐
                             └───────────────── tokenize, with the fates <─────────────────┘ ─> shards ─> corpus.json
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.pvalue import AsDict, AsList, AsSingleton

from gpt_keras.data.beam_files import Folder, Input, find_files
from gpt_keras.data.beam_stages import (
    MAX_FILES,
    Cut,
    Encode,
    Encoding,
    Equal,
    HoldOut,
    Near,
    Notes,
    Scan,
    TallyUp,
    WriteShard,
    alike,
    bands_of,
    decide_split,
    in_last_bin,
    write_manifest,
)
from gpt_keras.data.errors import InputError
from gpt_keras.data.preparation import PreparationOptions
from gpt_keras.data.shards import id_dtype
from gpt_keras.data.sources import parse_weights
from gpt_keras.data.split import parse_rule
from gpt_keras.data.stages import TokenizerFiles
from gpt_keras.data.tokenizer import Tokenizer


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
    given = parse_weights(sources)
    pipeline_options = _pipeline_options(runner, runner_options, options.workers)
    inputs = [
        Input(number, source, name, file)
        for number, (source, name, file) in enumerate(
            (source, *found) for source, (name, _) in enumerate(given) for found in find_files(name, options.text_key)
        )
    ]
    if len(inputs) > MAX_FILES:
        raise InputError(f"{len(inputs):,} files; at most {MAX_FILES:,} can be told apart: join small ones")
    local = [path for path in (output, *(file.file for file in inputs)) if path is not None and "://" not in path]
    if runner == "DataflowRunner" and local:
        raise InputError(f"{local[0]} is on this machine, where Dataflow's workers do not see it: copy it to gs://")
    folder = Folder(output.rstrip("/"))
    folder.begin()
    for name, content in tokenizer.files.items():
        folder.write(name, content)
    try:
        with _quiet(runner), beam.Pipeline(runner=_runner(runner), options=pipeline_options) as pipeline:
            _build(pipeline, inputs, given, TokenizerFiles.of(tokenizer), folder, options)
        return json.loads(folder.read("corpus.json"))
    except BaseException as error:
        if isinstance(error, Exception) or runner == "DirectRunner":  # after Ctrl-C a cluster goes on
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
    end = arguments.index("--") if "--" in arguments else len(arguments)
    before, behind = arguments[:end], arguments[end + 1 :]
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
        if workers is not None or not any(flag.startswith("--direct_num_workers") for flag in flags):
            direct.direct_num_workers = workers or os.cpu_count() or 1
        if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
            direct.direct_running_mode = "multi_processing"
    elif workers is not None:
        raise InputError(f"--workers is for one machine; {runner} has options of its own")
    return options


def _build(
    pipeline: beam.Pipeline,
    inputs: list[Input],
    sources: Sequence[tuple[str, float | None]],
    tokenizer: TokenizerFiles,
    folder: Folder,
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
        | beam.ParDo(Cut(options.text_key))
    )
    scanned = (
        blocks
        | "Spread blocks" >> beam.Reshuffle()
        | beam.ParDo(Scan(options)).with_outputs("fates", "notes", main="facts")
    )
    equal = (
        scanned.facts
        | "By digest" >> beam.GroupByKey()
        | beam.ParDo(Equal(keep=cleaning.deduplicate == "none")).with_outputs("fates", "notes", main="facts")
    )
    marks = (
        equal.facts
        | "Bands" >> beam.FlatMap(bands_of)
        | "By band" >> beam.GroupByKey()
        | "Compare" >> beam.FlatMap(alike, cleaning.similarity, cleaning.deduplicate == "near")
    )
    facts = equal.facts | "Numbered" >> beam.Map(lambda facts: (facts.number, dataclasses.replace(facts, compared=b"")))
    near = (
        {"facts": facts, "marks": marks}
        | "By document" >> beam.CoGroupByKey()
        | beam.ParDo(Near()).with_outputs("fates", "notes", main="kept")
    )
    tally = AsSingleton(near.kept | beam.CombineGlobally(TallyUp()))
    inside = near.kept | "In the last bin" >> beam.FlatMap(in_last_bin, tally, rule)
    split = AsSingleton(nothing | "Decide" >> beam.Map(decide_split, tally, AsList(inside), rule))
    held_out = near.kept | beam.ParDo(HoldOut(first_files), split).with_outputs("sizes", main="fates")
    sizes = AsDict(held_out.sizes | beam.CombinePerKey(sum))
    all_notes = (scanned.notes, equal.notes, near.notes) | "All notes" >> beam.Flatten()
    notes = AsSingleton(all_notes | "Merge notes" >> beam.CombineGlobally(Notes.merge))
    fates = (scanned.fates, equal.fates, near.fates, held_out.fates) | "All fates" >> beam.Flatten()

    encoded = (
        {"text": blocks, "fates": fates}
        | "By block" >> beam.CoGroupByKey()
        | beam.ParDo(Encode(options, tokenizer, dtype), notes, sizes).with_outputs("sums", main="pieces")
    )
    entries = encoded.pieces | "By shard" >> beam.GroupByKey() | beam.ParDo(WriteShard(folder, dtype), sizes)
    sums = AsSingleton(encoded.sums | "Merge sums" >> beam.CombineGlobally(Encoding.merge))
    _ = nothing | "Manifest" >> beam.Map(
        write_manifest, notes, split, sums, AsList(entries), folder, sources, tokenizer, options
    )
