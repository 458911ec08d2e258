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

import math
from typing import Any

import numpy as np
from keras import ops

from gpt_keras import kernels
from gpt_keras.attention import Cache, MaskedMultiHeadSelfAttention
from gpt_keras.config import GPTConfig
from gpt_keras.parts import Part, make_norm, register

Tensor = Any


@register
class TokenAndPositionEmbedding(Part):
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
            autocast=False,  # which would cast the whole table for a few rows
        )
        if config.position == "learned":
            self.position_embedding = self.add_weight(
                name="position_embedding",
                shape=(config.context_length, config.hidden_dim),
                initializer=self._normal(),
                autocast=False,
            )
        self.seeds = self._seeds()

    def call(self, token_ids: Tensor, positions: Tensor | None = None, training: bool = False) -> Tensor:
        """Embed int32 `token_ids` [batch, length] at `positions` [batch, length] (default: 0, 1, 2, ...).

        Returns:
            [batch, length, hidden_dim].

        Raises:
            ValueError: More tokens than `context_length` without positions (where the length is known before running).
        """
        config = self.config
        length = token_ids.shape[1]
        counted = positions is None and config.position != "rotary"
        if counted and length is not None and length > config.context_length:
            raise ValueError(
                f"{length} tokens do not fit {config.position} positions of context_length={config.context_length}"
            )
        x = kernels.embed(self.token_embedding, token_ids)
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


@register
class FeedForwardNetwork(Part):
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

    def call(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[batch, length, hidden_dim] of `x`, of the same shape; `residual`, too, is added to the result."""
        if self.config.feed_forward == "swiglu":
            return self.down(kernels.swiglu(self.gate(x), self.up(x)), residual)
        activation = {"gelu": kernels.gelu, "gelu_exact": kernels.gelu_exact, "relu": kernels.relu}
        return self.down(activation[self.config.feed_forward](self.up.product(x), self.up.bias), residual)


@register
class DecoderBlock(Part):
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
        x, seen = self.attention_norm(x, with_input=True) if pre else (x, x)
        if select is not None:
            x = kernels.pick(x, select, axis=1)
        attended = self.attention(
            seen,
            positions=positions,
            attention_mask=attention_mask,
            cache=cache,
            select=select,
            dropout_seed=seeds[0] if seeds else None,
            residual=None if seeds else x,  # what is dropped of the attention's result is not dropped of x
        )
        if cache is not None:
            attended, cache = attended
        x = x + kernels.dropout(attended, rate, seeds[1]) if seeds else attended
        x = x if pre else self.attention_norm(x)
        x, seen = self.feed_forward_norm(x, with_input=True) if pre else (x, x)
        transformed = self.feed_forward(seen, residual=None if seeds else x)
        x = x + kernels.dropout(transformed, rate, seeds[2]) if seeds else transformed
        x = x if pre else self.feed_forward_norm(x)
        return x if cache is None else (x, cache)


@register
class OutputHead(Part):
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
