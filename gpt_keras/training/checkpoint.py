"""Checkpoints: a model's and its optimizer's variables with how far the run is, whole or absent.

    checkpoints/step_00001000/  state.safetensors  state.json (step, seconds, SHA-256 of the tensors)

The newest whole one is used; a damaged one is passed over with a warning. The same files serve both backends.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import sweep, whole_folder


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Optimizer steps done.
        seconds: Seconds spent training, compilation left out.
    """

    step: int = 0
    seconds: float = 0.0


def save_checkpoint(model: keras.Model, folder: Path, progress: Progress, keep: int = 2) -> Path:
    """Write `folder/step_N` and remove all but the newest `keep`.

    Raises:
        InputError: The disk is full.
    """
    path = folder / f"step_{progress.step:08d}"
    tensors = {name: np.array(variable) for name, variable in _variables(model).items()}
    with whole_folder(path) as partial:
        save_file(tensors, partial / "state.safetensors")
        state = {**asdict(progress), "sha256": _sha256(partial / "state.safetensors")}
        (partial / "state.json").write_text(json.dumps(state) + "\n", "utf-8")
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
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
            progress = Progress(int(state["step"]), float(state["seconds"]))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
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
    return re.sub(r"^(muon|adamw)(_\d+)?/|(?<=seed_generator)_\d+", "", path)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_????????"), reverse=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
