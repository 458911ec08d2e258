"""Faster TensorFlow versions of the kernels for training on a CPU in bfloat16.

Matrix products stay with oneDNN, whose bfloat16 kernels use the processor's own instructions; everything elementwise
between them is one XLA cluster forward and one backward, instead of a pass over memory for each operation. Measured
in `benchmarks/training.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gpt_keras import kernels

Tensor = Any
F32 = tf.float32


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return tf.function(function, jit_compile=True, autograph=False)


@_compiled
def _rms_norm_forward(x: Tensor, scale: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    wide = tf.cast(x, F32)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(wide), -1, keepdims=True) + epsilon)
    return tf.cast(wide * inverse * scale, x.dtype), inverse


@_compiled
def _rms_norm_backward(
    x: Tensor, scale: Tensor, inverse: Tensor, upstream: Tensor, onto: Tensor
) -> tuple[Tensor, Tensor]:
    """`onto` is what else flows to `x`."""
    normed = tf.cast(x, F32) * inverse
    upstream = tf.cast(upstream, F32)
    scaled = upstream * scale
    gradient = inverse * (scaled - normed * tf.reduce_mean(scaled * normed, -1, keepdims=True)) + tf.cast(onto, F32)
    return tf.cast(gradient, x.dtype), tf.cast(upstream * normed, x.dtype)


def _row_sum(x: Tensor) -> Tensor:
    """Sum over all axes but the last, float32: as a matrix product, which sums in float32, half the time of a sum."""
    rows = tf.reshape(x, (-1, x.shape[-1]))
    return tf.cast(tf.matmul(tf.ones((1, rows.shape[0]), x.dtype), rows)[0], F32)


def rms_norm(x: Tensor, scale: Tensor, epsilon: float, with_input: bool = False) -> Any:
    @tf.custom_gradient
    def function(x: Tensor, scale: Tensor) -> Any:
        normed, inverse = _rms_norm_forward(x, scale, epsilon)

        def gradient(onto: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
            inner, per_row = _rms_norm_backward(x, scale, inverse, upstream, onto)
            return inner, _row_sum(per_row)

        return (tf.identity(x), normed), gradient

    pair = function(x, tf.cast(scale, F32))
    return pair if with_input else pair[1]


@_compiled
def _layer_norm_forward(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    wide = tf.cast(x, F32)
    mean = tf.reduce_mean(wide, -1, keepdims=True)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(wide - mean), -1, keepdims=True) + epsilon)
    return tf.cast((wide - mean) * inverse * scale + bias, x.dtype), mean, inverse


@_compiled
def _layer_norm_backward(
    x: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor, upstream: Tensor, onto: Tensor
) -> tuple[Tensor, Tensor]:
    """`onto` is what else flows to `x`."""
    normed = (tf.cast(x, F32) - mean) * inverse
    upstream = tf.cast(upstream, F32)
    scaled = upstream * scale
    along = normed * tf.reduce_mean(scaled * normed, -1, keepdims=True)
    gradient = inverse * (scaled - tf.reduce_mean(scaled, -1, keepdims=True) - along) + tf.cast(onto, F32)
    return tf.cast(gradient, x.dtype), tf.cast(upstream * normed, x.dtype)


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float, with_input: bool = False) -> Any:
    @tf.custom_gradient
    def function(x: Tensor, scale: Tensor, bias: Tensor) -> Any:
        normed, mean, inverse = _layer_norm_forward(x, scale, bias, epsilon)

        def gradient(onto: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            inner, per_row = _layer_norm_backward(x, scale, mean, inverse, upstream, onto)
            return inner, _row_sum(per_row), _row_sum(upstream)

        return (tf.identity(x), normed), gradient

    pair = function(x, tf.cast(scale, F32), tf.cast(bias, F32))
    return pair if with_input else pair[1]


@_compiled
def _swiglu_forward(gate: Tensor, up: Tensor) -> Tensor:
    gate_wide = tf.cast(gate, F32)
    return tf.cast(gate_wide * tf.sigmoid(gate_wide) * tf.cast(up, F32), gate.dtype)


@_compiled
def _swiglu_backward(gate: Tensor, up: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    wide, upstream = tf.cast(gate, F32), tf.cast(upstream, F32)
    sigmoid = tf.sigmoid(wide)
    silu = wide * sigmoid
    gate_gradient = upstream * tf.cast(up, F32) * (sigmoid + silu * (1.0 - sigmoid))
    return tf.cast(gate_gradient, gate.dtype), tf.cast(upstream * silu, up.dtype)


@tf.custom_gradient
def swiglu(gate: Tensor, up: Tensor) -> Any:
    return _swiglu_forward(gate, up), lambda upstream: _swiglu_backward(gate, up, upstream)


_GELU_RATE = 2.0 * math.sqrt(2.0 / math.pi)


def _gelu_sigmoid(x: Tensor) -> Tensor:
    """`(1 + tanh(y)) / 2` as a sigmoid, whose exponential XLA computes faster than a tanh."""
    return 1.0 / (1.0 + tf.exp(-_GELU_RATE * (x + 0.044715 * x * x * x)))


@_compiled
def _gelu_and_slope(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    wide = tf.cast(x, F32) + bias
    sigmoid = _gelu_sigmoid(wide)
    slope = sigmoid + wide * sigmoid * (1.0 - sigmoid) * _GELU_RATE * (1.0 + 3 * 0.044715 * wide * wide)
    return tf.cast(wide * sigmoid, x.dtype), tf.cast(slope, x.dtype)


def gelu(x: Tensor, bias: Any = None) -> Tensor:
    """The slope is found with the value, when the exponential is at hand, and kept for the gradient instead of `x`."""

    @tf.custom_gradient
    def function(x: Tensor, bias: Tensor) -> Any:
        value, slope = _gelu_and_slope(x, bias)

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            inner = _multiply(upstream, slope)
            return inner, _row_sum(inner) if bias.shape.rank else tf.zeros(())

        return value, gradient

    return function(x, tf.zeros(()) if bias is None else tf.cast(bias, F32))


@_compiled
def _multiply(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def linear(x: Tensor, kernel: Any, bias: Any = None, residual: Tensor | None = None) -> Tensor:
    rows = tf.reshape(x, (-1, x.shape[-1]))
    product = tf.matmul(rows, tf.cast(kernel, x.dtype))
    product = tf.reshape(product, (*x.shape[:-1], product.shape[-1]))
    if bias is None and residual is None:
        return product
    nothing = tf.zeros(())

    @tf.custom_gradient
    def add(product: Tensor, bias: Tensor, residual: Tensor) -> Any:
        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            parts = _row_sum(upstream) if bias.shape.rank else nothing, upstream if residual.shape.rank else nothing
            return upstream, *parts

        return _add(product, bias, residual), gradient

    return add(product, nothing if bias is None else tf.cast(bias, F32), nothing if residual is None else residual)


@_compiled
def _add(x: Tensor, *others: Tensor) -> Tensor:
    """One pass over memory, where TensorFlow would put the bias into the product, and take longer for both."""
    return tf.cast(sum((tf.cast(other, F32) for other in others), tf.cast(x, F32)), x.dtype)


def project_heads(x: Tensor, weights: Sequence[tuple[Any, Any]], head_dim: int) -> tuple[Tensor, ...]:
    """One product with all kernels side by side, and one pass that adds the biases and cuts the heads."""
    batch, length, _ = x.shape
    kernel = tf.concat([tf.cast(kernel, x.dtype) for kernel, _ in weights], 1)
    biases = [tf.zeros((kernel.shape[1],)) if bias is None else tf.cast(bias, F32) for kernel, bias in weights]
    parts = [kernel.shape[1] // head_dim for kernel, _ in weights]
    with_bias = any(bias is not None for _, bias in weights)

    @tf.custom_gradient
    def cut(product: Tensor, bias: Tensor) -> Any:
        def gradient(*upstream: Tensor) -> tuple[Tensor, Tensor]:
            whole = _join_heads(*upstream)
            return whole, _row_sum(whole) if with_bias else tf.zeros_like(bias)

        return _cut_heads(product, bias, parts, head_dim), gradient

    product = tf.matmul(tf.reshape(x, (batch * length, -1)), kernel)
    return tuple(cut(tf.reshape(product, (batch, length, -1)), tf.concat(biases, 0)))


def _cut_heads(product: Tensor, bias: Tensor, parts: list[int], head_dim: int) -> Any:
    @_compiled
    def cut(product: Tensor, bias: Tensor) -> Any:
        whole = tf.cast(tf.cast(product, F32) + bias, product.dtype)
        whole = tf.reshape(whole, (*whole.shape[:2], -1, head_dim))
        return tuple(tf.transpose(part, (0, 2, 1, 3)) for part in tf.split(whole, parts, axis=2))

    return cut(product, bias)


@_compiled
def _join_heads(*parts: Tensor) -> Tensor:
    whole = tf.concat([tf.transpose(part, (0, 2, 1, 3)) for part in parts], axis=2)
    return tf.reshape(whole, (*whole.shape[:2], -1))


_ATTENTION_BLOCK = 256


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """In blocks of queries, each with only the keys that it can see; probabilities are kept for the gradient."""
    batch, heads, length, head_dim = query.shape
    key_value_heads = key.shape[1]
    step = _block_length(length)
    blocks = [(start, start + step) for start in range(0, length, step)]
    scale = 1.0 / math.sqrt(head_dim)

    def rows(x: Tensor) -> Tensor:
        """Query heads that share a key head as rows of one matrix."""
        return tf.reshape(x, (batch, key_value_heads, -1, x.shape[-1]))

    def unrows(x: Tensor) -> Tensor:
        return tf.reshape(x, (batch, heads, -1, x.shape[-1]))

    @tf.custom_gradient
    def function(query: Tensor, key: Tensor, value: Tensor) -> Any:
        probabilities, outputs, kept = [], [], []
        for number, (start, stop) in enumerate(blocks):
            scores = tf.matmul(rows(query[:, :, start:stop]), key[:, :, :stop], transpose_b=True)
            visible = _visible(start, stop) if mask is None else _visible(start, stop) & mask[:, start:stop, :stop]
            block = tf.nn.softmax(_scale_and_hide(unrows(scores), visible, scale))
            probabilities.append(block)
            if dropout_seed is not None:
                seed = kernels.fold_seed(dropout_seed, number)
                kept.append(kernels.kept(block.shape, dropout_rate, seed))
                block = _drop(block, kept[-1], 1.0 / (1.0 - dropout_rate))
            outputs.append(unrows(tf.matmul(rows(block), value[:, :, :stop])))
        output = tf.concat(outputs, 2)

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            queries, keys, values = [], [], []
            for number, ((start, stop), block) in enumerate(zip(blocks, probabilities, strict=True)):
                above = rows(upstream[:, :, start:stop])
                inner = unrows(tf.matmul(above, value[:, :, :stop], transpose_b=True))
                dropped = block
                if dropout_seed is not None:
                    inner = _drop(inner, kept[number], 1.0 / (1.0 - dropout_rate))
                    dropped = _drop(block, kept[number], 1.0 / (1.0 - dropout_rate))
                inner = _softmax_backward(block, inner, output[:, :, start:stop], upstream[:, :, start:stop], scale)
                queries.append(unrows(tf.matmul(rows(inner), key[:, :, :stop])))
                keys.append(tf.matmul(rows(inner), rows(query[:, :, start:stop]), transpose_a=True))
                values.append(tf.matmul(rows(dropped), above, transpose_a=True))
            return tf.concat(queries, 2), _sum_of_starts(keys), _sum_of_starts(values)

        return output, gradient

    return function(query, key, value)


def _block_length(length: int) -> int:
    """At least two blocks, where they divide the length."""
    for step in (_ATTENTION_BLOCK, _ATTENTION_BLOCK // 2):
        if length % step == 0 and length > step:
            return step
    return length


def _visible(start: int, stop: int) -> np.ndarray:
    """Boolean [1, stop - start, stop]."""
    return (np.arange(stop)[None] <= np.arange(start, stop)[:, None])[None]


@_compiled
def _drop(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    return tf.where(kept, x * tf.cast(scale, x.dtype), tf.cast(0, x.dtype))


@_compiled
def _scale_and_hide(scores: Tensor, visible: Tensor, scale: float) -> Tensor:
    return tf.cast(tf.where(visible[:, None], tf.cast(scores, F32) * scale, -1e30), scores.dtype)


@_compiled
def _softmax_backward(probabilities: Tensor, upstream: Tensor, output: Tensor, above: Tensor, scale: float) -> Tensor:
    """The gradient of the scores before scaling. The row sums of probabilities * upstream are those of output * above,
    over far fewer columns."""
    row_sums = tf.reduce_sum(tf.cast(output, F32) * tf.cast(above, F32), -1, keepdims=True)
    return tf.cast(tf.cast(probabilities, F32) * (tf.cast(upstream, F32) - row_sums) * scale, probabilities.dtype)


@_compiled
def _sum_of_starts(parts: list[Tensor]) -> Tensor:
    """The sum, [batch, heads, length, head_dim], of tensors that reach 1/n, 2/n, ... of the length, zeros behind."""
    length = parts[-1].shape[2]
    padded = [tf.pad(tf.cast(part, F32), ((0, 0), (0, 0), (0, length - part.shape[2]), (0, 0))) for part in parts]
    return tf.cast(sum(padded), parts[0].dtype)


@_compiled
def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = tf.split(tf.cast(x, F32), 2, axis=-1)
    return tf.cast(tf.concat([first * cos - second * sin, second * cos + first * sin], -1), x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    @tf.custom_gradient
    def function(x: Tensor) -> Any:
        # A rotation's gradient is the rotation back.
        return _rotate(x, cos, sin), lambda upstream: _rotate(upstream, cos, -sin)

    return function(x)


@_compiled
def _cross_entropy_forward(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    wide = tf.cast(logits, F32)
    largest = tf.reduce_max(wide, -1, keepdims=True)
    normalizer = largest + tf.math.log(tf.reduce_sum(tf.exp(wide - largest), -1, keepdims=True))
    chosen = tf.range(wide.shape[-1], dtype=tf.int32) == targets[..., None]
    return normalizer[..., 0] - tf.reduce_sum(tf.where(chosen, wide, 0.0), -1), normalizer


@_compiled
def _cross_entropy_backward(logits: Tensor, targets: Tensor, normalizer: Tensor, upstream: Tensor) -> Tensor:
    probabilities = tf.exp(tf.cast(logits, F32) - normalizer)
    chosen = tf.range(logits.shape[-1], dtype=tf.int32) == targets[..., None]
    return tf.cast((probabilities - tf.cast(chosen, F32)) * upstream[..., None], logits.dtype)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    targets = tf.cast(targets, tf.int32)

    @tf.custom_gradient
    def function(logits: Tensor) -> Any:
        losses, normalizer = _cross_entropy_forward(logits, targets)
        return losses, lambda upstream: _cross_entropy_backward(logits, targets, normalizer, upstream)

    return function(logits)


KERNELS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        rms_norm,
        layer_norm,
        swiglu,
        gelu,
        linear,
        project_heads,
        causal_attention,
        rotate,
        cross_entropy,
    )
}
