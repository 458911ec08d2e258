"""The fast CPU engine: a model's LiteRT file, made once, kept by what the model's files hold, and run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from gpt_keras.backend import start_backend
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import sweep, whole_folder
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.language_model import LanguageModel, load, model_files
from gpt_keras.litert import bundle
from gpt_keras.litert.contract import ContractDecoder
from gpt_keras.litert.decoder import LiteRTDecoder
from gpt_keras.litert.runtime import LiteRTFile
from gpt_keras.litert.worker import WorkerDecoder

Engine = Literal["auto", "keras", "litert", "litert-int8"]
"""What runs a model: Keras, or LiteRT with weights in float32 or int8."""

CACHE = "GPT_KERAS_CACHE"
"""Environment variable: the folder in which LiteRT files are kept, by default ~/.cache/gpt_keras."""

_FORMAT = 1
"""Counted up whenever the files that are made change."""
_SUFFIX = ".tflite"
_FILE, _CONFIG, _PACKED = "model.tflite", "gpt_config.json", "packed_weights"


class FastLanguageModel(LanguageModel):
    """A `LanguageModel` that LiteRT runs; what only Keras can do (`score`, `save`, ...) opens the model there first.

    Args:
        path: As for `language_model.load`.
        config: The model's.
        tokenizer: Its tokenizer.
        decoder: Runs it.
    """

    def __init__(self, path: str, config: GPTConfig, tokenizer: Tokenizer | None, decoder: Any) -> None:
        self._path, self._config = path, config
        self.tokenizer, self.decoder = tokenizer, decoder

    @property
    def config(self) -> GPTConfig:
        return self._config

    @cached_property
    def model(self) -> Any:  # type: ignore[override]
        return load(self._path, dtype="float32").model


def load_with(
    path: str | Path,
    engine: Engine = "auto",
    make: bool = True,
    apart: bool = False,
    say: Callable[[str], None] | None = None,
) -> LanguageModel:
    """`language_model.load` in float32, for generation by an engine.

    Args:
        path: As for `load`, or a .tflite file of ours, which LiteRT runs whatever the engine.
        engine: `auto` is LiteRT in float32 where it is installed, the machine computes on its CPU and, unless `make`,
            the model's file is there already; else Keras. The result is the same but for the last bits.
        make: Whether `auto` makes the file, which takes some seconds.
        apart: Run LiteRT in a process of its own, so that others of this one go on meanwhile.
        say: Told when a file is made.

    Raises:
        InputError: As `load`; or LiteRT is not installed, or cannot hold the model.
    """
    place = str(path)
    if place.endswith(_SUFFIX):
        return _open(place)
    if engine == "auto" and _suits(place, make):
        try:
            return load_with(place, "litert", make, apart, say)
        except InputError as error:
            if say is not None:
                say(f"Keras runs {place}, for LiteRT does not: {error}")
    if engine in ("auto", "keras"):
        return load(place, dtype="float32")
    weights: Literal["float32", "int8"] = "int8" if engine == "litert-int8" else "float32"
    folder = _place(place, weights)
    if not (folder / _FILE).is_file():
        if say is not None:
            say(f"making the LiteRT file of {place} ({weights}), once")
        _make(place, folder, weights)
    config = GPTConfig(**json.loads((folder / _CONFIG).read_text("utf-8")))
    files = folder / _FILE, folder / _PACKED
    decoder = WorkerDecoder(*files, config) if apart else LiteRTDecoder(LiteRTFile(*files), config)
    return FastLanguageModel(place, config, Tokenizer.find(folder), decoder)


def _open(path: str) -> LanguageModel:
    """A .tflite file that `export --format litert` wrote."""
    config, tokenizer = bundle.read(path)
    folder = _place(path, "")
    folder.mkdir(parents=True, exist_ok=True)
    return FastLanguageModel(path, config, tokenizer, ContractDecoder(LiteRTFile(path, folder / _PACKED), config))


def _suits(path: str, make: bool) -> bool:
    """Whether LiteRT is what runs a model best here."""
    if importlib.util.find_spec("ai_edge_litert") is None or os.environ.get("KERAS_BACKEND", "tensorflow") == "jax":
        return False
    if (_place(path, "float32") / _FILE).is_file():
        return True
    from gpt_keras.compilation import on_cpu

    return make and importlib.util.find_spec("tensorflow") is not None and on_cpu()


def _make(path: str, folder: Path, weights: str) -> None:
    """In a process of its own: what conversion takes of memory is then given back."""
    command = [sys.executable, "-m", "gpt_keras.litert.engine", path, str(folder), weights]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise InputError(said[-1])


def main() -> None:
    """Make the folder of a model's LiteRT file: the arguments are the model, the folder and the weights' dtype."""
    path, folder, weights = sys.argv[1], Path(sys.argv[2]), cast(Any, sys.argv[3])
    try:
        start_backend("tensorflow")
        lm = load(path, dtype="float32")
        try:
            from gpt_keras.litert.conversion import row_file
        except ImportError as error:
            raise InputError(f"it needs {error.name}: pip install 'gpt_keras[litert]'") from error
        content = row_file(lm.model, weights)
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        with whole_folder(folder) as partial:
            (partial / _FILE).write_bytes(content)
            (partial / _CONFIG).write_text(json.dumps(lm.config.to_dict()) + "\n", "utf-8")
            if lm.tokenizer is not None:
                lm.tokenizer.write(partial, lm.config.context_length)
    except (InputError, OSError) as error:
        sys.exit(str(error))


def _place(path: str, weights: str) -> Path:
    """The folder of a model's LiteRT file, by what its files hold."""
    digest = hashlib.sha256(f"{_FORMAT} {weights}".encode())
    for file in model_files(path):
        with open(file, "rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    base = os.environ.get(CACHE) or Path.home() / ".cache" / "gpt_keras"
    return Path(base) / "litert" / digest.hexdigest()[:32]


if __name__ == "__main__":
    main()
