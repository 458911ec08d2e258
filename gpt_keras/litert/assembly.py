"""One LiteRT file of many functions: the graphs that the converter made, at other sizes, around one set of weights.

Converting takes seconds for each function. All functions of a form are the same graph but for their sizes, so the
converter makes it once, at sizes that are prime numbers: where one of them divides a number in the graph, that number
stands for it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.litert.graph import WEIGHT
from gpt_keras.litert.rounding import Quantized
from gpt_keras.litert.sizes import FREE, Sizes

_IDENTIFIER = b"TFL3"
_PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)
_SLOT_PRIMES = (10007, 10009, 10037, 10039, 10061, 10067, 10069, 10079)


@dataclass(frozen=True)
class Template:
    """A graph at prime sizes.

    Attributes:
        content: The converter's model of one function.
        sizes: Of it; a 1 is fixed.
    """

    content: bytes
    sizes: Sizes


def prime_sizes(config: GPTConfig, rows: bool = True, length: bool = True) -> Sizes:
    """Sizes that divide none of the model's own numbers; without rows or length, that is 1."""
    own = [value for value in config.to_dict().values() if isinstance(value, int) and value > 1]
    own += [heads * config.head_dim for heads in (config.num_heads, config.num_key_value_heads)]
    free = [p for p in _PRIMES if all(n % p for n in own)]
    tokens = free[1] if length else 1
    free_slots = [p for p in _SLOT_PRIMES if all(n % p for n in own) and p + tokens not in own]
    return Sizes(free[0] if rows else 1, free_slots[0], tokens)


def assemble(functions: Sequence[tuple[str, Template, Sizes]], weights: Mapping[str, np.ndarray | Quantized]) -> bytes:
    """A file with functions by name, each a template at sizes of its own.

    Args:
        functions: Names, templates, and the sizes that they are to have.
        weights: float32 or quantized, by `graph.weight_name`; each is stored once.

    Raises:
        InputError: The file would be larger than the format allows, 2 GB.
    """
    data = {name: _packed_bits(value) for name, value in weights.items()}
    if sum(len(value) for value in data.values()) > 1.9e9:
        raise InputError("a LiteRT file holds at most 2 GB, and these weights are larger")
    model = schema.ModelT()
    model.version, model.description = 3, "gpt_keras"
    model.buffers, model.operatorCodes, model.subgraphs, model.signatureDefs = [schema.BufferT()], [], [], []
    model.metadata = []
    stored = {name: _Stored(_add_buffer(model, data[name]), _quantization(value)) for name, value in weights.items()}
    opened = {id(template): _open(template) for _, template, _ in functions}
    for name, template, sizes in functions:
        _add_function(model, name, opened[id(template)], _substitution(template.sizes, sizes), stored)
    return _pack(model)


@dataclass(frozen=True)
class _Stored:
    """Where a weight is, and the type and scales of its tensors if they are not float32."""

    buffer: int
    quantization: tuple[int, Any] | None


def _packed_bits(value: np.ndarray | Quantized) -> np.ndarray:
    """The bytes of a weight, uint8; two numbers of 4 bits in each, the first in the lower ones."""
    if not isinstance(value, Quantized):
        return np.ascontiguousarray(value).view(np.uint8).reshape(-1)
    numbers: np.ndarray = value.values.reshape(-1).view(np.uint8)
    if value.bits == 8:
        return numbers
    numbers = np.pad(numbers, (0, len(numbers) % 2)) & 15
    return numbers[::2] | numbers[1::2] << 4


def _quantization(value: np.ndarray | Quantized) -> tuple[int, Any] | None:
    if not isinstance(value, Quantized):
        return None
    found = schema.QuantizationParametersT()
    found.scale, found.zeroPoint = value.scales, np.zeros(len(value.scales), np.int64)
    found.quantizedDimension = 0
    return schema.TensorType.INT8 if value.bits == 8 else schema.TensorType.INT4, found


def _pack(model: Any) -> bytes:
    builder = _SharingBuilder(1 << 20)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors once; whatever refers to them does so by their place."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._places: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
        key = x.dtype.str, hashlib.sha256(np.ascontiguousarray(x).data).digest()
        if key not in self._places:
            self._places[key] = super().CreateNumpyVector(x)
        return self._places[key]


def _open(template: Template) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(template.content, 0))


def _add_buffer(model: Any, data: np.ndarray | None) -> int:
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _substitution(before: Sizes, after: Sizes) -> Callable[[int], int]:
    """What a number in a graph of the sizes before is in one of the sizes after: `FREE` if one that it has is."""
    pairs = [
        (old, new)
        for old, new in ((before.rows, after.rows), (before.length, after.length), (before.slots, after.slots))
        if old > 1
    ]

    def number(value: int) -> int:
        if value <= 1:
            return value
        if value == before.slots + before.length:
            return FREE if FREE in (after.slots, after.length) else after.slots + after.length
        for old, new in pairs:
            if value % old == 0:
                if new == FREE:
                    return FREE
                value = value // old * new
        return value

    return number


def _add_function(
    model: Any, name: str, source: Any, number: Callable[[int], int], weights: dict[str, _Stored]
) -> None:
    graph = copy.deepcopy(source.subgraphs[0])
    signature = source.signatureDefs[0]
    inputs = {_text(pair.name): pair.tensorIndex for pair in signature.inputs}
    kept: dict[int, int] = {}
    for index, tensor in enumerate(graph.tensors):
        tensor.name = f"{name}/{index}".encode()
        shape = np.array([number(int(size)) for size in tensor.shape], np.int32)
        tensor.shape, tensor.shapeSignature = np.where(shape == FREE, 1, shape), shape if FREE in shape else None
        data = source.buffers[tensor.buffer].data
        if data is None or not len(data):
            tensor.buffer = 0
            continue
        if tensor.buffer not in kept:
            data = np.asarray(data, np.uint8)
            if tensor.type == schema.TensorType.INT32:
                data = np.array([number(int(n)) for n in data.view(np.int32)], np.int32).view(np.uint8)
            kept[tensor.buffer] = _add_buffer(model, data)
        tensor.buffer = kept[tensor.buffer]
    used = {int(index) for operator in graph.operators for index in operator.inputs}
    for key, index in inputs.items():
        if key.startswith(WEIGHT) and index in used:  # without logits, the last block's are not
            tensor, stored = graph.tensors[index], weights[key]
            tensor.buffer = stored.buffer
            if stored.quantization is not None:
                tensor.type, tensor.quantization = stored.quantization
    tables = {index for key, index in inputs.items() if key.startswith(WEIGHT)}
    graph.inputs = np.array([i for i in graph.inputs if i not in tables], np.int32)
    graph.name = name.encode()
    for operator in graph.operators:
        code = source.operatorCodes[operator.opcodeIndex]
        if code.builtinCode == schema.BuiltinOperator.RESHAPE and operator.builtinOptions is not None:
            shape = operator.builtinOptions.newShape
            if shape is not None:
                operator.builtinOptions.newShape = np.array([number(int(n)) for n in shape], np.int32)
        if code.builtinCode == schema.BuiltinOperator.STRIDED_SLICE:
            ends = source.buffers[source.subgraphs[0].tensors[int(operator.inputs[2])].buffer].data
            for axis, end in enumerate(np.asarray(ends, np.uint8).view(np.int32)):
                if end > 0 and number(int(end)) == FREE:  # up to the end
                    operator.builtinOptions.endMask |= 1 << axis
        if code.builtinCode == schema.BuiltinOperator.GATHER and int(operator.inputs[0]) in tables:
            code = _look_up(graph, operator) or code
        operator.opcodeIndex = _operator_code(model, code)
    model.subgraphs.append(graph)
    added = schema.SignatureDefT()
    added.signatureKey, added.subgraphIndex = name.encode(), len(model.subgraphs) - 1
    added.inputs = [pair for pair in signature.inputs if pair.tensorIndex not in tables]
    added.outputs = signature.outputs
    model.signatureDefs.append(added)


def _look_up(graph: Any, operator: Any) -> Any:
    """Have rows of a table looked up by the operation that reads quantized ones, too."""
    table, ids = (int(i) for i in operator.inputs)
    if len(graph.tensors[ids].shape) != 1:
        return None
    operator.inputs = np.array([ids, table], np.int32)
    operator.builtinOptionsType, operator.builtinOptions = 0, None
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.EMBEDDING_LOOKUP
    code.version = 1
    return code


def _operator_code(model: Any, code: Any) -> int:
    def same(other: Any) -> bool:
        return (other.builtinCode, other.version, other.customCode) == (code.builtinCode, code.version, code.customCode)

    for index, other in enumerate(model.operatorCodes):
        if same(other):
            return index
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
