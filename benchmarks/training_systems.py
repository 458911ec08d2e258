"""The systems that `benchmarks.training` measures: each a function that gives one optimizer step of one shape.

All train the architecture of GPT-2 (LayerNorm before, GELU in its tanh form, learned positions, biases, tied
embeddings) with AdamW and the gradient clipped to a global norm of 1, on the same random tokens.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpt_keras.config import GPTConfig

Measure = Callable[["Case", int], list[float]]
"""A shape and a number of steps, to the seconds of each step; compilation and the first steps are not among them."""

WARM_UP = 3
PATIENCE = 8.0
"""Seconds, after which no further step is begun once two are measured."""
LEARNING_RATE = 1e-3
PACKAGES = {"tensorflow": "tensorflow", "jax": "jax", "keras_hub": "keras-hub", "torch": "torch"}
"""What is imported to what is installed."""


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        config: The model's shape.
        batch_size: Rows of `config.context_length` tokens in a step.
    """

    config: GPTConfig
    batch_size: int

    @property
    def tokens(self) -> np.ndarray:
        """int32 [batch_size, context_length + 1]."""
        shape = (self.batch_size, self.config.context_length + 1)
        return np.random.default_rng(0).integers(0, self.config.vocabulary_size, shape).astype(np.int32)


CASES = {
    "small": Case(GPTConfig(4096, context_length=256, num_layers=6, hidden_dim=384, num_heads=6), 16),
    "gpt2": Case(GPTConfig.from_preset("gpt2", context_length=512), 4),
    "gpt2-1024": Case(GPTConfig.from_preset("gpt2"), 8),
}


@dataclass(frozen=True)
class System:
    """One way to train.

    Attributes:
        measure: Times steps.
        needs: Keys of `PACKAGES`.
        environment: Variables of its process.
    """

    measure: Measure
    needs: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        return [PACKAGES[name] for name in self.needs if importlib.util.find_spec(name) is None]


def _timed(step: Callable[[], Any], steps: int) -> list[float]:
    seconds: list[float] = []
    while len(seconds) < WARM_UP + steps and not _enough(seconds[WARM_UP:]):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def _enough(seconds: Sequence[float]) -> bool:
    """Whether so many steps that took so long are enough."""
    return len(seconds) > 1 and sum(seconds) > PATIENCE


def _fit(model: Any, case: Case, steps: int) -> list[float]:
    """Seconds from one step's end to the next one's, in `model.fit`."""
    import keras

    ends: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            float(logs["loss"])  # waits for the step
            ends.append(time.perf_counter())
            if _enough(np.diff(ends)[WARM_UP:].tolist()):
                self.model.stop_training = True  # on JAX `model` puts the state back into the variables

    tokens, count = case.tokens, WARM_UP + steps + 1
    data: Any = ((tokens[:, :-1], tokens[:, 1:]) for _ in range(count))  # needs no TensorFlow
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        data = tf.data.Dataset.from_tensors((tokens[:, :-1], tokens[:, 1:])).repeat(count)
    model.fit(data, epochs=1, steps_per_epoch=count, verbose=0, callbacks=[Clock()])
    return np.diff(ends)[WARM_UP:].tolist()


def gpt_keras(precision: str, rematerialize: bool = False) -> Measure:
    def measure(case: Case, steps: int) -> list[float]:
        from gpt_keras.model import GPT
        from gpt_keras.training.loss import NextTokenLoss
        from gpt_keras.training.optimizer import make_optimizer
        from gpt_keras.training.options import TrainOptions
        from gpt_keras.training.precision import choose_precision

        model = GPT(case.config, dtype=choose_precision(precision)[0])
        model.rematerialize = rematerialize
        options = TrainOptions(optimizer="adamw", learning_rate=LEARNING_RATE)
        model.compile(make_optimizer(options), NextTokenLoss(), jit_compile="auto")
        return _fit(model, case, steps)

    return measure


def keras_layers(precision: str, xla: bool) -> Measure:
    """The model that Keras's own layers make, as one would write it first."""

    def measure(case: Case, steps: int) -> list[float]:
        import keras
        from keras import layers

        keras.config.set_dtype_policy(precision)
        config = case.config
        tokens = keras.Input((config.context_length,), dtype="int32")
        embedding = layers.Embedding(config.vocabulary_size, config.hidden_dim)
        positions = layers.Embedding(config.context_length, config.hidden_dim)
        x = embedding(tokens) + positions(keras.ops.arange(config.context_length))
        for _ in range(config.num_layers):
            y = layers.LayerNormalization(epsilon=1e-5)(x)
            x = x + layers.MultiHeadAttention(config.num_heads, config.head_dim)(y, y, use_causal_mask=True)
            y = layers.Dense(config.intermediate_dim)(layers.LayerNormalization(epsilon=1e-5)(x))
            x = x + layers.Dense(config.hidden_dim)(keras.activations.gelu(y, approximate=True))
        x = layers.LayerNormalization(epsilon=1e-5)(x)
        model = keras.Model(tokens, layers.Lambda(lambda x: x @ keras.ops.transpose(embedding.embeddings))(x))
        model.compile(
            keras.optimizers.AdamW(LEARNING_RATE, global_clipnorm=1.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=xla,
        )
        return _fit(model, case, steps)

    return measure


def keras_hub(precision: str) -> Measure:
    def measure(case: Case, steps: int) -> list[float]:
        import keras
        from keras_hub.models import GPT2Backbone, GPT2CausalLM

        config = case.config
        backbone = GPT2Backbone(
            config.vocabulary_size,
            config.num_layers,
            config.num_heads,
            config.hidden_dim,
            config.intermediate_dim,
            dropout=0.0,
            max_sequence_length=config.context_length,
            dtype=precision,
        )
        model = GPT2CausalLM(backbone, preprocessor=None)
        model.compile(
            keras.optimizers.AdamW(LEARNING_RATE, global_clipnorm=1.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[],
        )
        tokens = case.tokens
        inputs = {"token_ids": tokens[:, :-1], "padding_mask": np.ones_like(tokens[:, :-1])}
        return _timed(lambda: float(model.train_on_batch(inputs, tokens[:, 1:])), steps)

    return measure


def torch_gpt(config: GPTConfig) -> Any:
    """A module of PyTorch as its users write a GPT for speed: one product for query, key and value, and its own fused
    attention. Called with token ids and targets, int64 [batch, length], it gives their mean loss."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, heads, vocabulary = config.hidden_dim, config.num_heads, config.vocabulary_size

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            batch, length, _ = x.shape
            parts = self.qkv(self.norm1(x)).split(width, 2)
            query, key, value = (part.view(batch, length, heads, -1).transpose(1, 2) for part in parts)
            y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(vocabulary, width)
            self.positions = nn.Embedding(config.context_length, width)
            self.blocks = nn.ModuleList(Block() for _ in range(config.num_layers))
            self.norm = nn.LayerNorm(width)
            for part in self.modules():
                if isinstance(part, nn.Linear | nn.Embedding):
                    nn.init.normal_(part.weight, std=0.02)

        def forward(self, tokens: Any, targets: Any, reduction: str = "mean") -> Any:
            x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.norm(x), self.tokens.weight)
            return functional.cross_entropy(logits.view(-1, vocabulary), targets.reshape(-1), reduction=reduction)

    torch.set_float32_matmul_precision("high")
    return Model()


def torch_model(precision: str, compiled: bool) -> Measure:
    """`torch_gpt`, also compiled."""

    def measure(case: Case, steps: int) -> list[float]:
        import torch
        from torch import nn

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = torch_gpt(case.config).to(device)
        run = torch.compile(model) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), fused=True)
        data = torch.from_numpy(case.tokens).long().to(device)

        def step() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=precision != "float32"):
                loss = run(data[:, :-1], data[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            float(loss.detach())

        return _timed(step, steps)

    return measure


TENSORFLOW, JAX = {"KERAS_BACKEND": "tensorflow"}, {"KERAS_BACKEND": "jax"}
SYSTEMS = {
    "gpt_keras tensorflow auto": System(gpt_keras("auto"), ("tensorflow",), TENSORFLOW),
    "gpt_keras tensorflow mixed_bfloat16": System(gpt_keras("mixed_bfloat16"), ("tensorflow",), TENSORFLOW),
    "gpt_keras tensorflow float32": System(gpt_keras("float32"), ("tensorflow",), TENSORFLOW),
    "gpt_keras tensorflow rematerialized": System(gpt_keras("auto", True), ("tensorflow",), TENSORFLOW),
    "gpt_keras jax auto": System(gpt_keras("auto"), ("jax",), JAX),
    "keras_hub tensorflow mixed_bfloat16": System(keras_hub("mixed_bfloat16"), ("keras_hub", "tensorflow"), TENSORFLOW),
    "keras_hub tensorflow float32": System(keras_hub("float32"), ("keras_hub", "tensorflow"), TENSORFLOW),
    "keras layers mixed_bfloat16": System(keras_layers("mixed_bfloat16", False), ("tensorflow",), TENSORFLOW),
    "keras layers float32 XLA": System(keras_layers("float32", True), ("tensorflow",), TENSORFLOW),
    "torch eager float32": System(torch_model("float32", False), ("torch",)),
    "torch eager bfloat16": System(torch_model("bfloat16", False), ("torch",)),
    "torch compile bfloat16": System(torch_model("bfloat16", True), ("torch",)),
    "torch compile float32": System(torch_model("float32", True), ("torch",)),
}
