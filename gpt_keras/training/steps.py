"""What one batch of `model.fit` does to a `GPT`: the loss from hidden states, and a batch in several parts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np

from gpt_keras import kernels
from gpt_keras.training.loss import NextTokenLoss
from gpt_keras.training.processes import processes

Tensor = Any

_loss_has_head: ContextVar[bool] = ContextVar("loss_has_head", default=False)


def loss_has_head() -> bool:
    """Whether the step being traced wants hidden states from the model, since its loss contains the output head."""
    return _loss_has_head.get()


class TrainedModel(keras.Model):
    """A model whose steps use fast kernels, and whose `NextTokenLoss` never sees the logits of a whole batch.

    Attributes:
        num_parts: Set it before training to go through each batch in so many parts, whose gradients are added up before
            the optimizer's one update: gradient accumulation. It divides the batch size. The result is that of the
            whole batch, but for dropout.
        watch_gradient_norm: Set it before training to have `gradient_norm` among the logs of `fit`, with an optimizer
            of `gpt_keras.training.optimizer`.
    """

    num_parts = 1
    watch_gradient_norm = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_jax_state":  # in which Keras would look for layers, through every array, at every step
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def prepare_step(self, learning_rate: float) -> None:
        """Before a step of `fit`: set its learning rate, and have its loss reported instead of the mean of all steps.

        On JAX the trained values are not in the variables during `fit`. Keras puts them back when a callback asks for
        the model, and takes them out again for the next step: a few milliseconds, of which a GPU's step has twenty.
        """
        state = getattr(self, "_jax_state", None) if keras.backend.backend() == "jax" else None
        if state and not self._jax_state_synced and processes().count > 1:
            self.jax_state_sync()  # an array of several processes is not simply replaced
        if not state or self._jax_state_synced:
            self.optimizer.learning_rate = learning_rate
            self.reset_metrics()
            return
        import jax

        def replace(values: list[Any], i: int, new: Any) -> None:
            before = values[i]  # another kind of array would have the step compiled again
            new = np.full(before.shape, new, before.dtype)
            values[i] = jax.device_put(new, before.sharding if before.committed else None)

        values = state["optimizer_variables"]
        replace(values, _place(self.optimizer.variables, self.optimizer._learning_rate), learning_rate)
        for i in range(len(state["metrics_variables"])):
            replace(state["metrics_variables"], i, 0)

    def make_train_function(self, force: bool = False) -> Any:
        """As Keras's own. The optimizer makes its state before the first step, which TensorFlow would otherwise trace
        twice: once to make it, once to use it."""
        if keras.backend.backend() == "tensorflow" and self.built and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        """Keras's own training step, with the backend's faster kernels."""
        with kernels.fast_kernels(), self._head_in_loss():
            jax = keras.backend.backend() == "jax"
            if self.num_parts == 1:
                result = super().train_step(*args, **kwargs)
            else:
                result = (self._train_in_parts_jax if jax else self._train_in_parts_tensorflow)(*args, **kwargs)
            if not self.watch_gradient_norm:
                return result
            norm = self.optimizer.gradient_norm
            if not jax:
                return {**result, "gradient_norm": norm.value}
            logs, state = result
            return {**logs, "gradient_norm": state[2][_place(self.optimizer.variables, norm)]}, state

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """As `train_step`."""
        with kernels.fast_kernels(), self._head_in_loss():
            return super().test_step(*args, **kwargs)

    def _symbolic_build(self, *args: Any, **kwargs: Any) -> Any:
        """Keras's trial of a batch before the first step: on JAX of the batch itself, which a loss of hidden states may
        need; on TensorFlow, under a distribution strategy, of one of float32."""
        jax = keras.backend.backend() == "jax"
        with self._head_in_loss() if jax else contextlib.nullcontext():
            return super()._symbolic_build(*args, **kwargs)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The compiled loss; from hidden states where the step had `call` return them."""
        if not loss_has_head():
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        return self.loss.of_hidden_states(y, y_pred, self.output_head.table, sample_weight, training)

    @contextlib.contextmanager
    def _head_in_loss(self) -> Iterator[None]:
        """Inside, `call` gives hidden states, if the loss takes them and nothing else asks for logits."""
        token = _loss_has_head.set(isinstance(self.loss, NextTokenLoss) and self._compile_metrics is None)
        try:
            yield
        finally:
            _loss_has_head.reset(token)

    def _train_in_parts_tensorflow(self, data: Any) -> dict[str, Any]:
        import tensorflow as tf

        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        parts = keras.tree.map_structure(self._parts, (x, y, weights))
        shares = _shares(weights, parts[2], self.num_parts)
        variables = self.trainable_variables

        def add_part(number: Tensor, loss: Tensor, gradients: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
            x, y, weights = keras.tree.map_structure(lambda part: None if part is None else part[number], parts)
            with tf.GradientTape() as tape:
                part_loss = shares(number) * self.compute_loss(x, y, self(x, training=True), weights)
            new = tape.gradient(part_loss, [variable.value for variable in variables])
            added = [g if n is None else g + tf.cast(n, g.dtype) for g, n in zip(gradients, new, strict=True)]
            return number + 1, loss + part_loss, added

        start = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
        _, loss, gradients = tf.while_loop(
            lambda number, *_: number < self.num_parts,
            add_part,
            (tf.constant(0), tf.constant(0.0), start),
            maximum_iterations=self.num_parts,
            parallel_iterations=1,
        )
        self._loss_tracker.update_state(loss)
        self.optimizer.apply(gradients, variables)
        return self.compute_metrics(x, y, None, weights)

    def _train_in_parts_jax(self, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
        import jax
        from jax import numpy as jnp

        trainable, non_trainable, optimizer, metrics = state
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        parts = keras.tree.map_structure(self._parts, (x, y, weights))
        shares = _shares(weights, parts[2], self.num_parts)
        gradient = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)

        def add_part(carry: Any, item: Any) -> tuple[Any, None]:
            loss, gradients, non_trainable = carry
            number, (x, y, weights) = item
            (part_loss, (_, _, non_trainable, _)), new = gradient(
                trainable, non_trainable, metrics, x, y, weights, training=True, optimizer_variables=optimizer
            )
            share = shares(number)
            gradients = [g + share * n for g, n in zip(gradients, new, strict=True)]
            return (loss + share * part_loss, gradients, non_trainable), None

        start = (jnp.float32(0.0), [jnp.zeros_like(value) for value in trainable], non_trainable)
        (loss, gradients, non_trainable), _ = jax.lax.scan(add_part, start, (jnp.arange(self.num_parts), parts))
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        logs, metrics = self._update_metrics_variables(metrics, loss, x, y, None, weights)
        return logs, (trainable, non_trainable, optimizer, metrics)

    def _parts(self, x: Tensor | None) -> Tensor | None:
        """[rows, ...] -> [num_parts, rows / num_parts, ...]; a part takes every so-manyth row, so that rows which are
        spread over devices stay where they are."""
        if x is None:
            return None
        rows = x.shape[0]
        if rows is None or rows % self.num_parts:
            raise ValueError(f"a batch of {rows} rows cannot be cut into {self.num_parts} equal parts")
        return keras.ops.swapaxes(keras.ops.reshape(x, (rows // self.num_parts, self.num_parts, *x.shape[1:])), 0, 1)


def _place(variables: list[Any], wanted: Any) -> int:
    return next(i for i, variable in enumerate(variables) if variable is wanted)


def _shares(weights: Tensor | None, parts: Tensor | None, count: int) -> Callable[[Tensor], Tensor]:
    """What a part's mean loss counts in that of the whole batch, by the part's number."""
    if weights is None:
        return lambda number: 1.0 / count
    assert parts is not None
    sums = keras.ops.sum(keras.ops.cast(parts, "float32"), axis=tuple(range(1, len(parts.shape))))
    shares = sums / keras.ops.maximum(keras.ops.sum(sums), 1.0)
    return lambda number: shares[number]
