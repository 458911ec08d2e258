"""Logits to the next token: masks, penalties, temperature, top-k, top-p, min-p, and the draw itself.

Everything here is a pure function of `keras.ops` on `logits` [batch, vocabulary], the same on every backend, compiled
or not, and in an exported graph. Numbers that steer it are scalars or arrays [batch, 1], so that one batch may mix
requests. Randomness comes in as one uniform number a row; `uniforms` makes those numbers.

The order is transformers': penalties and masks first, then `sample` with temperature, top-k, top-p and min-p.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from keras import ops

Tensor = Any

SORTED = 256
"""How many of the largest logits `warp` sorts at first; only a cut that reaches further sorts all of them."""
COLDEST = 1e-6
"""Temperatures between 0 and this one count as this one: nothing else is left to draw, and no division overflows."""
HASH_BASE = 0x9E3779B97F4A7C15
"""Of `prompt_hash`: 2**64 divided by the golden ratio, an odd number."""
_BLOCK = 256


def greedy(logits: Tensor) -> Tensor:
    """The most probable token, int32 [batch], of `logits` [batch, vocabulary]; the smallest id among equals."""
    # An argmax takes ten times as long on a CPU under XLA.
    largest = logits == ops.max(logits, axis=-1, keepdims=True)
    vocabulary = logits.shape[-1]
    token = ops.arange(vocabulary, dtype="int32")[None]
    return ops.min(ops.where(largest, token, vocabulary - 1), axis=-1)


def apply_mask(logits: Tensor, allowed: Tensor) -> Tensor:
    """`logits` [batch, vocabulary] in float32, -inf where `allowed`, boolean [batch, vocabulary], is false."""
    return ops.where(allowed, ops.cast(logits, "float32"), -float("inf"))


def penalize(
    logits: Tensor,
    history: Tensor,
    num_prompt: Tensor,
    repetition_penalty: Tensor | None = None,
    presence_penalty: Tensor | None = None,
    frequency_penalty: Tensor | None = None,
) -> Tensor:
    """Make tokens that were there before less (or more) probable.

    The repetition penalty divides positive logits of every token of the prompt and the continuation (Keskar et al.
    2019, CTRL, https://arxiv.org/abs/1909.05858) and multiplies negative ones, as transformers does. The presence
    penalty is subtracted once, and the frequency penalty once for each time, from tokens of the continuation alone (the
    definition of OpenAI's API).

    Args:
        logits: [batch, vocabulary].
        history: int32 [batch, slots], token ids of the prompt and then of the continuation; entries of -1 count for
            nothing.
        num_prompt: int32 [batch], how many of the first entries are the prompt.
        repetition_penalty: float32 scalar or [batch, 1], above 0; 1 changes nothing. `None` leaves it out of the
            computation, as for the others.
        presence_penalty: float32 scalar or [batch, 1]; 0 changes nothing.
        frequency_penalty: float32 scalar or [batch, 1]; 0 changes nothing.

    Returns:
        float32 [batch, vocabulary].
    """
    logits = ops.cast(logits, "float32")
    real = history >= 0
    if repetition_penalty is not None:
        seen = _counts(history, real, logits) > 0
        penalized = ops.where(logits < 0, logits * repetition_penalty, logits / repetition_penalty)
        logits = ops.where(seen, penalized, logits)
    if presence_penalty is not None or frequency_penalty is not None:
        slot = ops.arange(history.shape[1], dtype="int32")[None]
        counts = _counts(history, ops.logical_and(real, slot >= num_prompt[:, None]), logits)
        if presence_penalty is not None:
            logits = logits - ops.where(counts > 0, 1.0, 0.0) * presence_penalty
        if frequency_penalty is not None:
            logits = logits - counts * frequency_penalty
    return logits


def _counts(history: Tensor, counted: Tensor, logits: Tensor) -> Tensor:
    """How often each token is in `history` where `counted`, float32, of `logits`' shape."""
    batch, slots = ops.shape(history)
    rows = ops.broadcast_to(ops.arange(batch, dtype="int32")[:, None], (batch, slots))
    indices = ops.stack([rows, ops.maximum(history, 0)], axis=-1)
    indices = ops.reshape(indices, (-1, 2))
    return ops.scatter(indices, ops.reshape(ops.cast(counted, "float32"), (-1,)), ops.shape(logits))


def warp(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
) -> Tensor:
    """`logits / temperature`, -inf for the tokens that top-k, then top-p, then min-p leave out.

    Top-k keeps the `top_k` most probable tokens, and what is as probable as the last of them. The nucleus is the
    smallest set of most probable tokens whose probabilities, after that cut, add up to at least `top_p` (Holtzman et
    al. 2019, https://arxiv.org/abs/1904.09751); among equals the smaller ids. Min-p keeps the tokens at least `min_p`
    times as probable as the most probable one (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082). These are the
    definitions of transformers' TopKLogitsWarper, TopPLogitsWarper and MinPLogitsWarper.

    Args:
        logits: [batch, vocabulary]; -inf for what may not be drawn, at least one finite.
        temperature: float32 scalar or [batch, 1]; 0 leaves the most probable token alone (greedy).
        top_k: int32 scalar or [batch, 1]; 0 keeps all. `None` leaves the cut out of the computation, as for the others.
        top_p: float32 scalar or [batch, 1], above 0; 1 keeps all.
        min_p: float32 scalar or [batch, 1], at most 1; 0 keeps all.

    Returns:
        float32 [batch, vocabulary].
    """
    logits, _, kept = _warp(logits, temperature, top_k, top_p, min_p)
    return ops.where(kept, logits, -float("inf"))


def _warp(
    logits: Tensor, temperature: Tensor, top_k: Tensor | None, top_p: Tensor | None, min_p: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`logits / temperature`, their unnormalized probabilities (1 for the largest), and which tokens are kept.

    A token is kept above a row's `floor`, or right on it with an id up to `last`.
    """
    temperature = ops.convert_to_tensor(temperature, dtype="float32")
    freezing = temperature <= 0.0
    logits = ops.cast(logits, "float32") / ops.where(freezing, 1.0, ops.maximum(temperature, COLDEST))
    vocabulary = logits.shape[-1]
    largest = ops.max(logits, axis=-1, keepdims=True)
    weights = ops.exp(logits - largest)
    token = ops.arange(vocabulary, dtype="int32")[None]
    floor, last = ops.full_like(largest, -float("inf")), ops.full_like(largest, vocabulary, dtype="int32")
    if min_p is not None:
        floor = largest + ops.log(ops.convert_to_tensor(min_p, dtype="float32"))
    if top_k is not None or top_p is not None:
        # A row without a nucleus asks for more than all probability, so that nobody looks for one.
        top_k = ops.convert_to_tensor(0 if top_k is None else top_k, dtype="int32")
        top_p = ops.convert_to_tensor(2.0 if top_p is None else top_p, dtype="float32")
        top_k = ops.broadcast_to(ops.where(freezing, 0, top_k), ops.shape(last))
        off = ops.logical_or(freezing, top_p >= 1.0)
        top_p = ops.broadcast_to(ops.where(off, 2.0, top_p), ops.shape(last))
        total = ops.sum(weights, axis=-1, keepdims=True)

        def cut(width: int) -> tuple[Tensor, Tensor, Tensor]:
            return _cut(logits, largest, total, top_k, top_p, width)

        if vocabulary > SORTED:
            reached, reached_last, enough = cut(SORTED)
            reached, reached_last = ops.cond(
                ops.all(enough), lambda: (reached, reached_last), lambda: cut(vocabulary)[:2]
            )
        else:
            reached, reached_last, _ = cut(vocabulary)
        last = ops.where(reached >= floor, reached_last, last)
        floor = ops.maximum(reached, floor)
    floor = ops.where(freezing, largest, floor)
    last = ops.where(freezing, greedy(logits)[:, None], last)
    return logits, weights, ops.logical_or(logits > floor, ops.logical_and(logits == floor, token <= last))


def _cut(
    logits: Tensor, largest: Tensor, total: Tensor, top_k: Tensor, top_p: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where top-k and top-p end, found among the `width` largest logits, each [batch, 1].

    Returns:
        The smallest logit kept, the largest id kept among tokens with just that logit, and whether `width` was enough.
    """
    values, tokens = ops.top_k(logits, width)  # in falling order, smaller ids first among equals
    vocabulary = logits.shape[-1]
    rank = ops.arange(width, dtype="int32")[None]
    # Minima instead of look-ups by rank: those can keep XLA from seeing that it need not sort everything.
    floor = ops.min(ops.where(rank < top_k, values, float("inf")), axis=-1, keepdims=True)
    floor = ops.where(top_k > 0, floor, -float("inf"))
    weights = ops.where(values >= floor, ops.exp(values - largest), 0.0)
    cumulative = ops.cumsum(weights, axis=-1)
    wanted = top_p * ops.where(top_k > 0, ops.sum(weights, axis=-1, keepdims=True), total)
    inside = cumulative - weights < wanted
    size = ops.sum(ops.cast(inside, "int32"), axis=-1, keepdims=True)
    nucleus = ops.min(ops.where(inside, values, float("inf")), axis=-1, keepdims=True)
    # Rounding may leave the sum of all just below what is wanted: then the nucleus is all that top-k kept.
    smaller = ops.logical_and(size < width, nucleus >= floor)
    last = ops.sum(ops.where(rank == size - 1, ops.cast(tokens, "int32"), 0), axis=-1, keepdims=True)
    last = ops.where(smaller, last, vocabulary)
    # Top-k needs to have seen everything as probable as its last token, the nucleus where it ends.
    seen = ops.logical_or(top_k == 0, ops.min(values, axis=-1, keepdims=True) < floor)
    ended = ops.logical_or(top_p > 1.0, ops.logical_or(top_k > 0, size < width))
    enough = ops.logical_and(ops.logical_and(top_k <= width, seen), ended)
    return ops.where(smaller, nucleus, floor), last, enough


def sample(
    logits: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
) -> Tensor:
    """Draw a token from the softmax of what `warp` leaves of `logits`.

    Args:
        logits: [batch, vocabulary].
        uniform: float32 [batch], in [0, 1): where in the distribution to draw.
        temperature: As in `warp`, like the rest.
        top_k: 0 keeps all; `None` leaves the cut out of the computation.
        top_p: 1 keeps all; `None` leaves the cut out of the computation.
        min_p: 0 keeps all; `None` leaves the cut out of the computation.

    Returns:
        int32 [batch].
    """
    _, weights, kept = _warp(logits, temperature, top_k, top_p, min_p)
    return _draw(ops.where(kept, weights, 0.0), uniform)


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token, int32 [batch], at `uniform` of the way through `weights` [batch, vocabulary], in order of ids.

    First the block of ids that holds it, then the token in that block: running sums over a whole vocabulary cost
    more than everything else here.
    """
    vocabulary = weights.shape[-1]
    num_blocks = -(-vocabulary // _BLOCK)
    weights = ops.pad(weights, ((0, 0), (0, num_blocks * _BLOCK - vocabulary)))
    weights = ops.reshape(weights, (-1, num_blocks, _BLOCK))
    sums = ops.sum(weights, axis=-1)
    cumulative = ops.cumsum(sums, axis=-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    block = _first_beyond(cumulative, sums, threshold)
    chosen = ops.arange(num_blocks, dtype="int32")[None] < block
    threshold = threshold - ops.max(ops.where(chosen, cumulative, 0.0), axis=-1, keepdims=True)
    row = ops.arange(ops.shape(weights)[0], dtype="int32")
    inside = ops.take(ops.reshape(weights, (-1, _BLOCK)), row * num_blocks + block[:, 0], axis=0)
    place = _first_beyond(ops.cumsum(inside, axis=-1), inside, threshold)
    return (block * _BLOCK + place)[:, 0]


def _first_beyond(cumulative: Tensor, weights: Tensor, threshold: Tensor) -> Tensor:
    """The first place, int32 [batch, 1], where `cumulative` exceeds `threshold` [batch, 1]; its weight is above 0."""
    place = ops.sum(ops.cast(cumulative <= threshold, "int32"), axis=-1, keepdims=True)
    # Rounding must not step behind the last token that can be drawn.
    number = ops.arange(weights.shape[-1], dtype="int32")[None]
    return ops.minimum(place, ops.max(ops.where(weights > 0.0, number, 0), axis=-1, keepdims=True))


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability in nats, float32 [batch], of `tokens` int [batch] by softmax of `logits` [batch, vocabulary]."""
    logits = ops.cast(logits, "float32")
    chosen = ops.take_along_axis(logits, ops.cast(tokens, "int32")[:, None], axis=-1)[:, 0]
    return chosen - ops.logsumexp(logits, axis=-1)


def prompt_hash(tokens: Sequence[int]) -> int:
    """A number below 2**64 that stands for the token ids of a prompt, the same on every machine and in a graph: the sum
    of (id + 1) * `HASH_BASE` ** place, modulo 2**64."""
    total = 0
    for token in reversed(tokens):
        total = (total * HASH_BASE + int(token) + 1) % 2**64
    return total


def uniforms(keys: Sequence[tuple[int, int, int]], position: int | Sequence[int]) -> np.ndarray:
    """One number in [0, 1) for each row, float32 [rows], whatever else is in the batch.

    Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), all rows at once: the seed is
    its key, the rest its counter. Multiples of 2**-24, so none rounds up to 1.

    Args:
        keys: `(seed, prompt_hash, number)` of each row: a seed below 2**64 (more bits are ignored), the `prompt_hash`
            of its own prompt, and which of the prompt's continuations it is.
        position: How many tokens the row drew before; one number for all rows, or one for each.
    """
    positions = [position] * len(keys) if isinstance(position, int) else position
    numbers = [
        (seed, seed >> 32, prompt, prompt >> 32, number, place)
        for (seed, prompt, number), place in zip(keys, positions, strict=True)
    ]
    words = np.array([[word & 0xFFFFFFFF for word in row] for row in numbers], np.uint64).reshape(-1, 6).T
    drawn, *_ = philox(words[2:], words[:2])
    return (drawn >> np.uint64(8)).astype(np.float32) * np.float32(2**-24)


def philox(counter: Iterable[Any], key: Iterable[Any]) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10: four random words for each counter of four words and key of two.

    Args:
        counter: Four arrays of 32-bit words held in uint64, NumPy's or TensorFlow's.
        key: Two of them, of the same shape.
    """
    low, high = np.uint64(0xFFFFFFFF), np.uint64(2**32)
    a, b, c, d = counter
    first, second = key
    for _ in range(10):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (right // high) ^ b ^ first, right & low, (left // high) ^ d ^ second, left & low
        first, second = (first + np.uint64(0x9E3779B9)) & low, (second + np.uint64(0xBB67AE85)) & low
    return a, b, c, d
