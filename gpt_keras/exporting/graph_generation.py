"""Generation inside a TensorFlow graph: prefill and the cached decoding loop as one `tf.while_loop`, whose rows have
options of their own.

A row's text depends on nothing else in its batch, and is what `Generator` makes of the same prompt and options.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import tensorflow as tf

from gpt_keras import sampling
from gpt_keras.data.graph_tokenizer import GraphTokenizer
from gpt_keras.exporting.held_weights import HeldWeights
from gpt_keras.model import GPT

Tensor = Any


@dataclass(frozen=True)
class GraphOptions:
    """`SamplingOptions` of every row, as tensors [batch]; `stop` is [batch, strings], where an empty string is none.

    What is out of range counts as the nearest value that is not, for an error would be one of the whole batch.
    """

    max_new_tokens: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    seed: Tensor
    stop: Tensor

    @classmethod
    def of(cls, batch: Tensor, context: int, **given: Tensor) -> GraphOptions:
        """For `batch` rows of a model with this context; a value of one row is that of all."""

        def clip(name: str, low: float, high: float, otherwise: float) -> Tensor:
            value = given[name]
            if value.dtype.is_floating:
                value = tf.where(tf.math.is_nan(value), tf.cast(otherwise, value.dtype), value)
            low, high = (tf.cast(bound, value.dtype) for bound in (low, high))
            return tf.broadcast_to(tf.clip_by_value(value, low, high), [batch])

        tiny, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
        return cls(
            max_new_tokens=clip("max_new_tokens", 1, context, 1),
            temperature=clip("temperature", 0.0, most, 0.0),
            top_k=clip("top_k", 0, 2**31 - 1, 0),
            top_p=clip("top_p", tiny, 1.0, 1.0),
            min_p=clip("min_p", 0.0, 1.0, 0.0),
            repetition_penalty=clip("repetition_penalty", tiny, most, 1.0),
            seed=tf.broadcast_to(given["seed"], [batch]),
            stop=tf.broadcast_to(given["stop"], [batch, tf.shape(given["stop"])[1]]),
        )


OPTION_SPECS = {
    "max_new_tokens": tf.TensorSpec([None], tf.int32, "max_new_tokens"),
    "temperature": tf.TensorSpec([None], tf.float32, "temperature"),
    "top_k": tf.TensorSpec([None], tf.int32, "top_k"),
    "top_p": tf.TensorSpec([None], tf.float32, "top_p"),
    "min_p": tf.TensorSpec([None], tf.float32, "min_p"),
    "repetition_penalty": tf.TensorSpec([None], tf.float32, "repetition_penalty"),
    "seed": tf.TensorSpec([None], tf.int64, "seed"),
    "stop": tf.TensorSpec([None, None], tf.string, "stop"),
}
assert list(OPTION_SPECS) == [field.name for field in fields(GraphOptions)]


@dataclass(frozen=True)
class Generated:
    """What the rows became.

    Attributes:
        text: string [batch].
        prompt_tokens: int32 [batch], tokens of the prompt that the model read.
        generated_tokens: int32 [batch], without the end token.
        finish_reason: string [batch], `stop` (an end token or a stop string) or `length`.
        truncated: Boolean [batch], whether the prompt lost tokens because it did not fit the context.
    """

    text: Tensor
    prompt_tokens: Tensor
    generated_tokens: Tensor
    finish_reason: Tensor
    truncated: Tensor


class GraphGenerator:
    """Continues token ids; all that call it share one function of the graph.

    Args:
        model: Built on the TensorFlow backend.
        weights: Its weights as they are saved.
        tokenizer: Its tokenizer in the graph.
        reserved: New tokens that a prompt too long for the context makes room for, if they are asked for.
    """

    def __init__(self, model: GPT, weights: HeldWeights, tokenizer: GraphTokenizer, reserved: int) -> None:
        self._model, self._weights, self._tokenizer, self._reserved = model, weights, tokenizer, reserved
        specs = [tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.int32)]
        self._loop = tf.function(self._continue, input_signature=[*specs, *OPTION_SPECS.values()], autograph=False)

    def generate(self, prompts: tf.RaggedTensor, options: GraphOptions, end_ids: Iterable[int]) -> Generated:
        """Continue every prompt.

        Args:
            prompts: int32 RaggedTensor [batch, (tokens)], none of them empty. Of one that is too long the last tokens
                are used, and its begin token.
            options: For each row; it ends where the context does, whatever is asked for.
            end_ids: The tokens that end a row.
        """
        context = self._model.config.context_length
        room = context - tf.minimum(options.max_new_tokens, self._reserved) + 1  # the last token is never read
        prompts, truncated = keep_last(prompts, room, self._tokenizer.tokenizer.begin_id)
        left = context - tf.cast(prompts.row_lengths(), tf.int32) + 1
        options = replace(options, max_new_tokens=tf.minimum(options.max_new_tokens, left))
        ends = tf.constant(sorted(end_ids), tf.int32)
        given = [getattr(options, name) for name in OPTION_SPECS]
        written, ended = self._loop(prompts.values, prompts.row_splits, ends, *given)
        tokens = tf.ragged.boolean_mask(written, written >= 0)
        text, _ = before_stop(self._tokenizer.continuation(tokens), options.stop)
        return Generated(
            text=text,
            prompt_tokens=tf.cast(prompts.row_lengths(), tf.int32),
            generated_tokens=tf.cast(tokens.row_lengths(), tf.int32),
            finish_reason=tf.where(ended, "stop", "length"),
            truncated=truncated,
        )

    def _continue(self, values: Tensor, splits: Tensor, end_ids: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        """New tokens int32 [batch, most], -1 behind the last one, and whether a row ended by itself."""
        with self._weights.scope():
            return self._decode(values, splits, end_ids, GraphOptions(*given))

    def _decode(self, values: Tensor, splits: Tensor, end_ids: Tensor, options: GraphOptions) -> tuple[Tensor, Tensor]:
        prompts = tf.RaggedTensor.from_row_splits(values, splits, validate=False)
        model, batch = self._model, prompts.nrows(tf.int32)
        lengths = tf.cast(prompts.row_lengths(), tf.int32)
        most, longest = largest(options.max_new_tokens), largest(lengths)
        uniform = tf.cond(
            tf.reduce_any(options.temperature > 0.0),
            lambda: uniforms(prompts, options.seed, most, model.config.context_length),
            lambda: tf.zeros([batch, most]),
        )
        padded = prompts.to_tensor(-1, shape=(None, None))

        def choose(number: Tensor, logits: Tensor, written: Tensor) -> Tensor:
            """The next token of every row, int32 [batch]."""
            logits = tf.cast(logits[:, 0], tf.float32)

            def penalized() -> Tensor:
                history = tf.concat([padded, written], axis=1)
                return sampling.penalize(logits, history, lengths, options.repetition_penalty[:, None])

            logits = tf.cond(tf.reduce_any(options.repetition_penalty != 1.0), penalized, lambda: logits)

            def sampled() -> Tensor:
                numbers = (options.temperature, options.top_k, options.top_p, options.min_p)
                drawn = tf.gather(uniform, number, axis=1)
                return sampling.sample(logits, drawn, *(value[:, None] for value in numbers))

            return tf.cond(tf.reduce_any(options.temperature > 0.0), sampled, lambda: sampling.greedy(logits))

        def take(number: Tensor, logits: Tensor, written: Tensor, ended: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Choose a token and write it; rows that have ended write nothing."""
            token = choose(number, logits, written)
            goes_on = tf.logical_and(number < options.max_new_tokens, tf.logical_not(ended))
            ends = tf.reduce_any(token[:, None] == end_ids[None], axis=1)
            writes = tf.logical_and(goes_on, tf.logical_not(ends))
            here = tf.logical_and(tf.range(most)[None] == number, writes[:, None])
            written = tf.where(here, token[:, None], written)
            ends = tf.logical_or(ends, self._stopped(written, options.stop))
            return token, written, tf.logical_or(ended, tf.logical_and(goes_on, ends))

        def goes_on(number: Tensor, token: Tensor, written: Tensor, ended: Tensor, *_: Any) -> Tensor:
            waiting = tf.logical_and(number < options.max_new_tokens, tf.logical_not(ended))
            return tf.reduce_any(waiting)

        def step(number: Tensor, token: Tensor, written: Tensor, ended: Tensor, cache: Any) -> tuple[Any, ...]:
            place = tf.minimum(lengths + number - 1, slots - 1)  # of a row that has ended it does not matter
            logits, cache = model.step(token[:, None], place[:, None], cache=cache)
            return number + 1, *take(number, logits, written, ended), cache

        slots = tf.minimum(longest + most - 1, model.config.context_length)
        cache: Any = model.make_cache(batch, slots)
        positions = tf.tile(tf.range(longest)[None], [batch, 1])
        logits, cache = model.step(tf.maximum(padded, 0), positions, cache=cache, select=lengths - 1)
        first = take(tf.constant(0), logits, tf.fill([batch, most], -1), tf.zeros([batch], tf.bool))
        _, _, written, ended, _ = tf.while_loop(goes_on, step, (tf.constant(1), *first, cache))
        return written, ended

    def _stopped(self, written: Tensor, stop: Tensor) -> Tensor:
        """Whether each row's text so far holds one of its stop strings, boolean [batch]."""

        def look() -> Tensor:
            return before_stop(self._tokenizer.continuation(tf.ragged.boolean_mask(written, written >= 0)), stop)[1]

        asked = tf.reduce_any(tf.strings.length(stop) > 0)
        return tf.cond(asked, look, lambda: tf.zeros([tf.shape(written)[0]], tf.bool))


def keep_last(ids: tf.RaggedTensor, room: Tensor, begin_id: int | None) -> tuple[tf.RaggedTensor, Tensor]:
    """Rows of at most `room` [batch] tokens, at least 1: the last ones, behind the begin token of a row that has it.

    Returns:
        The rows, and which of them lost something, boolean [batch].
    """
    excess = tf.maximum(ids.row_lengths() - tf.cast(room, tf.int64), 0)
    begin = -1 if begin_id is None else begin_id
    begins = tf.logical_and(ids[:, :1].to_tensor(-2, shape=(None, 1))[:, 0] == begin, room > 1)
    first = tf.cast(begins, tf.int64)
    place = tf.ragged.range(ids.row_lengths())
    lost = tf.logical_and(place >= first[:, None], place < (first + excess)[:, None])
    return tf.ragged.boolean_mask(ids, tf.logical_not(lost)), excess > 0


def before_stop(texts: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Texts up to the first of their stop strings.

    Args:
        texts: string [batch].
        stop: string [batch, strings]; an empty one stops nothing.

    Returns:
        string [batch], and whether there was one, boolean [batch].
    """
    nowhere = 2**31 - 1
    pairs = (tf.repeat(texts, tf.shape(stop)[1]), tf.reshape(stop, [-1]))

    def place(pair: tuple[Tensor, Tensor]) -> Tensor:
        text, what = pair
        _, parts, _ = tf.raw_ops.StringSplitV2(input=[text], sep=what, maxsplit=1)
        found = tf.logical_and(tf.strings.length(what) > 0, tf.size(parts) > 1)
        return tf.where(found, tf.strings.length(tf.concat([parts, [""]], axis=0)[0]), nowhere)

    def places() -> Tensor:
        found = tf.map_fn(place, pairs, fn_output_signature=tf.int32)
        return tf.reduce_min(tf.reshape(found, tf.shape(stop)), axis=1)

    asked = tf.reduce_any(tf.strings.length(stop) > 0)
    first = tf.cond(asked, places, lambda: tf.fill(tf.shape(texts), nowhere))
    return tf.strings.substr(texts, tf.zeros_like(first), first), first < nowhere


def uniforms(prompts: tf.RaggedTensor, seed: Tensor, count: Tensor, context: int) -> Tensor:
    """`sampling.uniforms` of every row's first `count` tokens, float32 [batch, count].

    Args:
        prompts: int32 RaggedTensor [batch, (tokens)].
        seed: int64 [batch].
        count: int32 scalar.
        context: Most tokens of a prompt.
    """
    powers = [1]
    while len(powers) < context:
        powers.append(powers[-1] * sampling.HASH_BASE % 2**64)
    place = tf.ragged.range(prompts.row_lengths()).values
    terms = tf.cast(prompts.values + 1, tf.int64) * tf.gather(np.array(powers, np.uint64).astype(np.int64), place)
    prompt = tf.bitcast(tf.reduce_sum(prompts.with_values(terms), axis=1), tf.uint64)
    seed = tf.bitcast(seed, tf.uint64)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(2**32)

    def every(word: Tensor) -> Tensor:
        return tf.repeat(word[:, None], count, axis=1)

    number = tf.zeros_like(every(prompt))
    place = number + tf.cast(tf.range(count), tf.uint64)[None]
    counter = (every(prompt & low), every(prompt // high), number, place)
    drawn, *_ = sampling.philox(counter, (every(seed & low), every(seed // high)))
    return tf.cast(tf.cast(drawn // np.uint64(2**8), tf.int64), tf.float32) * 2.0**-24


def largest(values: Tensor) -> Tensor:
    """The largest of values int32 [batch], and 1 of none."""
    return tf.reduce_max(tf.concat([values, [1]], axis=0))
