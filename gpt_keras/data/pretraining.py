"""Training batches out of prepared corpora: batch n is a pure function of the corpora, the sizes, the seed and n.

Windows of `context_length` tokens are drawn in an order that a keyed permutation (a Feistel network over the window
numbers) gives for every epoch. So there is no iterator state: a run resumes at step n by asking for batch n, at no
cost, and a host of many takes every k-th row of the same sequence.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.data.mixture import Mixture
from gpt_keras.data.pipeline import numbered_dataset
from gpt_keras.data.shards import Corpus, TokenStream

_ORDERED_AT_ONCE = 1024
_SHARE_BITS = 20
_STRETCHES = 8


@dataclass(frozen=True)
class Batches:
    """The endless sequence of training batches of one run.

    Each epoch of a stream visits every window of it once. Windows tile the stream from an offset that changes with the
    epoch, so later epochs see other cuts of the same text.

    Args:
        streams: The training split, or several to mix by `weights`, each of which has epochs of its own.
        context_length: Tokens of a window.
        batch_size: Windows of a batch, over all hosts.
        seed: Another seed is another order.
        host: This host's number.
        num_hosts: How many hosts share each batch; where they do not divide it, the first ones have a row more.
        weights: How much of what is drawn comes from each stream, in proportion to their sum. After any number of
            windows each stream's part is off by less than one window for each stream.
        begin_id: The token that documents begin with. If given, batches say where documents are, so that no token
            sees another document: see `batch`.
        end_id: The token that they end with, which may be the same.

    Raises:
        InputError: A stream is shorter than one window, there are more hosts than rows, or a weight is too small.
    """

    streams: TokenStream | Sequence[TokenStream]
    context_length: int
    batch_size: int
    seed: int = 0
    host: int = 0
    num_hosts: int = 1
    weights: Sequence[float] | None = None
    begin_id: int | None = None
    end_id: int | None = None

    def __post_init__(self) -> None:
        for stream in self._streams:
            if _num_windows(stream, self.context_length) < 1:
                raise InputError(
                    f"the training text has {len(stream):,} tokens, too few for a context of "
                    f"{self.context_length:,}: set --context-length {max(1, (len(stream) - 1) // 2)} or less, "
                    "or use more text"
                )
        if not 0 <= self.host < self.num_hosts <= self.batch_size:
            raise InputError(
                f"host {self.host} of {self.num_hosts} has no part of a batch of {self.batch_size}: use a larger batch"
            )
        if len(self._streams) != len(self._shares) + 1:
            raise InputError(f"{len(self._streams)} streams need as many weights")

    @classmethod
    def of(cls, mixture: Mixture, context_length: int, batch_size: int, **options: Any) -> Batches:
        """Batches of corpora with weights.

        Args:
            mixture: Of one corpus or several. A corpus that was prepared from several sources with weights divides its
                own weight by these.
            context_length: As for the class.
            batch_size: As for the class.
            **options: `seed`, `host`, `num_hosts`, `begin_id`, `end_id`.

        Raises:
            InputError: As for the class.
        """
        streams: list[TokenStream] = []
        weights: list[float] = []
        for corpus, weight in mixture.corpora:
            own = [entry["weight"] for entry in corpus.manifest["sources"]]
            parts = [corpus.streams["train"]] if own[0] is None else corpus.source_streams()
            for part, entry in zip(parts, corpus.manifest["sources"], strict=False):
                if len(parts) > 1 and _num_windows(part, context_length) < 1:
                    raise InputError(
                        f"{entry['source']}, a part of {corpus.folder}, has {len(part):,} tokens to train on, too few "
                        f"for a context of {context_length:,}: leave it out, or use more of it"
                    )
            shares = [1.0] if own[0] is None else own
            share = weight if weight is not None else float(len(corpus.streams["train"]))
            streams += parts
            weights += [share * part / sum(shares) for part in shares]
        return cls(streams, context_length, batch_size, weights=weights, **options)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch, of all streams: what fits behind the largest offset."""
        return sum(_num_windows(stream, self.context_length) for stream in self._streams)

    def batch(self, number: int) -> tuple[Any, ...]:
        """Batch `number`: (token ids, targets), each int32 [rows, context_length].

        The target of a token is the token behind it. With `begin_id` the batch is (inputs, targets, weights). Inputs
        are `token_ids`, `positions`, which restart with every document, and `segment_ids`, the number of the document
        in the row; weights, float32, are 0 where the target is the beginning of another document, which nobody can
        know.

            text         x   )  </s> <s> def  f
            token_ids    x   )  </s> <s> def
            targets      )  </s> <s> def  f
            positions    0   1   2   0   1
            segment_ids  0   0   0   1   1
            weights      1   1   0   1   1
        """
        window, *documents = self._load(number)
        tokens, targets = window[:, :-1], window[:, 1:]
        if self.begin_id is None:
            return tokens, targets
        inputs = dict(zip(("token_ids", "positions", "segment_ids"), (tokens, *documents), strict=True))
        return inputs, targets, (~begins_behind(window, self.begin_id, self.end_id)).astype(np.float32)

    def dataset(self, start: int = 0, stop: int | None = None) -> Any:
        """The batches from number `start` on as a `tf.data.Dataset` with static shapes, prepared ahead of use."""
        rows = len(range(self.host, self.batch_size, self.num_hosts))
        lengths = [self.context_length + 1] + [self.context_length] * (0 if self.begin_id is None else 2)

        def finish(window: Any, positions: Any = None, segment_ids: Any = None) -> Any:
            import tensorflow as tf

            tokens, targets = window[..., :-1], window[..., 1:]
            if self.begin_id is None:
                return tokens, targets
            inputs = {"token_ids": tokens, "positions": positions, "segment_ids": segment_ids}
            return inputs, targets, tf.cast(~begins_behind(window, self.begin_id, self.end_id), tf.float32)

        return numbered_dataset(self._load, finish, [(rows, length) for length in lengths], start, stop)

    @functools.cached_property
    def _streams(self) -> tuple[TokenStream, ...]:
        return (self.streams,) if isinstance(self.streams, TokenStream) else tuple(self.streams)

    @functools.cached_property
    def _shares(self) -> tuple[int, ...]:
        """What part of the draws that earlier streams leave each stream takes, in 2^20ths; the last one takes all."""
        weights = [1.0] if self.weights is None else list(self.weights)
        rest = [sum(weights[i:]) for i in range(len(weights))]
        shares = tuple(round((1 << _SHARE_BITS) * w / r) for w, r in zip(weights[:-1], rest, strict=False))
        if not all(0 < w < float("inf") for w in weights) or not all(0 < s < 1 << _SHARE_BITS for s in shares):
            raise InputError(f"weights {weights}: each must be above 0 and not lost beside the others")
        return shares

    def _load(self, number: int) -> tuple[np.ndarray, ...]:
        """The windows of a batch, int32 [rows, context_length + 1]; with documents their positions and segments."""
        at_once = max(1, _ORDERED_AT_ONCE // self.batch_size)
        group, place = divmod(int(number), at_once)
        which, starts = self._order(group * at_once * self.batch_size, at_once * self.batch_size)
        rows = slice(place * self.batch_size + self.host, (place + 1) * self.batch_size, self.num_hosts)
        which, starts = which[rows], starts[rows]
        length = self.context_length + 1
        if len(self._streams) == 1:
            window = self._streams[0].windows(starts, length)
        else:
            window = np.empty((len(starts), length), np.int32)
            for i, stream in enumerate(self._streams):
                here = np.flatnonzero(which == i)
                window[here] = stream.windows(starts[here], length)
        if self.begin_id is None:
            return (window,)
        return (window, *documents_in(window[:, :-1], self.begin_id, self.end_id))

    @functools.cached_property
    def _order(self) -> Any:
        """The streams and starts of the draws from a number on; the last few answers are kept."""
        return functools.lru_cache(maxsize=4)(self._places)

    def _places(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        which, index = mix(np.arange(first, first + count), self._shares)
        starts = np.empty(count, np.int64)
        for i, stream in enumerate(self._streams):
            size = _num_windows(stream, self.context_length)
            epochs = index // size
            for epoch in np.unique(epochs[which == i]).tolist():
                here = (which == i) & (epochs == epoch)
                key = (self.seed, epoch) if i == 0 else (self.seed, epoch, i)
                offset = keyed(*key, 0) % self.context_length
                order = permute(index[here] % size, size, keyed(*key, 1))
                starts[here] = offset + order * self.context_length
        return which, starts


def begins_behind(tokens: Any, begin_id: int | None, end_id: int | None) -> Any:
    """Whether a document begins at each of the tokens [..., length] but the first, bool [..., length - 1].

    Where one token both begins and ends documents, as GPT-2's, the second of two begins one.
    """
    begins = tokens[..., 1:] == begin_id
    return begins & (tokens[..., :-1] == end_id) if begin_id == end_id else begins


def documents_in(tokens: np.ndarray, begin_id: int, end_id: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Positions and segment ids of int32 tokens [rows, length], both of that shape: both restart, and count on, where
    a document begins (`begins_behind`); what comes before the first one in a row is segment 0."""
    begins = np.concatenate([tokens[:, :1] == begin_id, begins_behind(tokens, begin_id, end_id)], axis=1)
    places = np.arange(tokens.shape[1], dtype=np.int32)
    last_begin = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    segments = np.cumsum(begins, axis=1, dtype=np.int32)
    return places - last_begin, segments


def mix(draws: np.ndarray, shares: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For every draw its stream, and how many draws of that stream came before it. Both int64, as `draws`.

    Each stream in turn takes its share of what the ones before it have left, evenly spread: of the first n draws
    floor(n * share / 2^20). So both are arithmetic, without a history.
    """
    which = np.full(len(draws), len(shares))
    index = draws.astype(np.int64)
    for i, share in enumerate(shares):
        open_draws = which == len(shares)
        before = index * share >> _SHARE_BITS
        taken = open_draws & ((index + 1) * share >> _SHARE_BITS > before)
        which[taken] = i
        index = np.where(taken, before, np.where(open_draws, index - before, index))
    return which, index


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where each of `index` (int64) goes in a permutation of range(size) that `key` names.

    A balanced Feistel network of six rounds over the next even number of bits, walked until it lands inside the range
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64(max(1, (max(1, size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    values = np.asarray(index).astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        walking = values[outside]
        left, right = walking >> half, walking & mask
        for round_number in range(6):
            left, right = right, left ^ (_mix(right ^ np.uint64(key), round_number) & mask)
        values[outside] = left << half | right
        outside = outside[values[outside] >= np.uint64(size)]
    return values.astype(np.int64)


def _mix(value: np.ndarray, round_number: int) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014)."""
    value = value + np.uint64((round_number + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)


def _num_windows(stream: TokenStream, context_length: int) -> int:
    return (len(stream) - context_length) // context_length


def keyed(*parts: int) -> int:
    """A key for `permute` that all of `parts` decide."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def validation_windows(
    corpus: Corpus | Mixture, context_length: int, batch_size: int, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The held-out documents in non-overlapping windows, for an exact figure.

    Each document is scored on its own: begin token, then every token, the end token last, each exactly once. A window
    continues where the one before it ended, without its context.

    Args:
        corpus: The prepared corpus.
        context_length: Tokens of a window.
        batch_size: Windows of a batch; the last batch is filled up with windows of weight 0.
        limit: Take only about so many tokens, in stretches that are spread over the documents.

    Yields:
        (token ids, targets, weights), int32, int32 and float32 [batch_size, context_length]; weight 0 marks filling.
    """
    stream, ends = corpus.streams["validation"], (corpus.tokenizer.begin_id, corpus.tokenizer.end_id)
    if limit is None or limit >= len(stream):
        stretches = [stream.read(0, len(stream))]
    else:
        starts = np.linspace(0, len(stream) - limit // _STRETCHES, _STRETCHES).astype(int)
        stretches = list(stream.windows(starts, limit // _STRETCHES))
    windows = [
        document[start : start + context_length + 1]
        for stretch in stretches
        for document in np.split(stretch, np.flatnonzero(begins_behind(stretch, *ends)) + 1)
        for start in range(0, len(document) - 1, context_length)
    ]
    for first in range(0, len(windows), batch_size):
        tokens = np.full((batch_size, context_length + 1), corpus.tokenizer.padding_id, np.int32)
        weights = np.zeros((batch_size, context_length), np.float32)
        for row, window in enumerate(windows[first : first + batch_size]):
            tokens[row, : len(window)] = window
            weights[row, : len(window) - 1] = 1.0
        yield tokens[:, :-1], tokens[:, 1:], weights
