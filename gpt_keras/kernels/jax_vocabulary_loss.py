"""`vocabulary_loss.summed_loss` on JAX: a scan over pieces of the length, so that rows stay on their devices."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import numpy as jnp

from gpt_keras.kernels import vocabulary_loss

Tensor = Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def summed_loss(
    hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor, label_smoothing: float, z_loss: float
) -> Tensor:
    """One piece after the other."""
    return _forward(hidden, table, targets, weights, label_smoothing, z_loss)[0]


def _forward(
    hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor, label_smoothing: float, z_loss: float
) -> tuple[Tensor, Any]:
    batch, length, width = hidden.shape
    narrow = table.astype(hidden.dtype)
    count = vocabulary_loss.num_pieces(-(-batch // jax.device_count()), length, table.shape[0])

    def pieces(x: Tensor) -> Tensor:
        return jnp.moveaxis(x.reshape(batch, count, length // count, *x.shape[2:]), 1, 0)

    def step(carry: tuple[Tensor, Tensor], piece: tuple[Tensor, Tensor, Tensor]) -> Any:
        x, target, weight = piece
        logits = jnp.einsum("btd,vd->btv", x, narrow)
        loss, slope = vocabulary_loss.loss_and_slope(logits, target, weight, label_smoothing, z_loss)
        hidden_slope = jnp.einsum("btv,vd->btd", slope, narrow)
        table_slope = jnp.einsum("btv,btd->vd", slope, x, preferred_element_type=jnp.float32)
        return (carry[0] + loss, carry[1] + table_slope), hidden_slope

    start = (jnp.float32(0.0), jnp.zeros(table.shape, jnp.float32))
    if count == 1:
        (total, table_slope), hidden_slope = step(start, (hidden, targets, weights))
    else:
        (total, table_slope), parts = jax.lax.scan(step, start, tuple(map(pieces, (hidden, targets, weights))))
        hidden_slope = jnp.moveaxis(parts, 0, 1).reshape(batch, length, width)
    return total, (hidden_slope, table_slope.astype(table.dtype))


def _backward(label_smoothing: float, z_loss: float, slopes: Any, upstream: Tensor) -> tuple[Any, ...]:
    hidden_slope, table_slope = slopes
    return upstream.astype(hidden_slope.dtype) * hidden_slope, upstream * table_slope, None, None


summed_loss.defvjp(_forward, _backward)
