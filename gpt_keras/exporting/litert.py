"""A .tflite file of a model in LiteRT-LM's contract, which phones and `python -m gpt_keras.generate` run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import check_writable
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.litert import bundle
from gpt_keras.litert.conversion import Weights, engine_file
from gpt_keras.model import GPT

PREFILL = (1, 8, 32, 128)
"""Lengths of prompts, or parts of them, that there are functions for."""
_LONGEST = 1024


def export_litert(
    model: GPT, tokenizer: Tokenizer | None, path: str | Path, weights: Weights, context_length: int | None = None
) -> None:
    """Write the file.

    Args:
        model: The model.
        tokenizer: Its tokenizer, which goes into the file.
        path: The .tflite file.
        weights: How matrices are stored, the embedding's table among them.
        context_length: Tokens that the cache holds; by default the model's context, but at most 1024, for each step
            reads all of it.

    Raises:
        InputError: The context is longer than the model's, or the file cannot be written.
    """
    check_writable(path)
    content, context = litert_file(model, weights, context_length)
    config = dataclasses.replace(model.config, context_length=context)
    bundle.write(path, content, config, tokenizer)


def litert_file(model: GPT, weights: Weights, context_length: int | None) -> tuple[bytes, int]:
    """The file without a tokenizer, and how long its context is. Arguments and errors as `export_litert`."""
    most = model.config.context_length
    context = min(most, _LONGEST) if context_length is None else context_length
    if not 1 < context <= most:
        raise InputError(f"--context-length {context} must be at least 2 and at most the model's context of {most}")
    return engine_file(model, weights, context, [length for length in PREFILL if length < context]), context
