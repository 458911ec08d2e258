"""`GPT.step` as LiteRT runs it: operations of fixed sizes that its converter turns into one builtin operation each.

Two forms, with the same layers and another cache:

- `EngineForm`, the contract of Google's LiteRT-LM engine: one row, each layer's keys and values [1, slots, heads,
  head_dim] as inputs and, with the new ones in them, as outputs;
- `RowForm`, which the project's own engine runs: several rows, keys and values [rows, heads, slots, head_dim] as
  inputs, and of the new tokens alone as an output, so that nothing of the cache's size is written in a step.

The weights are inputs, too: the converter never sees them, and takes as long for a large model as for a small one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from gpt_keras import kernels
from gpt_keras.litert import rotation
from gpt_keras.litert.sizes import Sizes, cache_names, row_name
from gpt_keras.model import GPT

Tensor = Any

WEIGHT = "weight_"
AS_IS = "weight_as_is"
"""What such a name begins with is not quantized."""
HEAD, BLOCK = f"{AS_IS}_head", f"{AS_IS}_block"


class EngineForm:
    """Functions in the contract of LiteRT-LM, of one row.

    Inputs: `tokens` int32 [1, length], `input_pos` int32 [length], `mask` float32 [1, 1, length, slots], which is added
    to the scores, and the cache, float32 [1, slots, heads, head_dim] each. Outputs: the cache, and of `decode` `logits`
    float32 [1, 1, vocabulary_size].
    """

    @staticmethod
    def name(sizes: Sizes) -> str:
        return "decode" if sizes.length == 1 else f"prefill_{sizes.length}"

    @staticmethod
    def function(model: GPT, sizes: Sizes, with_logits: bool) -> tuple[list[tf.TensorSpec], Callable[..., Any]]:
        """Its inputs, and the function of them that returns the outputs by name."""
        config = model.config
        names = cache_names(config.num_layers)
        shape = [1, sizes.slots, config.num_key_value_heads, config.head_dim]
        inputs = [
            tf.TensorSpec([1, sizes.length], tf.int32, name="tokens"),
            tf.TensorSpec([sizes.length], tf.int32, name="input_pos"),
            tf.TensorSpec([1, 1, sizes.length, sizes.slots], tf.float32, name="mask"),
            *(tf.TensorSpec(shape, tf.float32, name=name) for name in names),
        ]

        def function(tokens: Tensor, input_pos: Tensor, mask: Tensor, *buffers: Tensor) -> dict[str, Tensor]:
            start, zero = input_pos[0], tf.constant(0)

            def attend(query: Tensor, key: Tensor, value: Tensor, cache: Any, *_: Any) -> tuple[Tensor, Any]:
                written = []
                for buffer, new in zip(cache, (key, value), strict=True):
                    new = tf.transpose(new, (0, 2, 1, 3))
                    written.append(xla.dynamic_update_slice(buffer, new, tf.stack([zero, start, zero, zero])))
                keys, values = (tf.transpose(buffer, (0, 2, 1, 3)) for buffer in written)
                return _gather(tf.nn.softmax(_scores(query, keys) + mask), values), tuple(written)

            cache = list(zip(buffers[::2], buffers[1::2], strict=True))
            with kernels.using({"cached_attention": attend}):
                x, written = model.hidden_states(tokens, input_pos[None], cache=cache)
                found = dict(zip(names, (buffer for pair in written or [] for buffer in pair), strict=True))
                if with_logits:
                    found["logits"] = model.output_head(x)
            return found

        return inputs, function


class RowForm:
    """Functions of several rows, each at a place of its own.

    Inputs: `tokens` and `positions` int32 [rows, length]; `mask` float32 [rows, 1, length, slots + length], which is
    added to the scores of the slots and of the new tokens; of those with more than one token `last` float32 [rows, 1,
    length], a 1 where logits are wanted; and the cache, float32 [rows, heads, slots, head_dim] each (with no slots,
    none). Outputs: `new` float32 [2 * layers, rows, heads, length, head_dim], the tokens' keys and values, and `logits`
    float32 [rows, vocabulary_size].
    """

    name = staticmethod(row_name)

    @staticmethod
    def function(model: GPT, sizes: Sizes, with_logits: bool = True) -> tuple[list[tf.TensorSpec], Callable[..., Any]]:
        """As `EngineForm.function`; all have logits."""
        config, rows, slots, length = model.config, sizes.rows, sizes.slots, sizes.length
        shape = [rows, config.num_key_value_heads, slots, config.head_dim]
        inputs = [
            tf.TensorSpec([rows, length], tf.int32, name="tokens"),
            tf.TensorSpec([rows, length], tf.int32, name="positions"),
            tf.TensorSpec([rows, 1, length, slots + length], tf.float32, name="mask"),
        ]
        inputs += [tf.TensorSpec([rows, 1, length], tf.float32, name="last")] if length > 1 else []
        names = cache_names(config.num_layers) if slots else []
        inputs += [tf.TensorSpec(shape, tf.float32, name=name) for name in names]

        def function(tokens: Tensor, positions: Tensor, mask: Tensor, *others: Tensor) -> dict[str, Tensor]:
            def attend(query: Tensor, key: Tensor, value: Tensor, cache: Any, *_: Any) -> tuple[Tensor, Any]:
                scores = _scores(query, key)
                if not slots:
                    return _gather(tf.nn.softmax(scores + mask), value), (key, value)
                probabilities = tf.nn.softmax(tf.concat([_scores(query, cache[0]), scores], -1) + mask)
                old = _gather(probabilities[..., :slots], cache[1])
                return old + _gather(probabilities[..., slots:], value), (key, value)

            last, buffers = (others[:1], others[1:]) if length > 1 else ((), others)
            cache = list(zip(buffers[::2], buffers[1::2], strict=True)) or [(None, None)] * config.num_layers
            with kernels.using({"cached_attention": attend}):
                x, new = model.hidden_states(tokens, positions, cache=cache)
                logits = model.output_head(tf.matmul(last[0], x) if last else x)
            return {"new": tf.stack([part for pair in new or [] for part in pair]), "logits": logits[:, 0]}

        return inputs, function


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """[rows, heads, length, slots] of `query` [rows, heads, length, head_dim] and `key` [rows, heads that several of
    the queries' share, slots, head_dim]."""
    rows, heads, length, head_dim = query.shape
    shared = key.shape[1]
    together = tf.reshape(query * (1.0 / math.sqrt(head_dim)), (rows, shared, heads // shared * length, head_dim))
    return tf.reshape(tf.matmul(together, key, transpose_b=True), (rows, heads, length, key.shape[2]))


def _gather(probabilities: Tensor, values: Tensor) -> Tensor:
    """`probabilities @ values`, [rows, heads, length, head_dim]."""
    rows, heads, length, slots = probabilities.shape
    shared, head_dim = values.shape[1], values.shape[3]
    together = tf.reshape(probabilities, (rows, shared, heads // shared * length, slots))
    return tf.reshape(tf.matmul(together, values), (rows, heads, length, head_dim))


# === Conversion ===


def convert(model: GPT, form: Any, sizes: Sizes, with_logits: bool, turned: bool = False) -> bytes:
    """A LiteRT model of one function of these sizes, whose weights are inputs, `weight_name` and `weight_shape`;
    `turned` for those of `rotation.rotated`, with its matrices as inputs, too, `HEAD` and `BLOCK`."""
    inputs, function = form.function(model, sizes, with_logits)
    variables = model.weights
    specs = [tf.TensorSpec(weight_shape(v), tf.float32, name=weight_name(i)) for i, v in enumerate(variables)]
    if turned:
        sides = (HEAD, model.config.hidden_dim), (BLOCK, rotation.block_size(model.config.intermediate_dim))
        specs += [tf.TensorSpec([side, side], tf.float32, name=name) for name, side in sides]

    def with_weights(*arguments: Tensor) -> Any:
        values = list(zip(variables, arguments[len(inputs) :], strict=False))
        matrices = {id(variable): value for variable, value in values if is_kernel(variable)}
        others = [(variable, value) for variable, value in values if not is_kernel(variable)]
        before: dict[Any, Tensor] = {}
        if turned:
            *_, before["head"], block = arguments
            before |= {id(layer.feed_forward.down.base_kernel): block for layer in model.blocks}
        with keras.StatelessScope(state_mapping=others), kernels.using(_operations(matrices, before)):
            return function(*arguments[: len(inputs)])

    traced = tf.function(with_weights, input_signature=[*inputs, *specs], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()], tf.Module())
    return bytes(converter.convert())


def weight_name(index: int) -> str:
    return f"{WEIGHT}{index:04d}"


def weight_shape(variable: Any) -> Sequence[int]:
    """A kernel is [out, in] here, as LiteRT multiplies by it."""
    return tuple(variable.shape[::-1] if is_kernel(variable) else variable.shape)


def is_kernel(variable: Any) -> bool:
    return bool(variable.path.endswith("/kernel"))


def _operations(matrices: dict[int, Tensor], before: dict[Any, Tensor]) -> dict[str, Callable[..., Any]]:
    """In place of those of `kernels`; kernels [out, in] by the `id` of their variables, and by the same, or `head`, a
    matrix that what they are multiplied with is multiplied with before, part for part."""

    def embed(table: Any, token_ids: Tensor) -> Tensor:
        found = tf.gather(table, tf.reshape(token_ids, (-1,)))
        return tf.reshape(found, (*token_ids.shape, found.shape[-1]))

    def multiply(x: Tensor, matrix: Any) -> Tensor:
        product = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), matrix, transpose_b=True)
        return tf.reshape(product, (*x.shape[:-1], product.shape[-1]))

    def turn(x: Tensor, key: Any) -> Tensor:
        if key not in before:
            return x
        return tf.reshape(multiply(tf.reshape(x, (-1, before[key].shape[0])), before[key]), x.shape)

    def linear(x: Tensor, kernel: Any, bias: Any = None, residual: Tensor | None = None) -> Tensor:
        product = multiply(turn(x, id(kernel)), matrices[id(kernel)])
        product = product if bias is None else product + bias
        return product if residual is None else residual + product

    def project_to_vocabulary(x: Tensor, table: Any) -> Tensor:
        return multiply(turn(x, "head"), table)

    return {"embed": embed, "linear": linear, "project_to_vocabulary": project_to_vocabulary}
