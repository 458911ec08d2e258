"""Held-out loss and bits per byte, and what the best general-purpose compressor makes of the same bytes."""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from gpt_keras import kernels
from gpt_keras.compilation import compile_for
from gpt_keras.data.mixture import Mixture
from gpt_keras.data.pretraining import validation_windows
from gpt_keras.data.shards import Corpus
from gpt_keras.kernels import vocabulary_loss
from gpt_keras.model import GPT


@dataclass(frozen=True)
class HeldOutScore:
    """Attributes:
    loss: Mean negative log-likelihood of a token in nats.
    bits_per_byte: All tokens' negative log-likelihood in bits over the UTF-8 bytes of their text. Unlike the loss it
        does not depend on the tokenizer, so models of any vocabulary compare.
    tokens: Tokens scored.
    """

    loss: float
    bits_per_byte: float
    tokens: int


class HeldOutScorer:
    """Scores a model on a corpus's validation documents; compiles once, for use again and again during training.

    Args:
        model: The model, whose weights may change between scores.
        corpus: Prepared with the model's tokenizer.
        batch_size: Windows at a time.
        place: What brings a batch to the model's devices.
    """

    def __init__(
        self, model: GPT, corpus: Corpus | Mixture, batch_size: int, place: Callable[[Any], Any] = lambda batch: batch
    ) -> None:
        self._corpus, self._batch_size, self._place = corpus, batch_size, place
        self._context = model.config.context_length
        self._loss: Callable[..., Any] = compile_for(model, lambda *batch: _summed_loss(model, *batch))

    def score(self, limit: int | None = None, report: Callable[[int], None] = lambda tokens: None) -> HeldOutScore:
        """The score over all documents, each token exactly once, or over about the first `limit` tokens.

        With a limit, `bits_per_byte` takes the bytes of a token from the whole split's average.
        """
        nats = tokens = 0.0
        for batch in validation_windows(self._corpus, self._context, self._batch_size, limit):
            nats += float(np.asarray(self._loss(*self._place(batch))))
            tokens += float(batch[2].sum())
            report(int(tokens))
        split = self._corpus.splits["validation"]
        size = split["bytes"] * tokens / (split["tokens"] - split["documents"])
        return HeldOutScore(nats / tokens, nats / math.log(2) / size, int(tokens))


def _summed_loss(model: GPT, token_ids: Any, targets: Any, weights: Any) -> Any:
    with kernels.fast_kernels():
        hidden, _ = model.hidden_states(token_ids, training=False)
        return ops.sum(vocabulary_loss.losses(hidden, model.output_head.table, targets) * weights)


def xz_bits_per_byte(texts: Iterable[str]) -> tuple[float, float]:
    """What `xz -9e` needs for the texts, in bits per byte: each compressed by itself, and all as one file."""
    raw = [text.encode() for text in texts]
    size = sum(map(len, raw))
    preset = 9 | lzma.PRESET_EXTREME
    one_by_one = sum(len(lzma.compress(part, preset=preset)) for part in raw)
    together = len(lzma.compress(b"".join(raw), preset=preset))
    return 8 * one_by_one / size, 8 * together / size
