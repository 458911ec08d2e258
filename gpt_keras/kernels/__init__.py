"""The operations a GPT spends its time in, each written once in `keras.ops` as the reference.

Where a backend has something faster, a module here registers it under the same name, and `fast_kernels()` turns
it on for the code traced inside. Outside of it every call runs the reference, which is what is exported and served.
Each pair agrees in value and gradient (`tests/test_kernels.py`).

Shapes: `batch`, `length` (of the queries), `slots` (of the keys), `heads`, `head_dim` as in `GPTConfig`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import keras
from keras import ops

Tensor = Any

_faster: ContextVar[dict[str, Callable[..., Any]]] = ContextVar("faster")
_few_rows: ContextVar[dict[int, Tensor] | None] = ContextVar("few_rows", default=None)


@contextlib.contextmanager
def fast_kernels() -> Iterator[None]:
    """Use this backend's faster kernels for operations traced inside the block, where it has any.

    The TensorFlow ones pay on a CPU for tensors whose sizes are all known (`tensorflow_training`); on JAX, GPUs have
    a few of their own (`jax_gpu`). Elsewhere the block changes nothing.
    """
    found: dict[str, Callable[..., Any]] = {}
    if keras.backend.backend() == "tensorflow":
        from gpt_keras.kernels import tensorflow_training

        found = tensorflow_training.KERNELS
    elif on_jax_gpu():
        from gpt_keras.kernels import jax_gpu

        found = jax_gpu.KERNELS
    with using(found):
        yield


@contextlib.contextmanager
def using(operations: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Code traced inside runs these instead of the operations of their names, besides those of an outer block."""
    token = _faster.set({**_faster.get({}), **operations})
    try:
        yield
    finally:
        _faster.reset(token)


def on_jax_gpu() -> bool:
    """Whether the backend is JAX and what it computes on is a GPU."""
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "gpu"


def fast() -> bool:
    """Whether the code is traced inside `fast_kernels`."""
    return bool(_faster.get({}))


def _choose(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The function, giving way to a faster one of its name while `fast_kernels` is on and all sizes are known."""
    name = reference.__name__

    @functools.wraps(reference)
    def kernel(x: Tensor, *arguments: Any) -> Any:
        faster = _faster.get({}).get(name)
        if faster is not None and None not in x.shape:
            return faster(x, *arguments)
        return reference(x, *arguments)

    return kernel


@contextlib.contextmanager
def few_rows(transposed: dict[int, Tensor]) -> Iterator[None]:
    """Code traced inside multiplies a few rows (64, say), is compiled by XLA, and runs on a CPU.

    There `(matrix [out, in] @ x^T)^T` takes two thirds of the time of `x @ matrix^T`: the large operand is the one
    that XLA's products go through in order.

    Args:
        transposed: The kernels that are at hand as [out, in], by the `id` of their variables.
    """
    token = _few_rows.set(transposed)
    try:
        yield
    finally:
        _few_rows.reset(token)


@_choose
def embed(table: Any, token_ids: Tensor) -> Tensor:
    """The rows of `table` [vocabulary, hidden_dim], a variable or tensor, that `token_ids` int32 [...] name."""
    return ops.take(table, token_ids, axis=0)


@_choose
def linear(x: Tensor, kernel: Any, bias: Any = None, residual: Tensor | None = None) -> Tensor:
    """`x @ kernel + bias + residual`, [..., out], of `x` [..., in], `kernel` [in, out] and `bias` [out], variables or
    tensors, and `residual` [..., out]."""
    copy = (_few_rows.get() or {}).get(id(kernel))
    product = _matmul(x, kernel) if copy is None else _rows_by_matrix(x, ops.cast(copy, x.dtype))
    product = product if bias is None else product + ops.cast(bias, product.dtype)
    return product if residual is None else residual + product


@_choose
def project_heads(x: Tensor, weights: Sequence[tuple[Any, Any]], head_dim: int) -> tuple[Tensor, ...]:
    """Several `linear` of the same `x`, each cut into heads: queries, keys and values, say.

    Args:
        x: [batch, length, in].
        weights: A kernel [in, heads * head_dim] and a bias (or `None`) for each.
        head_dim: Width of a head.

    Returns:
        [batch, heads, length, head_dim] for each.
    """
    return tuple(split_heads(linear(x, kernel, bias), head_dim) for kernel, bias in weights)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[batch, length, heads * head_dim] -> [batch, heads, length, head_dim]."""
    heads = x.shape[-1] // head_dim
    x = _reshape(x, (x.shape[0], x.shape[1], heads, head_dim), x)
    return ops.transpose(x, (0, 2, 1, 3))


def merge_heads(x: Tensor) -> Tensor:
    """[batch, heads, length, head_dim] -> [batch, length, heads * head_dim]."""
    x = ops.transpose(x, (0, 2, 1, 3))
    return _reshape(x, (x.shape[0], x.shape[1], x.shape[2] * x.shape[3]), x)


def _rows_by_matrix(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix^T`, [..., out], of `x` [..., in] and `matrix` [out, in], as `few_rows` says."""
    columns = ops.transpose(ops.reshape(x, (-1, x.shape[-1])))
    product = _as_written(ops.matmul(matrix, columns))
    return _reshape(ops.transpose(product), (*x.shape[:-1], matrix.shape[0]), x)


def _matmul(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix`, [..., out], of `x` [..., in] and `matrix` [in, out]."""
    if None not in x.shape:
        return ops.matmul(x, matrix)
    # Which would find out at every run what is multiplied with what.
    return _reshape(ops.matmul(ops.reshape(x, (-1, x.shape[-1])), matrix), (*x.shape[:-1], matrix.shape[1]), x)


def _reshape(x: Tensor, shape: Sequence[int | None], like: Tensor) -> Tensor:
    """`x` in another shape, where `None` is `like`'s size on the same axis, and -1 (by default the last `None`) what is
    left: the fewer sizes have to be found out when it runs, the better."""
    sizes = list(shape)
    if None in sizes and -1 not in sizes:
        sizes[max(axis for axis, known in enumerate(sizes) if known is None)] = -1
    return ops.reshape(x, [size(like, axis) if known is None else known for axis, known in enumerate(sizes)])


def _as_written(x: Tensor) -> Tensor:
    """`x`; XLA does not simplify across it, which would turn the product around again."""
    if keras.backend.backend() == "tensorflow":
        from tensorflow.compiler.tf2xla.python import xla

        return xla.optimization_barrier(x)[0]
    from jax import lax

    return lax.optimization_barrier(x)


@_choose
def rms_norm(x: Tensor, scale: Tensor, epsilon: float, with_input: bool = False) -> Any:
    """`x / rms(x) * scale` over the last axis, computed in float32, returned in `x`'s dtype.

    With `with_input`, the pair of `x` and that: what else is done with `x` should be done with the first of the pair,
    whose gradient is then added up in the same pass.
    """
    wide = ops.cast(x, "float32")
    wide = wide * ops.rsqrt(ops.mean(ops.square(wide), axis=-1, keepdims=True) + epsilon)
    normed = ops.cast(wide * ops.cast(scale, "float32"), x.dtype)
    return (x, normed) if with_input else normed


@_choose
def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float, with_input: bool = False) -> Any:
    """`(x - mean(x)) / std(x) * scale + bias` over the last axis, computed in float32, returned in `x`'s dtype;
    `with_input` as in `rms_norm`."""
    wide = ops.cast(x, "float32")
    wide = wide - ops.mean(wide, axis=-1, keepdims=True)
    wide = wide * ops.rsqrt(ops.mean(ops.square(wide), axis=-1, keepdims=True) + epsilon)
    normed = ops.cast(wide * ops.cast(scale, "float32") + ops.cast(bias, "float32"), x.dtype)
    return (x, normed) if with_input else normed


@_choose
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up` (Shazeer 2020)."""
    # Spelled out: TensorFlow keeps every graph with its own silu in it for good, a gradient of which it has registered.
    return gate * ops.sigmoid(gate) * up


@_choose
def gelu(x: Tensor, bias: Any = None) -> Tensor:
    """The tanh form of GELU that GPT-1 and GPT-2 use (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415),
    of `x + bias` where there is one."""
    return ops.gelu(x if bias is None else x + ops.cast(bias, x.dtype), approximate=True)


def gelu_exact(x: Tensor, bias: Any = None) -> Tensor:
    """GELU itself, `x * Phi(x)` with the normal distribution's own Phi (same source), as `gelu`."""
    return ops.gelu(x if bias is None else x + ops.cast(bias, x.dtype), approximate=False)


def relu(x: Tensor, bias: Any = None) -> Tensor:
    """The larger of 0 and `x + bias`."""
    return ops.relu(x if bias is None else x + ops.cast(bias, x.dtype))


@_choose
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of `x` [batch, heads, length, head_dim], pairing dimension i with i + head_dim / 2.

    `cos` and `sin` are [batch or 1, 1, length, head_dim / 2] in float32.
    """
    first, second = ops.split(x, 2, axis=-1)
    cos, sin = ops.cast(cos, x.dtype), ops.cast(sin, x.dtype)
    return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@_choose
def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """What each token gathers from itself and the tokens before it: `attention_probabilities @ value`.

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, key_value_heads, length, head_dim], of the same tokens.
        value: As `key`.
        mask: Boolean [batch or 1, length, length], true where a query may look, in addition to causality.
        dropout_rate: Share of the probabilities that is dropped, if there is a seed.
        dropout_seed: As `dropout`.

    Returns:
        [batch, heads, length, head_dim].
    """
    visible = causal_mask(size(query, 2))
    visible = visible if mask is None else ops.logical_and(visible, mask)
    probabilities = attention_probabilities(query, key, visible)
    if dropout_seed is not None:
        probabilities = dropout(probabilities, dropout_rate, dropout_seed)
    return weighted_values(probabilities, value)


def causal_mask(length: Any) -> Tensor:
    """Boolean [1, length, length]: token q sees tokens 0 to q."""
    places = ops.arange(length, dtype="int32")
    return (places[None, :] <= places[:, None])[None]


def attention_probabilities(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """`softmax(query @ key^T / sqrt(head_dim))` over the keys that `mask` lets through, softmax in float32.

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, key_value_heads, slots, head_dim]; each serves `heads / key_value_heads` query heads.
        mask: Boolean [batch or 1, length, slots], true where a query may look.

    Returns:
        [batch, heads, length, slots] in `query`'s dtype.
    """
    batch, heads, length, head_dim = query.shape
    key_value_heads = key.shape[1]
    scale = ops.cast(1.0 / math.sqrt(head_dim), query.dtype)
    # Query heads that share a key head become rows of one matrix product, so no key is ever repeated in memory.
    together = -1 if length is None else heads // key_value_heads * length
    rows = _reshape(query * scale, (batch, key_value_heads, together, head_dim), query)
    if _few_rows.get() is None:
        scores = ops.matmul(rows, ops.transpose(key, (0, 1, 3, 2)))
    else:
        scores = ops.transpose(_as_written(ops.matmul(key, ops.transpose(rows, (0, 1, 3, 2)))), (0, 1, 3, 2))
    return masked_softmax(_reshape(scores, (batch, heads, length, key.shape[2]), query), mask)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of `scores` [batch, heads, length, slots] where `mask` [batch or 1, length, slots] is true, 0 elsewhere.

    Computed in float32, returned in `scores`' dtype.
    """
    wide = ops.where(mask[:, None], ops.cast(scores, "float32"), -1e30)
    return ops.cast(ops.softmax(wide, axis=-1), scores.dtype)


def weighted_values(probabilities: Tensor, value: Tensor) -> Tensor:
    """`probabilities @ value`, [batch, heads, length, head_dim], for grouped values as in `attention_probabilities`."""
    batch, heads, length, slots = probabilities.shape
    key_value_heads, head_dim = value.shape[1], value.shape[3]
    together = -1 if length is None else heads // key_value_heads * length
    rows = _reshape(probabilities, (batch, key_value_heads, together, slots), probabilities)
    return _reshape(ops.matmul(rows, value), (batch, heads, length, head_dim), probabilities)


@_choose
def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: tuple[Tensor, Tensor],
    positions: Tensor,
    mask: Tensor | None = None,
    select: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What each token gathers from the slots of a cache up to its own, once it is there itself.

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, key_value_heads, length, head_dim], of the same tokens.
        value: As `key`.
        cache: Keys and values, each [batch, key_value_heads, slots, head_dim].
        positions: int32 [batch, length], the tokens' slots.
        mask: Boolean [batch or 1, length, slots], true where a query may look, in addition to causality.
        select: int32 [batch]; only this one token of each row gathers.

    Returns:
        [batch, heads, length (1 with `select`), head_dim], and the cache with the tokens in it.
    """
    keys, values = write_cache(cache[0], key, positions), write_cache(cache[1], value, positions)
    slots = positions
    if select is not None:
        query, slots = pick(query, select, axis=2), pick(positions, select, axis=1)
        mask = None if mask is None else pick(mask, select, axis=1)
    visible = ops.arange(size(keys, 2), dtype="int32")[None, None, :] <= slots[:, :, None]
    visible = visible if mask is None else ops.logical_and(visible, mask)
    probabilities = attention_probabilities(query, keys, visible)
    return weighted_values(probabilities, values), (keys, values)


def write_cache(buffer: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    """`buffer` with row b's new entry t at slot `positions[b, t]`.

    Args:
        buffer: [batch, key_value_heads, slots, head_dim].
        new: [batch, key_value_heads, length, head_dim].
        positions: int32 [batch, length].
    """
    batch, heads, length = size(positions, 0), new.shape[1], size(positions, 1)
    shape = (batch, heads, length)
    rows = ops.broadcast_to(ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1, 1)), shape)
    columns = ops.broadcast_to(ops.reshape(ops.arange(heads, dtype="int32"), (1, -1, 1)), shape)
    slots = ops.broadcast_to(positions[:, None, :], shape)
    indices = ops.reshape(ops.stack([rows, columns, slots], axis=-1), (-1, 3))
    entries = ops.reshape(ops.cast(new, buffer.dtype), (-1, new.shape[3]))
    return ops.scatter_update(buffer, indices, entries)


def pick(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Row b's entry `index[b]` along `axis`, which stays with size 1: of `x` [batch or 1, ...], `index` int [batch]."""
    if x.shape[axis] == 1:
        return x
    shape = [1] * len(x.shape)
    shape[axis] = -1
    chosen = ops.reshape(ops.arange(size(x, axis), dtype="int32"), shape)
    chosen = chosen == ops.reshape(ops.cast(index, "int32"), (-1, *[1] * (len(x.shape) - 1)))
    if keras.backend.standardize_dtype(x.dtype) == "bool":
        return ops.any(ops.logical_and(chosen, x), axis=axis, keepdims=True)
    return ops.cast(ops.sum(ops.where(chosen, x, ops.cast(0, x.dtype)), axis=axis, keepdims=True), x.dtype)


@_choose
def project_to_vocabulary(x: Tensor, table: Tensor) -> Tensor:
    """`x @ table^T`: logits [..., vocabulary] of `x` [..., hidden_dim] and `table` [vocabulary, hidden_dim]."""
    return _matmul(x, ops.transpose(table)) if _few_rows.get() is None else _rows_by_matrix(x, table)


@_choose
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target in nats.

    Args:
        logits: [..., vocabulary].
        targets: int [...].

    Returns:
        float32 [...].
    """
    logits = ops.cast(logits, "float32")
    picked = ops.take_along_axis(logits, ops.cast(targets, "int32")[..., None], axis=-1)[..., 0]
    return ops.logsumexp(logits, axis=-1) - picked


def dropout(x: Tensor, rate: float, seed: Tensor) -> Tensor:
    """`x` with a share of its entries set to 0 and the others divided by what is kept (Srivastava et al. 2014).

    Args:
        x: Any shape.
        rate: From 0 up to 1, exact to 2^-16.
        seed: uint32 [2], as of `keras.random.SeedGenerator` or `fold_seed`: the same seed drops the same.
    """
    return ops.where(kept(ops.shape(x), rate, seed), x * ops.cast(1.0 / (1.0 - rate), x.dtype), ops.cast(0, x.dtype))


def kept(shape: Sequence[Any], rate: float, seed: Tensor) -> Tensor:
    """Boolean of `shape`, false with probability `rate`: what `dropout` keeps. 16 random bits decide about each."""
    threshold = round(rate * 65536)
    if keras.backend.backend() == "jax":
        import jax

        return jax.random.bits(jax.random.wrap_key_data(seed), tuple(shape), "uint16") >= threshold
    import tensorflow as tf

    pairs = (tf.reduce_prod(shape) + 1) // 2
    bits = tf.random.stateless_uniform([pairs], tf.cast(seed, tf.int64), minval=None, maxval=None, dtype=tf.uint32)
    bits = tf.reshape(tf.bitcast(bits, tf.uint16), [-1])[: tf.reduce_prod(shape)]
    # Compared as int32, for which TensorFlow has vector code; for uint16 it has none.
    return tf.reshape(tf.cast(bits, tf.int32) >= threshold, shape)


def fold_seed(seed: Tensor, number: int) -> Tensor:
    """Another seed, uint32 [2], for each number."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(seed), number))
    import tensorflow as tf

    return tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), number)


def rematerialized(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`, of which nothing is kept for the gradient but `x`: it is computed again when that is needed.

    Source: Chen et al. 2016, https://arxiv.org/abs/1604.06174.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.checkpoint(function)(x)
    import tensorflow as tf

    return tf.recompute_grad(function)(x)


def size(x: Tensor, axis: int) -> Any:
    """The static size where it is known, else the dynamic one."""
    return x.shape[axis] if x.shape[axis] is not None else ops.shape(x)[axis]
