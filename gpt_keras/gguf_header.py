"""The header of a .gguf file, llama.cpp's format, and its tensors by the names they have there.

The library `gguf` knows the formats of the values. The header is read here, because the library's reader trusts every
count it finds, so that one damaged byte makes it fill the memory, and takes seconds for a vocabulary.

Source: the format's description, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gpt_keras.data.errors import InputError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Number of a metadata type to its `struct` letter; 8 is a string, 9 an array."""
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class _Stored:
    """One tensor as the file's header describes it; `shape` is [rows, columns], of values."""

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    size: int


class GGUFFile:
    """The header of a .gguf file, and its tensors by the names they have there.

    Args:
        path: The file.

    Attributes:
        metadata: Key to number, string, bool, list of strings or NumPy array.
        shapes: Tensor name to shape, slowest dimension first.

    Raises:
        InputError: The file is no GGUF file, damaged, cut, or of a kind that is not supported; the message names the
            key or tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._data = memoryview(np.memmap(self.path, np.uint8, mode="r"))  # type: ignore[arg-type]
        except FileNotFoundError as error:
            raise InputError(f"{path}: no file there") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self._tensors: dict[str, _Stored] = {}
        self._read_header()
        self.shapes = {name: stored.shape for name, stored in self._tensors.items()}

    def _fail(self, message: str) -> InputError:
        return InputError(f"{self.path}: {message}")

    def _take(self, size: int, what: str) -> int:
        """Where the next `size` bytes begin."""
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise self._fail(f"cut or damaged: {what} goes on beyond the end of the file")
        return start

    def _number(self, letter: str, what: str) -> Any:
        start = self._take(struct.calcsize("<" + letter), what)
        return struct.unpack_from("<" + letter, self._data, start)[0]

    def _string(self, what: str) -> str:
        size = self._number("Q", what)
        start = self._take(size, what)
        try:
            return str(self._data[start : start + size], "utf-8")
        except UnicodeDecodeError as error:
            raise self._fail(f"damaged: {what} is not UTF-8") from error

    def _read_header(self) -> None:
        if bytes(self._data[:4]) != b"GGUF":
            raise self._fail("not a GGUF file")
        self._at = 4
        version = self._number("I", "the version")
        if version not in (2, 3):
            hint = " (a big-endian file?)" if version & 0xFFFF == 0 else ""
            raise self._fail(f"GGUF version {version}{hint} is not supported, only 2 and 3")
        tensors, keys = self._number("Q", "the number of tensors"), self._number("Q", "the number of keys")
        for number in range(keys):
            key = self._string(f"the name of key {number + 1} of {keys}")
            if key in self.metadata:
                raise self._fail(f"damaged: the key {key} is there twice")
            self.metadata[key] = self._value(self._number("I", key), key)
        entries = [self._tensor_entry(f"the entry of tensor {number + 1} of {tensors}") for number in range(tensors)]
        self._place(entries)

    def _value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind], key)
        if kind == _STRING:
            return self._string(key)
        if kind != _ARRAY:
            raise self._fail(f"damaged: the key {key} is of the unknown type {kind}")
        kind, count = self._number("I", key), self._number("Q", key)
        if kind == _STRING:
            # Each takes 8 bytes at least, so that a damaged count ends here and not when the memory is full.
            self._take(8 * count, key)
            self._at -= 8 * count
            return [self._string(key) for _ in range(count)]
        if kind not in _SCALARS:
            raise self._fail(f"damaged: the key {key} is an array of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        start = self._take(dtype.itemsize * count, key)
        return np.frombuffer(self._data, dtype, count, start)

    def _tensor_entry(self, what: str) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(what)
        dimensions = self._number("I", name)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._fail(f"damaged: the tensor {name} has {dimensions} dimensions")
        shape = tuple(self._number("Q", name) for _ in range(dimensions))[::-1]
        return name, shape, self._number("I", name), self._number("Q", name)

    def _place(self, entries: list[tuple[str, tuple[int, ...], int, int]]) -> None:
        """Check that the tensors lie one behind the other, as llama.cpp demands, and inside the file."""
        alignment = self.metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._fail(f"damaged: general.alignment is {alignment!r}")

        def padded(size: int) -> int:
            return -(-size // alignment) * alignment

        begin, offset = padded(self._at), 0
        for name, shape, number, stated in entries:
            kind = self._kind(name, number)
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            if shape[-1] % block or not all(shape):
                raise self._fail(f"damaged: the tensor {name} of type {kind.name} has shape {shape}")
            if name in self._tensors or stated != offset:
                raise self._fail(f"damaged: the tensor {name} is there twice or does not lie where it should")
            size = math.prod(shape) // block * block_bytes
            if begin + offset + size > len(self._data):
                raise self._fail(f"cut: the tensor {name} goes on beyond the end of the file")
            self._tensors[name] = _Stored(shape, kind, begin + offset, size)
            offset += padded(size)

    def _kind(self, name: str, number: int) -> gguf.GGMLQuantizationType:
        kind = _readable_kind(number)
        if kind is None:
            raise self._fail(f"the tensor {name} is of a type that is not supported (number {number})")
        return kind

    def read(self, name: str) -> np.ndarray:
        """The tensor as float32, in its shape."""
        stored = self._tensors[name]
        raw = np.frombuffer(self._data, np.uint8, stored.size, stored.start)
        rows = raw.reshape(math.prod(stored.shape[:-1]), -1)
        with np.errstate(all="ignore"):  # damaged scales overflow; whether the values are finite is seen to later
            return gguf.dequantize(rows, stored.kind).astype(np.float32, copy=False).reshape(stored.shape)


@functools.cache
def _readable_kind(number: int) -> gguf.GGMLQuantizationType | None:
    """The type of that number, if the library can dequantize it, which one block of zeros tells."""
    try:
        kind = gguf.GGMLQuantizationType(number)
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return None
    return kind
