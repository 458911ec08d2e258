"""`GPT`: a functional `keras.Model` over the parts in `layers.py`, and the one step function that all else calls."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from gpt_keras import kernels
from gpt_keras.attention import Cache
from gpt_keras.config import GPTConfig
from gpt_keras.layers import DecoderBlock, OutputHead, TokenAndPositionEmbedding
from gpt_keras.parts import make_norm
from gpt_keras.training.steps import TrainedModel, loss_has_head

Tensor = Any


@keras.saving.register_keras_serializable(package="gpt_keras")
class GPT(TrainedModel):
    """A Transformer decoder: token ids in, logits for the next token at every position out.

    `model(token_ids)` maps int32 [batch, length] to logits [batch, length, vocabulary_size] in the compute dtype.
    It is an ordinary functional model: `summary()`, `fit()`, `save()` and `keras.saving.load_model()` work.

    Rows that hold several documents are given as a dictionary of int32 [batch, length], as `gpt_keras.data.pretraining`
    and `gpt_keras.data.finetuning` make it: `token_ids`, `positions` and `segment_ids`. A token then sees the tokens
    before it that have its own segment id, and nothing else.

    Args:
        config: The shape of the model.
        **kwargs: `name`, `dtype` (a dtype or policy for every layer) of `keras.Model`.

    Attributes:
        rematerialize: Set it before training to keep, for the gradient, only what goes into each block and compute
            the rest again: a third more work, for a fraction of the memory.

    Example:
        >>> model = GPT(GPTConfig.from_preset("nano"))
        >>> model(np.zeros((1, 16), "int32")).shape
        (1, 16, 1024)
    """

    def __init__(self, config: GPTConfig, **kwargs: Any) -> None:
        dtype = kwargs.pop("dtype", None)
        kwargs.setdefault("name", "gpt")

        # === Layers ===
        embedding = TokenAndPositionEmbedding(config, dtype=dtype, name="embedding")
        blocks = [DecoderBlock(config, dtype=dtype, name=f"block_{i}") for i in range(config.num_layers)]
        # After post-norm blocks the stream is normalized already.
        final_norm = make_norm(config, dtype=dtype, name="final_norm") if config.norm_order == "pre" else None
        head = OutputHead(config, embedding, dtype=dtype, name="output_head")

        # === Functional model ===
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        x = embedding(token_ids)
        for block in blocks:
            x = block(x)
        if final_norm is not None:
            x = final_norm(x)
        super().__init__(inputs=token_ids, outputs=head(x), **kwargs)

        # === Config ===
        self.config = config
        self.embedding = embedding
        self.blocks = blocks
        self.final_norm = final_norm
        self.output_head = head
        self.input_spec = None  # which would refuse the dictionary
        self.rematerialize = False

    def call(self, inputs: Tensor | dict[str, Tensor], training: bool | None = None, mask: Any = None) -> Tensor:
        """Logits for token ids, or for token ids with positions and segment ids; see the class."""
        if not isinstance(inputs, dict):
            if loss_has_head() or (training and self.rematerialize):
                x, _ = self.hidden_states(inputs, training=training)
                return x if loss_has_head() else self.output_head(x)
            return super().call(inputs, training=training, mask=mask)
        # Under a distribution strategy of TensorFlow, Keras tries a batch of float32 first.
        inputs = {name: ops.cast(value, "int32") for name, value in inputs.items()}
        segments = inputs["segment_ids"]
        same_document = segments[:, :, None] == segments[:, None, :]
        x, _ = self.hidden_states(inputs["token_ids"], inputs["positions"], same_document, training=training)
        return x if loss_has_head() else self.output_head(x)

    def step(
        self,
        token_ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: list[Cache] | None = None,
        select: Tensor | None = None,
    ) -> tuple[Tensor, list[Cache] | None]:
        """One pass over `length` tokens: prefill with many, decoding with one.

        Args:
            token_ids: int32 [batch, length].
            positions: int32 [batch, length]; the place of each token in its row, and its slot in the cache. Required
                with a cache, else 0, 1, 2, ... Padding behind a prompt takes the positions behind it: what it writes
                is never seen, since a query looks only at slots up to its own position, and is overwritten later.
            mask: Boolean [batch or 1, length, slots], in addition to causality (`MaskedMultiHeadSelfAttention`).
            cache: From `make_cache` or an earlier step.
            select: int32 [batch]; give logits for this one index of each row only, the last token of a prompt, say.

        Returns:
            Logits [batch, length (1 with `select`), vocabulary_size], and the cache with this call's tokens in it.
        """
        x, cache = self.hidden_states(token_ids, positions, mask, cache, select)
        return self.output_head(x), cache

    def hidden_states(
        self,
        token_ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: list[Cache] | None = None,
        select: Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, list[Cache] | None]:
        """What the output head sees, [batch, length (1 with `select`), hidden_dim], and the cache. Arguments as `step`.

        With `select` the last block leaves out what nobody asks for: a sixteenth of the work of 12 layers.
        """
        if cache is not None and positions is None:
            raise ValueError("a step with a cache needs the tokens' positions")
        x = self.embedding(token_ids, positions=positions, training=training)
        new_cache: list[Cache] = []
        for i, block in enumerate(self.blocks):
            if self.rematerialize and training:
                seed = block.seeds.next() if block.seeds else None  # outside, where it counts up only once
                x = kernels.rematerialized(
                    functools.partial(
                        block.__call__, positions=positions, attention_mask=mask, training=True, dropout_seed=seed
                    ),
                    x,
                )
                continue
            x = block(
                x,
                positions=positions,
                attention_mask=mask,
                cache=None if cache is None else cache[i],
                select=select if block is self.blocks[-1] else None,
                training=training,
            )
            if cache is not None:
                x, entry = x
                new_cache.append(entry)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x, new_cache if cache is not None else None

    def attention_maps(self, token_ids: Tensor, positions: Tensor | None = None) -> list[Tensor]:
        """Where every token looks: the attention probabilities of each layer's heads, as the model itself uses them.

        Args:
            token_ids: int32 [batch, length].
            positions: int32 [batch, length] (default: 0, 1, 2, ...).

        Returns:
            For each layer float32 [batch, num_heads, length, length]: row q is what the token at q gathers from the
            tokens at 0 to q, and adds up to 1.
        """
        maps = []
        x = self.embedding(ops.convert_to_tensor(token_ids, dtype="int32"), positions=positions)
        for block in self.blocks:
            seen = block.attention_norm(x) if self.config.norm_order == "pre" else x
            query, key, _ = block.attention.project(seen, positions)
            maps.append(ops.cast(block.attention.probabilities(query, key), "float32"))
            x = block(x, positions=positions)
        return maps

    def make_cache(self, batch_size: Any, length: int) -> list[Cache]:
        """Empty keys and values for `batch_size` rows of up to `length` tokens, one pair a layer.

        Each buffer is [batch_size, num_key_value_heads, length, head_dim] in the compute dtype.
        """
        shape = (batch_size, self.config.num_key_value_heads, length, self.config.head_dim)
        zeros = [(ops.zeros(shape, self.compute_dtype), ops.zeros(shape, self.compute_dtype)) for _ in self.blocks]
        return zeros

    @property
    def compute_dtype(self) -> str:
        """The dtype of activations, caches and logits."""
        return self.embedding.compute_dtype

    @contextlib.contextmanager
    def computing_in(self, dtype: str) -> Iterator[None]:
        """What is called, or traced, inside is computed in another dtype than the model's own."""
        layers = [] if dtype == self.compute_dtype else self._flatten_layers(include_self=False)
        kept = [(layer, layer.dtype_policy) for layer in layers]
        try:
            for layer, _ in kept:
                layer.dtype_policy = dtype
            yield
        finally:
            for layer, policy in kept:
                layer.dtype_policy = policy

    def get_config(self) -> dict[str, Any]:
        return {"config": self.config.to_dict(), "name": self.name, "dtype": self.embedding.dtype_policy.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> GPT:
        return cls(**{**config, "config": GPTConfig(**config["config"])})
