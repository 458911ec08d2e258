"""A .tflite file of a model in LiteRT-LM's contract, which phones and `python -m gpt_keras.generate` run."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import check_writable
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.exporting.model_card import measure, write_card
from gpt_keras.litert import bundle
from gpt_keras.litert.contract import ContractDecoder
from gpt_keras.litert.conversion import Weights, engine_file
from gpt_keras.litert.runtime import LiteRTFile
from gpt_keras.model import GPT

PREFILL = (1, 8, 32, 128)
"""Lengths of prompts, or parts of them, that there are functions for."""
_LONGEST = 1024


def export_litert(
    model: GPT, tokenizer: Tokenizer | None, path: str | Path, weights: Weights, context_length: int | None = None
) -> None:
    """Write the file, and a card of it beside it.

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
    content, parts, config = litert_file(model, weights, context_length)
    bundle.write(path, content, config, tokenizer)
    describe(Path(path), Path(path), model, weights, config, parts)


def describe(path: Path, file: Path, model: GPT, weights: Weights, config: GPTConfig, parts: dict[str, int]) -> None:
    """Write the card of an export, whose LiteRT file is measured; if that fails the export is there all the same."""
    try:
        figures = measure(ContractDecoder(LiteRTFile(file), config), model)
    except (InputError, RuntimeError, MemoryError) as error:
        logging.getLogger("gpt_keras").warning("no card of %s: it cannot be run here (%s)", path, error)
        return
    rest = path.stat().st_size - sum(parts.values())
    write_card(path, model, weights, config.context_length, {**parts, "tokenizer and the like": rest}, figures)


def litert_file(model: GPT, weights: Weights, context_length: int | None) -> tuple[bytes, dict[str, int], GPTConfig]:
    """The file without a tokenizer, how many of its bytes are what, and the model's configuration with the file's
    context. Arguments and errors as `export_litert`."""
    most = model.config.context_length
    context = min(most, _LONGEST) if context_length is None else context_length
    if not 1 < context <= most:
        raise InputError(f"--context-length {context} must be at least 2 and at most the model's context of {most}")
    content, parts = engine_file(model, weights, context, [length for length in PREFILL if length < context])
    return content, parts, dataclasses.replace(model.config, context_length=context)
