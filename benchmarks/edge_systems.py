"""The systems that `benchmarks.edge` measures: each opens what was made of a model folder, and continues one text."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generation_systems import PACKAGES, THREADS, convert_llama

ROOM = 1024
"""Tokens of context where a system wants to know before."""
NEW_TOKENS = 64
"""Where it wants to know how many come."""


class Session:
    """One text.

    Attributes:
        file: Where the weights are read from.
    """

    file: Path

    def prefill(self, prompt: Sequence[int]) -> None:
        """Begin with this prompt, up to the logits behind it."""
        raise NotImplementedError

    def decode(self, steps: int) -> None:
        """Go on with the most probable tokens."""
        raise NotImplementedError


@dataclass(frozen=True)
class System:
    """One way to run a model.

    Attributes:
        prepare: Converts the model folder, once, in a process of its own.
        open: From the model folder to a session.
        needs: Keys of `generation_systems.PACKAGES`, or modules.
        imports: Modules that opening imports.
    """

    prepare: Callable[[Path], None]
    open: Callable[[Path], Session]
    needs: tuple[str, ...]
    imports: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        return [PACKAGES.get(name, name) for name in self.needs if importlib.util.find_spec(name) is None]


class _LiteRT(Session):
    def __init__(self, decoder: Any, file: Callable[[], Path]) -> None:
        self._decoder, self._file = decoder, file
        self._rows: Any = None

    @property
    def file(self) -> Path:  # type: ignore[override]
        return self._file()

    def prefill(self, prompt: Sequence[int]) -> None:
        self._rows = None  # the text before it is gone, as in a chat that begins anew
        self._rows = self._decoder.start([list(prompt)], NEW_TOKENS)

    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self._rows.advance(np.asarray(self._rows.best))


def open_engine(folder: Path) -> Session:
    """Without a tokenizer, as all get tokens."""
    from gpt_keras.litert import store
    from gpt_keras.litert.decoder import LiteRTDecoder
    from gpt_keras.litert.runtime import LiteRTFile

    made = store.obtain(str(folder), "int8")
    file, config = store.read(made)
    return _LiteRT(LiteRTDecoder(LiteRTFile(file, store.packed(file, made)), config), lambda: file)


def prepare_engine(folder: Path) -> None:
    open_engine(folder)


def open_export(folder: Path) -> Session:
    from gpt_keras.litert.engine import load_with

    file = folder.with_suffix(".tflite")
    return _LiteRT(load_with(file).decoder, lambda: file)


def prepare_export(folder: Path) -> None:
    import gpt_keras
    from gpt_keras.exporting.litert import export_litert

    lm = gpt_keras.load(folder, dtype="float32")
    export_litert(lm.model, lm.tokenizer, folder.with_suffix(".tflite"), "int8", ROOM)
    open_export(folder)


class LlamaSession(Session):
    """llama.cpp through its C interface.

    Attributes:
        logits: [vocabulary_size], behind what it has read.
    """

    def __init__(self, file: Path) -> None:
        import llama_cpp as llama

        self._llama, self.file = llama, file
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(str(file).encode(), llama.llama_model_default_params())
        self._vocabulary_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        settings = llama.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = ROOM
        settings.n_threads = settings.n_threads_batch = THREADS
        self._context = llama.llama_init_from_model(self._model, settings)
        self._batch = llama.llama_batch_init(ROOM, 0, 1)
        self._position = 0

    def read(self, tokens: Sequence[int]) -> None:
        """Go on with these tokens."""
        batch = self._batch
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self._position + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i == len(tokens) - 1
        batch.n_tokens = len(tokens)
        if self._llama.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        self._position += len(tokens)
        logits = self._llama.llama_get_logits_ith(self._context, len(tokens) - 1)
        self.logits = np.ctypeslib.as_array(logits, (self._vocabulary_size,)).copy()

    def prefill(self, prompt: Sequence[int]) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        self._position = 0
        self.read(prompt)

    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self.read([int(self.logits.argmax())])


_LITERT = ("ai_edge_litert.compiled_model", "ai_edge_litert.options")

SYSTEMS = {
    "gpt_keras int8": System(prepare_engine, open_engine, ("ai_edge_litert", "tensorflow"), _LITERT),
    "gpt_keras int8 export": System(prepare_export, open_export, ("ai_edge_litert", "tensorflow"), _LITERT),
    "llama.cpp q8_0": System(
        convert_llama("q8_0"),
        lambda folder: LlamaSession(folder / "q8_0.gguf"),
        ("llama_cpp", "tensorflow"),
        ("llama_cpp",),
    ),
}
