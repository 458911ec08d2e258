"""Train a SentencePiece tokenizer on the training part of a source.

python -m gpt_keras.tokenizer train python-stdlib --vocabulary-size 8192 --output tokenizer.model
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from gpt_keras import command
from gpt_keras.data.errors import InputError


@dataclass
class TokenizerOptions:
    """Options of `python -m gpt_keras.tokenizer`.

    Args:
        action: What to do: train.
        source: Text: paths, globs, python-stdlib, tfds:NAME or hf:ORG/NAME, each also as SOURCE=WEIGHT.
        output: The file to write, `tokenizer.model` say.
        vocabulary_size: Number of pieces.
        model_type: How pieces are found: bpe or unigram.
        sample_mb: Train on at most about this many megabytes of text, drawn evenly from the sources, or by their
            weights. It is held in memory, many times over for unigram.
        validation: What to hold out, as in training: auto, a fraction, or tail:0.1.
        text_key: Field of JSON records that holds the text.
    """

    POSITIONAL: ClassVar = ("action", "source")
    action: Literal["train"]
    source: list[str]
    output: Path
    vocabulary_size: int = 8192
    model_type: Literal["bpe", "unigram"] = "bpe"
    sample_mb: float = 200
    validation: str = "auto"
    text_key: str = "text"


def main(options: TokenizerOptions) -> None:
    from rich.console import Console

    from gpt_keras.data.preparation import PreparationOptions, split_and_train_tokenizer
    from gpt_keras.progress import preparation_progress

    if options.vocabulary_size < 1:
        raise InputError(f"--vocabulary-size must be at least 1, not {options.vocabulary_size}")
    if not options.sample_mb > 0:
        raise InputError(f"--sample-mb must be above 0, not {options.sample_mb}")
    if not options.source:
        raise InputError("train on what? Give a source")
    prepared = PreparationOptions(options.validation, options.text_key)
    with preparation_progress(Console(stderr=True)) as report:
        trained = split_and_train_tokenizer(
            options.source, options.vocabulary_size, prepared, report, options.model_type, int(options.sample_mb * 1e6)
        )
    trained.tokenizer.save(options.output)
    print(
        f"{trained.tokenizer.vocabulary_size:,} pieces, from {trained.sample_bytes / 1e6:,.1f} MB of text, written to "
        f"{options.output}; {trained.bytes_per_token:.2f} bytes per token on {trained.held_out_bytes / 1e6:,.1f} MB of "
        "held-out text"
    )


def cli() -> int:
    return command.run(main, TokenizerOptions, "python -m gpt_keras.tokenizer")


if __name__ == "__main__":
    sys.exit(cli())
