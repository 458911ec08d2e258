"""What a GPU does faster than the reference, on JAX; XLA fuses the rest of a block by itself."""

from __future__ import annotations

from typing import Any

from keras import ops

from gpt_keras import kernels

Tensor = Any


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """As the reference, which is what runs where probabilities are dropped; else Keras's own attention, which takes
    cuDNN's flash attention where the GPU has it.

    Source: Dao et al. 2022, https://arxiv.org/abs/2205.14135.
    """
    if dropout_seed is not None:
        reference = kernels.causal_attention.__wrapped__  # type: ignore[attr-defined]
        return reference(query, key, value, mask, dropout_rate, dropout_seed)
    query, key, value = (ops.swapaxes(x, 1, 2) for x in (query, key, value))
    mask = None if mask is None else mask[:, None]
    return ops.swapaxes(ops.dot_product_attention(query, key, value, mask=mask, is_causal=True), 1, 2)


KERNELS = {"causal_attention": causal_attention}
