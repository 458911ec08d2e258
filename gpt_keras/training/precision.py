"""Choosing the arithmetic: `auto` takes what is fastest on the hardware found."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np


def choose_precision(wanted: str) -> tuple[str, str]:
    """The Keras dtype policy for `auto`, `float32` or `mixed_bfloat16`, and a few words on why.

    Accelerators get mixed_bfloat16. On a CPU with TensorFlow both are timed on a matrix product, since processors that
    have bfloat16 instructions differ in whether they are the faster ones; JAX on a CPU is faster in float32 on all.
    """
    if wanted != "auto":
        return wanted, "as asked"
    if keras.backend.backend() == "jax":
        import jax

        kind = jax.devices()[0].platform
        return ("float32", "JAX on a CPU") if kind == "cpu" else ("mixed_bfloat16", f"JAX on {kind.upper()}")
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return "mixed_bfloat16", "a GPU was found"
    narrow, wide = _product_seconds(tf.bfloat16), _product_seconds(tf.float32)
    ratio = wide / narrow
    # Half the memory traffic comes on top of a faster product; the casts around it cost some of it.
    return ("mixed_bfloat16" if ratio > 1.1 else "float32"), f"a bfloat16 matrix product is {ratio:.1f} x as fast here"


def _product_seconds(dtype: Any, size: int = 768) -> float:
    """Seconds of one product of two square matrices: the fastest of several."""
    import tensorflow as tf

    a = tf.cast(tf.random.stateless_normal((size, size), seed=(1, 2)), dtype)
    product = tf.function(lambda x: tf.matmul(x, x))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        np.asarray(tf.cast(product(a)[0, 0], tf.float32))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
