"""Choosing the arithmetic: `auto` takes what is fastest on the hardware found."""

from __future__ import annotations

from pathlib import Path

import keras

from gpt_keras.training.checkpoint import recorded_precision
from gpt_keras.training.flops import compare_products


def choose_precision(wanted: str, checkpoints: Path | None = None) -> tuple[str, str]:
    """The Keras dtype policy for `auto`, `float32` or `mixed_bfloat16`, and a few words on why.

    Accelerators get mixed_bfloat16, except GPUs without such instructions. On a CPU with TensorFlow both are timed
    on a matrix product, since processors that have bfloat16 instructions differ in whether they are the faster ones;
    JAX on a CPU is faster in float32 on all.

    Args:
        wanted: What was asked for.
        checkpoints: The folder of a run's, which may go on. Where the two are about as fast, it does so in what it was
            trained in before: what is timed differs from time to time.
    """
    if wanted != "auto":
        return wanted, "as asked"
    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        if device.platform == "cpu":
            return "float32", "JAX on a CPU"
        return _on_accelerator(getattr(device, "compute_capability", None), f"JAX on {device.platform.upper()}")
    import tensorflow as tf

    if gpus := tf.config.list_physical_devices("GPU"):
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability")
        return _on_accelerator(capability and ".".join(map(str, capability)), "a GPU was found")
    speed = compare_products(("bfloat16", "float32"))
    ratio = speed["bfloat16"] / speed["float32"]
    # Half the memory traffic comes on top of a faster product; the casts around it cost some of it.
    before = recorded_precision(checkpoints) if checkpoints else None
    least = {"mixed_bfloat16": 0.8, "float32": 1.5}.get(before or "", 1.1)
    return (
        "mixed_bfloat16" if ratio > least else "float32"
    ), f"a bfloat16 matrix product is {ratio:.1f} x as fast here"


def _on_accelerator(capability: str | None, found: str) -> tuple[str, str]:
    """By an NVIDIA GPU's compute capability, "7.5" say: since 8.0 (Ampere) they multiply bfloat16. Others all do."""
    major = (capability or "").partition(".")[0]
    if major.isdigit() and int(major) < 8:
        return "float32", f"{found}, of compute capability {capability}, without bfloat16"
    return "mixed_bfloat16", found
