"""Answers of TF Serving's REST API: tensors as JSON, whose rules and messages these are."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt_keras.serving.errors import RequestError


def predictions(outputs: Mapping[str, np.ndarray], rows: bool) -> bytes:
    """The answer to a request to predict; a single output goes without its name.

    Args:
        outputs: By name; strings are arrays of bytes.
        rows: Whether each row of the batch is an entry.

    Raises:
        RequestError: Rows are asked for, and an output has none, or not as many as another.
    """
    if not outputs:
        raise RequestError("Cannot convert empty tensor map to JSON")
    outputs = dict(sorted(outputs.items()))
    if not rows:
        written = {name: _nested(_scalars(name, value), value.shape) for name, value in outputs.items()}
        return f'{{"outputs": {_object(written)}}}'.encode()
    batch = -1
    for name, value in outputs.items():
        if value.ndim == 0:
            raise RequestError(f"Tensor name: {name} has no shape information ")
        if batch not in (-1, value.shape[0]):
            raise RequestError(f"Tensor name: {name} has inconsistent batch size: {value.shape[0]} expecting: {batch}")
        batch = value.shape[0]
    columns = {name: _rows(_scalars(name, value), value.shape) for name, value in outputs.items()}
    entries = [_object({name: column[i] for name, column in columns.items()}) for i in range(batch)]
    return f'{{"predictions": [{", ".join(entries)}]}}'.encode()


def _object(parts: Mapping[str, str]) -> str:
    if len(parts) == 1:
        return next(iter(parts.values()))
    return "{" + ", ".join(f"{_string(name)}: {text}" for name, text in parts.items()) + "}"


def _scalars(name: str, value: np.ndarray) -> list[str]:
    if value.dtype == object:
        if name.endswith("_bytes"):
            return [f'{{"b64": "{base64.b64encode(text).decode()}"}}' for text in value.ravel()]
        return [_string(text.decode("utf-8", "replace")) for text in value.ravel()]
    if value.dtype == bool:
        return ["true" if entry else "false" for entry in value.ravel()]
    if np.issubdtype(value.dtype, np.integer):
        return [str(entry) for entry in value.ravel().tolist()]
    if value.dtype in (np.float16, np.float32, np.float64):
        kind = np.float64 if value.dtype == np.float64 else np.float32
        return [decimal(entry, kind) for entry in value.ravel().tolist()]
    raise RequestError(f"Failed to write JSON value for tensor type: {value.dtype}")


def _nested(flat: list[str], shape: tuple[int, ...]) -> str:
    return f"[{', '.join(_rows(flat, shape))}]" if shape else flat[0]


def _rows(flat: list[str], shape: tuple[int, ...]) -> list[str]:
    step = math.prod(shape[1:])
    return [_nested(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def decimal(value: float, kind: Any) -> str:
    """A number in six digits if that says it exactly, else in as many as it takes; always with a point or exponent."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    text = f"{value:.6g}"
    if kind(text) != kind(value):
        text = f"{value:.{17 if kind is np.float64 else 9}g}"
    return text if "." in text or "e" in text else f"{text}.0"


def error(message: str) -> bytes:
    """The answer to a request that failed."""
    return json.dumps({"error": message}, ensure_ascii=False).encode("utf-8", "replace")


def classifications(classes: np.ndarray | None, scores: np.ndarray | None, count: int) -> bytes:
    """The answer to a request to classify: for each example its labels with their scores.

    Args:
        classes: Of bytes [batch, labels], or `None`, where labels are empty.
        scores: float32 [batch, labels], or `None`, where they are 0.
        count: How many examples there were.

    Raises:
        RequestError: The outputs are not of this form.
    """
    for name, value, kind in (("classes", classes, object), ("scores", scores, np.float32)):
        if value is None:
            continue
        if value.ndim != 2:
            raise RequestError(f"Expected Tensor shape: [batch_size num_classes] but got {shape_of(value)}")
        if value.dtype != kind:
            expected = "DT_STRING" if kind is object else "DT_FLOAT"
            raise RequestError(f"Expected {name} Tensor of {expected}. Got: {value.dtype}")
        if value.shape[0] != count:
            raise RequestError(f"Expected {name} output batch size of {count}. Got: {value.shape[0]}")
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise RequestError(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    shape = (classes if classes is not None else scores).shape  # type: ignore[union-attr]
    labels = classes if classes is not None else np.full(shape, b"", object)
    numbers = scores if scores is not None else np.zeros(shape, np.float32)
    rows = [
        ", ".join(
            f"[{_string(label.decode('utf-8', 'replace'))}, {decimal(number, np.float32)}]"
            for label, number in zip(*row, strict=True)
        )
        for row in zip(labels.tolist(), numbers.tolist(), strict=True)
    ]
    return f'{{"results": [{", ".join(f"[{row}]" for row in rows)}]}}'.encode()


def regressions(outputs: np.ndarray, count: int) -> bytes:
    """The answer to a request to regress: a number for each example.

    Args:
        outputs: float32 [batch] or [batch, 1].
        count: How many examples there were.

    Raises:
        RequestError: The outputs are not of this form.
    """
    if outputs.ndim != 1 and not (outputs.ndim == 2 and outputs.shape[1] == 1):
        raise RequestError(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {shape_of(outputs)}"
        )
    if outputs.shape[0] != count:
        raise RequestError(f"Input batch size did not match output batch size: {count} vs. {outputs.shape[0]}")
    if outputs.dtype != np.float32:
        raise RequestError(f"Expected output Tensor of DT_FLOAT.  Got: {outputs.dtype}")
    values = ", ".join(decimal(value, np.float32) for value in outputs.ravel().tolist())
    return f'{{"results": [{values}]}}'.encode()


def shape_of(tensor: np.ndarray) -> str:
    """As a message names it."""
    return f"[{','.join(map(str, tensor.shape))}]"
