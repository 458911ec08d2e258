"""The tokenizer as TensorFlow operations, for graphs that take and give text."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from gpt_keras.data.errors import InputError
from gpt_keras.data.hub_tokenizer import HubTokenizer
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.data.tokenizer import Tokenizer

Tensor = Any


def load_operations(library: str) -> Any:
    """The operations in one of tensorflow_text's libraries, `sentencepiece_tokenizer` say: importing the package itself
    imports keras."""
    found = importlib.util.find_spec("tensorflow_text")
    if found is None or found.origin is None:
        raise InputError("tokenizing in a graph needs tensorflow-text, which is missing: pip install tensorflow-text")
    return tf.load_op_library(str(Path(found.origin).parent / "python" / "ops" / f"_{library}.so"))


_TEXTS = tf.TensorSpec([None], tf.string)
_TOKENS = tf.RaggedTensorSpec([None, None], tf.int32, ragged_rank=1)


def _once(*inputs: Any) -> Callable[[Callable[..., Any]], Any]:
    """A method that is one function of the graph, however often it is called there."""
    return lambda method: tf.function(method, input_signature=inputs, autograph=False)


class GraphTokenizer(tf.Module):
    """The same tokenizer inside a graph, equal to `Tokenizer` id for id; saved with the module that it hangs on.

    Args:
        tokenizer: The tokenizer to mirror: SentencePiece, or byte-level BPE.

    Raises:
        InputError: It is of another kind, for which TensorFlow has no operations; the message names what is missing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        if isinstance(tokenizer, SentencePieceTokenizer):
            self._encoder: Any = _SentencePiece(tokenizer)
        else:
            from gpt_keras.data.graph_byte_pair import BytePairEncoder

            assert isinstance(tokenizer, HubTokenizer)
            self._encoder = BytePairEncoder(tokenizer)
        self._bytes = [tokenizer.token_bytes(i) for i in range(tokenizer.vocabulary_size)]

    @_once(_TEXTS)
    def encode(self, texts: Tensor) -> tf.RaggedTensor:
        """int32 RaggedTensor [batch, (tokens)] of a string tensor [batch]; as `Tokenizer.encode`."""
        return self._encoder.encode(valid(texts))

    @_once(_TEXTS)
    def encode_prompt(self, texts: Tensor) -> tf.RaggedTensor:
        """As `Tokenizer.encode_prompt`: a text to continue, with the begin token where this tokenizer's texts have one,
        and never without any token."""
        special = isinstance(self.tokenizer, HubTokenizer)  # as Hugging Face, which reads special tokens in a prompt
        ids = self.encode_special(texts) if special else self.encode(texts)
        begin = self.tokenizer.begin_id
        if begin is None:
            missing, first = ids.row_lengths() == 0, self.tokenizer.padding_id
        else:
            begins = ids[:, :1].to_tensor(-1, shape=(None, 1))[:, 0] == begin
            missing = ~begins if special and self.tokenizer.adds_begin else ids.row_lengths() == 0
            missing, first = (tf.ones_like(missing) if self.tokenizer.adds_begin and not special else missing), begin
        return tf.concat([_single(tf.fill(tf.shape(texts), first), missing), ids], axis=1)

    def encode_special(self, texts: Tensor) -> tf.RaggedTensor:
        """As `encode`, where the text of a special token, `<|user|>` say, stands for that token."""
        special = {piece: token for piece, token in self.tokenizer.special.items() if piece}
        parts, rows = split(valid(texts), _alternatives(list(special)))
        return self.encode_parts(parts, find(parts, special), rows, tf.shape(texts, tf.int64)[0])

    @_once(_TEXTS, tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.int64))
    def encode_parts(self, parts: Tensor, fixed: Tensor, rows: Tensor, batch: Tensor) -> tf.RaggedTensor:
        """The ids of texts that are given in parts.

        Args:
            parts: string [parts].
            fixed: int32 [parts], the token that a part stands for, or -1 where it is text.
            rows: int64 [parts], rising: the text that a part belongs to.
            batch: int64 scalar, how many texts there are.
        """
        ids = self._encoder.encode(tf.where(fixed < 0, parts, ""))
        ids = tf.concat([_single(fixed, fixed >= 0), ids], axis=1)
        return tf.RaggedTensor.from_value_rowids(ids.values, tf.gather(rows, rows_of(ids)), batch, validate=False)

    @_once(_TOKENS)
    def decode(self, tokens: tf.RaggedTensor) -> Tensor:
        """As `Tokenizer.decode`, with a U+FFFD for every byte that is not UTF-8: string tensor [batch] of an int32
        RaggedTensor [batch, (tokens)]."""
        if isinstance(self._encoder, _SentencePiece):
            return valid(self._encoder.decode(tokens))
        return self.continuation(tokens)

    @_once(_TOKENS)
    def continuation(self, tokens: tf.RaggedTensor) -> Tensor:
        """As `Tokenizer.continuation`: the text that tokens add to a text before them."""
        size = len(self._bytes)  # the model may have more tokens, which stand for nothing
        pieces = tf.gather(tf.constant([*self._bytes, b""]), tf.minimum(tokens.values, size))
        texts = tf.strings.reduce_join(tokens.with_values(pieces), axis=-1)
        return self._restore(valid(texts))

    def _restore(self, texts: Tensor) -> Tensor:
        if self.tokenizer.escape is None:
            return texts
        for escaped in (self.tokenizer.escape + "a", self.tokenizer.escape + "b"):
            texts = tf.strings.regex_replace(texts, escaped, self.tokenizer.restore(escaped))
        return texts


class _SentencePiece(tf.saved_model.experimental.TrackableResource):
    """A SentencePiece model as a resource of the graph."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        super().__init__()
        self._model = tokenizer.model
        self._operations = load_operations("sentencepiece_tokenizer")
        _ = self.resource_handle  # created on first use, which must not be inside a graph

    def _create_resource(self) -> Tensor:
        return self._operations.sentencepiece_op(model=self._model)

    def encode(self, texts: Tensor) -> tf.RaggedTensor:
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
        return tf.RaggedTensor.from_row_splits(values, splits, validate=False)

    def decode(self, tokens: tf.RaggedTensor) -> Tensor:
        return self._operations.sentencepiece_detokenize_op(
            sp_handle=self.resource_handle,
            input_values=tokens.values,
            input_splits=tokens.row_splits,
            add_bos=False,
            add_eos=False,
            reverse=False,
        )


def valid(texts: Tensor) -> Tensor:
    """The same strings, with a U+FFFD for each byte that is not UTF-8, as SentencePiece writes them."""
    stand_in = 0x10FFFF  # which takes 4 bytes of UTF-8, where no broken sequence has more than 3
    points, starts = tf.strings.unicode_decode_with_offsets(texts, "UTF-8", errors="replace", replacement_char=stand_in)
    starts = tf.concat([starts, tf.cast(tf.strings.length(texts), tf.int64)[:, None]], axis=1)
    sizes = (starts[:, 1:] - starts[:, :-1]).values
    broken = tf.logical_and(points.values == stand_in, sizes < 4)
    counts = tf.where(broken, sizes, 1)
    values = tf.repeat(tf.where(broken, 0xFFFD, points.values), counts)
    rows = tf.repeat(rows_of(points), counts)
    repaired = tf.RaggedTensor.from_value_rowids(values, rows, tf.shape(texts, tf.int64)[0], validate=False)
    return tf.strings.unicode_encode(repaired, "UTF-8")


def split(texts: Tensor, pattern: str | None) -> tuple[Tensor, Tensor]:
    """Texts cut around what matches a pattern of RE2, which is kept.

    Args:
        texts: string [batch].
        pattern: `None` matches nothing.

    Returns:
        The parts, string [parts], none of them empty, and the text that each comes from, int64 [parts].
    """
    if pattern is None:
        return texts, tf.range(tf.shape(texts, tf.int64)[0])
    pattern = f"({pattern})"  # which the operation counts on
    parts, _, _, splits = load_operations("regex_split_ops").regex_split_with_offsets(
        input=texts, delim_regex_pattern=pattern, keep_delim_regex_pattern=pattern
    )
    return parts, rows_of(tf.RaggedTensor.from_row_splits(parts, splits, validate=False))


def rows_of(ragged: tf.RaggedTensor) -> Tensor:
    """int64, the row that each value belongs to; `value_rowids` takes as much memory as all rows at the longest one's
    length."""
    return tf.searchsorted(ragged.row_splits[1:], tf.range(tf.shape(ragged.values, tf.int64)[0]), "right", tf.int64)


def find(texts: Tensor, ids: dict[str, int]) -> Tensor:
    """int32, the token that each whole text stands for; -1 for none."""
    found = tf.fill(tf.shape(texts), -1)
    for text, token in ids.items():
        found = tf.where(texts == text, token, found)
    return found


def _alternatives(texts: list[str]) -> str | None:
    """A pattern that matches any of them, the longest that fits."""
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or None


def _single(tokens: Tensor, there: Tensor) -> tf.RaggedTensor:
    """Rows of one token [batch] where `there` [batch], and of none elsewhere."""
    return tf.RaggedTensor.from_row_lengths(tf.boolean_mask(tokens, there), tf.cast(there, tf.int64), validate=False)
