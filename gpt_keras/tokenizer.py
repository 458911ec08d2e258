"""Train a SentencePiece tokenizer on the training part of a source.

python -m gpt_keras.tokenizer train python-stdlib --vocabulary-size 8192 --output tokenizer.model
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt_keras import command
from gpt_keras.data.errors import InputError


@dataclass
class TokenizerOptions:
    """Options of `python -m gpt_keras.tokenizer`.

    Args:
        action: What to do: train.
        source: Text: paths, globs, python-stdlib, tfds:NAME or hf:ORG/NAME.
        output: The file to write, `tokenizer.model` say.
        vocabulary_size: Number of pieces.
        validation: What to hold out, as in training: auto, a fraction, or tail:0.1.
        text_key: Field of JSON records that holds the text.
    """

    action: Literal["train"]
    source: list[str]
    output: Path
    vocabulary_size: int = 8192
    validation: str = "auto"
    text_key: str = "text"


def main(options: TokenizerOptions) -> None:
    from rich.console import Console

    from gpt_keras.data.preparation import PreparationOptions, split_and_train_tokenizer
    from gpt_keras.progress import preparation_progress

    if options.vocabulary_size < 1:
        raise InputError(f"--vocabulary-size must be at least 1, not {options.vocabulary_size}")
    if not options.source:
        raise InputError("train on what? Give a source")
    prepared = PreparationOptions(options.validation, options.text_key)
    with preparation_progress(Console(stderr=True)) as report:
        tokenizer = split_and_train_tokenizer(options.source, options.vocabulary_size, prepared, report)
    tokenizer.save(options.output)
    print(f"{tokenizer.vocabulary_size} pieces, written to {options.output}")


def cli() -> int:
    return command.run(main, TokenizerOptions, "python -m gpt_keras.tokenizer", positional=["action", "source"])


if __name__ == "__main__":
    sys.exit(cli())
