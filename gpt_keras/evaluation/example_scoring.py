"""How probable a model finds the answers of tokenized examples, packed as in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from gpt_keras import kernels
from gpt_keras.compilation import compile_for
from gpt_keras.data.finetuning import Examples, PackedBatches
from gpt_keras.kernels import vocabulary_loss
from gpt_keras.model import GPT

Tensor = Any


class ExampleScorer:
    """Scores examples again and again during training; compiles once.

    Args:
        model: The model, whose weights may change between scores.
        examples: Tokenized conversations.
        context_length: Tokens of a row.
        batch_size: Rows at a time.
        padding_id: The token that rows are filled up with.

    Attributes:
        trained: int64 [examples]; how many tokens of each example are scored.
    """

    def __init__(self, model: GPT, examples: Examples, context_length: int, batch_size: int, padding_id: int) -> None:
        self._batches = PackedBatches(examples, context_length, batch_size, padding_id)
        self.trained = np.zeros(len(examples), np.int64)
        for rows, arrays in self._batches.in_order():
            example, _ = _weighted(rows, *arrays[2:5:2])
            self.trained += np.bincount(example, minlength=len(examples))
        self._most = -(-self._batches.most_trained(batch_size) // 64) * 64
        self._losses: Callable[..., Any] = compile_for(model, lambda *batch: _losses(model, *batch))

    def nats(self, report: Callable[[int, int], None] = lambda done, total: None) -> np.ndarray:
        """The negative log-likelihood of what the assistant says in each example, float64 [examples].

        Args:
            report: Told how many rows are done, of how many.
        """
        found = np.zeros(len(self.trained))
        done = 0
        for rows, (token_ids, positions, segment_ids, targets, weights) in self._batches.in_order():
            example, flat = _weighted(rows, segment_ids, weights)
            places = np.zeros(self._most, np.int32)
            places[: len(flat)] = flat
            chosen = targets.reshape(-1)[places]
            losses = np.asarray(self._losses(token_ids, positions, segment_ids, places, chosen))
            found += np.bincount(example, losses[: len(flat)].astype(np.float64), len(found))
            done += len(rows)
            report(done, len(self._batches.rows))
        return found


def _weighted(rows: list[list[int]], segment_ids: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The example of each trained token of a batch, and its place in the batch."""
    flat = np.flatnonzero(weights)
    table = np.zeros((len(weights), 1 + max(map(len, rows))), np.int64)
    for number, examples in enumerate(rows):
        table[number, 1 : 1 + len(examples)] = examples
    row, column = np.divmod(flat, weights.shape[1])
    return table[row, segment_ids[row, column]], flat


def _losses(
    model: GPT, token_ids: Tensor, positions: Tensor, segment_ids: Tensor, places: Tensor, targets: Tensor
) -> Tensor:
    """The loss of the targets, float32 [n]; places int32 [n] index all tokens of the batch."""
    with kernels.fast_kernels():
        mask = ops.equal(segment_ids[:, :, None], segment_ids[:, None, :])
        hidden, _ = model.hidden_states(token_ids, positions, mask, training=False)
        flat = ops.reshape(hidden, (-1, hidden.shape[-1]))
        return vocabulary_loss.losses(ops.take(flat, places, axis=0)[None], model.output_head.table, targets[None])[0]
