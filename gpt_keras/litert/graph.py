"""`GPT.step` as LiteRT runs it: operations of fixed sizes that its converter turns into one builtin operation each.

Two forms, with the same layers and another cache:

- `EngineForm`, the contract of Google's LiteRT-LM engine: one row, each layer's keys and values [1, slots, heads,
  head_dim] as inputs and, with the new ones in them, as outputs;
- `RowForm`, which the project's own engine runs: several rows, keys and values [rows, heads, slots, head_dim] as
  inputs, and of the new tokens alone as an output, so that nothing of the cache's size is written in a step.

The weights are inputs, too: the converter never sees them, and takes as long for a large model as for a small one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tqdm import tqdm

from gpt_keras import kernels
from gpt_keras.config import GPTConfig
from gpt_keras.litert import rotation
from gpt_keras.litert.sizes import Sizes, cache_names, new_names
from gpt_keras.model import GPT

Tensor = Any

WEIGHT = "weight_"
HEAD, BLOCK, REST = f"{WEIGHT}head", f"{WEIGHT}block", f"{WEIGHT}rest"

_MOST_TEXTS, _MOST_LOGITS = 8, 2**27
"""What `second_moments` reads at a time: more takes more memory, and is hardly faster."""


class EngineForm:
    """Functions in the contract of LiteRT-LM, of one row.

    Inputs: `tokens` int32 [1, length], `input_pos` int32 [length], `mask` float32 [1, 1, length, slots], which is added
    to the scores, and the cache, float32 [1, slots, heads, head_dim] each. Outputs: the cache, and of `decode` `logits`
    float32 [1, 1, vocabulary_size].
    """

    halved = True
    """Of a quantized file: see `_halves`."""

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
                return _attend(query, keys, values, hidden), tuple(written)

            hidden = _for_groups(mask, config)
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

    Inputs: `tokens` and `positions` int32 [rows, length]; `mask` float32 [rows, 1, length, length + slots], which is
    added to the scores of the new tokens and of the slots; of those with more than one token `last` float32 [rows, 1,
    length], a 1 where logits are wanted; and the cache, float32 [rows, heads, slots, head_dim] each. Outputs:
    the tokens' keys and values, float32 [rows, heads, length, head_dim] each, by the names of the cache with `new_`
    before them, and `logits` float32 [rows, vocabulary_size].
    """

    halved = False
    """It would take a quarter of the time more, and twice the memory."""

    @staticmethod
    def function(model: GPT, sizes: Sizes, with_logits: bool = True) -> tuple[list[tf.TensorSpec], Callable[..., Any]]:
        """As `EngineForm.function`; all have logits."""
        config, rows, slots, length = model.config, sizes.rows, sizes.slots, sizes.length
        shape = [rows, config.num_key_value_heads, slots, config.head_dim]
        inputs = [
            tf.TensorSpec([rows, length], tf.int32, name="tokens"),
            tf.TensorSpec([rows, length], tf.int32, name="positions"),
            tf.TensorSpec([rows, 1, length, length + slots], tf.float32, name="mask"),
        ]
        inputs += [tf.TensorSpec([rows, 1, length], tf.float32, name="last")] if length > 1 else []
        inputs += [tf.TensorSpec(shape, tf.float32, name=name) for name in cache_names(config.num_layers)]

        def function(tokens: Tensor, positions: Tensor, mask: Tensor, *others: Tensor) -> dict[str, Tensor]:
            def attend(query: Tensor, key: Tensor, value: Tensor, cache: Any, *_: Any) -> tuple[Tensor, Any]:
                if length > 1:
                    keys, values = (tf.concat(pair, 2) for pair in ((key, cache[0]), (value, cache[1])))
                    return _attend(query, keys, values, hidden), (key, value)
                together = _group(query, key.shape[1])  # of one token: what is in the cache stays where it is
                scores = [tf.matmul(together, keys, transpose_b=True) for keys in (key, cache[0])]
                probabilities = tf.nn.softmax(tf.concat(scores, -1) + hidden)
                old = tf.matmul(probabilities[..., 1:], cache[1])
                return tf.reshape(old + probabilities[..., :1] * value, query.shape), (key, value)

            last, buffers = (others[:1], others[1:]) if length > 1 else ((), others)
            hidden = _for_groups(mask, config)
            cache = list(zip(buffers[::2], buffers[1::2], strict=True))
            with kernels.using({"cached_attention": attend}):
                x, new = model.hidden_states(tokens, positions, cache=cache)
                logits = model.output_head(tf.matmul(last[0], x) if last else x)
            parts = (part for pair in new or [] for part in pair)
            return {**dict(zip(new_names(config.num_layers), parts, strict=True)), "logits": logits[:, 0]}

        return inputs, function


def _attend(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
    """Attention of `query` [rows, heads, length, head_dim] to `keys` and `values` [rows, heads that several of the
    queries' share, slots, head_dim], with `_for_groups(mask)`; [rows, heads, length, head_dim]."""
    scores = tf.matmul(_group(query, keys.shape[1]), keys, transpose_b=True)
    return tf.reshape(tf.matmul(tf.nn.softmax(scores + hidden), values), query.shape)


def _group(query: Tensor, shared: int) -> Tensor:
    """Scaled, [rows, shared, heads / shared * length, head_dim]: those that look at the same keys together."""
    rows, heads, length, head_dim = query.shape
    return tf.reshape(query * (1.0 / math.sqrt(head_dim)), (rows, shared, heads // shared * length, head_dim))


def _for_groups(mask: Tensor, config: GPTConfig) -> Tensor:
    """`mask` [rows, 1, length, slots] for what `_group` makes of the queries."""
    times = config.num_heads // config.num_key_value_heads
    return mask if times == 1 or mask.shape[2] == 1 else tf.concat([mask] * times, 2)


# === Conversion ===


def convert(model: GPT, form: Any, sizes: Sizes, with_logits: bool, quantized: bool = False) -> bytes:
    """A LiteRT model of one function of these sizes, whose weights are inputs, `weight_name` and `weight_shape`.

    If they are to be quantized, what a token's embedding has lost comes from another table, `REST`; where
    `rotation.suits` they are those of `rotation.rotated`, with its matrices as inputs, too, `HEAD` and `BLOCK`; and
    what they are multiplied with is given as `_halves` if the form says so.
    """
    inputs, function = form.function(model, sizes, with_logits)
    config = model.config
    shapes = {weight_name(i): weight_shape(variable) for i, variable in enumerate(model.weights)}
    if quantized:
        shapes[REST] = config.vocabulary_size, config.hidden_dim
        if rotation.suits(model):
            sides = (HEAD, config.hidden_dim), (BLOCK, rotation.block_size(config.intermediate_dim))
            shapes |= {name: (side, side) for name, side in sides}
    specs = [tf.TensorSpec(shape, tf.float32, name=name) for name, shape in shapes.items()]

    def with_weights(*arguments: Tensor) -> Any:
        values = dict(zip(shapes, arguments[len(inputs) :], strict=True))
        with computing_with(model, values, quantized and form.halved):
            return function(*arguments[: len(inputs)])

    traced = tf.function(with_weights, input_signature=[*inputs, *specs], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()], tf.Module())
    return bytes(converter.convert())


@contextlib.contextmanager
def computing_with(
    model: GPT, values: dict[str, Tensor], halved: bool = False, hear: Callable[[str, Tensor], None] | None = None
) -> Iterator[None]:
    """Within, the model computes with these values, by `weight_name`; `halved` and `hear` as for `_operations`, but
    that matrices are known by their names."""
    matrices = {id(v): values[weight_name(i)] for i, v in enumerate(model.weights) if is_kernel(v)}
    others = [(v, values[weight_name(i)]) for i, v in enumerate(model.weights) if not is_kernel(v)]
    before: dict[Any, Tensor] = {}
    unscaled: set[int] = set()
    if HEAD in values:
        before["head"] = values[HEAD]
        before |= {id(layer.feed_forward.down.base_kernel): values[BLOCK] for layer in model.blocks}
        unscaled = {id(norm.scale) for norm in rotation.norms(model)}
    names: dict[Any, str] = {id(v): weight_name(i) for i, v in enumerate(model.weights)}
    names["head"] = names[id(_head(model))]

    def heard(key: Any, x: Tensor) -> None:
        if hear is not None:
            hear(names[key], x)

    with (
        keras.StatelessScope(state_mapping=others),
        kernels.using(_operations(matrices, before, unscaled, halved, values.get(REST), heard)),
    ):
        yield


def _head(model: GPT) -> Any:
    return model.embedding.token_embedding if model.config.tie_embeddings else model.output_head.table


def table_name(model: GPT) -> str:
    """The name of the token embedding's table."""
    return weight_name(next(i for i, v in enumerate(model.weights) if v is model.embedding.token_embedding))


def readers(model: GPT) -> list[list[str]]:
    """The names of all matrices that something is multiplied with, those of the same input together."""
    names = {id(v): weight_name(i) for i, v in enumerate(model.weights)}
    found = []
    for block in model.blocks:
        attention, network = block.attention, block.feed_forward
        groups = [[attention.query, attention.key, attention.value], [attention.output_projection]]
        groups += [[network.gate, network.up]] if hasattr(network, "gate") else [[network.up]]
        groups += [[network.down]]
        found += [[names[id(layer.base_kernel)] for layer in group] for group in groups]
    return [*found, [names[id(_head(model))]]]


def second_moments(
    model: GPT, values: dict[str, np.ndarray], token_ids: np.ndarray, wanted: Collection[str]
) -> dict[str, np.ndarray]:
    """Sums of x x^T, float32 [in, in], over what the wanted matrices are multiplied with.

    Args:
        model: The model.
        values: By `weight_name`, as for `convert`'s function.
        token_ids: int32 [rows, length], that it reads.
        wanted: Names of `values`.
    """
    found: dict[str, Tensor] = {}

    def hear(name: str, x: Tensor) -> None:
        if name in wanted:
            found[name] = found.get(name, 0.0) + tf.matmul(x, x, transpose_a=True)

    with computing_with(model, {name: tf.constant(value) for name, value in values.items()}, hear=hear):
        together = max(1, min(_MOST_TEXTS, _MOST_LOGITS // (token_ids.shape[1] * model.config.vocabulary_size)))
        for start in tqdm(
            range(0, len(token_ids), together), desc="measuring", unit="batches", leave=False, disable=None
        ):
            model(token_ids[start : start + together])
    return {name: value.numpy() for name, value in found.items()}


def weight_name(index: int) -> str:
    return f"{WEIGHT}{index:04d}"


def weight_shape(variable: Any) -> Sequence[int]:
    """A kernel is [out, in] here, as LiteRT multiplies by it."""
    return tuple(variable.shape[::-1] if is_kernel(variable) else variable.shape)


def is_kernel(variable: Any) -> bool:
    return bool(variable.path.endswith("/kernel"))


def _operations(
    matrices: dict[int, Tensor],
    before: dict[Any, Tensor],
    unscaled: Collection[int],
    halved: bool,
    rest: Tensor | None,
    hear: Callable[[Any, Tensor], None],
) -> dict[str, Callable[..., Any]]:
    """In place of those of `kernels`.

    Args:
        matrices: Kernels [out, in] by the `id` of their variables.
        before: By the same, or `head`, a matrix that what they are multiplied with is multiplied with before, part for
            part.
        unscaled: By the `id` of their variables, scales of norms that are all 1.
        halved: Whether that is given as `_halves`.
        rest: Added to the table of embeddings.
        hear: Told what is multiplied, [n, in], with the matrix of a key.
    """
    last: list[Tensor] = []

    def embed(table: Any, token_ids: Tensor) -> Tensor:
        ids = tf.reshape(token_ids, (-1,))
        found = tf.gather(table, ids) if rest is None else tf.gather(table, ids) + tf.gather(rest, ids)
        return tf.reshape(found, (*token_ids.shape, found.shape[-1]))

    def turn(x: Tensor, key: Any) -> Tensor:
        if key not in before:
            return x
        parts = tf.reshape(x, (-1, before[key].shape[0]))
        return tf.reshape(tf.matmul(parts, before[key], transpose_b=True), x.shape)

    def multiply(x: Tensor, matrix: Any, key: Any) -> Tensor:
        if not last or last[0] is not x:  # several kernels are multiplied with the same
            turned = tf.reshape(turn(x, key), (-1, x.shape[-1]))
            hear(key, turned)
            last[:] = x, _halves(turned) if halved else turned
        product = tf.matmul(last[1], matrix, transpose_b=True)
        shape = (*x.shape[:-1], product.shape[-1])
        return tf.reduce_sum(tf.reshape(product, (2, *shape)), 0) if halved else tf.reshape(product, shape)

    def linear(x: Tensor, kernel: Any, bias: Any = None, residual: Tensor | None = None) -> Tensor:
        product = multiply(x, matrices[id(kernel)], id(kernel))
        product = product if bias is None else product + bias
        return product if residual is None else residual + product

    def project_to_vocabulary(x: Tensor, table: Any) -> Tensor:
        return multiply(x, table, "head")

    def rms_norm(x: Tensor, scale: Any, epsilon: float, with_input: bool = False) -> Any:
        normed = x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + epsilon)
        normed = normed if id(scale) in unscaled else normed * scale
        return (x, normed) if with_input else normed

    return {
        "embed": embed,
        "linear": linear,
        "project_to_vocabulary": project_to_vocabulary,
        "rms_norm": rms_norm,
        "rotate": _rotate,
    }


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`kernels.rotate` in fewer operations."""
    first, second = tf.split(x, 2, -1)
    return x * tf.concat([cos, cos], -1) + tf.concat([second, first], -1) * tf.concat([-sin, sin], -1)


def _halves(x: Tensor) -> Tensor:
    """[2 * n, width] of `x` [n, width]: the same, and what is left of it when it is rounded to 8 bits.

    So does LiteRT before it multiplies with a quantized kernel: 8 bits for each row, from its smallest to its largest
    number and 0. The sum of both products has 16.
    """
    largest = tf.maximum(tf.reduce_max(x, -1, keepdims=True), 0.0)
    smallest = tf.minimum(tf.reduce_min(x, -1, keepdims=True), 0.0)
    unit = tf.maximum((largest - smallest) * (1 / 255), 1e-30)  # not 0, by which a row of zeros would be divided
    return tf.concat([x, x - tf.round(x / unit) * unit], 0)
