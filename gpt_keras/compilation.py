"""Compiling functions of tensors, with or without a model in them, on either backend."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.kernels import few_rows


def compile_for(model: keras.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which calls `model`, compiled by the backend, once for every combination of argument shapes.

    Args:
        model: Its weights are read at every call, so they may change in between.
        function: Takes and returns (nested) tensors.
    """
    if keras.backend.backend() != "jax":
        return compile_function(function)
    import jax

    variables = model.variables

    def pure(values: list[Any], *arguments: Any) -> Any:
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
            return function(*arguments)

    compiled = jax.jit(pure)
    return lambda *arguments: compiled([variable.value for variable in variables], *arguments)


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of (nested) tensors alone, compiled once for every combination of argument shapes."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if backend == "jax":
        import jax

        return jax.jit(function)
    raise InputError(f"the {backend} backend is not supported: set KERAS_BACKEND to tensorflow or jax")


def hold(state: Any) -> Any:
    """A (nested) state of tensors, in the form that a function of `compile_step` updates in place."""
    if keras.backend.backend() != "tensorflow":
        return state
    import tensorflow as tf

    return tf.nest.map_structure(lambda value: tf.Variable(value, trainable=False), state)


def compile_step(
    model: keras.Model,
    function: Callable[..., Any],
    kernels: TransposedKernels | None = None,
    xla: bool = True,
) -> Callable[..., Any]:
    """As `compile_for`, for a function `(state, *arguments) -> (result, new state)` that is called over and over.

    The new state takes over the old one's memory, so a step costs what it changes: on TensorFlow the state is held in
    variables, on JAX it is donated.

    Args:
        model: Its weights are read at every call.
        function: Takes `hold`'s state first.
        kernels: For a function of few rows, the model's kernels to be used instead of its own.
        xla: Whether TensorFlow compiles with XLA, as JAX always does: seconds for each shape, which pay for a step that
            is repeated.
    """
    if keras.backend.backend() == "jax":
        return _compile_step_jax(model, function, kernels)
    if keras.backend.backend() == "tensorflow":
        return _compile_step_tensorflow(function, kernels, xla)
    return compile_function(function)


def _compile_step_jax(
    model: keras.Model, function: Callable[..., Any], kernels: TransposedKernels | None
) -> Callable[..., Any]:
    import jax

    variables = model.variables

    def pure(values: list[Any], copies: dict[int, Any], state: Any, *arguments: Any) -> Any:
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)), _few_rows(kernels, copies):
            return function(state, *arguments)

    compiled = jax.jit(pure, donate_argnums=2)

    def call(state: Any, *arguments: Any) -> Any:
        copies = {} if kernels is None else kernels.copies
        return compiled([variable.value for variable in variables], copies, state, *arguments)

    return call


def _compile_step_tensorflow(
    function: Callable[..., Any], kernels: TransposedKernels | None, xla: bool
) -> Callable[..., Any]:
    import tensorflow as tf

    @tf.function(autograph=False, jit_compile=xla)
    def step(state: Any, *arguments: Any) -> Any:
        result, new = function(tf.nest.map_structure(lambda variable: variable.read_value(), state), *arguments)
        tf.nest.map_structure(lambda variable, value: variable.assign(value), state, new)
        return result

    traced: dict[Any, Any] = {}

    def call(state: Any, *arguments: Any) -> Any:
        # Looking a trace up by its arguments' types takes tf.function a millisecond; their shapes say enough.
        shapes = (tf.nest.flatten(state)[0].shape, *(argument.shape for argument in arguments))
        if shapes not in traced:
            with _few_rows(kernels, {} if kernels is None else kernels.copies):
                traced[shapes] = step.get_concrete_function(state, *arguments)
        return traced[shapes](state, *map(tf.convert_to_tensor, arguments)), state

    return call


def _few_rows(kernels: TransposedKernels | None, copies: dict[int, Any]) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if kernels is None else few_rows(copies)


class TransposedKernels:
    """A model's kernels as [out, in] in float32, the form in which `kernels.few_rows` multiplies by them.

    They are copies, and take as much memory again; `refresh` makes them follow the model. A model that takes more than
    a quarter of the machine's memory gets none and is multiplied by as it is.

    Attributes:
        copies: By the `id` of the variables.
    """

    def __init__(self, model: keras.Model) -> None:
        self.copies: dict[int, Any] = {}
        self._variables = [
            variable for variable in model.variables if variable.path.endswith("/kernel") and variable.dtype != "int8"
        ]
        if 4 * sum(4 * int(np.prod(variable.shape)) for variable in self._variables) > physical_memory():
            self._variables = []
        self._seen: Any = None
        self._products: Callable[[], Any] | None = None

    def refresh(self) -> None:
        """Copy the kernels that have changed; without any change this takes as long as a fifth of a step."""
        if not self._variables:
            return
        if keras.backend.backend() == "jax":
            self._refresh_jax()
        else:
            self._refresh_tensorflow()

    def _refresh_jax(self) -> None:
        values = [variable.value for variable in self._variables]
        for i, (variable, value) in enumerate(zip(self._variables, values, strict=True)):
            if self._seen is None or self._seen[i] is not value:  # an array never changes
                self.copies[id(variable)] = value.T.astype("float32")
        self._seen = values

    def _refresh_tensorflow(self) -> None:
        """A variable may change unseen, in a graph: a product of each kernel with one random vector tells."""
        import tensorflow as tf

        if self._products is None:
            random = np.random.default_rng(0)
            probes = [random.standard_normal(variable.shape[0], np.float32) for variable in self._variables]

            @tf.function(autograph=False)
            def products() -> Any:
                pairs = zip(self._variables, probes, strict=True)
                return tf.concat(
                    [tf.linalg.matvec(tf.cast(v.value, tf.float32), p, transpose_a=True) for v, p in pairs], 0
                )

            self._products = products
        seen = self._products()
        if self._seen is not None and bool(tf.reduce_all(seen == self._seen)):
            return
        for variable in self._variables:
            value = tf.cast(tf.transpose(variable.value), tf.float32)
            if id(variable) in self.copies:
                self.copies[id(variable)].assign(value)
            else:
                self.copies[id(variable)] = tf.Variable(value, trainable=False)
        self._seen = seen


def physical_memory() -> float:
    """The machine's, in bytes; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def on_cpu() -> bool:
    """Whether the backend computes on the CPU."""
    if keras.backend.backend() == "jax":
        import jax

        return bool(jax.default_backend() == "cpu")
    import tensorflow as tf

    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())
