r"""Prepare a corpus for training once, and look at it.

python -m gpt_keras.corpus prepare python-stdlib --tokenizer tokenizer.model --output corpora/stdlib
python -m gpt_keras.corpus prepare books/=2 web.jsonl.zst=1 --deduplicate near --tokenizer tokenizer.model --output two
python -m gpt_keras.corpus inspect corpora/stdlib --batch 7 --context-length 256
python -m gpt_keras.corpus inspect chat.jsonl --tokenizer model/ --batch 0
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
from types import ModuleType
from typing import ClassVar, Literal

from gpt_keras import command
from gpt_keras.data.cleaning import CleaningOptions
from gpt_keras.data.errors import InputError


@dataclass(kw_only=True)
class CorpusOptions(CleaningOptions):
    """Options of `python -m gpt_keras.corpus`.

    Args:
        action: What to do: prepare or inspect.
        source: To prepare: paths, globs, python-stdlib, tfds:NAME or hf:ORG/NAME, each also as SOURCE=WEIGHT. To
            inspect: a corpus folder; or conversations to fine-tune on, as JSON lines.
        tokenizer: The tokenizer to prepare with, or that of the model to fine-tune: a file, or the model's folder.
        output: The corpus folder to write.
        validation: What to hold out: auto, a fraction of the bytes such as 0.05, or tail:0.1.
        text_key: Field of JSON records that holds the text.
        workers: Processes; as many as there are cores by default. The result does not depend on it.
        runner: Prepare on Apache Beam, on a cluster or here: DirectRunner, FlinkRunner, SparkRunner or DataflowRunner.
            Its own flags, as Beam spells them, are taken too; those that only the cluster knows go behind a --.
        runner_options: These flags, where they come from a file of options.
        restart: Forget an unfinished preparation with other options for the same output.
        batch: The batch to show as text, in inspect.
        context_length: Tokens of its rows.
        batch_size: How many rows it has.
        seed: Of the order.
        truncation: What becomes of conversations that are too long for a row: refuse, drop, cut_start or cut_end.
        json: Print the manifest as one JSON object.
    """

    POSITIONAL: ClassVar = ("action", "source")
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
    batch: int | None = None
    context_length: int = 1024
    batch_size: int = 4
    seed: int = 0
    truncation: Literal["refuse", "drop", "cut_start", "cut_end"] = "drop"
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
    from rich.console import Console

    from gpt_keras import corpus_view
    from gpt_keras.data.mixture import Mixture
    from gpt_keras.data.pretraining import Batches
    from gpt_keras.data.shards import SPLITS, Corpus

    if options.batch is not None and options.batch < 0:
        raise InputError(f"--batch must be 0 or above, not {options.batch}")
    if min(options.context_length, options.batch_size) < 1:
        raise InputError("--context-length and --batch-size must be 1 or above")
    if Path(options.source[0]).is_file() or options.source[0].startswith(("hf:", "tfds:")):
        _inspect_conversations(options)
        return
    if len(options.source) > 1:
        raise InputError("inspect takes one corpus folder")
    corpus = Corpus(options.source[0])
    corpus.verify()
    if options.json:
        print(json.dumps(corpus.manifest))
        return
    console = Console()
    corpus_view.show_corpus(corpus.manifest, options.source[0], console)
    for split in SPLITS:
        corpus_view.show_lengths(corpus.manifest["splits"][split]["lengths"], f"{split} document", console)
    if options.batch is not None:
        sizes = (options.context_length, options.batch_size)
        begin, end = corpus.tokenizer.begin_id, corpus.tokenizer.end_id
        batches = Batches.of(Mixture([(corpus, None)]), *sizes, seed=options.seed, begin_id=begin, end_id=end)
        batch, when = batches.batch(options.batch), " (with train --mask-documents)"
        corpus_view.show_batch(options.batch, batch, corpus.tokenizer, console, when)


def _inspect_conversations(options: CorpusOptions) -> None:
    from rich.console import Console

    from gpt_keras import corpus_view
    from gpt_keras.data.finetuning import PackedBatches, read_examples
    from gpt_keras.data.tokenizer import Tokenizer

    if options.tokenizer is None:
        raise InputError("to inspect conversations, give the --tokenizer of the model: a file, or the model's folder")
    tokenizer = Tokenizer.load(options.tokenizer)
    console = Console()
    with console.status("tokenizing"):
        examples = read_examples(options.source, tokenizer, options.context_length, options.truncation)
    batches = PackedBatches(
        examples, options.context_length, options.batch_size, tokenizer.padding_id, seed=options.seed
    )
    corpus_view.show_examples(", ".join(options.source), examples, batches, console)
    if options.batch is not None:
        corpus_view.show_batch(options.batch, batches.batch(options.batch), tokenizer, console)


def _prepare(options: CorpusOptions) -> None:
    from rich.console import Console

    from gpt_keras.corpus_view import show_corpus
    from gpt_keras.data.preparation import PreparationOptions, prepare
    from gpt_keras.data.tokenizer import Tokenizer
    from gpt_keras.progress import preparation_progress

    if options.tokenizer is None or options.output is None:
        raise InputError("prepare needs --tokenizer FILE.model and --output DIR")
    cleaning = CleaningOptions(**{f.name: getattr(options, f.name) for f in dataclasses.fields(CleaningOptions)})
    prepared = PreparationOptions(options.validation, options.text_key, cleaning, options.workers)
    tokenizer = Tokenizer.load(options.tokenizer)
    if options.runner is not None:
        manifest = _beam().prepare_on_beam(
            options.source, tokenizer, options.output, prepared, options.runner, options.runner_options
        )
    else:
        with preparation_progress(Console(stderr=True)) as report:
            corpus = prepare(options.source, tokenizer, options.output, prepared, report, options.restart)
        manifest = corpus.manifest
    if options.json:
        print(json.dumps(manifest))
    else:
        show_corpus(manifest, options.output, Console())


def _beam() -> ModuleType:
    """`gpt_keras.data.beam`, which takes an extra."""
    logging.disable(logging.WARNING)  # Beam's words on what its optional parts need
    try:
        from gpt_keras.data import beam
    except ImportError as error:
        raise InputError(f"--runner needs one more package: pip install 'gpt_keras[beam]' ({error})") from error
    finally:
        logging.disable(logging.NOTSET)
    return beam


def cli() -> int:
    argv = sys.argv[1:]
    theirs: list[str] = []
    if any(argument.split("=")[0] == "--runner" for argument in argv):
        own = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(CorpusOptions)]
        try:
            argv, theirs = _beam().split_flags(argv, [*own, "--help", "--config"])
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return command.run(
        lambda options: main(dataclasses.replace(options, runner_options=options.runner_options + theirs)),
        CorpusOptions,
        "python -m gpt_keras.corpus",
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(cli())
