"""Requests of TF Serving's REST API: tensors as JSON, whose rules and messages these are.

A tensor comes as nested lists, in rows (`instances`, an entry for each row of the batch) or in columns (`inputs`, whole
tensors); strings that are no text as `{"b64": ...}`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_keras.serving.answer_json import decimal, shape_of
from gpt_keras.serving.errors import RequestError

INTEGERS = {"int8": 32, "int16": 32, "int32": 32, "uint8": 32, "int64": 64}
"""Bits of the numbers that TF Serving takes for each type; TensorFlow checks the narrower ones itself."""
UNSIGNED = {"uint32": 32, "uint64": 64}
FLOATS: dict[str, Any] = {"float": np.float32, "double": np.float64}
_EXACT = {"float": 2**24 - 1, "double": 2**53 - 1}
_DEEPEST = 32
_SHOWN = 1000
"""Characters of a request that a message quotes."""


@dataclass(frozen=True)
class TensorSpec:
    """What a signature says of a tensor.

    Attributes:
        dtype: TensorFlow's name for it: float, int32, string, ...
        optional: Whether it has a default.
    """

    dtype: str
    optional: bool = False


@dataclass(frozen=True)
class PredictRequest:
    """A request to predict.

    Attributes:
        signature: Name of the signature.
        inputs: By name.
        rows: Whether it came in rows, and the answer has to.
    """

    signature: str
    inputs: dict[str, np.ndarray]
    rows: bool


# === Parsing ===


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object that a body begins with. Numbers may be NaN and Infinity; of equal keys the first counts.

    Text that is not UTF-8 is kept as it is, in surrogates (PEP 383).

    Raises:
        RequestError: There is none.
    """
    if not body:
        raise RequestError("JSON Parse error: The document is empty")
    try:
        text, valid = body.decode("utf-8-sig"), True
    except UnicodeDecodeError:
        text, valid = body.decode("utf-8", "surrogateescape"), False
    decoder = json.JSONDecoder(object_pairs_hook=_first_of_equal, parse_float=_float, parse_int=_integer)
    try:
        value, end = decoder.raw_decode(text, len(text) - len(text.lstrip(" \t\n\r")))
    except json.JSONDecodeError as error:
        what = "The document is empty." if error.pos >= len(text) and not text.strip() else "Invalid value."
        offset = len(text[: error.pos].encode("utf-8", "surrogatepass"))
        raise RequestError(f"JSON Parse error: {what} at offset: {offset}") from error
    except RecursionError as error:
        raise RequestError("JSON Parse error: Nested too deeply.") from error
    # Bytes that are no UTF-8 are some surrogates, too.
    bytes_alone = ("\udc80", "\udcff") if not valid else ("", "")
    if "\\u" in text[:end] and any(
        "\ud800" <= character <= "\udfff" and not bytes_alone[0] <= character <= bytes_alone[1]
        for character in _characters(value)
    ):
        raise RequestError("JSON Parse error: The surrogate pair in string is invalid.")
    if not isinstance(value, dict):
        raise RequestError(f"JSON Value: {shown(value)} Is not object")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RequestError("JSON Parse error: Number too big to be stored in double.")
    return value


def _integer(text: str) -> int | float:
    """Integers of more than 64 bits are floats."""
    value = int(text) if len(text) <= 20 else 2**64
    return value if -(2**63) <= value < 2**64 else _float(text)


def _first_of_equal(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs)) if len({key for key, _ in pairs}) < len(pairs) else dict(pairs)


def _characters(value: Any) -> Iterator[str]:
    """All characters of all strings in a value."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield from value
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature that a request names; empty for the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise RequestError(
            f"JSON Value: {shown(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def predict_request(document: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> PredictRequest:
    """The tensors of a request.

    Args:
        document: From `parse`.
        specs: The inputs of its signature.

    Raises:
        RequestError: It does not fit the signature.
    """
    name = signature_name(document)
    if not specs:
        raise RequestError(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise RequestError(
            f"JSON Value: {shown(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' keys "
            "to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise RequestError(f"JSON Value: {shown(document)} Expecting 'instances' to be an list/array")
        if not instances:
            raise RequestError(f"JSON Value: {shown(document)} No values in 'instances' array")
        return PredictRequest(name, _from_rows(instances, specs), rows=True)
    if "inputs" in document:
        return PredictRequest(name, _from_columns(document["inputs"], specs), rows=False)
    raise RequestError("Missing 'inputs' or 'instances' key")


def _from_columns(value: Any, specs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
    if not isinstance(value, dict) or _is_base64(value):
        if len(specs) > 1:
            raise RequestError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        ((name, spec),) = specs.items()
        return {name: _tensor(value, spec.dtype)}
    found = {}
    for name, spec in specs.items():
        if name in value:
            found[name] = _tensor(value[name], spec.dtype)
        elif not spec.optional:
            raise RequestError(f"Missing named input: {name} in 'inputs' object.")
    return found


def _from_rows(instances: list[Any], specs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
    if not isinstance(instances[0], dict) and len(specs) > 1:
        raise RequestError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = isinstance(instances[0], dict) and not _is_base64(instances[0])
    rows: dict[str, list[np.ndarray]] = {}
    for number, instance in enumerate(instances):
        if (isinstance(instance, dict) and not _is_base64(instance)) != named:
            what = "object but got list" if named else "value/list but got object"
            raise RequestError(f"Expecting {what} at item {number} of input list")
        for name, value in instance.items() if named else [(next(iter(specs)), instance)]:
            try:
                _add_row(rows, name, value, specs)
            except RequestError as error:
                key = f" key: {name}" if named else ""
                raise RequestError(
                    f"Failed to process element: {number}{key} of 'instances' list. Error: {error.code}: "
                    f"{error.message}"
                ) from error
        if any(
            len(rows.get(name, ())) != number + 1 and (name in rows or not spec.optional)
            for name, spec in specs.items()
        ):
            raise RequestError(
                f"Failed to process element: {number} of 'instances' list. JSON object: {shown(instance)} must only "
                f"have keys: {','.join(sorted(specs))}"
            )
    return {name: np.stack(values) for name, values in rows.items()}


def _add_row(rows: dict[str, list[np.ndarray]], name: str, value: Any, specs: Mapping[str, TensorSpec]) -> None:
    if name not in specs:
        raise RequestError(f"JSON object: does not have named input: {name}")
    row = _tensor(value, specs[name].dtype)
    first = rows.setdefault(name, [row])[0]
    if first is row:
        return
    if first.size != row.size:
        raise RequestError(f"Expecting tensor size: {first.size} but got: {row.size}")
    if first.shape != row.shape:
        raise RequestError(f"Expecting shape {shape_of(first)} but got: {shape_of(row)}")
    rows[name].append(row)


def _tensor(value: Any, dtype: str) -> np.ndarray:
    """The tensor in nested lists; its shape is that of the first entries."""
    shape, inner = [], value
    while isinstance(inner, list):
        shape.append(len(inner))
        if not inner:
            break
        if len(shape) > _DEEPEST:
            raise RequestError(f"lists are nested more than {_DEEPEST} deep")
        inner = inner[0]
    flat: list[Any] = []
    _fill(value, 0, shape, dtype, flat)
    kind: Any = object if dtype == "string" else FLOATS.get(dtype, dtype)
    try:
        return np.array(flat, kind).reshape(shape)
    except OverflowError as error:
        raise RequestError(f"JSON Value: {shown(value)} does not fit the type {dtype}") from error


def _fill(value: Any, level: int, shape: Sequence[int], dtype: str, flat: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise RequestError(
                f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at level: "
                f"{len(shape)}"
            )
        flat.append(_scalar(value, dtype))
        return
    if level >= len(shape):
        raise RequestError(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise RequestError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for entry in value:
        _fill(entry, level + 1, shape, dtype, flat)


def _scalar(value: Any, dtype: str) -> Any:
    if isinstance(value, dict) and dtype == "string":
        return _decoded(value)
    integer = isinstance(value, int) and not isinstance(value, bool)
    if dtype == "string" and isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if dtype == "bool" and isinstance(value, bool):
        return value
    if dtype in INTEGERS and integer and abs(2 * value + 1) < 2 ** INTEGERS[dtype]:
        return value
    if dtype in UNSIGNED and integer and 0 <= value < 2 ** UNSIGNED[dtype]:
        return value
    if dtype in FLOATS and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _decimal(value, dtype, integer)
    if dtype not in {"string", "bool", *INTEGERS, *UNSIGNED, *FLOATS}:
        raise RequestError(f"Conversion of JSON Value: {shown(value)} to type: {dtype}", "UNIMPLEMENTED")
    raise RequestError(f"JSON Value: {shown(value)} Type: {_kind(value)} is not of expected type: {dtype}")


def _decimal(value: int | float, dtype: str, integer: bool) -> float:
    if integer:
        lossless = abs(value) <= _EXACT[dtype]
    else:
        lossless = not math.isfinite(value) or abs(value) <= float(np.finfo(FLOATS[dtype]).max)
    if not lossless:
        raise RequestError(f"Cannot convert JSON value: {shown(value)} to {dtype} without loss of precision.")
    return value


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _decoded(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        raise RequestError(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    try:
        text = "".join(value["b64"].split())
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("Unable to base64 decode") from error


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    if isinstance(value, (int, float)):
        return "Number"
    return "String" if isinstance(value, str) else "Array" if isinstance(value, list) else "Object"


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    if isinstance(value, float):
        return decimal(value, np.float64)
    parts, length = [], 0
    with contextlib.suppress(RecursionError):  # of what is nested very deep: its beginning
        for part in json.JSONEncoder(ensure_ascii=False, indent=4).iterencode(value):
            parts.append(part)
            length += len(part)
            if length > _SHOWN:
                break
    text = "".join(parts).encode("utf-8", "replace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


# === Classification and regression ===


def examples(document: Mapping[str, Any]) -> list[bytes]:
    """The `examples` of a request to classify or regress as serialized `tf.Example`s, each behind the `context`.

    Raises:
        RequestError: There are none, or a feature is neither strings, nor integers, nor floats.
    """
    signature_name(document)
    context = _example(document["context"]) if "context" in document else b""
    if "examples" not in document:
        raise RequestError(
            f"JSON Value: {shown(document)} When method is classify, key 'examples' is expected and was not found"
        )
    found = document["examples"]
    if not isinstance(found, list):
        raise RequestError(f"JSON Value: {shown(document)} Expecting 'examples' value to be an list/array")
    if not found:
        raise RequestError(f"JSON Value: {shown(document)} 'examples' value is an empty array")
    return [context + _example(example) for example in found]  # messages behind one another are merged when read


def _example(value: Any) -> bytes:
    from tensorflow.core.example import example_pb2

    if not isinstance(value, dict):
        raise RequestError(f"Example must be JSON object but got JSON {_kind(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[name.encode("utf-8", "replace").decode()]
        for entry in content if isinstance(content, list) else [content]:
            _add_feature(feature, name, entry)
    return example.SerializeToString()


def _add_feature(feature: Any, name: str, value: Any) -> None:
    if value is None or isinstance(value, list) or (isinstance(value, dict) and not _is_base64(value)):
        raise RequestError(f"Feature: {name} has element with unexpected JSON type: {_kind(value)}")
    if isinstance(value, (dict, str)):
        kind, value = "bytes", _decoded(value) if isinstance(value, dict) else value.encode("utf-8", "surrogateescape")
    elif isinstance(value, float):
        kind, value = "float", _decimal(value, "float", integer=False)
    else:
        kind, value = "int64", int(value)
        if value >= 2**63:
            raise RequestError(f"Feature: {name} has uint64 element. Only int64 is supported.")
    there = feature.WhichOneof("kind")
    if there not in (None, f"{kind}_list"):
        raise RequestError(f"Unexpected element type in feature: {name} expecting type: {there.removesuffix('_list')}")
    getattr(feature, f"{kind}_list").value.append(value)
