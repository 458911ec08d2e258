"""The parts of a Transformer decoder, one Keras layer each, in the order a token passes through them.

    token ids ── TokenAndPositionEmbedding ── DecoderBlock x N ── norm ── OutputHead ── logits ── softmax
                                                 │
                                MaskedMultiHeadSelfAttention, add & normalize,
                                FeedForwardNetwork,           add & normalize

Every option of `GPTConfig` is a choice inside one of these parts. Shapes: `batch`, `length` (of the tokens given),
`slots` (of the cache), the rest as in `GPTConfig`. Activations are in the layer's compute dtype; normalization and
softmax work in float32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from gpt_keras import kernels
from gpt_keras.config import GPTConfig

Tensor = Any
Cache = tuple[Tensor, Tensor]
"""One layer's (keys, values), each [batch, num_key_value_heads, slots, head_dim]."""

_register = keras.saving.register_keras_serializable(package="gpt_keras")
_zero_weights: ContextVar[bool] = ContextVar("zero_weights", default=False)


@contextlib.contextmanager
def zero_weights() -> Iterator[None]:
    """A model built inside starts from zeros: for one that is filled next, since drawing 124 million takes seconds."""
    token = _zero_weights.set(True)
    try:
        yield
    finally:
        _zero_weights.reset(token)


class _Part(layers.Layer):
    """A layer that is described by the model's configuration alone."""

    def __init__(self, config: GPTConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.config.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _Part:
        return cls(**{**config, "config": GPTConfig(**config["config"])})

    def compute_output_shape(self, input_shape: tuple[int | None, ...], **_: Any) -> tuple[int | None, ...]:
        return input_shape

    def _normal(self, residual: bool = False) -> keras.initializers.Initializer:
        """Normal(0, initializer_range); smaller by sqrt(2 * num_layers) for a projection back into the residual
        stream, so that the stream's variance does not grow with depth (Radford et al. 2019, GPT-2, section 2.3)."""
        if _zero_weights.get():
            return keras.initializers.Zeros()
        shrink = math.sqrt(2 * self.config.num_layers) if residual else 1.0
        return keras.initializers.RandomNormal(stddev=self.config.initializer_range / shrink)

    def _seeds(self) -> Any:
        """Of what dropout drops; `None` without dropout."""
        return keras.random.SeedGenerator() if self.config.dropout else None

    def _dense(self, part: str, units: int, name: str, residual: bool = False) -> layers.Dense:
        return Projection(
            units,
            use_bias=self.config.has_bias(part),
            kernel_initializer=self._normal(residual),
            dtype=self.dtype_policy,
            name=name,
        )


@_register
class Projection(layers.Dense):
    """A Dense layer without activation, whose product `kernels.linear` does."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return kernels.linear(inputs, self.kernel, self.bias)


@_register
class RMSNorm(layers.Layer):
    """Divide by the root mean square of the last axis, multiply by a learned scale.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones", autocast=False)

    def call(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.scale, self.epsilon)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


@_register
class LayerNorm(layers.Layer):
    """Subtract the mean of the last axis, divide by its standard deviation, learned scale and bias.

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones", autocast=False)
        self.bias = self.add_weight(name="bias", shape=(input_shape[-1],), initializer="zeros", autocast=False)

    def call(self, x: Tensor) -> Tensor:
        return kernels.layer_norm(x, self.scale, self.bias, self.epsilon)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


def make_norm(config: GPTConfig, **kwargs: Any) -> layers.Layer:
    """The normalization that the configuration names."""
    norm = RMSNorm if config.normalization == "rms_norm" else LayerNorm
    return norm(epsilon=config.norm_epsilon, **kwargs)


@_register
class TokenAndPositionEmbedding(_Part):
    """Each token id becomes a learned vector; its position is added to it.

    `learned` positions are a second table (GPT-1, GPT-2). `sinusoidal` ones are fixed waves, and the token vectors are
    scaled by sqrt(hidden_dim) to be of the waves' size (Vaswani et al. 2017, sections 3.4 and 3.5). `rotary`
    positions enter later, inside the attention; here nothing is added.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        config = self.config
        self.token_embedding = self.add_weight(
            name="token_embedding",
            shape=(config.vocabulary_size, config.hidden_dim),
            initializer=self._normal(),
        )
        if config.position == "learned":
            self.position_embedding = self.add_weight(
                name="position_embedding",
                shape=(config.context_length, config.hidden_dim),
                initializer=self._normal(),
            )
        self.seeds = self._seeds()

    def call(self, token_ids: Tensor, positions: Tensor | None = None, training: bool = False) -> Tensor:
        """Embed int32 `token_ids` [batch, length] at `positions` [batch, length] (default: 0, 1, 2, ...).

        Returns:
            [batch, length, hidden_dim].

        Raises:
            ValueError: More tokens than `context_length` (where the length is known before running).
        """
        config = self.config
        length = token_ids.shape[1]
        if length is not None and length > config.context_length and config.position != "rotary":
            raise ValueError(
                f"{length} tokens do not fit {config.position} positions of context_length={config.context_length}"
            )
        x = ops.take(self.token_embedding, token_ids, axis=0)
        if config.position != "rotary":
            if positions is None:
                positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")[None]
            if config.position == "learned":
                x = x + ops.take(self.position_embedding, positions, axis=0)
            else:
                waves = ops.convert_to_tensor(sinusoids(config.context_length, config.hidden_dim), dtype=x.dtype)
                x = x * math.sqrt(config.hidden_dim) + ops.take(waves, positions, axis=0)
        x = ops.cast(x, self.compute_dtype)
        return kernels.dropout(x, config.dropout, self.seeds.next()) if training and config.dropout else x

    def compute_output_shape(self, input_shape: tuple[int | None, ...], **_: Any) -> tuple[int | None, ...]:
        return (*input_shape, self.config.hidden_dim)


def sinusoids(length: int, dim: int) -> np.ndarray:
    """PE(pos, 2i) = sin(pos / 10000^(2i/dim)), PE(pos, 2i+1) = cos(same), float32 [length, dim].

    Source: Vaswani et al. 2017, section 3.5.
    """
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, dim, 2)[None] / dim)
    table = np.zeros((length, dim), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)[:, : dim // 2]
    return table


@_register
class RotaryEmbedding(_Part):
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


@_register
class MaskedMultiHeadSelfAttention(_Part):
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

        Returns:
            [batch, length, hidden_dim]; with a cache, the pair of that and the cache with this call's entries.
        """
        query, key, value = self.project(x, positions)
        if cache is not None:
            key = kernels.write_cache(cache[0], key, positions)
            value = kernels.write_cache(cache[1], value, positions)
            cache = (key, value)
        if cache is None and select is None:
            rate = self.config.dropout
            gathered = kernels.causal_attention(query, key, value, attention_mask, rate, dropout_seed)
            return self.output_projection(kernels.merge_heads(gathered))
        slots = positions if cache is not None else None
        if select is not None:
            query = kernels.pick(query, select, axis=2)
            slots = select[:, None] if slots is None else kernels.pick(slots, select, axis=1)
            attention_mask = None if attention_mask is None else kernels.pick(attention_mask, select, axis=1)
        probabilities = self.probabilities(query, key, slots, attention_mask)
        gathered = kernels.weighted_values(probabilities, value)
        output = self.output_projection(kernels.merge_heads(gathered))
        return output if cache is None else (output, cache)

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, num_heads, length, head_dim], and keys and values [batch, num_key_value_heads, length,
        head_dim], normalized and rotated where the configuration says so. Arguments as `call`."""
        weights = [(part.kernel, part.bias) for part in (self.query, self.key, self.value)]
        query, key, value = kernels.project_heads(x, weights, self.config.head_dim)
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


@_register
class FeedForwardNetwork(_Part):
    """The same two-layer network at every position: `down(gelu(up(x)))` (or relu) or `down(silu(gate(x)) * up(x))`.

    Source: Vaswani et al. 2017, section 3.3; GELU, Hendrycks and Gimpel 2016; SwiGLU, Shazeer 2020.
    """

    def __init__(self, config: GPTConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if config.feed_forward == "swiglu":
            self.gate = self._dense("feed_forward", config.intermediate_dim, "gate")
        self.up = self._dense("feed_forward", config.intermediate_dim, "up")
        self.down = self._dense("feed_forward", config.hidden_dim, "down", residual=True)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if self.config.feed_forward == "swiglu":
            self.gate.build(input_shape)
        self.up.build(input_shape)
        self.down.build((*input_shape[:-1], self.config.intermediate_dim))

    def call(self, x: Tensor) -> Tensor:
        if self.config.feed_forward == "swiglu":
            return self.down(kernels.swiglu(self.gate(x), self.up(x)))
        activation = {"gelu": kernels.gelu, "gelu_exact": kernels.gelu_exact, "relu": kernels.relu}
        return self.down(activation[self.config.feed_forward](kernels.linear(x, self.up.kernel), self.up.bias))


@_register
class DecoderBlock(_Part):
    """Self-attention, then the feed-forward network, each wrapped in a residual connection: add & normalize.

    `pre`:  x + f(norm(x)), GPT-2's order, which trains without warm-up tricks (Xiong et al. 2020).
    `post`: norm(x + f(x)), the original one (Vaswani et al. 2017, GPT-1).
    """

    def __init__(self, config: GPTConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.attention = MaskedMultiHeadSelfAttention(config, dtype=self.dtype_policy, name="attention")
        self.attention_norm = make_norm(config, dtype=self.dtype_policy, name="attention_norm")
        self.feed_forward = FeedForwardNetwork(config, dtype=self.dtype_policy, name="feed_forward")
        self.feed_forward_norm = make_norm(config, dtype=self.dtype_policy, name="feed_forward_norm")
        self.seeds = self._seeds()

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for part in (self.attention, self.attention_norm, self.feed_forward, self.feed_forward_norm):
            part.build(input_shape)

    def call(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        select: Tensor | None = None,
        training: bool | None = None,
        dropout_seed: Tensor | None = None,
    ) -> Any:
        """One block. Arguments and result as `MaskedMultiHeadSelfAttention.call`.

        In training `dropout_seed` says what is dropped, by default the next one of the block's own: so a call that is
        repeated with the same seed, by `rematerialized`, gives the same.
        """
        pre, rate = self.config.norm_order == "pre", self.config.dropout
        seeds: list[Tensor] = []
        if training and rate:
            dropout_seed = self.seeds.next() if dropout_seed is None else dropout_seed
            seeds = [kernels.fold_seed(dropout_seed, number) for number in range(3)]
        attended = self.attention(
            self.attention_norm(x) if pre else x,
            positions=positions,
            attention_mask=attention_mask,
            cache=cache,
            select=select,
            dropout_seed=seeds[0] if seeds else None,
        )
        if cache is not None:
            attended, cache = attended
        if select is not None:
            x = kernels.pick(x, select, axis=1)
        x = x + (kernels.dropout(attended, rate, seeds[1]) if seeds else attended)
        x = x if pre else self.attention_norm(x)
        transformed = self.feed_forward(self.feed_forward_norm(x) if pre else x)
        x = x + (kernels.dropout(transformed, rate, seeds[2]) if seeds else transformed)
        x = x if pre else self.feed_forward_norm(x)
        return x if cache is None else (x, cache)


@_register
class OutputHead(_Part):
    """A score for every token of the vocabulary; `probabilities` turns the scores into a distribution.

    Tied, the scores are dot products with the token embedding's own rows (Press and Wolf 2017,
    https://arxiv.org/abs/1608.05859); untied, with a matrix of the head's own.

    Args:
        config: The model's configuration.
        embedding: The model's embedding layer, built; used where `config.tie_embeddings`.
    """

    def __init__(self, config: GPTConfig, embedding: TokenAndPositionEmbedding | None = None, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if config.tie_embeddings and embedding is None:
            raise ValueError("a tied output head needs the embedding layer whose table it shares")
        self.embedding = embedding if config.tie_embeddings else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if self.embedding is None:
            self.kernel = self.add_weight(
                name="output_embedding",
                shape=(self.config.vocabulary_size, self.config.hidden_dim),
                initializer=self._normal(),
            )

    def call(self, x: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary_size] of hidden states `x` [batch, length, hidden_dim]."""
        return kernels.project_to_vocabulary(x, ops.cast(self.table, x.dtype))

    @property
    def table(self) -> Any:
        """The variable [vocabulary_size, hidden_dim] that the scores are products with."""
        return self.kernel if self.embedding is None else self.embedding.token_embedding

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Softmax over the vocabulary in float32: the probability of each token being next."""
        return ops.softmax(ops.cast(logits, "float32"), axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...], **_: Any) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.config.vocabulary_size)
