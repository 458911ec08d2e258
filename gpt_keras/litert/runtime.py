"""A LiteRT file, open: its functions by name, over memory that NumPy sees, too."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras import machine
from gpt_keras.data.errors import InputError

_TYPES = {"float32": np.float32, "int32": np.int32}


class LiteRTFile:
    """Runs the functions of a .tflite file on the CPU.

    Args:
        path: The file.
        weight_cache: A file in which XNNPACK keeps the weights in the order it reads them; written where there is none.
            All functions, and all processes, share it.
        threads: How many compute; by default as many as there are cores.

    Raises:
        InputError: There is no such file, it is damaged, or LiteRT is not installed.
    """

    _has_run = False  # at which LiteRT looks around once more

    def __init__(self, path: str | Path, weight_cache: str | Path | None = None, threads: int | None = None) -> None:
        compiled_model, hardware, options = _litert()
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        cpu = options.CpuOptions(
            num_threads=threads or machine.cores(),
            xnnpack_weight_cache_path=str(weight_cache or ""),
        )
        chosen = options.Options(hardware_accelerators=hardware.HardwareAccelerator.CPU, cpu_options=cpu)
        try:
            with _silence():
                before = _mapped(Path(path))
                made = compiled_model.CompiledModel.from_file(str(path), options=chosen, environment=_environment())
                _leave_memory(_mapped(Path(path)) - before)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: not a whole LiteRT file ({str(error).splitlines()[0]})") from error
        self._compiled = made
        self.functions = frozenset(made.get_signature_list())
        self._inputs: dict[str, _Inputs] = {}

    def shapes(self, function: str) -> dict[str, tuple[int, ...]]:
        """Shapes of its inputs by name, as they are at present where the file leaves sizes free."""
        return dict(self._inputs_of(function).shapes)

    def input(self, function: str, name: str, shape: tuple[int, ...] | None = None) -> Buffer:
        """New memory for one of its inputs, of this shape where the file leaves sizes free."""
        inputs = self._inputs_of(function)
        shape = shape or inputs.shapes[name]
        self._resize(function, name, shape)
        return Buffer(self._compiled.create_input_buffer_by_name(function, name), shape, inputs.dtypes[name])

    def outputs(self, function: str, inputs: dict[str, Buffer] | None = None) -> dict[str, Buffer]:
        """New memory for all its outputs by name, for such inputs where the file leaves sizes free."""
        for name, buffer in (inputs or {}).items():
            self._resize(function, name, buffer.array.shape)
        details = self._compiled.get_output_tensor_details(function)
        return {
            name: Buffer(
                self._compiled.create_output_buffer_by_name(function, name), tuple(detail["shape"]), detail["dtype"]
            )
            for name, detail in details.items()
        }

    def run(self, function: str, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> None:
        for name, buffer in inputs.items():
            self._resize(function, name, buffer.array.shape)
        given, taken = ({name: b.tensor for name, b in buffers.items()} for buffers in (inputs, outputs))
        with contextlib.nullcontext() if LiteRTFile._has_run else _silence():
            self._compiled.run_by_name(function, given, taken)
        LiteRTFile._has_run = True

    def _inputs_of(self, function: str) -> _Inputs:
        if function not in self._inputs:
            index, details = (
                self._compiled.get_signature_index(function),
                self._compiled.get_input_tensor_details(function),
            )
            names = self._compiled.get_signature_by_index(index)["inputs"]
            shapes = {name: tuple(details[name]["shape"]) for name in names}
            self._inputs[function] = _Inputs(index, shapes, {name: details[name]["dtype"] for name in names})
        return self._inputs[function]

    def _resize(self, function: str, name: str, shape: tuple[int, ...]) -> None:
        inputs = self._inputs_of(function)
        if inputs.shapes[name] != shape:
            self._compiled.resize_input_tensor(list(inputs.shapes).index(name), shape, inputs.function)
            inputs.shapes[name] = shape


@dataclass
class _Inputs:
    """Of a function: its place among all, and its inputs' shapes and dtypes by name, in their order."""

    function: int
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


class Buffer:
    """Memory of one input or output.

    Attributes:
        tensor: LiteRT's side of it.
        array: The same memory.
    """

    def __init__(self, tensor: Any, shape: tuple[int, ...], dtype: str) -> None:
        self.tensor = tensor
        count = int(np.prod(shape)) * 4
        if (there := _size(tensor)) < count:
            raise RuntimeError(f"LiteRT has {there} bytes for a tensor of {shape}")
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(_address(tensor)))
        self.array = memory.view(_TYPES[dtype]).reshape(shape)
        self.array[...] = 0


def _size(tensor: Any) -> int:
    """How many bytes a tensor has."""
    found = ctypes.c_size_t()
    get = _library().LiteRtGetTensorBufferSize
    get.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)]
    return found.value if get(_pointer(tensor), ctypes.byref(found)) == 0 else 0


def _pointer(tensor: Any) -> Any:
    capsule = tensor.capsule
    pointer, name = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_GetName
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return pointer(capsule, name(capsule))


def _address(tensor: Any) -> int:
    """Where the memory of a tensor is: LiteRT's Python reads and writes it only by copies, its C interface tells."""
    found = ctypes.c_void_p()
    get = _library().LiteRtGetTensorBufferHostMemory
    get.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)]
    status = get(_pointer(tensor), ctypes.byref(found))
    if status != 0 or not found.value:
        raise RuntimeError(f"LiteRT keeps a tensor where it cannot be seen (status {status})")
    return found.value


@functools.cache
def _library() -> Any:
    import ai_edge_litert

    return ctypes.CDLL(str(Path(str(ai_edge_litert.__file__)).parent / "libLiteRt.so"))


@functools.cache
def _environment() -> Any:
    """What all files of the process share."""
    from ai_edge_litert import environment

    options = environment.EnvironmentOptions(runtime_path=str(Path(environment.__file__).parent))
    found = environment.Environment.create(options=options)

    @atexit.register
    def end_in_silence() -> None:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what LiteRT writes when it is unloaded

    return found


_opening = threading.Lock()
"""Standard error and the list of what is mapped are the whole process's."""


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """LiteRT writes to standard error which accelerators it finds, and which it does not. One thread at a time."""
    with _opening:
        sys.stderr.flush()
        kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nothing)


def _mapped(path: Path) -> set[tuple[int, int]]:
    """From where to where a file is in this process's memory, only to be read; nothing where the system has no list."""
    found = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_bytes().split(b"\n"):
            span, access, *_, name = line.split(maxsplit=5) if line.count(b"/") else (b"", b"", b"")
            if access.startswith(b"r--") and name == os.fsencode(path.resolve()):
                start, _, end = span.partition(b"-")
                found.add((int(start, 16), int(end, 16)))
    return found


def _leave_memory(spans: set[tuple[int, int]]) -> None:
    """Give back the memory that has a file's pages, which come again from the file when they are read.

    Opening looks at the beginning of every weight, which the system takes as a wish for 64 KB of each.
    """
    with contextlib.suppress(AttributeError):  # a system without such advice
        for start, end in spans:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _litert() -> tuple[Any, Any, Any]:
    try:
        from ai_edge_litert import compiled_model, hardware_accelerator, options
    except ImportError as error:
        raise InputError(f"LiteRT needs {error.name}: pip install 'gpt_keras[litert]'") from error
    return compiled_model, hardware_accelerator, options
