"""A model's weights as a SavedModel keeps them: stored in fewer bits than they are computed with."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any, Literal

import keras
import tensorflow as tf

Tensor = Any
WeightsDtype = Literal["float32", "bfloat16", "int8"]


class HeldWeights(tf.Module):
    """The weights of a model, in the module that is saved.

    In float32 they are the model's own variables. Otherwise matrices are stored as bfloat16, or as int8 with a scale
    for each output (each row of an embedding), and widened once, when the SavedModel is loaded: a smaller file, the
    same speed, and the memory of both. Vectors stay float32.

    The Keras model itself stays outside, for loaders of TF Serving's kind cannot restore one.
    """

    def __init__(self, model: keras.Model, dtype: WeightsDtype = "float32") -> None:
        super().__init__()
        held: list[tuple[Any, _Widened]] = []
        self._held = lambda: held  # a list would be tracked, and the variables saved
        self.stored: list[Any] = []
        for variable in model.weights:
            if dtype == "float32" or len(variable.shape) < 2:
                self.stored.append(variable.value)
                continue
            # A kernel is [in, out]; a table of embeddings, which the output head may share, [tokens, hidden_dim].
            axis = 0 if variable.path.endswith("kernel") else 1
            widened = _Widened(variable.value, dtype, axis)
            held.append((variable, widened))
            self.stored += [widened, *widened.variables]

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """What is traced inside computes with the widened weights."""
        held = self._held()
        if not held:
            return contextlib.nullcontext()
        return keras.StatelessScope(state_mapping=[(variable, widened.read()) for variable, widened in held])


class _Widened(tf.saved_model.experimental.TrackableResource):
    """A matrix that is stored narrow and widened into a resource by the SavedModel's initializer."""

    def __init__(self, value: Tensor, dtype: WeightsDtype, axis: int) -> None:
        super().__init__()
        self._name, self._shape = f"widened_{uuid.uuid4().hex}", value.shape
        if dtype == "int8":
            largest = tf.reduce_max(tf.abs(value), axis=axis, keepdims=True)
            scale = tf.where(largest > 0.0, largest / 127.0, 1.0)
            narrow = tf.cast(tf.round(value / scale), tf.int8)
            self.variables = [tf.Variable(narrow, trainable=False), tf.Variable(scale, trainable=False)]
        else:
            self.variables = [tf.Variable(tf.cast(value, dtype), trainable=False)]
        self._initialize()

    def _create_resource(self) -> Tensor:
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=self._shape, shared_name=self._name)

    def _initialize(self) -> None:
        narrow, *scale = self.variables
        value = tf.cast(narrow, tf.float32)
        value = value * scale[0] if scale else value
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=value)

    def read(self) -> Tensor:
        """float32, of the matrix's shape."""
        return tf.ensure_shape(tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=tf.float32), self._shape)
