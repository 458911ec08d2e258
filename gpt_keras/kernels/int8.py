"""Products with kernels that are held in 8 bits, each column with a scale of its own."""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any


def linear(x: Tensor, kernel: Any, scale: Any, bias: Any = None, residual: Tensor | None = None) -> Tensor:
    """`x @ (kernel * scale) + bias + residual`, as `kernels.linear`.

    The kernel is widened to `x`'s dtype for the product, and for the gradient anew, so that no wide copy is kept.

    Args:
        x: [..., in]; with its gradient.
        kernel: int8 [in, out], not trained.
        scale: float32 [out], not trained.
        bias: [out], or none.
        residual: [..., out], or none.
    """
    kernel, scale = ops.convert_to_tensor(kernel), ops.cast(scale, x.dtype)

    @ops.custom_gradient
    def multiply(x: Tensor) -> Any:
        def gradient(*arguments: Any, upstream: Any = None) -> Tensor:
            above = arguments[0] if upstream is None else upstream
            return ops.matmul(above * scale, ops.transpose(ops.cast(kernel, above.dtype)))

        return ops.matmul(x, ops.cast(kernel, x.dtype)) * scale, gradient

    product = multiply(x)
    product = product if bias is None else product + ops.cast(bias, product.dtype)
    return product if residual is None else residual + product
