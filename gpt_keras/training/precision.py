"""Choosing the arithmetic: `auto` takes what is fastest on the hardware found."""

from __future__ import annotations

import keras

from gpt_keras.training.flops import compare_products


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
    speed = compare_products(("bfloat16", "float32"))
    ratio = speed["bfloat16"] / speed["float32"]
    # Half the memory traffic comes on top of a faster product; the casts around it cost some of it.
    return ("mixed_bfloat16" if ratio > 1.1 else "float32"), f"a bfloat16 matrix product is {ratio:.1f} x as fast here"
