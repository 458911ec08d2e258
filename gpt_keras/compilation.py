"""Compiling functions of tensors, with or without a model in them, on either backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from gpt_keras.data.errors import InputError
from gpt_keras.kernels import transposed_kernels


def compile_for(model: keras.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which calls `model`, compiled by the backend, once for every combination of argument shapes.

    Args:
        model: Its weights are read at every call, so they may change in between.
        function: Takes and returns (nested) tensors.
    """
    if keras.backend.backend() != "jax":
        return compile_function(function)
    weights = _Weights(model)
    compiled = _jax_with_weights(weights, function, donate=())
    return lambda *arguments: compiled(weights.read(), *arguments)


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
    model: keras.Model, function: Callable[..., Any], one_row: bool = False, xla: bool = True
) -> Callable[..., Any]:
    """As `compile_for`, for a function `(state, *arguments) -> (result, new state)` that is called over and over.

    The new state takes over the old one's memory, so a step costs what it changes: on TensorFlow the state is held in
    variables, on JAX it is donated.

    Args:
        model: Its weights are read at every call.
        function: Takes `hold`'s state first.
        one_row: The arguments are a single token of a single row. JAX on a CPU then multiplies by transposed copies of
            the kernels, a quarter faster, and the copies are kept.
        xla: Whether TensorFlow compiles with XLA, as JAX always does: seconds for each shape, which pay for a step that
            is repeated.
    """
    if keras.backend.backend() == "jax":
        import jax

        weights = _Weights(model, transposed=one_row and jax.default_backend() == "cpu")
        compiled = _jax_with_weights(weights, function, donate=(1,))
        return lambda state, *arguments: compiled(weights.read(), state, *arguments)
    if keras.backend.backend() != "tensorflow":
        return compile_function(function)
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
            traced[shapes] = step.get_concrete_function(state, *arguments)
        return traced[shapes](state, *map(tf.convert_to_tensor, arguments)), state

    return call


def _jax_with_weights(weights: _Weights, function: Callable[..., Any], donate: tuple[int, ...]) -> Any:
    """`function` jitted with what `weights.read` gives as a first argument."""
    import jax

    def pure(values: list[Any], *arguments: Any) -> Any:
        with weights.in_use(values):
            return function(*arguments)

    return jax.jit(pure, donate_argnums=donate)


class _Weights:
    """The values of a model's variables, on JAX.

    Args:
        model: Whose.
        transposed: Kernels come as [out, in], for `kernels.linear`. A copy is made anew when its variable has changed.
    """

    def __init__(self, model: keras.Model, transposed: bool = False) -> None:
        self._variables = model.variables
        self._turned = [transposed and variable.path.endswith("/kernel") for variable in self._variables]
        self._copies: dict[int, tuple[Any, Any]] = {}

    def read(self) -> list[Any]:
        values = [variable.value for variable in self._variables]
        for i in (i for i, turned in enumerate(self._turned) if turned):
            if i not in self._copies or self._copies[i][0] is not values[i]:
                self._copies[i] = (values[i], values[i].T)
            values[i] = self._copies[i][1]
        return values

    @contextlib.contextmanager
    def in_use(self, values: list[Any]) -> Iterator[None]:
        """Code inside sees `values`, as `read` gave them, in the variables' place."""
        entries = list(zip(self._variables, values, self._turned, strict=True))
        mapping = [(variable, value.T if turned else value) for variable, value, turned in entries]
        kernels = {id(variable): value for variable, value, turned in entries if turned}
        with keras.StatelessScope(state_mapping=mapping), transposed_kernels(kernels):
            yield
