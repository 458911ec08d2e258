"""Turning the residual stream, and what heads and feed-forward networks hold, so that 8 bits suffice for it.

A few of a model's activations are far larger than the others, and 8 bits for all of a token's leave little for the
rest. Multiplied with an orthogonal matrix they are all of about one size. RMSNorm does not notice, its scale can go
into the kernels behind it, and so can the matrix, and its inverse into those before: the model computes what it did.
Two products remain: by a small Hadamard matrix before each feed-forward network's last kernel, and one before the head.

Sources: Ashkboos et al. 2024, "QuaRot", https://arxiv.org/abs/2404.00456; and "SliceGPT",
https://arxiv.org/abs/2401.15024, for the scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt_keras.model import GPT

_LARGEST_BLOCK = 64


def suits(model: GPT) -> bool:
    """Whether the model normalizes in the way that does not notice: by RMSNorm, before each sub-layer."""
    config = model.config
    return config.normalization == "rms_norm" and config.norm_order == "pre" and config.position == "rotary"


def block_size(width: int) -> int:
    """The largest power of two, up to 64, that divides a width."""
    return min(_LARGEST_BLOCK, width & -width)


def blocks(width: int) -> np.ndarray:
    """An orthogonal matrix float32 [size, size], size `block_size(width)`, of entries that are all of one size."""
    size = block_size(width)
    found: np.ndarray = np.ones((1, 1))
    while len(found) < size:  # Sylvester's construction
        found = np.kron([[1, 1], [1, -1]], found)
    return (found / np.sqrt(size)).astype(np.float32)


def norms(model: GPT) -> list[Any]:
    """Those whose scales go into the kernels behind them."""
    return [norm for block in model.blocks for norm in (block.attention_norm, block.feed_forward_norm)] + [
        model.final_norm
    ]


def rotated(model: GPT) -> tuple[list[np.ndarray], np.ndarray]:
    """The values of `model.weights`, float32, for a graph that multiplies with `blocks` before each `down` kernel and
    with the matrix that is returned, float32 [hidden_dim, hidden_dim], before the output head's table."""
    config = model.config
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((config.hidden_dim, config.hidden_dim)))
    turn_down, turn_head = (
        np.kron(np.eye(width // block_size(width)), blocks(width))
        for width in (config.intermediate_dim, config.head_dim)
    )
    values = {id(variable): np.asarray(variable, np.float64) for variable in model.weights}

    def change(variable: Any, before: np.ndarray | None = None, after: np.ndarray | None = None) -> None:
        """`before^T @ kernel @ after`; of a bias, `bias @ after`."""
        if variable is None:
            return
        value = values[id(variable)]
        value = value if before is None or value.ndim == 1 else before.T @ value
        values[id(variable)] = value if after is None else value @ after

    def heads(count: int) -> np.ndarray:
        return np.kron(np.eye(count), turn_head)

    for block in model.blocks:
        attention, network = block.attention, block.feed_forward
        for norm, readers in (
            (block.attention_norm, (attention.query, attention.key, attention.value)),
            (block.feed_forward_norm, (getattr(network, "gate", None), network.up)),
        ):
            scale = values[id(norm.scale)]
            for reader in readers:
                if reader is not None:
                    change(reader.base_kernel, scale[:, None] * turn)
            values[id(norm.scale)] = np.ones_like(scale)
        for part in (attention.value.base_kernel, attention.value.bias):
            change(part, None, heads(config.num_key_value_heads))
        for part in (attention.output_projection.base_kernel, attention.output_projection.bias):
            change(part, heads(config.num_heads), turn)
        for part in (network.down.base_kernel, network.down.bias):
            change(part, turn_down, turn)
    assert model.final_norm is not None
    scale = values[id(model.final_norm.scale)]
    values[id(model.final_norm.scale)] = np.ones_like(scale)
    tied = model.config.tie_embeddings
    change(model.embedding.token_embedding, None, turn)
    if not tied:
        change(model.output_head.table, None, turn)
    before_head = turn.T @ (scale[:, None] * turn)
    return [values[id(v)].astype(np.float32) for v in model.weights], before_head.astype(np.float32)
