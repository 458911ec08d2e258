"""Text to text in one TensorFlow graph: tokenizer, prefill, the cached decoding loop and the detokenizer.

TF Serving, the C API and `tf.saved_model.load` run it without Keras or Python code of ours; they need the operations
of tensorflow_text, which the stock TF Serving image has built in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import sweep, whole_folder
from gpt_keras.data.graph_tokenizer import GraphTokenizer
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.model import GPT
from gpt_keras.sampling import greedy

Tensor = Any


def export_saved_model(model: GPT, tokenizer: Tokenizer, base: str | Path, max_new_tokens: int = 128) -> Path:
    """Write the next free version `base/N`, TF Serving's layout; it appears whole or not at all.

    Signature `serving_default`: `text` string [batch] to `generated_text` string [batch], the greedy continuation of
    each text without the text itself, up to `max_new_tokens` tokens, the end token, or a full context. Of a text
    too long for the context the last tokens are used.

    Args:
        model: Built on the TensorFlow backend.
        tokenizer: Its tokenizer.
        base: The model's folder under TF Serving's base path.
        max_new_tokens: Most tokens of a continuation; less than the context's length.

    Returns:
        The version's folder.

    Raises:
        InputError: Another backend, a bad length, or no space on the disk.
    """
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            "a SavedModel is exported on the TensorFlow backend: set KERAS_BACKEND=tensorflow and export again"
        )
    if not 0 < max_new_tokens < model.config.context_length:
        raise InputError(
            f"max_new_tokens={max_new_tokens} must be at least 1 and below the context of {model.config.context_length}"
        )
    base = Path(base)
    if base.is_dir():
        sweep(base)
    version = next_version(base)
    module = TextGeneration(model, tokenizer, max_new_tokens)
    with whole_folder(base / str(version)) as folder:
        tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serving_default})
    return base / str(version)


def next_version(base: Path) -> int:
    """One more than the highest version in `base`; 1 in a new one."""
    found = [int(path.name) for path in base.glob("*") if path.name.isdigit()] if base.is_dir() else []
    return max(found, default=0) + 1


class TextGeneration(tf.Module):
    """What is saved: the weights, once, and the graph.

    The Keras model itself stays outside the module, for loaders of TF Serving's kind cannot restore one.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, max_new_tokens: int) -> None:
        super().__init__()
        self.weights = [weight.value for weight in model.weights]
        self.tokenizer = graph_tokenizer = GraphTokenizer(tokenizer)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")], autograph=False)
        def serving_default(text: Tensor) -> dict[str, Tensor]:
            prompts, lengths = _prompts(graph_tokenizer, text, model.config.context_length - max_new_tokens)
            tokens = _generate(model, tokenizer, prompts, lengths, max_new_tokens)
            return {"generated_text": graph_tokenizer.decode(tokens)}

        self.serving_default = serving_default


def _prompts(tokenizer: GraphTokenizer, text: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Token ids [batch, longest] padded on the right, and their lengths [batch]: begin token, then the last tokens."""
    ids = tokenizer.encode(text)
    ids = ids[:, -(limit - 1) :] if limit > 1 else ids[:, :0]
    begin = tf.fill([tf.shape(text)[0], 1], tokenizer.tokenizer.begin_id)
    ids = tf.concat([begin, ids], axis=1)
    return ids.to_tensor(tokenizer.tokenizer.padding_id), tf.cast(ids.row_lengths(), tf.int32)


def _generate(model: GPT, tokenizer: Tokenizer, prompts: Tensor, lengths: Tensor, max_new_tokens: int) -> Tensor:
    """New tokens of each row, int32 RaggedTensor [batch, (tokens)], through `GPT.step` and its cache."""
    batch, longest = tf.shape(prompts)[0], tf.shape(prompts)[1]
    positions = tf.tile(tf.range(longest)[None], [batch, 1])
    cache: Any = model.make_cache(batch, longest + max_new_tokens)
    logits, cache = model.step(prompts, positions, cache=cache, select=lengths - 1)

    def ends(token: Tensor) -> Tensor:
        return tf.reduce_any(token[:, None] == tf.constant(sorted(tokenizer.end_ids), tf.int32)[None], axis=1)

    def goes_on(number: Tensor, token: Tensor, ended: Tensor, *_: Any) -> Tensor:
        return tf.logical_and(number < max_new_tokens, tf.logical_not(tf.reduce_all(ended)))

    def decode(number: Tensor, token: Tensor, ended: Tensor, written: Tensor, cache: Any) -> tuple[Any, ...]:
        here = tf.logical_and(tf.range(max_new_tokens)[None] == number, tf.logical_not(ended)[:, None])
        written = tf.where(here, token[:, None], written)
        logits, cache = model.step(token[:, None], (lengths + number)[:, None], cache=cache)
        token = greedy(logits[:, 0])
        return number + 1, token, tf.logical_or(ended, ends(token)), written, cache

    token = greedy(logits[:, 0])
    nothing = tf.fill([batch, max_new_tokens], -1)
    first = (tf.constant(0), token, ends(token), nothing, cache)
    _, _, _, written, _ = tf.while_loop(goes_on, decode, first)
    return tf.ragged.boolean_mask(written, written >= 0)
