"""The fast CPU engine: a model's LiteRT file, made once, kept by what the model's files hold, and run."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.language_model import LanguageModel, load
from gpt_keras.litert import bundle, store
from gpt_keras.litert.contract import ContractDecoder
from gpt_keras.litert.decoder import LiteRTDecoder
from gpt_keras.litert.runtime import LiteRTFile
from gpt_keras.litert.worker import WorkerDecoder
from gpt_keras.rows import RowDecoder

Engine = Literal["auto", "keras", "litert", "litert-int8"]
"""What runs a model: Keras, or LiteRT with weights in float32 or int8."""

_SUFFIX = ".tflite"


class FastLanguageModel(LanguageModel):
    """A `LanguageModel` that LiteRT runs; what only Keras can do (`score`, `save`, ...) opens the model there first.

    Args:
        path: As for `language_model.load`.
        config: The model's.
        tokenizer: Its tokenizer.
        decoder: Runs it.
    """

    def __init__(self, path: str, config: GPTConfig, tokenizer: Tokenizer | None, decoder: RowDecoder) -> None:
        self._path, self._config = path, config
        self.tokenizer, self.decoder = tokenizer, decoder

    @property
    def config(self) -> GPTConfig:
        return self._config

    def __repr__(self) -> str:
        return f"FastLanguageModel({self._path!r})"

    __eq__, __hash__ = object.__eq__, object.__hash__

    def use_adapter(self, path: str | Path | None) -> None:
        raise InputError("Keras changes adapters: gpt_keras.load opens the model for it")

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
        if apart:
            raise InputError(f"{place}: a LiteRT file of one row at a time; serve the model folder that it is of")
        return _open(place)
    refused: InputError | None = None
    if engine == "auto":
        try:
            if _suits(place, make):
                return load_with(place, "litert", make, apart, say)
        except InputError as error:
            refused = error
    if engine in ("auto", "keras"):
        lm = load(place, dtype="float32")
        if refused is not None and say is not None:
            say(f"Keras runs {place}, for LiteRT does not: {refused}")
        return lm
    folder = store.obtain(place, "int8" if engine == "litert-int8" else "float32", say)
    file, config = store.read(folder)
    files = file, store.packed(file, folder)
    decoder = WorkerDecoder(*files, config) if apart else LiteRTDecoder(LiteRTFile(*files), config)
    return FastLanguageModel(place, config, Tokenizer.find(folder), decoder)


def _open(path: str) -> LanguageModel:
    """A .tflite file that `export --format litert` wrote."""
    config, tokenizer = bundle.read(path)
    packed = store.packed(Path(path), store.place(path, "exported"))
    return FastLanguageModel(path, config, tokenizer, ContractDecoder(LiteRTFile(path, packed), config))


def _suits(path: str, make: bool) -> bool:
    """Whether LiteRT is what runs a model best here, and may: see `load_with`."""
    if sys.platform != "linux" or importlib.util.find_spec("ai_edge_litert") is None:
        return False
    if importlib.util.find_spec("tensorflow") is None or os.environ.get("KERAS_BACKEND", "tensorflow") == "jax":
        return False
    from gpt_keras.compilation import on_cpu

    return on_cpu() and (make or store.is_there(path, "float32"))
