r"""Prepare a corpus for training once, and look at it.

python -m gpt_keras.corpus prepare python-stdlib --tokenizer tokenizer.model --output corpora/stdlib
python -m gpt_keras.corpus prepare books/=2 web.jsonl.zst=1 --deduplicate near --tokenizer tokenizer.model --output two
python -m gpt_keras.corpus inspect corpora/stdlib
python -m gpt_keras.train --data corpora/stdlib

python -m gpt_keras.corpus prepare gs://bucket/text --tokenizer tokenizer.model --output gs://bucket/corpus --runner \
    FlinkRunner --flink_master=host:8081 --parallelism=200

Preparing goes on from where it was, when it is killed and the same command is given again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_keras import command
from gpt_keras.data.cleaning import CleaningOptions
from gpt_keras.data.errors import InputError


@dataclass(kw_only=True)
class CorpusOptions(CleaningOptions):
    """Options of `python -m gpt_keras.corpus`.

    Args:
        action: What to do: prepare or inspect.
        source: To prepare: paths, globs, python-stdlib, tfds:NAME or hf:ORG/NAME, each also as SOURCE=WEIGHT. To
            inspect: a corpus folder.
        tokenizer: The tokenizer.model to prepare with.
        output: The corpus folder to write.
        validation: What to hold out: auto, a fraction of the bytes such as 0.05, or tail:0.1.
        text_key: Field of JSON records that holds the text.
        workers: Processes; as many as there are cores by default. The result does not depend on it.
        runner: Prepare on Apache Beam, on a cluster or here: DirectRunner, FlinkRunner, SparkRunner or DataflowRunner.
            Its own flags, as Beam spells them, are taken too; those that only the cluster knows go behind a --.
        runner_options: These flags, where they come from a file of options.
        restart: Forget an unfinished preparation with other options for the same output.
        json: Print the manifest as one JSON object.
    """

    action: Literal["prepare", "inspect"]
    source: list[str]
    tokenizer: Path | None = None
    output: str | None = None
    validation: str = "auto"
    text_key: str = "text"
    workers: int | None = None
    runner: Literal["DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner"] | None = None
    runner_options: list[str] = dataclasses.field(default_factory=list)
    restart: bool = False
    json: bool = False


def main(options: CorpusOptions) -> None:
    if not options.source:
        raise InputError(
            f"{options.action} what? Give a {'corpus folder' if options.action == 'inspect' else 'source'}"
        )
    if options.action == "inspect":
        _inspect(options)
    else:
        _prepare(options)


def _inspect(options: CorpusOptions) -> None:
    from gpt_keras.data.shards import Corpus

    if len(options.source) > 1:
        raise InputError("inspect takes one corpus folder")
    corpus = Corpus(options.source[0])
    corpus.verify()
    show(corpus.manifest, options.source[0], options.json)


def _prepare(options: CorpusOptions) -> None:
    from rich.console import Console

    from gpt_keras.data.preparation import PreparationOptions, prepare
    from gpt_keras.data.tokenizer import Tokenizer
    from gpt_keras.progress import preparation_progress

    if options.tokenizer is None or options.output is None:
        raise InputError("prepare needs --tokenizer FILE.model and --output DIR")
    cleaning = CleaningOptions(**{f.name: getattr(options, f.name) for f in dataclasses.fields(CleaningOptions)})
    prepared = PreparationOptions(options.validation, options.text_key, cleaning, options.workers)
    tokenizer = Tokenizer.load(options.tokenizer)
    if options.runner is not None:
        from gpt_keras.data.beam import prepare_on_beam

        manifest = prepare_on_beam(
            options.source, tokenizer, options.output, prepared, options.runner, options.runner_options
        )
    else:
        with preparation_progress(Console(stderr=True)) as report:
            corpus = prepare(options.source, tokenizer, options.output, prepared, report, options.restart)
        manifest = corpus.manifest
    show(manifest, options.output, options.json)


def show(manifest: dict[str, Any], folder: str, as_json: bool) -> None:
    """Print what corpus.json says."""
    from rich.console import Console
    from rich.table import Table

    from gpt_keras.data.shards import SPLITS

    if as_json:
        print(json.dumps(manifest))
        return
    sources = [
        entry["source"] + ("" if entry["weight"] is None else f"={entry['weight']:g}") for entry in manifest["sources"]
    ]
    table = Table(title=f"{folder}, from {', '.join(sources)}", title_justify="left")
    for column in ("split", "documents", "tokens", "bytes", "bytes per token", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in SPLITS:
        entry = manifest["splits"][split]
        counts = (entry["documents"], entry["tokens"], entry["bytes"])
        density = entry["bytes"] / max(1, entry["tokens"])
        table.add_row(split, *(f"{count:,}" for count in counts), f"{density:.2f}", str(len(entry["shards"])))
    console = Console()
    console.print(table)
    cleaning = manifest["cleaning"]
    for step, count in cleaning["changed"].items():
        console.print(f"{step}: changed {count:,} documents", highlight=False)
    for reason, dropped in cleaning["dropped"].items():
        console.print(
            f"{reason}: dropped {dropped['documents']:,} documents, {dropped['bytes']:,} bytes", highlight=False
        )
        for example in cleaning["examples"].get(reason, []):
            like = f", like {example['like']}" if "like" in example else ""
            words = f"  {example['name']}{like}: {example['text'][:60]!r}"
            console.print(words, highlight=False, markup=False, soft_wrap=True)


def cli() -> int:
    argv = sys.argv[1:]
    theirs: list[str] = []
    if any(argument.split("=")[0] == "--runner" for argument in argv):
        logging.disable(logging.WARNING)  # Beam's words on what its optional parts need
        try:
            from gpt_keras.data.beam import split_flags
        except ImportError as error:
            print(f"error: --runner needs one more package: pip install 'gpt_keras[beam]' ({error})", file=sys.stderr)
            return 2
        finally:
            logging.disable(logging.NOTSET)
        own = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(CorpusOptions)]
        argv, theirs = split_flags(argv, [*own, "--help"])
    return command.run(
        lambda options: main(dataclasses.replace(options, runner_options=options.runner_options + theirs)),
        CorpusOptions,
        "python -m gpt_keras.corpus",
        positional=["action", "source"],
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(cli())
