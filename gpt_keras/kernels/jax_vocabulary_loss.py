"""`vocabulary_loss.summed_loss` on JAX: a scan over pieces of the length, so that rows stay on their devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import keras
from jax import numpy as jnp
from jax.sharding import PartitionSpec

from gpt_keras import kernels
from gpt_keras.kernels import vocabulary_loss

Tensor = Any

_GPU_ALIGNMENT = 128
"""A GPU's matrix units take whole tiles: its products of a vocabulary of 50257 take longer than those of 50304."""

_GPU_PIECE = 1 << 29
"""Most logits at a time on a GPU, 1 GiB in bfloat16: fewer leave part of it without work."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def summed_loss(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    label_smoothing: float,
    z_loss: float,
    weighted_first: bool,
) -> Tensor:
    """One piece after the other. The compiler leaves out the table's gradient where nobody asks for it."""
    return _forward(hidden, table, targets, weights, label_smoothing, z_loss, weighted_first)[0]


def _forward(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    label_smoothing: float,
    z_loss: float,
    weighted_first: bool,
) -> tuple[Tensor, Any]:
    """Where rows are spread over devices, each goes through the pieces of its own, and the sums are added up once at
    the end instead of after every piece."""
    narrow = table.astype(hidden.dtype)
    here = functools.partial(_in_pieces, label_smoothing=label_smoothing, z_loss=z_loss, weighted_first=weighted_first)
    run: Callable[..., Any] = here
    distribution = keras.distribution.distribution()
    axis = distribution and distribution.batch_dim_name
    if axis and distribution.num_model_replicas > 1 and hidden.shape[0] % distribution.num_model_replicas == 0:

        def on_a_device(*arguments: Tensor) -> Any:
            total, hidden_slope, table_slope = here(*arguments)
            return jax.lax.psum(total, axis), hidden_slope, jax.lax.psum(table_slope, axis)

        rows, all_ = PartitionSpec(axis), PartitionSpec()
        run = jax.shard_map(
            on_a_device,
            mesh=distribution.device_mesh.backend_mesh,
            in_specs=(rows, all_, rows, rows),
            out_specs=(all_, rows, all_),
            axis_names={axis},  # along others, the compiler divides the vocabulary as the table is
            check_vma=False,
        )
    total, hidden_slope, table_slope = run(hidden, narrow, targets, weights)
    return total, (hidden_slope, table_slope.astype(table.dtype))


def _in_pieces(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    label_smoothing: float,
    z_loss: float,
    weighted_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss, and its gradient with respect to hidden states and table."""
    batch, length, width = hidden.shape
    least = vocabulary_loss.least_pieces(batch * length, weighted_first)
    vocabulary, on_gpu = table.shape[0], kernels.on_jax_gpu()
    table = jnp.pad(table, ((0, -vocabulary % _GPU_ALIGNMENT), (0, 0))) if on_gpu else table
    most = _GPU_PIECE if on_gpu else vocabulary_loss.PIECE
    count = vocabulary_loss.num_pieces(batch, length, table.shape[0], least, most)

    def pieces(x: Tensor) -> Tensor:
        return jnp.moveaxis(x.reshape(batch, count, length // count, *x.shape[2:]), 1, 0)

    def step(carry: tuple[Tensor, Tensor], piece: tuple[Tensor, Tensor, Tensor]) -> Any:
        x, target, weight = piece
        logits = jnp.einsum("btd,vd->btv", x, table)
        loss, slope = vocabulary_loss.loss_and_slope(
            logits, target, weight, label_smoothing, z_loss, vocabulary, _reduce_at_once if on_gpu else None
        )
        hidden_slope = jnp.einsum("btv,vd->btd", slope, table)
        table_slope = jnp.einsum("btv,btd->vd", slope, x, preferred_element_type=jnp.float32)
        return (carry[0] + loss, carry[1] + table_slope), hidden_slope

    def step_or_nothing(carry: tuple[Tensor, Tensor], piece: tuple[Tensor, Tensor, Tensor]) -> Any:
        def nothing(carry: tuple[Tensor, Tensor], piece: tuple[Tensor, Tensor, Tensor]) -> Any:
            return carry, jnp.zeros_like(piece[0])

        return jax.lax.cond(jnp.any(piece[2] != 0), step, nothing, carry, piece)

    start = (jnp.float32(0.0), jnp.zeros(table.shape, jnp.float32))
    if count == 1:
        (total, table_slope), hidden_slope = step(start, (hidden, targets, weights))
    else:
        every = step_or_nothing if weighted_first else step
        (total, table_slope), parts = jax.lax.scan(every, start, tuple(map(pieces, (hidden, targets, weights))))
        hidden_slope = jnp.moveaxis(parts, 0, 1).reshape(batch, length, width)
    return total, hidden_slope, table_slope[:vocabulary]


def _reduce_at_once(wide: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`vocabulary_loss.max_sum_and_chosen`, reading the logits once: what a GPU waits for here is its memory.

    Source: Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867.
    """

    def add(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shrink = jnp.exp(-jnp.abs(a[0] - b[0]))
        total = jnp.where(a[0] > b[0], a[1] + shrink * b[1], shrink * a[1] + b[1])
        return jnp.maximum(a[0], b[0]), total, a[2] + b[2]

    operands = (wide, jnp.ones_like(wide), jnp.where(chosen, wide, 0.0))
    start = (jnp.float32(-1e30), jnp.float32(0.0), jnp.float32(0.0))
    largest, total, picked = jax.lax.reduce(operands, start, add, (wide.ndim - 1,))
    return largest[..., None], total[..., None], picked


def _backward(
    label_smoothing: float, z_loss: float, weighted_first: bool, slopes: Any, upstream: Tensor
) -> tuple[Any, ...]:
    hidden_slope, table_slope = slopes
    return upstream.astype(hidden_slope.dtype) * hidden_slope, upstream * table_slope, None, None


summed_loss.defvjp(_forward, _backward)
