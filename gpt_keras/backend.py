"""Choosing the Keras backend, which must happen before keras is imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

from gpt_keras.data.errors import InputError

BACKENDS = ("tensorflow", "jax")


def choose_backend(name: str | None = None) -> str:
    """The backend to run on: `name`, else KERAS_BACKEND, else TensorFlow. Imports nothing.

    Raises:
        InputError: Not a backend this project supports, or keras was imported with another one already.
    """
    chosen = name or os.environ.get("KERAS_BACKEND") or "tensorflow"
    if chosen not in BACKENDS:
        raise InputError(f"backend {chosen!r} is not supported; choose {' or '.join(BACKENDS)}")
    if importlib.util.find_spec(chosen) is None:
        raise InputError(f"the backend {chosen} is not installed: pip install {chosen}")
    if "keras" in sys.modules and sys.modules["keras"].backend.backend() != chosen:
        raise InputError(f"keras already runs on {sys.modules['keras'].backend.backend()}; start again with {chosen}")
    return chosen


def demand_determinism() -> None:
    """Have a GPU add numbers up in the same order every time; a CPU does so anyway. Before a backend is imported."""
    # Then XLA tries no variants of a product, and for Triton's it has none to fall back to: they do not compile.
    flags = "--xla_gpu_deterministic_ops=true --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ["TF_DETERMINISTIC_OPS"] = "1"


def start_backend(chosen: str) -> None:
    """Import keras on the backend, and TensorFlow quietly."""
    os.environ["KERAS_BACKEND"] = chosen
    if chosen == "tensorflow":
        import_tensorflow()


def import_tensorflow() -> Any:
    """TensorFlow, without the lines that it writes to standard error while it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" in sys.modules or os.environ["TF_CPP_MIN_LOG_LEVEL"] != "3":
        return importlib.import_module("tensorflow")
    sys.stderr.flush()
    kept = os.dup(2)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # the lines come from C++, before its logging can be told to be quiet
    try:
        tensorflow = importlib.import_module("tensorflow")
        tensorflow.config.list_physical_devices()  # looks for GPUs, and says so where there are none
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silent)
    return tensorflow
