"""Training batches out of a prepared corpus: batch number n is a pure function of (corpus, seed, n).

Windows of `context_length` tokens are drawn in an order that a keyed permutation (a Feistel network over the window
numbers) gives for every epoch. So there is no iterator state: a run resumes at step n by asking for batch n, at no
cost, and a host of many takes every k-th row of the same sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.data.shards import Corpus, TokenStream


@dataclass(frozen=True)
class Batches:
    """The endless sequence of training batches of one run.

    Each epoch visits every window once. Windows tile the split from an offset that changes with the epoch, so later
    epochs see other cuts of the same text.

    Args:
        stream: The training split.
        context_length: Tokens of a window.
        batch_size: Windows of a batch, over all hosts.
        seed: Another seed is another order.
        host: This host's number.
        num_hosts: How many hosts share each batch; must divide `batch_size`.

    Raises:
        InputError: The corpus is shorter than one window, or the hosts do not divide the batch.
    """

    stream: TokenStream
    context_length: int
    batch_size: int
    seed: int = 0
    host: int = 0
    num_hosts: int = 1

    def __post_init__(self) -> None:
        if self.num_windows < 1:
            raise InputError(
                f"the training text has {len(self.stream):,} tokens, too few for a context of "
                f"{self.context_length:,}: set --context-length {max(1, (len(self.stream) - 1) // 2)} or less, "
                "or use more text"
            )
        if self.batch_size % self.num_hosts:
            raise InputError(f"batch size {self.batch_size} cannot be shared by {self.num_hosts} hosts")

    @property
    def num_windows(self) -> int:
        """Windows in an epoch: what fits behind the largest offset."""
        return (len(self.stream) - self.context_length) // self.context_length

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `number` as (token ids, targets), each int32 [batch_size / num_hosts, context_length].

        The target of a token is the token behind it:

            text      <s> def  f  (  x
            tokens    <s> def  f  (
            targets   def  f   (  x
        """
        draws = np.arange(number * self.batch_size + self.host, (number + 1) * self.batch_size, self.num_hosts)
        rows = [self.stream.read(self._start(int(draw)), self.context_length + 1) for draw in draws]
        windows = np.stack(rows)
        return windows[:, :-1], windows[:, 1:]

    def dataset(self, start: int = 0, stop: int | None = None) -> Any:
        """The batches from number `start` on as a `tf.data.Dataset` with static shapes, prepared ahead of use."""
        import tensorflow as tf

        shape = (self.batch_size // self.num_hosts, self.context_length)

        def load(number: Any) -> Any:
            pair = tf.numpy_function(self.batch, [number], (tf.int32, tf.int32))
            return tuple(tf.ensure_shape(part, shape) for part in pair)

        numbers = tf.data.Dataset.range(start, np.iinfo(np.int64).max if stop is None else stop)
        return numbers.map(load, num_parallel_calls=2, deterministic=True).prefetch(4)

    def _start(self, draw: int) -> int:
        epoch, index = divmod(draw, self.num_windows)
        offset = _keyed(self.seed, epoch, 0) % self.context_length
        return offset + permute(index, self.num_windows, _keyed(self.seed, epoch, 1)) * self.context_length


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in a permutation of range(size) that `key` names.

    A balanced Feistel network of six rounds over the next even number of bits, walked until it lands inside the range
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_number in range(6):
            left, right = right, left ^ (_mix(right ^ key, round_number) & mask)
        index = left << half | right
        if index < size:
            return index


def _mix(value: int, round_number: int) -> int:
    """The finalizer of SplitMix64 (Steele et al. 2014)."""
    value = (value + (round_number + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31


def _keyed(*parts: int) -> int:
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def validation_windows(
    corpus: Corpus, context_length: int, batch_size: int, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The held-out documents in non-overlapping windows, for an exact figure.

    Each document is scored on its own: begin token, then every token, the end token last, each exactly once. A window
    continues where the one before it ended, without its context.

    Args:
        corpus: The prepared corpus.
        context_length: Tokens of a window.
        batch_size: Windows of a batch; the last batch is filled up with windows of weight 0.
        limit: Stop after about this many tokens.

    Yields:
        (token ids, targets, weights), int32, int32 and float32 [batch_size, context_length]; weight 0 marks filling.
    """
    stream = corpus.streams["validation"]
    ids = stream.read(0, len(stream) if limit is None else min(limit, len(stream)))
    begins = np.flatnonzero(ids == corpus.tokenizer.begin_id)
    windows = [
        document[start : start + context_length + 1]
        for document in np.split(ids, begins[1:])
        for start in range(0, len(document) - 1, context_length)
    ]
    for first in range(0, len(windows), batch_size):
        tokens = np.full((batch_size, context_length + 1), corpus.tokenizer.padding_id, np.int32)
        weights = np.zeros((batch_size, context_length), np.float32)
        for row, window in enumerate(windows[first : first + batch_size]):
            tokens[row, : len(window)] = window
            weights[row, : len(window) - 1] = 1.0
        yield tokens[:, :-1], tokens[:, 1:], weights
