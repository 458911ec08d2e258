"""Prepare a corpus for training once, and look at it.

python -m gpt_keras.corpus prepare python-stdlib --tokenizer tokenizer.model --output corpora/stdlib
python -m gpt_keras.corpus inspect corpora/stdlib
python -m gpt_keras.train --data corpora/stdlib
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt_keras import command
from gpt_keras.data.errors import InputError


@dataclass
class CorpusOptions:
    """Options of `python -m gpt_keras.corpus`.

    Args:
        action: What to do: prepare or inspect.
        source: To prepare: a path, a glob, python-stdlib, tfds:NAME or hf:ORG/NAME. To inspect: a corpus folder.
        tokenizer: The tokenizer.model to prepare with.
        output: The corpus folder to write.
        validation: What to hold out: auto, a fraction of the bytes such as 0.05, or tail:0.1.
        text_key: Field of JSON records that holds the text.
        json: Print the manifest as one JSON object.
    """

    action: Literal["prepare", "inspect"]
    source: str
    tokenizer: Path | None = None
    output: Path | None = None
    validation: str = "auto"
    text_key: str = "text"
    json: bool = False


def main(options: CorpusOptions) -> None:
    from gpt_keras.data.shards import Corpus

    if options.action == "inspect":
        show(Corpus(options.source), options.json)
        return
    if options.tokenizer is None or options.output is None:
        raise InputError("prepare needs --tokenizer FILE.model and --output DIR")
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from gpt_keras.data.preparation import prepare
    from gpt_keras.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(options.tokenizer)
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        corpus = prepare(options.source, tokenizer, options.output, options.validation, options.text_key, report)
    show(corpus, options.json)


def show(corpus: object, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from gpt_keras.data.shards import SPLITS, Corpus

    assert isinstance(corpus, Corpus)
    if as_json:
        print(json.dumps(corpus.manifest))
        return
    table = Table(title=f"{corpus.folder}, from {corpus.manifest['source']}", title_justify="left")
    for column in ("split", "documents", "tokens", "bytes", "bytes per token", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in SPLITS:
        entry = corpus.manifest["splits"][split]
        counts = (entry["documents"], entry["tokens"], entry["bytes"])
        density = entry["bytes"] / max(1, entry["tokens"])
        table.add_row(split, *(f"{count:,}" for count in counts), f"{density:.2f}", str(len(entry["shards"])))
    console = Console()
    console.print(table)
    stream = corpus.streams["train"]
    beginning = corpus.tokenizer.decode(stream.read(0, min(64, len(stream))))
    console.print(f"It begins: {beginning!r}", highlight=False)


def cli() -> int:
    return command.run(main, CorpusOptions, "python -m gpt_keras.corpus", positional=["action", "source"])


if __name__ == "__main__":
    sys.exit(cli())
