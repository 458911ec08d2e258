"""Checkpoints: a model's and its optimizer's variables with how far the run is, whole or absent.

    checkpoints/step_00001000/  state-00000-of-00002.safetensors  (one for each process, of what its devices hold)
                                state.json  (step, seconds, score, SHA-256 of each file)

A tensor of the files is a part of a variable: NAME@START,START,... says where its first element goes.

They are written beside the training, by a thread. The newest whole one is used; a damaged one is passed over with a
warning, and renamed to step_N.damaged. The same files serve both backends, any mesh of devices and any number of
processes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
from safetensors import SafetensorError

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import PARTIAL, readable, sweep, whole_file, whole_folder
from gpt_keras.training.processes import Processes, largest, processes
from gpt_keras.training.tensor_files import StoredTensors, write_tensors

_OTHERS_SECONDS = 600.0
"""How long the first process waits for the others' parts."""


Score = tuple[float, ...]
"""How good a model is, the lower the better; a number counts where those before it are the same."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Optimizer steps done.
        seconds: Seconds spent training, compilation left out.
        score: Of held-out data after this step, where it was measured.
        precision: The dtype policy of the model's layers.
    """

    step: int = 0
    seconds: float = 0.0
    score: Score | None = None
    precision: str | None = field(default=None, compare=False)


class CheckpointWriter:
    """Writes checkpoints in a thread of low priority, from a snapshot that takes a small part of the time.

    Args:
        folder: Where they go.
        keep: How many of the newest stay; beside these the one of the best score.
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
            if processes().first:
                self._remove_old()
        except InputError as error:
            self._warn(f"no checkpoint of step {progress.step}: {error}")

    def _remove_old(self) -> None:
        found = _newest_first(self._folder)
        best = _best(found)
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

    Every process writes its part; the first one waits for the others' and puts the whole in place.

    Raises:
        InputError: The disk is full, or the folder cannot be written, or another process wrote nothing.
    """
    path = folder / f"step_{progress.step:08d}"
    run = processes()
    if run.count == 1:
        with whole_folder(path) as partial:
            _write_state(partial, progress, {_part(0, 1): write_tensors(tensors, partial / _part(0, 1))})
        return path
    shared = folder / f"{path.name}{PARTIAL}all"
    try:
        if not run.first:
            shared.mkdir(parents=True, exist_ok=True)
            _write_part(tensors, shared, run)
            return path
        with whole_folder(path) as partial:
            shared.mkdir(parents=True, exist_ok=True)
            _write_part(tensors, shared, run)
            names = [_part(index, run.count) for index in range(run.count)]
            _wait_for([shared / f"{name}.sha256" for name in names])
            sums = {name: (shared / f"{name}.sha256").read_text("utf-8") for name in names}
            for name in names:
                os.replace(shared / name, partial / name)
            shutil.rmtree(shared)
            _write_state(partial, progress, sums)
    except OSError as error:
        raise readable(error, path) from error
    return path


def _part(index: int, count: int) -> str:
    return f"state-{index:05d}-of-{count:05d}.safetensors"


def _write_part(tensors: dict[str, Any], shared: Path, run: Processes) -> None:
    """This process's file, and behind it, when it is whole, its checksum."""
    name = _part(run.index, run.count)
    sha256 = write_tensors(tensors, shared / name)
    with whole_file(shared / f"{name}.sha256") as partial:
        partial.write_text(sha256, "utf-8")


def _wait_for(files: list[Path]) -> None:
    deadline = time.monotonic() + _OTHERS_SECONDS
    while missing := [file for file in files if not file.exists()]:
        if time.monotonic() > deadline:
            raise InputError(f"{missing[0].stem} did not come: do all processes see {missing[0].parent}?")
        time.sleep(0.05)


def _write_state(partial: Path, progress: Progress, sums: dict[str, str]) -> None:
    (partial / "state.json").write_text(json.dumps({**asdict(progress), "sha256": sums}) + "\n", "utf-8")


def newest_step(folder: Path) -> int | None:
    """Of the newest checkpoint in `folder`, if there is one."""
    found = _newest_first(folder)
    return int(found[0].name.removeprefix("step_")) if found else None


def best_score(folder: Path) -> Score:
    """The lowest among the checkpoints in `folder`; infinite where none has one."""
    return min((score for score in map(_score, _newest_first(folder)) if score is not None), default=(math.inf,))


def save_checkpoint(model: keras.Model, folder: Path, progress: Progress, keep: int = 2) -> Path:
    """As `CheckpointWriter`, in the foreground: where it went.

    Raises:
        InputError: The disk is full, or the folder cannot be written.
    """
    path = write_checkpoint(snapshot(model), folder, progress)
    CheckpointWriter(folder, keep)._remove_old()
    return path


def recorded_precision(folder: Path) -> str | None:
    """What the model of the newest checkpoint in `folder` was trained in; `None` where that is not known."""
    for path in _newest_first(folder):
        try:
            return str(json.loads((path / "state.json").read_text("utf-8"))["precision"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def restore_checkpoint(model: keras.Model, folder: Path, best: bool = False) -> Progress:
    """Load a whole checkpoint in `folder` into a compiled model; progress 0 where there is none.

    Args:
        model: Compiled.
        folder: Of the checkpoints.
        best: Take the one of the best score, instead of the newest.

    Raises:
        InputError: The checkpoint is of another model or optimizer.
    """
    if folder.is_dir() and processes().first:
        sweep(folder)
    chosen = _first_whole(folder, best) if processes().first else -1
    step = int(largest([chosen])[0])
    if step < 0:
        return Progress()
    path = folder / f"step_{step:08d}"
    state = json.loads((path / "state.json").read_text("utf-8"))
    with StoredTensors(path) as stored:
        _assign(model, stored, path)
    return Progress(step, float(state["seconds"]), _score(path))


def _first_whole(folder: Path, best: bool) -> int:
    """The step of the newest checkpoint that matches its checksums, or of the best; -1 where there is none."""
    found = _newest_first(folder)
    while found:
        path = (_best(found) if best else None) or found[0]
        found.remove(path)
        try:
            state = json.loads((path / "state.json").read_text("utf-8"))
            step, _ = int(state["step"]), float(state["seconds"])
            for name, sha256 in state["sha256"].items():
                if _sha256(path / name) != sha256:
                    raise ValueError("its contents do not match their checksum")
            with StoredTensors(path):
                return step
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            warnings.warn(f"{path}: damaged checkpoint passed over ({error})", stacklevel=3)
            may_be_whole = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if not may_be_whole:
                _put_aside(path)
    return -1


def _put_aside(path: Path) -> None:
    """Rename a damaged checkpoint, which must count neither as the newest nor as the best one."""
    aside = path.with_name(f"{path.name}.damaged")
    with contextlib.suppress(OSError):
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def _assign(model: keras.Model, stored: StoredTensors, path: Path) -> None:
    variables = _variables(model)
    for name in variables.keys() ^ stored.shapes.keys():
        if name.startswith(_SEEDS):  # of dropout, which may be turned on or off
            variables.pop(name, None)
            continue
        raise InputError(f"{path}: belongs to another model or optimizer ({name} differs); use another --run-dir")
    for name, variable in variables.items():
        shape, expected = stored.shapes[name], tuple(variable.shape)
        if shape != expected:
            raise InputError(f"{path}: {name} has shape {shape}, the model's is {expected}")
    for name, variable in variables.items():
        if keras.backend.backend() == "jax" and variable.value.sharding.num_devices > 1:
            import jax

            read = functools.partial(stored.read, name)
            dtype = variable.value.dtype
            variable.assign(
                jax.make_array_from_callback(tuple(variable.shape), variable.value.sharding, read, dtype=dtype)
            )
        else:
            variable.assign(stored.read(name))


_SEEDS = "seeds"
"""The group of those variables that a model has for dropout alone."""


def _variables(model: keras.Model) -> dict[str, Any]:
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    frozen = {id(weight) for weight in model.weights if not weight.trainable}  # never change, so they are not kept
    changing = [variable for variable in model.variables if id(variable) not in frozen]
    groups = {
        "model": [variable for variable in changing if "seed_generator" not in variable.path],
        "optimizer": model.optimizer.variables,
        _SEEDS: [variable for variable in changing if "seed_generator" in variable.path],
    }
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


def _best(checkpoints: list[Path]) -> Path | None:
    scores = {path: score for path in checkpoints if (score := _score(path)) is not None}
    return min(scores, key=lambda path: (scores[path], path.name), default=None)


def _score(path: Path) -> Score | None:
    try:
        score = json.loads((path / "state.json").read_text("utf-8"))["score"]
        return None if score is None else tuple(map(float, score))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
