"""Compiling a function that calls the model, on either backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from gpt_keras.data.errors import InputError


def compile_for(model: keras.Model, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """`function`, which calls `model`, compiled by the backend, once for every combination of argument shapes.

    Args:
        model: Its weights are read at every call, so they may change in between.
        function: Takes and returns (nested) tensors.
        donate: Numbers of the arguments whose memory the result may take over; the caller must not use them again.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if backend == "jax":
        import jax

        def pure(values: list[Any], *arguments: Any) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
                return function(*arguments)

        compiled = jax.jit(pure, donate_argnums=tuple(1 + number for number in donate))
        return lambda *arguments: compiled([variable.value for variable in model.variables], *arguments)
    raise InputError(f"the {backend} backend is not supported: set KERAS_BACKEND to tensorflow or jax")
