"""Tensors in safetensors files, each file with the parts that one process holds.

A tensor of the files is a part of a variable: NAME@START,START,... says where its first element goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
           "uint64": "U64", "uint32": "U32", "uint8": "U8", "bool": "BOOL"}  # fmt: skip


def write_tensors(tensors: dict[str, Any], path: Path) -> str:
    """Write what this process holds of the tensors to a safetensors file; its SHA-256.

    The library's own writer copies everything twice and keeps Python's lock meanwhile, which would hold up training.
    The format: https://github.com/huggingface/safetensors#format.
    """
    parts = {key: part for name, tensor in tensors.items() for key, part in _held(name, tensor)}
    header: dict[str, Any] = {}
    offset = 0
    for key, part in parts.items():
        size = int(np.prod(part.shape)) * _dtype(part).itemsize
        header[key] = {
            "dtype": _DTYPES[_dtype(part).name],
            "shape": [int(n) for n in part.shape],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as stream:
        for block in (len(text).to_bytes(8, "little"), text):
            stream.write(block)
            digest.update(block)
        for part in parts.values():
            raw = np.ascontiguousarray(np.asarray(part)).reshape(-1).view(np.uint8).data
            stream.write(raw)
            digest.update(raw)
    return digest.hexdigest()


def _held(name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """Each part of a tensor of which this process holds the first copy, by the name it has in a file."""
    if not hasattr(tensor, "addressable_shards"):
        yield f"{name}@{','.join('0' * len(tensor.shape))}", tensor
        return
    for shard in tensor.addressable_shards:
        if shard.replica_id == 0:
            yield f"{name}@{','.join(str(part.start or 0) for part in shard.index)}", shard.data


def _dtype(tensor: Any) -> np.dtype:
    dtype = tensor.dtype
    return np.dtype(getattr(dtype, "as_numpy_dtype", dtype))


class StoredTensors:
    """The tensors of a checkpoint, of which any part can be read.

    Attributes:
        shapes: Of all, by name.

    Raises:
        ValueError: A part is missing.
    """

    def __init__(self, path: Path) -> None:
        self._open = contextlib.ExitStack()
        self._parts: dict[str, list[tuple[tuple[int, ...], Any]]] = defaultdict(list)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(path.glob("state-*.safetensors")):
            tensors = self._open.enter_context(safe_open(file, framework="numpy"))
            for key in tensors.keys():  # noqa: SIM118 it is no dictionary
                name, _, places = key.rpartition("@")
                start = tuple(int(place) for place in places.split(",") if place)
                self._parts[name].append((start, tensors.get_slice(key)))
        for name, parts in self._parts.items():
            ends = [np.add(start, part.get_shape()) for start, part in parts]
            self.shapes[name] = tuple(int(n) for n in np.max(ends, axis=0))
            if sum(math.prod(part.get_shape()) for _, part in parts) != math.prod(self.shapes[name]):
                raise ValueError(f"a part of {name} is missing")

    def __enter__(self) -> StoredTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The part of a tensor that `index` names, one slice with steps of 1 for each dimension; all by default."""
        shape = self.shapes[name]
        bounds = [
            part.indices(size)[:2] for part, size in zip(index or (slice(None),) * len(shape), shape, strict=True)
        ]
        result: np.ndarray | None = None
        for start, part in self._parts[name]:
            sizes = part.get_shape()
            wanted = [
                (max(low, first), min(high, first + size))
                for (low, high), first, size in zip(bounds, start, sizes, strict=True)
            ]
            if any(low >= high for low, high in wanted):
                continue
            here = tuple(slice(low - first, high - first) for (low, high), first in zip(wanted, start, strict=True))
            values = part[here] if here else part[...]
            if wanted == bounds:
                return values
            if result is None:
                result = np.empty([high - low for low, high in bounds], values.dtype)
            there = tuple(slice(low - b, high - b) for (low, high), (b, _) in zip(wanted, bounds, strict=True))
            result[there] = values
        assert result is not None
        return result
