"""Write a SavedModel: text to text in one TensorFlow graph, with the tokenizer and the decoding loop inside.

TF Serving, the C API and `tf.saved_model.load` run it without Keras or Python code of ours; they need the operations
of tensorflow_text, which the stock TF Serving image has built in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import PARTIAL, sweep, whole_folder
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.exporting.held_weights import WeightsDtype
from gpt_keras.exporting.served_model import ServedModel
from gpt_keras.exporting.serving_files import write_server_files, write_warmup
from gpt_keras.model import GPT


def export_saved_model(
    model: GPT,
    tokenizer: Tokenizer,
    base: str | Path,
    max_new_tokens: int | None = None,
    weights: WeightsDtype = "float32",
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the next free version `base/N`, TF Serving's layout; it appears whole or not at all.

    `ServedModel` says what its signatures take and give. Beside the versions, `base` gets TF Serving's batching.config
    and monitoring.config, where it has none.

    Args:
        model: Built on the TensorFlow backend, in float32.
        tokenizer: Its tokenizer.
        base: The model's folder under TF Serving's base path.
        max_new_tokens: Tokens that a request gets unless it asks for another number; less than the context's length. By
            default 128, or half of the context if that is less.
        weights: How matrices are stored.
        report: Told what is left out, and why.

    Returns:
        The version's folder.

    Raises:
        InputError: Another backend, a bad length, a tokenizer that no graph can hold, or no space on the disk.
    """
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            "a SavedModel is exported on the TensorFlow backend: set KERAS_BACKEND=tensorflow and export again"
        )
    if max_new_tokens is None:
        max_new_tokens = min(128, model.config.context_length // 2)
    if not 0 < max_new_tokens < model.config.context_length:
        raise InputError(
            f"max_new_tokens={max_new_tokens} must be at least 1 and below the context of {model.config.context_length}"
        )
    base = Path(base)
    if base.is_dir():
        sweep(base)
    module = ServedModel(model, tokenizer, max_new_tokens, weights)
    if module.chat_missing:
        report(f"no signature chat: {module.chat_missing}")
    version = next_version(base)
    with whole_folder(base / str(version)) as folder:
        tf.saved_model.save(module, str(folder), signatures=module.functions)
        write_warmup(folder, base.name, list(module.functions))
    write_server_files(base, model.config)
    return base / str(version)


def next_version(base: Path) -> int:
    """One more than the highest version in `base`, those included that are being written; 1 in a new one."""
    names = [path.name.partition(PARTIAL)[0] for path in base.glob("*")] if base.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0) + 1
