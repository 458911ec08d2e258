"""Arithmetic of a training step, on paper and as this machine does it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

from gpt_keras.config import GPTConfig


def training_flops_per_token(config: GPTConfig) -> float:
    """Floating-point operations of forward and backward pass for one token: 6 for each weight of a matrix, and
    12 * layers * heads * head_dim * context_length for attention, halved since no token looks ahead.

    Recomputation is not counted, nor is what is looked up instead of multiplied.

    Source: Chowdhery et al. 2022 (PaLM), appendix B, https://arxiv.org/abs/2204.02311.
    """
    matrices = sum(math.prod(shape) for path, shape in config.weight_shapes() if len(shape) == 2)
    looked_up = config.hidden_dim * config.context_length if config.position == "learned" else 0
    if not config.tie_embeddings:
        looked_up += config.hidden_dim * config.vocabulary_size
    attention = 6 * config.num_layers * config.num_heads * config.head_dim * config.context_length
    return 6.0 * (matrices - looked_up) + attention


def measured_flops_per_second(dtype: str, seconds: float = 0.5, size: int | None = None) -> float:
    """What this machine's matrix products reach in `dtype`; see `compare_products`."""
    return compare_products((dtype,), seconds, size)[dtype]


def compare_products(dtypes: Sequence[str], seconds: float = 0.5, size: int | None = None) -> dict[str, float]:
    """Floating-point operations a second in each dtype: the best of square products of `size`, by default 1024 on a CPU
    and 8192 elsewhere, in turns, so that what else the machine does meanwhile strikes all alike."""
    products = {dtype: _product(dtype, size) for dtype in dtypes}
    best = dict.fromkeys(dtypes, 0.0)
    start = time.perf_counter()
    rounds = 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        rounds += 1
        for dtype, (run, operations) in products.items():
            begin = time.perf_counter()
            run()
            best[dtype] = max(best[dtype], operations / (time.perf_counter() - begin))
    return best


def _product(dtype: str, size: int | None) -> tuple[Callable[[], None], float]:
    """A product that has run once, and its operations."""
    if keras.backend.backend() == "jax":
        import jax

        size = size or (1024 if jax.default_backend() == "cpu" else 8192)
        product = jax.jit(lambda x: x @ x)
        x = jax.random.normal(jax.random.key(0), (size, size), dtype)  # a GPU multiplies ones faster

        def run() -> None:
            product(x).block_until_ready()

    else:
        import tensorflow as tf

        size = size or (8192 if tf.config.list_physical_devices("GPU") else 1024)
        multiply = tf.function(tf.matmul)
        y = tf.cast(tf.random.stateless_normal((size, size), (0, 0)), dtype)

        def run() -> None:
            np.asarray(tf.cast(multiply(y, y)[0, 0], tf.float32))

    run()
    return run, 2.0 * size**3
