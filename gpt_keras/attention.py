"""Masked multi-head self-attention, and the rotary positions inside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from gpt_keras import kernels
from gpt_keras.config import GPTConfig
from gpt_keras.parts import Part, RMSNorm, register

Tensor = Any
Cache = tuple[Tensor, Tensor]
"""One layer's (keys, values), each [batch, num_key_value_heads, slots, head_dim]."""


@register
class RotaryEmbedding(Part):
    """Turn each pair of dimensions of a head by an angle proportional to the token's position.

    The dot product of a query and a key then depends only on how far apart they are. Dimension i is paired with
    i + head_dim / 2, as Llama's and Qwen's checkpoints are.

    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """

    def call(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Rotate `x` [batch, heads, length, head_dim] by `positions` int [batch, length] (default: 0, 1, 2, ...)."""
        if positions is None:
            positions = ops.arange(ops.shape(x)[2], dtype="int32")[None]
        frequencies = ops.convert_to_tensor(rotary_frequencies(self.config), dtype="float32")
        angles = ops.cast(positions, "float32")[:, None, :, None] * frequencies
        return kernels.rotate(x, ops.cos(angles), ops.sin(angles))


def rotary_frequencies(config: GPTConfig) -> np.ndarray:
    """How far, in radians, one position turns each pair of dimensions: float64 [head_dim / 2].

    Sources: Su et al. 2021, section 3.2.2; `RopeScaling` names those of the scaled ones.
    """
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-np.arange(half) / half)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    kept = np.zeros(half)
    if scaling.kind == "llama3":
        turns = scaling.original_context_length * frequencies / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


@register
class MaskedMultiHeadSelfAttention(Part):
    """Every token gathers from the tokens before it: softmax(Q K^T / sqrt(head_dim)) V, in several heads at once.

    The mask is what makes the model autoregressive: no token sees a later one. Training, prefill and decoding all run
    `call`; with a cache, keys and values of earlier tokens come from there.

    Source: Vaswani et al. 2017, section 3.2; grouped-query attention, Ainslie et al. 2023; QK-norm, Henry et al. 2020.
    """

    def __init__(self, config: GPTConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.query = self._dense("attention", config.num_heads * config.head_dim, "query")
        self.key = self._dense("attention", config.num_key_value_heads * config.head_dim, "key")
        self.value = self._dense("attention", config.num_key_value_heads * config.head_dim, "value")
        self.output_projection = self._dense("attention", config.hidden_dim, "output", residual=True)
        if config.qk_norm:
            self.query_norm = RMSNorm(config.norm_epsilon, dtype=self.dtype_policy, name="query_norm")
            self.key_norm = RMSNorm(config.norm_epsilon, dtype=self.dtype_policy, name="key_norm")
        if config.position == "rotary":
            self.rotary = RotaryEmbedding(config, dtype=self.dtype_policy, name="rotary")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        config = self.config
        for projection in (self.query, self.key, self.value):
            projection.build(input_shape)
        self.output_projection.build((*input_shape[:-1], config.num_heads * config.head_dim))
        if config.qk_norm:
            self.query_norm.build((None, None, None, config.head_dim))
            self.key_norm.build((None, None, None, config.head_dim))

    def call(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        select: Tensor | None = None,
        dropout_seed: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Any:
        """Attend over the tokens of `x`, and over the cache where one is given.

        Args:
            x: [batch, length, hidden_dim].
            positions: int32 [batch, length]; with a cache, also the slots that this call's keys and values go to.
            attention_mask: Boolean [batch or 1, length, length or slots], true where a query may look, in addition to
                causality; for padding or document boundaries.
            cache: Keys and values of this layer, or `None` to attend only within `x`.
            select: int32 [batch]; only this one token of each row attends, and the result's length is 1.
            dropout_seed: For dropout of the probabilities, in training and without cache; `None` for none.
            residual: Added to the result, whose shape it has.

        Returns:
            [batch, length, hidden_dim]; with a cache, the pair of that and the cache with this call's entries.
        """
        query, key, value = self.project(x, positions)
        if cache is not None:
            gathered, cache = kernels.cached_attention(query, key, value, cache, positions, attention_mask, select)
            return self.output_projection(kernels.merge_heads(gathered), residual), cache
        if select is None:
            rate = self.config.dropout
            gathered = kernels.causal_attention(query, key, value, attention_mask, rate, dropout_seed)
            return self.output_projection(kernels.merge_heads(gathered), residual)
        query, slots = kernels.pick(query, select, axis=2), select[:, None]
        attention_mask = None if attention_mask is None else kernels.pick(attention_mask, select, axis=1)
        probabilities = self.probabilities(query, key, slots, attention_mask)
        gathered = kernels.weighted_values(probabilities, value)
        return self.output_projection(kernels.merge_heads(gathered), residual)

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, num_heads, length, head_dim], and keys and values [batch, num_key_value_heads, length,
        head_dim], normalized and rotated where the configuration says so. Arguments as `call`."""
        parts, head_dim = (self.query, self.key, self.value), self.config.head_dim
        if any(part.lora_enabled or part.kernel_scale is not None for part in parts):
            query, key, value = (kernels.split_heads(part(x), head_dim) for part in parts)
        else:
            weights = [(part.base_kernel, part.bias) for part in parts]
            query, key, value = kernels.project_heads(x, weights, head_dim)
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.config.position == "rotary":
            query, key = self.rotary(query, positions=positions), self.rotary(key, positions=positions)
        return query, key, value

    def probabilities(
        self, query: Tensor, key: Tensor, slots: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """How much each query takes from each key, [batch, num_heads, length, keys]; every row adds up to 1.

        Args:
            query: From `project`.
            key: From `project`, or the cache's.
            slots: int32 [batch, length]; the queries' places among the keys (default: 0, 1, 2, ...).
            attention_mask: As `call`.
        """
        visible = self._causal_mask(query, key, slots)
        if attention_mask is not None:
            visible = ops.logical_and(visible, attention_mask)
        return kernels.attention_probabilities(query, key, visible)

    def _causal_mask(self, query: Tensor, key: Tensor, positions: Tensor | None) -> Tensor:
        """Boolean [batch or 1, length, slots]: a query at position p sees the slots 0 to p."""
        if positions is None:
            positions = ops.arange(ops.shape(query)[2], dtype="int32")[None]
        return ops.arange(ops.shape(key)[2], dtype="int32")[None, None, :] <= positions[:, :, None]
