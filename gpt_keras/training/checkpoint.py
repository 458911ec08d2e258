"""Checkpoints: a model's and its optimizer's variables with how far the run is, whole or absent.

    checkpoints/step_00001000/  state.safetensors  state.json (step, seconds, validation loss, SHA-256 of the tensors)

They are written beside the training, by a thread. The newest whole one is used; a damaged one is passed over with a
warning. The same files serve both backends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import sweep, whole_folder

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
           "uint64": "U64", "uint32": "U32", "uint8": "U8", "bool": "BOOL"}  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Optimizer steps done.
        seconds: Seconds spent training, compilation left out.
        validation_loss: On held-out text after this step, where it was measured.
    """

    step: int = 0
    seconds: float = 0.0
    validation_loss: float | None = None


class CheckpointWriter:
    """Writes checkpoints in a thread of low priority, from a snapshot that takes a small part of the time.

    Args:
        folder: Where they go.
        keep: How many of the newest stay; beside these the one with the lowest validation loss.
        warn: Told when one could not be written. Training then goes on, and the old ones stay.
    """

    def __init__(self, folder: Path, keep: int = 2, warn: Callable[[str], None] = warnings.warn) -> None:
        self._folder, self._keep, self._warn = folder, keep, warn
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, model: keras.Model, progress: Progress) -> None:
        """Write `step_N` of the model and its optimizer as they are now. Waits for the one before."""
        self.wait()
        tensors = snapshot(model)
        # Not a daemon: a program that ends waits for it.
        self._thread = threading.Thread(target=self._write, args=(tensors, progress), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, tensors: dict[str, Any], progress: Progress) -> None:
        with contextlib.suppress(AttributeError, OSError):  # Linux has priorities for threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            write_checkpoint(tensors, self._folder, progress)
            self._remove_old()
        except InputError as error:
            self._warn(f"no checkpoint of step {progress.step}: {error}")

    def _remove_old(self) -> None:
        found = _newest_first(self._folder)
        losses = {path: _validation_loss(path) for path in found}
        measured = [path for path in found if losses[path] is not None]
        best = min(measured, key=lambda path: (losses[path], path.name)) if measured else None
        for path in found[self._keep :]:
            if path != best:
                shutil.rmtree(path, ignore_errors=True)


def snapshot(model: keras.Model) -> dict[str, Any]:
    """The values of a model and its optimizer now, by name, as arrays that later steps do not change.

    On TensorFlow they share the variables' memory until a step writes to it; on JAX, whose steps take that memory over,
    they are copies on the device.
    """
    variables = _variables(model)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(lambda values: jax.tree.map(jax.numpy.copy, values))(
            {name: variable.value for name, variable in variables.items()}
        )
    return {name: variable.value.value() for name, variable in variables.items()}


def write_checkpoint(tensors: dict[str, Any], folder: Path, progress: Progress) -> Path:
    """Write `folder/step_N`, whole or not at all, in one pass over the values.

    Raises:
        InputError: The disk is full, or the folder cannot be written.
    """
    path = folder / f"step_{progress.step:08d}"
    with whole_folder(path) as partial:
        sha256 = _write_tensors(tensors, partial / "state.safetensors")
        (partial / "state.json").write_text(json.dumps({**asdict(progress), "sha256": sha256}) + "\n", "utf-8")
    return path


def newest_step(folder: Path) -> int | None:
    """Of the newest checkpoint in `folder`, if there is one."""
    found = _newest_first(folder)
    return int(found[0].name.removeprefix("step_")) if found else None


def best_validation_loss(folder: Path) -> float:
    """The lowest among the checkpoints in `folder`; infinite where none has one."""
    losses = [_validation_loss(path) for path in _newest_first(folder)]
    return min((loss for loss in losses if loss is not None), default=float("inf"))


def save_checkpoint(model: keras.Model, folder: Path, progress: Progress, keep: int = 2) -> Path:
    """As `CheckpointWriter`, in the foreground: where it went.

    Raises:
        InputError: The disk is full, or the folder cannot be written.
    """
    path = write_checkpoint(snapshot(model), folder, progress)
    CheckpointWriter(folder, keep)._remove_old()
    return path


def restore_checkpoint(model: keras.Model, folder: Path) -> Progress:
    """Load the newest whole checkpoint in `folder` into a compiled model; progress 0 where there is none.

    Raises:
        InputError: The checkpoint is of another model or optimizer.
    """
    if folder.is_dir():
        sweep(folder)
    for path in _newest_first(folder):
        try:
            state = json.loads((path / "state.json").read_text("utf-8"))
            if _sha256(path / "state.safetensors") != state["sha256"]:
                raise ValueError("its contents do not match their checksum")
            tensors = load_file(path / "state.safetensors")
            progress = Progress(int(state["step"]), float(state["seconds"]), state.get("validation_loss"))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.warn(f"{path}: damaged checkpoint passed over ({error})", stacklevel=2)
            continue
        _assign(model, tensors, path)
        return progress
    return Progress()


def _assign(model: keras.Model, tensors: dict[str, np.ndarray], path: Path) -> None:
    variables = _variables(model)
    for name in variables.keys() ^ tensors.keys():
        raise InputError(f"{path}: belongs to another model or optimizer ({name} differs); use another --run-dir")
    for name, variable in variables.items():
        if tuple(variable.shape) != tensors[name].shape:
            raise InputError(f"{path}: {name} has shape {tensors[name].shape}, the model's is {tuple(variable.shape)}")
    for name, variable in variables.items():
        variable.assign(tensors[name])


def _variables(model: keras.Model) -> dict[str, Any]:
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        f"{group}/{number:04d}/{_lasting(variable.path)}": variable
        for group, variables in groups.items()
        for number, variable in enumerate(variables)
    }


def _lasting(path: str) -> str:
    """A variable's path without the numbers by which Keras tells a process's optimizers and seed generators apart."""
    return re.sub(r"^(muon|adam_?w)(_\d+)?/|(?<=seed_generator)_\d+", "", path)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_????????"), reverse=True)


def _validation_loss(path: Path) -> float | None:
    try:
        loss = json.loads((path / "state.json").read_text("utf-8"))["validation_loss"]
        return None if loss is None else float(loss)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_tensors(tensors: dict[str, Any], path: Path) -> str:
    """Write a safetensors file; its SHA-256.

    The library's own writer copies everything twice and keeps Python's lock meanwhile, which would hold up training.
    The format: https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        size = int(np.prod(tensor.shape)) * _dtype(tensor).itemsize
        header[name] = {
            "dtype": _DTYPES[_dtype(tensor).name],
            "shape": [int(n) for n in tensor.shape],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as stream:
        for part in (len(text).to_bytes(8, "little"), text):
            stream.write(part)
            digest.update(part)
        for tensor in tensors.values():
            raw = np.ascontiguousarray(np.asarray(tensor)).reshape(-1).view(np.uint8).data
            stream.write(raw)
            digest.update(raw)
    return digest.hexdigest()


def _dtype(tensor: Any) -> np.dtype:
    dtype = tensor.dtype
    return np.dtype(getattr(dtype, "as_numpy_dtype", dtype))


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
