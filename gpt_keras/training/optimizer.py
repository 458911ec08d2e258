"""Optimizers: Keras's AdamW, and Keras's Muon with the matrices of one shape updated together."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import keras
from keras import ops

from gpt_keras import kernels
from gpt_keras.training.options import TrainOptions

Tensor = Any


class _CompiledUpdate(keras.optimizers.Optimizer):
    """Before a Keras optimizer: on TensorFlow its whole update is one XLA cluster, which reads and writes each number once.

    JAX compiles the update with the rest of the step anyway.
    """

    _compiled: Any = None

    def _backend_apply_gradients(self, grads: list[Tensor], trainable_variables: list[Any]) -> None:
        if not kernels.fast() or keras.backend.backend() != "tensorflow" or self.gradient_accumulation_steps:
            return super()._backend_apply_gradients(grads, trainable_variables)
        import tensorflow as tf

        # XLA would take five times as long for the norm, a sum over everything, as TensorFlow does.
        scale = tf.constant(1.0)
        if self.global_clipnorm:
            norm = tf.linalg.global_norm(grads)
            scale = self.global_clipnorm / tf.maximum(norm, self.global_clipnorm)

        @tf.function(jit_compile=True, autograph=False)
        def update(grads: list[Tensor], scale: Tensor) -> None:
            grads = [gradient * scale for gradient in grads]
            self._apply_weight_decay(trainable_variables)
            for gradient, variable in zip(grads, trainable_variables):
                self.update_step(gradient, variable, self.learning_rate)

        update([tf.convert_to_tensor(g) for g in grads], scale)


@keras.saving.register_keras_serializable(package="gpt_keras")
class AdamW(_CompiledUpdate, keras.optimizers.AdamW):
    """Keras's AdamW with its update compiled."""


@keras.saving.register_keras_serializable(package="gpt_keras")
class Muon(keras.optimizers.Muon):
    """Keras's Muon, which orthogonalizes the momentum of every matrix, in a few large steps instead of many small ones.

    All matrices of one shape (the query projections of all layers, say) go through the Newton-Schulz iteration as one
    batched product. The arithmetic is Keras's; there are far fewer operations to trace and to run. Embeddings, scales
    and biases are left to Adam, as Keras does.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, for the scale of the update.
    """

    def _backend_update_step(self, grads: list[Tensor], trainable_variables: list[Any], learning_rate: Tensor) -> None:
        groups: dict[tuple[int, ...], list[tuple[Tensor, Any]]] = defaultdict(list)
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            if self.adam_velocities[self._get_variable_index(variable)] is not None:
                self.update_step(gradient, variable, learning_rate)
            else:
                groups[tuple(variable.shape)].append((gradient, variable))
        for members in groups.values():
            self._update_together(members, learning_rate)

    def _update_together(self, members: list[tuple[Tensor, Any]], learning_rate: Tensor) -> None:
        directions = []
        for gradient, variable in members:
            momentum = self.momentums[self._get_variable_index(variable)]
            self.assign_add(momentum, gradient + momentum * (self.momentum - 1))
            directions.append(gradient + self.momentum * momentum if self.nesterov else ops.copy(momentum))
        updates = self.zeropower_via_newtonschulz5(ops.stack(directions), self.ns_steps)
        for i, (_, variable) in enumerate(members):
            self.assign_sub(variable, self.lr_adjust(ops.cast(learning_rate, variable.dtype) * updates[i]))


def make_optimizer(options: TrainOptions) -> keras.optimizers.Optimizer:
    """The optimizer that the options name; its learning rate is set anew before every step.

    Weight decay is on matrices only, and with Muon not on the embedding.
    """
    clip = options.clip_norm or None
    if options.optimizer == "muon":
        return Muon(
            options.learning_rate,
            adam_lr_ratio=options.adam_ratio,
            adam_beta_2=0.95,
            weight_decay=options.weight_decay,
            adam_weight_decay=None,
            exclude_layers=["output_embedding"],
            global_clipnorm=clip,
        )
    optimizer = AdamW(options.learning_rate, beta_2=0.95, weight_decay=options.weight_decay, global_clipnorm=clip)
    optimizer.exclude_from_weight_decay(var_names=["bias", "scale"])
    return optimizer
