"""Prepare a corpus for training once, and look at it.

python -m gpt_keras.corpus prepare python-stdlib --tokenizer tokenizer.model --output corpora/stdlib
python -m gpt_keras.corpus prepare books/=2 web.jsonl.zst=1 --deduplicate near --tokenizer tokenizer.model --output two
python -m gpt_keras.corpus inspect corpora/stdlib
python -m gpt_keras.train --data corpora/stdlib

Preparing goes on from where it was, when it is killed and the same command is given again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
        restart: Forget an unfinished preparation with other options for the same output.
        json: Print the manifest as one JSON object.
    """

    action: Literal["prepare", "inspect"]
    source: list[str]
    tokenizer: Path | None = None
    output: Path | None = None
    validation: str = "auto"
    text_key: str = "text"
    workers: int | None = None
    restart: bool = False
    json: bool = False


def main(options: CorpusOptions) -> None:
    from gpt_keras.data.shards import Corpus

    if not options.source:
        raise InputError(
            f"{options.action} what? Give a {'corpus folder' if options.action == 'inspect' else 'source'}"
        )
    if options.action == "inspect":
        if len(options.source) > 1:
            raise InputError("inspect takes one corpus folder")
        corpus = Corpus(options.source[0])
        corpus.verify()
        show(corpus, options.json)
        return
    if options.tokenizer is None or options.output is None:
        raise InputError("prepare needs --tokenizer FILE.model and --output DIR")
    from rich.console import Console

    from gpt_keras.data.preparation import PreparationOptions, prepare
    from gpt_keras.data.tokenizer import Tokenizer
    from gpt_keras.progress import preparation_progress

    cleaning = CleaningOptions(**{f.name: getattr(options, f.name) for f in dataclasses.fields(CleaningOptions)})
    prepared = PreparationOptions(options.validation, options.text_key, cleaning, options.workers)
    tokenizer = Tokenizer.load(options.tokenizer)
    with preparation_progress(Console(stderr=True)) as report:
        corpus = prepare(options.source, tokenizer, options.output, prepared, report, options.restart)
    show(corpus, options.json)


def show(corpus: object, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from gpt_keras.data.shards import SPLITS, Corpus

    assert isinstance(corpus, Corpus)
    if as_json:
        print(json.dumps(corpus.manifest))
        return
    sources = [
        entry["source"] + ("" if entry["weight"] is None else f"={entry['weight']:g}")
        for entry in corpus.manifest["sources"]
    ]
    table = Table(title=f"{corpus.folder}, from {', '.join(sources)}", title_justify="left")
    for column in ("split", "documents", "tokens", "bytes", "bytes per token", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in SPLITS:
        entry = corpus.manifest["splits"][split]
        counts = (entry["documents"], entry["tokens"], entry["bytes"])
        density = entry["bytes"] / max(1, entry["tokens"])
        table.add_row(split, *(f"{count:,}" for count in counts), f"{density:.2f}", str(len(entry["shards"])))
    console = Console()
    console.print(table)
    cleaning = corpus.manifest["cleaning"]
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
    stream = corpus.streams["train"]
    beginning = corpus.tokenizer.decode(stream.read(0, min(64, len(stream))))
    console.print(f"It begins: {beginning!r}", highlight=False)


def cli() -> int:
    return command.run(main, CorpusOptions, "python -m gpt_keras.corpus", positional=["action", "source"])


if __name__ == "__main__":
    sys.exit(cli())
