"""What a model makes of texts, inside a TensorFlow graph: log-probabilities, choices among labels, embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from gpt_keras import sampling
from gpt_keras.data.graph_tokenizer import GraphTokenizer
from gpt_keras.exporting.graph_generation import keep_last
from gpt_keras.exporting.held_weights import HeldWeights
from gpt_keras.model import GPT

Tensor = Any
PIECE = 256
"""Tokens that logits are made of at a time."""


@dataclass(frozen=True)
class TokenScores:
    """The tokens of every row that were scored.

    Attributes:
        tokens: int32 RaggedTensor [batch, (tokens)].
        log_probabilities: float32 RaggedTensor of that shape, in nats.
        truncated: Boolean [batch], whether the row lost tokens because it did not fit the context.
    """

    tokens: tf.RaggedTensor
    log_probabilities: tf.RaggedTensor
    truncated: Tensor


class GraphScorer:
    """Reads texts.

    Args:
        model: Built on the TensorFlow backend.
        weights: Its weights as they are saved.
        tokenizer: Its tokenizer in the graph.
    """

    def __init__(self, model: GPT, weights: HeldWeights, tokenizer: GraphTokenizer) -> None:
        self._model, self._weights, self._tokenizer = model, weights, tokenizer
        plain = tokenizer.tokenizer
        self._hidden_states = tf.function(
            self._read, input_signature=[tf.TensorSpec([None, None], tf.int32)], autograph=False
        )
        first = next((i for i in (plain.begin_id, plain.end_id) if i is not None), plain.padding_id)
        self._first = first if first < model.config.vocabulary_size else 0

    def score(self, texts: Tensor) -> TokenScores:
        """Every token of each text, string [batch], given those before it; the first one given the begin token."""
        first = tf.RaggedTensor.from_tensor(tf.fill([tf.shape(texts)[0], 1], self._first))
        return self._score(tf.concat([first, self._tokenizer.encode(texts)], axis=1))

    def choices(self, texts: Tensor, labels: Tensor) -> Tensor:
        """Log-probability of each label as what follows the text, float32 [batch, labels].

        As in lm-evaluation-harness, text and label are one string to the tokenizer, and spaces between them are the
        label's.

        Args:
            texts: string [batch].
            labels: string [batch, labels].
        """
        shape = tf.shape(labels)
        texts = tf.repeat(texts, shape[1])
        whole = self._tokenizer.encode_prompt(tf.strings.join([texts, tf.reshape(labels, [-1])]))
        texts = tf.strings.regex_replace(texts, r"\s+$", "")
        before = self._tokenizer.encode_prompt(texts).row_lengths()
        plain = self._tokenizer.tokenizer
        alone = int(plain.adds_begin and plain.begin_id is not None)  # tokens before a label without a text
        before = tf.where(texts == "", tf.cast(alone, before.dtype), before)
        counts = tf.maximum(whole.row_lengths() - before, 1)
        lacks = tf.cast(counts >= whole.row_lengths(), tf.int32)  # what comes before the label's first token
        first = tf.RaggedTensor.from_row_lengths(tf.fill([tf.reduce_sum(lacks)], self._first), lacks)
        scored = self._score(tf.concat([first.with_row_splits_dtype(whole.row_splits.dtype), whole], axis=1))
        left = scored.tokens.row_lengths()
        place = tf.ragged.range(left)
        own = tf.cast(place >= (left - counts)[:, None], tf.float32)
        return tf.reshape(tf.reduce_sum(scored.log_probabilities * own, axis=1), shape)

    def embed(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of what the output head sees of each token, float32 [batch, hidden_dim], and whether tokens were
        left out, boolean [batch]."""
        plain = self._tokenizer.tokenizer
        ids = self._tokenizer.encode_prompt(texts)
        room = tf.fill([tf.shape(texts)[0]], self._model.config.context_length)
        ids, truncated = keep_last(ids, room, plain.begin_id)
        hidden = self._hidden_states(ids.to_tensor(0))  # nobody looks at what fills up
        rows = tf.RaggedTensor.from_tensor(tf.cast(hidden, tf.float32), lengths=ids.row_lengths())
        return tf.ensure_shape(tf.reduce_mean(rows, axis=1), [None, hidden.shape[-1]]), truncated

    def _read(self, token_ids: Tensor) -> Tensor:
        with self._weights.scope():
            return self._model.hidden_states(token_ids)[0]

    def _score(self, ids: tf.RaggedTensor) -> TokenScores:
        """All tokens but the first of rows, int32 RaggedTensor [batch, (tokens)] of at least one each."""
        room = tf.fill(tf.shape(ids.row_lengths()), self._model.config.context_length + 1)  # the last token is not read
        ids, truncated = keep_last(ids, room, None)
        seen, targets = ids[:, :-1], ids[:, 1:]
        hidden = self._hidden_states(seen.to_tensor(0))
        hidden = tf.RaggedTensor.from_tensor(hidden, lengths=seen.row_lengths()).values
        nats = self._log_probabilities(hidden, targets.values)
        return TokenScores(targets, targets.with_values(nats), truncated)

    def _log_probabilities(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """float32 [tokens], of `targets` int32 [tokens] given `hidden` [tokens, hidden_dim]; a piece at a time, so that
        logits take little memory."""
        number, dimension = tf.size(targets), hidden.shape[-1]
        missing = -number % PIECE
        hidden = tf.reshape(tf.pad(hidden, [[0, missing], [0, 0]]), [-1, PIECE, dimension])
        targets = tf.reshape(tf.pad(targets, [[0, missing]]), [-1, PIECE])

        def piece(part: tuple[Tensor, Tensor]) -> Tensor:
            logits = self._model.output_head(part[0][None])[0]
            return sampling.log_probabilities(logits, part[1])

        with self._weights.scope():
            found = tf.map_fn(piece, (hidden, targets), parallel_iterations=1, fn_output_signature=tf.float32)
        return tf.reshape(found, [-1])[:number]
