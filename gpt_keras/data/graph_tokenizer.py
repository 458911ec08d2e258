"""The tokenizer as TensorFlow operations, for graphs that take and give text."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import tensorflow as tf

from gpt_keras.data.errors import InputError
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.data.tokenizer import Tokenizer

Tensor = Any


def load_operations() -> Any:
    """tensorflow_text's SentencePiece operations, straight from its library: importing the package imports keras."""
    found = importlib.util.find_spec("tensorflow_text")
    if found is None or found.origin is None:
        raise InputError("tokenizing in a graph needs tensorflow-text, which is missing: pip install tensorflow-text")
    return tf.load_op_library(str(Path(found.origin).parent / "python" / "ops" / "_sentencepiece_tokenizer.so"))


class GraphTokenizer(tf.saved_model.experimental.TrackableResource):
    """The same tokenizer inside a graph, equal to `Tokenizer` id for id; saved with the module that it hangs on.

    Args:
        tokenizer: The tokenizer to mirror.

    Raises:
        InputError: It is not a SentencePiece one; TensorFlow has no operation for others.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        if not isinstance(tokenizer, SentencePieceTokenizer):
            raise InputError("only a SentencePiece tokenizer (tokenizer.model) can be part of a TensorFlow graph")
        self.tokenizer = tokenizer
        self._operations = load_operations()
        _ = self.resource_handle  # created on first use, which must not be inside a graph

    def _create_resource(self) -> Tensor:
        return self._operations.sentencepiece_op(model=self.tokenizer.model)

    def encode(self, texts: Tensor) -> tf.RaggedTensor:
        """int32 RaggedTensor [batch, (tokens)] of a string tensor [batch]."""
        values, splits = self._operations.sentencepiece_tokenize_op(
            sp_handle=self.resource_handle,
            input=texts,
            nbest_size=0,
            alpha=1.0,
            add_bos=False,
            add_eos=False,
            reverse=False,
            out_type=tf.int32,
        )
        return tf.RaggedTensor.from_row_splits(values, splits)

    def decode(self, tokens: tf.RaggedTensor) -> Tensor:
        """String tensor [batch], always valid UTF-8, of an int32 RaggedTensor [batch, (tokens)]."""
        texts = self._operations.sentencepiece_detokenize_op(
            sp_handle=self.resource_handle,
            input_values=tokens.values,
            input_splits=tokens.row_splits,
            add_bos=False,
            add_eos=False,
            reverse=False,
        )
        return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace", replacement_char=0xFFFD)
