"""Small real things for the tests: a corpus on disk, a tokenizer trained on it, a model with weights that matter."""

import atexit
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "GPT_KERAS_CACHE" not in os.environ:
    os.environ["GPT_KERAS_CACHE"] = tempfile.mkdtemp(prefix="gpt_keras_tests_")
    atexit.register(shutil.rmtree, os.environ["GPT_KERAS_CACHE"], ignore_errors=True)
# These models are so small that a program costs more to compile than to run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["KERAS_BACKEND"] == "tensorflow":
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
elif "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one test has compiled, no other one of this run compiles again, in whichever process.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gpt_keras_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import numpy as np
import pytest

from gpt_keras.config import GPTConfig
from gpt_keras.data.preparation import prepare, split_and_train_tokenizer
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.data.shards import Corpus

TENSORFLOW = os.environ["KERAS_BACKEND"] == "tensorflow"
PATIENCE = 300.0
"""Seconds until a test takes what it waits for to hang: many times what it takes on a quiet machine."""
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell's `&` starts us, and the programs that we interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that all workers end at about the same time."""
    long = (
        "training",
        "test_notebooks.py",
        "test_docs.py",
        "test_commands.py",
        "test_recipes.py",
        "evaluation",
        "exporting",
    )
    items.sort(key=lambda item: not any(part in item.path.parts for part in long))


def slow_but(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Values of one parameter of a test or fixture, of which only `quick` are not slow."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def virtual_devices(count: int, **others: str) -> dict[str, str]:
    """The environment of a process on JAX with so many devices."""
    flags = f"--xla_force_host_platform_device_count={count}"
    return {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags, **others}


NAMES = ["parse", "read", "write", "split", "merge", "count", "sort", "find", "load", "close"]
THINGS = ["line", "file", "token", "word", "tree", "node", "graph", "table", "row", "key"]


def program(seed: int) -> str:
    """A page of text that looks like source code: regular enough to learn, varied enough to hold out."""
    draw = random.Random(seed)
    functions = []
    for _ in range(draw.randint(3, 9)):
        name, thing, other = draw.choice(NAMES), draw.choice(THINGS), draw.choice(THINGS)
        functions.append(
            f"def {name}_{thing}({other}, limit={draw.randint(1, 99)}):\n"
            f'    """{name.title()} every {thing} of the {other}."""\n'
            f"    for {thing} in {other}:\n"
            f"        if {thing}.{draw.choice(NAMES)}():\n"
            f"            yield {thing}\n"
            f"    return len({other})\n"
        )
    return "\n\n".join(functions)


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> str:
    """A folder of 120 small files, about 100 KB."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(120):
        (folder / f"module_{number:03d}.py").write_text(program(number), "utf-8")
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer(source) -> SentencePieceTokenizer:
    return split_and_train_tokenizer(source, 512).tokenizer


@pytest.fixture(scope="session")
def corpus(source, tokenizer, tmp_path_factory) -> Corpus:
    return prepare(source, tokenizer, tmp_path_factory.mktemp("prepared") / "corpus")


@pytest.fixture
def config() -> GPTConfig:
    """Initial weights wide enough that every part changes the logits."""
    return GPTConfig.from_preset("nano", vocabulary_size=512, context_length=96, initializer_range=0.3)


@pytest.fixture
def model(config):
    return build(config)


def build(config: GPTConfig, seed: int = 0):
    import keras

    from gpt_keras.model import GPT

    keras.utils.set_random_seed(seed)
    return GPT(config)


def random_ids(shape, vocabulary_size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary_size, shape).astype(np.int32)
