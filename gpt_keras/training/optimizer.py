"""Optimizers: Keras's AdamW and Keras's Muon, with updates that take a fraction of the time."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from gpt_keras import kernels
from gpt_keras.training.options import LoopOptions

Tensor = Any


class _Update(keras.optimizers.Optimizer):
    """Stands before a Keras optimizer: clips, keeps the gradient's norm, and updates everything in one pass.

    On TensorFlow the update is a few XLA clusters that read and write each number once; JAX compiles the whole step
    anyway. Under a distribution strategy of TensorFlow the update is Keras's own.

    Attributes:
        gradient_norm: A variable: the global norm of the last gradient, before clipping.
    """

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            super().build(variables)
            self.gradient_norm = self.add_variable(
                shape=(), name="gradient_norm", initializer="zeros", aggregation="only_first_replica"
            )

    def _clip_gradients(self, grads: list[Tensor]) -> list[Tensor]:
        if keras.backend.backend() == "tensorflow":
            grads = self._summed_over_replicas(grads)
        scale = self._measure(grads)
        return [gradient * ops.cast(scale, gradient.dtype) for gradient in grads]

    def _backend_apply_gradients(self, grads: list[Tensor], trainable_variables: list[Any]) -> None:
        if not _in_one_pass():
            return super()._backend_apply_gradients(grads, trainable_variables)
        import tensorflow as tf

        grads = [tf.convert_to_tensor(gradient) for gradient in grads]
        self._update(grads, self._measure(grads), trainable_variables)
        return None

    def _summed_over_replicas(self, grads: list[Tensor]) -> list[Tensor]:
        """Before they are clipped; Keras would do it behind that."""
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return grads
        return context.all_reduce(tf.distribute.ReduceOp.SUM, [tf.convert_to_tensor(gradient) for gradient in grads])

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars  # they are

    def _measure(self, grads: list[Tensor]) -> Tensor:
        """Record the gradient's norm; the factor that clips it."""
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            norm = tf.linalg.global_norm(grads)  # XLA would take five times as long for this sum over everything
        else:
            norm = ops.sqrt(sum(ops.sum(ops.square(ops.cast(gradient, "float32"))) for gradient in grads))
        self.gradient_norm.assign(norm)
        return self.global_clipnorm / ops.maximum(norm, self.global_clipnorm) if self.global_clipnorm else 1.0

    def _update(self, grads: list[Tensor], scale: Tensor, variables: list[Any]) -> None:
        def update(grads: list[Tensor], scale: Tensor) -> None:
            self._apply_weight_decay(variables)
            for gradient, variable in zip(grads, variables, strict=True):
                self.update_step(gradient * scale, variable, self.learning_rate)
            self._average(variables)

        _compiled(update)(grads, scale)

    def _average(self, variables: list[Any]) -> None:
        if self.use_ema:
            self._update_model_variables_moving_average(variables)


@keras.saving.register_keras_serializable(package="gpt_keras")
class AdamW(_Update, keras.optimizers.AdamW):
    """Keras's AdamW, with its update in one pass and the gradient's norm at hand.

    Source: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    """


@keras.saving.register_keras_serializable(package="gpt_keras")
class Muon(_Update, keras.optimizers.Muon):
    """Keras's Muon, which orthogonalizes the momentum of every matrix, in a few large steps instead of many small ones.

    All matrices of one shape (the query projections of all layers, say) go through the Newton-Schulz iteration as one
    batched product, in `product_dtype`. Embeddings, scales and biases are left to Adam, as Keras does.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, for the scale of the update.

    Args:
        *args: As `keras.optimizers.Muon`.
        product_dtype: Of the iteration's matrix products. bfloat16 is enough for them (Jordan et al.), and faster
            wherever bfloat16 is.
        **kwargs: As `keras.optimizers.Muon`.
    """

    def __init__(self, *args: Any, product_dtype: str = "float32", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.product_dtype = product_dtype

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "product_dtype": self.product_dtype}

    def _update(self, grads: list[Tensor], scale: Tensor, variables: list[Any]) -> None:
        self._update_all(grads, scale, variables, _compiled)

    def _backend_update_step(self, grads: list[Tensor], trainable_variables: list[Any], learning_rate: Tensor) -> None:
        if keras.backend.backend() == "tensorflow":
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        else:
            self._update_all(grads, 1.0, trainable_variables, None)

    def _update_all(
        self, grads: list[Tensor], scale: Tensor, variables: list[Any], compiled: Callable[..., Any] | None
    ) -> None:
        """Everything elementwise goes through `compiled`; without it, decay and averages are left to Keras."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, variable in enumerate(variables):
            if self.adam_velocities[self._get_variable_index(variable)] is None:
                groups[tuple(variable.shape)].append(i)
        matrices = {i for members in groups.values() for i in members}

        def directions(grads: list[Tensor], scale: Tensor) -> list[Tensor]:
            """Updates what Adam updates; the momentum of the matrices, of unit norm, those of one shape stacked."""
            if compiled is not None:
                self._apply_weight_decay(variables)
            for i, variable in enumerate(variables):
                if i not in matrices:
                    self.update_step(grads[i] * scale, variable, self.learning_rate)
            stacks = []
            for members in groups.values():
                stack = ops.stack([self._direction(grads[i] * scale, variables[i]) for i in members])
                norm = ops.sqrt(ops.sum(ops.square(stack), axis=(-2, -1), keepdims=True))
                stacks.append(_shared_out(ops.cast(stack / (norm + 1e-7), self.product_dtype)))
            return stacks

        def apply(updates: list[Tensor]) -> None:
            for members, stack in zip(groups.values(), updates, strict=True):
                for place, i in enumerate(members):
                    update = self.lr_adjust(self.learning_rate * ops.cast(stack[place], variables[i].dtype))
                    self.assign_sub(variables[i], update)
            if compiled is not None:
                self._average(variables)

        wrap = compiled or (lambda function: function)
        stacks = wrap(directions)(grads, scale)
        wrap(apply)([self._orthogonalized(stack) for stack in stacks])

    def _direction(self, gradient: Tensor, variable: Any) -> Tensor:
        momentum = self.momentums[self._get_variable_index(variable)]
        self.assign_add(momentum, gradient + momentum * (self.momentum - 1))
        return gradient + self.momentum * momentum if self.nesterov else ops.copy(momentum)

    def _orthogonalized(self, x: Tensor) -> Tensor:
        """The Newton-Schulz iteration for a stack of matrices [count, rows, columns] of unit norm."""
        tall = x.shape[-2] > x.shape[-1]
        x = ops.swapaxes(x, -2, -1) if tall else x
        a, b, c = (ops.cast(factor, x.dtype) for factor in (self.muon_a, self.muon_b, self.muon_c))
        for _ in range(self.ns_steps):
            square = ops.matmul(x, ops.swapaxes(x, -2, -1))
            x = a * x + ops.matmul(b * square + c * ops.matmul(square, square), x)
        return ops.swapaxes(x, -2, -1) if tall else x


def make_optimizer(options: LoopOptions, precision: str = "float32") -> keras.optimizers.Optimizer:
    """The optimizer that the options name; its learning rate is set anew before every step.

    Weight decay is on matrices only, and with Muon not on the embedding.

    Args:
        options: Of the run.
        precision: The model's dtype policy; in mixed_bfloat16 Muon's products are bfloat16, too.
    """
    shared: dict[str, Any] = {
        "weight_decay": options.weight_decay,
        "global_clipnorm": options.clip_norm or None,
        "use_ema": options.ema > 0,
        "ema_momentum": options.ema or 0.99,
    }
    if options.optimizer == "muon":
        return Muon(
            options.learning_rate,
            adam_lr_ratio=options.adam_ratio,
            adam_beta_2=0.95,
            adam_weight_decay=None,
            exclude_layers=["output_embedding"],
            product_dtype="bfloat16" if precision == "mixed_bfloat16" else "float32",
            **shared,
        )
    optimizer = AdamW(options.learning_rate, beta_2=0.95, **shared)
    optimizer.exclude_from_weight_decay(var_names=["bias", "scale"])
    return optimizer


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Inside, the model has the moving average of its weights, if its optimizer keeps one."""
    averages = getattr(model.optimizer, "_model_variables_moving_average", None) if model.optimizer else None
    if not averages:
        yield
        return
    kept = [ops.copy(variable.value) for variable in model.trainable_variables]
    for variable, average in zip(model.trainable_variables, averages, strict=True):
        variable.assign(average.value)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, kept, strict=True):
            variable.assign(value)


def _shared_out(stack: Tensor) -> Tensor:
    """The matrices of a stack [count, rows, columns] shared out among the devices, whole ones to each: without that,
    all devices would do the same work. Zeros are put behind them where they cannot be shared out evenly."""
    distribution = keras.distribution.distribution()
    if distribution is None or keras.backend.backend() != "jax":
        return stack
    import jax

    mesh = distribution.device_mesh.backend_mesh
    stack = ops.pad(stack, [(0, -stack.shape[0] % mesh.size), (0, 0), (0, 0)])
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    return jax.lax.with_sharding_constraint(stack, layout)


def _in_one_pass() -> bool:
    if not kernels.fast() or keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.distribute.has_strategy()


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)
