"""Faster TensorFlow versions of the kernels for training on a CPU in bfloat16.

Matrix products stay with oneDNN, whose bfloat16 kernels use the processor's own instructions; everything elementwise
between them is one XLA cluster forward and one backward, instead of a pass over memory for each operation. Measured
in `benchmarks/training.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

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
def _rms_norm_backward(x: Tensor, scale: Tensor, inverse: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    normed = tf.cast(x, F32) * inverse
    upstream = tf.cast(upstream, F32)
    scaled = upstream * scale
    gradient = inverse * (scaled - normed * tf.reduce_mean(scaled * normed, -1, keepdims=True))
    return tf.cast(gradient, x.dtype), _column_sums(upstream * normed)


def _column_sums(x: Tensor) -> Tensor:
    """Sum over all axes but the last, in two stages, which XLA turns into vector code."""
    rows = math.prod(x.shape[:-1])
    blocks = math.gcd(rows, 64)
    return tf.reduce_sum(tf.reduce_sum(tf.reshape(x, (blocks, rows // blocks, x.shape[-1])), 1), 0)


def rms_norm(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    @tf.custom_gradient
    def function(x: Tensor, scale: Tensor) -> Any:
        normed, inverse = _rms_norm_forward(x, scale, epsilon)
        return normed, lambda upstream: _rms_norm_backward(x, scale, inverse, upstream)

    return function(x, tf.convert_to_tensor(scale))


@_compiled
def _layer_norm_forward(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    wide = tf.cast(x, F32)
    mean = tf.reduce_mean(wide, -1, keepdims=True)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(wide - mean), -1, keepdims=True) + epsilon)
    return tf.cast((wide - mean) * inverse * scale + bias, x.dtype), mean, inverse


@_compiled
def _layer_norm_backward(
    x: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    normed = (tf.cast(x, F32) - mean) * inverse
    upstream = tf.cast(upstream, F32)
    scaled = upstream * scale
    along = normed * tf.reduce_mean(scaled * normed, -1, keepdims=True)
    gradient = inverse * (scaled - tf.reduce_mean(scaled, -1, keepdims=True) - along)
    return tf.cast(gradient, x.dtype), _column_sums(upstream * normed), _column_sums(upstream)


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    @tf.custom_gradient
    def function(x: Tensor, scale: Tensor, bias: Tensor) -> Any:
        normed, mean, inverse = _layer_norm_forward(x, scale, bias, epsilon)
        return normed, lambda upstream: _layer_norm_backward(x, scale, mean, inverse, upstream)

    return function(x, tf.convert_to_tensor(scale), tf.convert_to_tensor(bias))


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


_GELU_SLOPE = math.sqrt(2.0 / math.pi)


@_compiled
def _gelu_forward(x: Tensor) -> Tensor:
    wide = tf.cast(x, F32)
    return tf.cast(0.5 * wide * (1.0 + tf.tanh(_GELU_SLOPE * (wide + 0.044715 * wide * wide * wide))), x.dtype)


@_compiled
def _gelu_backward(x: Tensor, upstream: Tensor) -> Tensor:
    wide = tf.cast(x, F32)
    tanh = tf.tanh(_GELU_SLOPE * (wide + 0.044715 * wide * wide * wide))
    inner = _GELU_SLOPE * (1.0 + 3 * 0.044715 * wide * wide)
    slope = 0.5 * (1.0 + tanh) + 0.5 * wide * (1.0 - tanh * tanh) * inner
    return tf.cast(tf.cast(upstream, F32) * slope, x.dtype)


@tf.custom_gradient
def gelu(x: Tensor) -> Any:
    return _gelu_forward(x), lambda upstream: _gelu_backward(x, upstream)


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
def _masked_softmax_forward(scores: Tensor, mask: Tensor) -> Tensor:
    wide = tf.where(mask[:, None], tf.cast(scores, F32), -1e30)
    exponents = tf.exp(wide - tf.reduce_max(wide, -1, keepdims=True))
    return tf.cast(exponents / tf.reduce_sum(exponents, -1, keepdims=True), scores.dtype)


@_compiled
def _masked_softmax_backward(probabilities: Tensor, upstream: Tensor) -> Tensor:
    wide, upstream = tf.cast(probabilities, F32), tf.cast(upstream, F32)
    return tf.cast(wide * (upstream - tf.reduce_sum(wide * upstream, -1, keepdims=True)), probabilities.dtype)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    @tf.custom_gradient
    def function(scores: Tensor) -> Any:
        probabilities = _masked_softmax_forward(scores, mask)
        return probabilities, lambda upstream: _masked_softmax_backward(probabilities, upstream)

    return function(scores)


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
    for function in (rms_norm, layer_norm, swiglu, gelu, rotate, masked_softmax, cross_entropy)
}
