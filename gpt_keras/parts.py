"""What the layers of the decoder have in common: initial weights, a product with a bias, normalization."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from gpt_keras import kernels
from gpt_keras.config import GPTConfig
from gpt_keras.kernels import int8

Tensor = Any

register = keras.saving.register_keras_serializable(package="gpt_keras")
_zero_weights: ContextVar[bool] = ContextVar("zero_weights", default=False)


@contextlib.contextmanager
def zero_weights() -> Iterator[None]:
    """A model built inside starts from zeros: for one that is filled next, since drawing 124 million takes seconds."""
    token = _zero_weights.set(True)
    try:
        yield
    finally:
        _zero_weights.reset(token)


class Part(layers.Layer):
    """A layer that is described by the model's configuration alone."""

    def __init__(self, config: GPTConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.config.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Part:
        return cls(**{**config, "config": GPTConfig(**config["config"])})

    def compute_output_shape(self, input_shape: tuple[int | None, ...], **_: Any) -> tuple[int | None, ...]:
        return input_shape

    def _normal(self, residual: bool = False) -> keras.initializers.Initializer:
        """Normal(0, initializer_range); smaller by sqrt(2 * num_layers) for a projection back into the residual
        stream, so that the stream's variance does not grow with depth (Radford et al. 2019, GPT-2, section 2.3)."""
        if _zero_weights.get():
            return keras.initializers.Zeros()
        shrink = math.sqrt(2 * self.config.num_layers) if residual else 1.0
        return keras.initializers.RandomNormal(stddev=self.config.initializer_range / shrink)

    def _seeds(self) -> Any:
        """Of what dropout drops; `None` without dropout."""
        return keras.random.SeedGenerator() if self.config.dropout else None

    def _dense(self, part: str, units: int, name: str, residual: bool = False) -> layers.Dense:
        return Projection(
            units,
            use_bias=self.config.has_bias(part),
            kernel_initializer=self._normal(residual),
            dtype=self.dtype_policy,
            name=name,
        )


@register
class Projection(layers.Dense):
    """A Dense layer without activation, whose product `kernels.linear` does.

    Attributes:
        kernel_scale: Where the kernel is held in 8 bits, what each of its columns is multiplied with; else `None`.
    """

    kernel_scale: Any = None
    _kernel: Any

    def call(self, inputs: Tensor, residual: Tensor | None = None, training: bool | None = None) -> Tensor:
        """`residual`, of the result's shape, is added to it."""
        return self.product(inputs, self.bias, residual)

    def product(self, inputs: Tensor, bias: Any = None, residual: Tensor | None = None) -> Tensor:
        """`inputs` by the kernel, with what an adapter adds to that; plus `bias` and `residual`, where they are given.

        An adapter (`gpt_keras.lora`) is two low-rank kernels, which are never multiplied with each other: that saves
        work.
        """
        if self.kernel_scale is None:
            product = kernels.linear(inputs, self.base_kernel, bias, residual)
        else:
            product = int8.linear(inputs, self.base_kernel, self.kernel_scale, bias, residual)
        if not self.lora_enabled:
            return product
        inner = kernels.linear(inputs, self.lora_kernel_a) * (self.lora_alpha / self.lora_rank)
        return kernels.linear(inner, self.lora_kernel_b, None, product)

    @property
    def base_kernel(self) -> Any:
        """The kernel's variable [in, out], without what an adapter adds to it."""
        return self._kernel

    @property
    def kernel(self) -> Any:
        """As Keras's: with what an adapter adds; of a kernel in 8 bits the numbers that it stands for."""
        if self.kernel_scale is None:
            return super().kernel
        kernel = ops.cast(self._kernel, "float32") * self.kernel_scale
        if not self.lora_enabled:
            return kernel
        return kernel + (self.lora_alpha / self.lora_rank) * ops.matmul(self.lora_kernel_a, self.lora_kernel_b)

    def load_own_variables(self, store: Any) -> None:
        """As Keras's; a kernel in 8 bits stays as it is.

        Raises:
            ValueError: The kernel is held in 8 bits.
        """
        if self.kernel_scale is not None:
            raise ValueError(
                f"{self.path}: its kernel is held in 8 bits; load the weights first, and then hold them so"
            )
        super().load_own_variables(store)

    def hold_kernel(self, dtype: str) -> None:
        """Keep the kernel, which is not trained any more, in another dtype: that of the layer's products, by which it
        need not be cast in every step, or int8, each column with a scale of its own."""
        value = np.asarray(self._kernel, np.float32)
        self._tracker.unlock()
        self._untrack_variable(self._kernel)
        if dtype == "int8":
            largest = np.abs(value).max(0)
            scale = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
            value = np.rint(value / scale)
            self.kernel_scale = self._frozen("kernel_scale", scale, "float32")
        self._kernel = self._frozen("kernel", value, dtype)
        self._tracker.lock()

    def _frozen(self, name: str, value: np.ndarray, dtype: str) -> Any:
        """A new variable that is not trained."""
        start = keras.initializers.Zeros()
        found = self.add_weight(
            name=name, shape=value.shape, dtype=dtype, initializer=start, trainable=False, autocast=False
        )
        found.assign(value)
        return found


@register
class RMSNorm(layers.Layer):
    """Divide by the root mean square of the last axis, multiply by a learned scale.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones", autocast=False)

    def call(self, x: Tensor, with_input: bool = False) -> Any:
        """With `with_input`, the pair of `x`, to go on with, and its normalization."""
        return kernels.rms_norm(x, self.scale, self.epsilon, with_input)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


@register
class LayerNorm(layers.Layer):
    """Subtract the mean of the last axis, divide by its standard deviation, learned scale and bias.

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones", autocast=False)
        self.bias = self.add_weight(name="bias", shape=(input_shape[-1],), initializer="zeros", autocast=False)

    def call(self, x: Tensor, with_input: bool = False) -> Any:
        """With `with_input`, the pair of `x`, to go on with, and its normalization."""
        return kernels.layer_norm(x, self.scale, self.bias, self.epsilon, with_input)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


def make_norm(config: GPTConfig, **kwargs: Any) -> layers.Layer:
    """The normalization that the configuration names."""
    norm = RMSNorm if config.normalization == "rms_norm" else LayerNorm
    return norm(epsilon=config.norm_epsilon, **kwargs)
