"""Log-probabilities of continuations given contexts, many at a time: the common ground of classification by labels, of
an answer's perplexity and of multiple-choice benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from gpt_keras import kernels, sampling
from gpt_keras.compilation import compile_for
from gpt_keras.data.errors import InputError
from gpt_keras.decoding import SMALLEST_BUCKET, bucket
from gpt_keras.kernels import vocabulary_loss
from gpt_keras.model import GPT

Tensor = Any
Shape = tuple[int, int]
SMALLEST_WIDTH = 4


@dataclass(frozen=True)
class Scored:
    """What a model makes of a continuation.

    Attributes:
        nats: Negative log-likelihood, summed over the continuation's tokens.
        tokens: How many those are.
        greedy: Whether each of them is the most probable one at its place.
    """

    nats: float
    tokens: int
    greedy: bool


class Scorer:
    """Scores continuations under one model; keeps what it has compiled for the next call.

    Args:
        model: The model, whose weights may change between calls.
        padding_id: A token to fill rows up with; it changes no score.
        batch_size: Rows at a time.
    """

    def __init__(self, model: GPT, padding_id: int, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        self._model, self._padding_id, self._batch_size = model, padding_id, batch_size
        self._shapes: set[Shape] = set()
        self._score: Callable[..., Any] = compile_for(model, lambda *batch: _losses_and_hits(model, *batch))

    @property
    def num_compilations(self) -> int:
        """How many different shapes of the model's step have been compiled so far."""
        return len(self._shapes)

    def score(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        report: Callable[[int], None] = lambda done: None,
    ) -> list[Scored]:
        """Score the continuation of each pair, in the order given.

            context        10 11 12
            continuation            20 21
            the model sees 10 11 12 20
            scored               20 21     at the last two places

        A pair that is longer than the context length by more than the last token, which is never seen, loses tokens
        from the left, as in lm-evaluation-harness.

        Args:
            pairs: Token ids of a context, at least one, and of a continuation, which may be empty.
            report: Called after each batch with the number of pairs done so far.

        Raises:
            InputError: A context is empty, a continuation is longer than the model's context, or a token is outside the
                vocabulary.
        """
        rows = [self._row(number, *pair) for number, pair in enumerate(pairs)]
        found = [Scored(0.0, 0, True)] * len(rows)
        done = sum(count == 0 for _, count in rows)
        for numbers, (length, width) in self._batches(rows):
            token_ids = np.full((self._batch_size, length), self._padding_id, np.int32)
            targets = np.zeros((self._batch_size, width), np.int32)
            places = np.zeros((self._batch_size, width), np.int32)
            for i, number in enumerate(numbers):
                ids, count = rows[number]
                token_ids[i, : len(ids) - 1] = ids[:-1]
                targets[i, :count] = ids[-count:]
                places[i, :count] = i * length + np.arange(len(ids) - 1 - count, len(ids) - 1)
            self._shapes.add((length, width))
            losses, hits = (np.asarray(part) for part in self._score(token_ids, places, targets))
            for i, number in enumerate(numbers):
                count = rows[number][1]
                nats = float(losses[i, :count].sum(dtype=np.float64))
                found[number] = Scored(nats, count, bool(hits[i, :count].all()))
            done += len(numbers)
            report(done)
        return found

    def _row(self, number: int, context: Sequence[int], continuation: Sequence[int]) -> tuple[np.ndarray, int]:
        """Token ids of a pair, cut to what fits, and how many of them are scored."""
        config = self._model.config
        if len(context) == 0:
            raise InputError(f"pair {number} has an empty context; begin with the begin token")
        if len(continuation) > config.context_length:
            raise InputError(
                f"the continuation of pair {number} has {len(continuation)} tokens, more than the model's context of "
                f"{config.context_length}: score it in parts"
            )
        ids = np.concatenate([np.asarray(context, np.int64), np.asarray(continuation, np.int64)])
        if ids.min() < 0 or ids.max() >= config.vocabulary_size:
            raise InputError(
                f"pair {number} has a token outside the vocabulary; the model knows 0 to {config.vocabulary_size - 1}"
            )
        return ids[-config.context_length - 1 :], len(continuation)

    def _batches(self, rows: Sequence[tuple[np.ndarray, int]]) -> Iterator[tuple[list[int], Shape]]:
        """Numbers of the rows to be scored, a batch at a time, longest first, and the shape that holds them."""
        shapes = {number: self._shape(len(ids) - 1, count) for number, (ids, count) in enumerate(rows) if count}
        order = sorted(shapes, key=lambda number: shapes[number], reverse=True)
        for start in range(0, len(order), self._batch_size):
            numbers = order[start : start + self._batch_size]
            length = max(shapes[number][0] for number in numbers)
            yield numbers, self._shape(length, max(rows[number][1] for number in numbers))

    def _shape(self, seen: int, count: int) -> Shape:
        """A row's length and the number of its places that are scored, both rounded up to one of a few values: a
        length has as many widths as it can be divided by 4."""
        length = min(bucket(seen, SMALLEST_BUCKET), self._model.config.context_length)
        width = length
        while width > SMALLEST_WIDTH and -(-width // 4) >= count:
            width = -(-width // 4)
        return length, width


def _losses_and_hits(model: GPT, token_ids: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of every target, and whether it is the most probable token.

    The head sees only the places that are scored, and a piece of them at a time, so that logits take as little memory
    as in `vocabulary_loss`.

    Args:
        model: The model.
        token_ids: int32 [batch, length].
        places: int32 [batch, width], where each target is predicted, as an index into all tokens of the batch.
        targets: int32 [batch, width].

    Returns:
        float32 [batch, width] in nats, and boolean [batch, width].
    """
    with kernels.fast_kernels():
        hidden, _ = model.hidden_states(token_ids, training=False)
        dimension = hidden.shape[-1]
        hidden = ops.take(ops.reshape(hidden, (-1, dimension)), places, axis=0)
        table = ops.cast(model.output_head.table, hidden.dtype)
        batch, width = targets.shape
        number = vocabulary_loss.num_pieces(batch, width, table.shape[0])
        losses, hits = [], []
        for part, target in zip(ops.split(hidden, number, axis=1), ops.split(targets, number, axis=1), strict=True):
            logits = kernels.project_to_vocabulary(part, table)
            losses.append(kernels.cross_entropy(logits, target))
            hits.append(sampling.greedy(logits) == target)
        return ops.concatenate(losses, axis=1), ops.concatenate(hits, axis=1)
