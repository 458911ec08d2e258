"""How good a model of a text is after how long, on a CPU, beside nanoGPT's recipe for one.

    python -m benchmarks.quality [TEXT] [--peer-iterations 2000] [--shares 0.5 1] [--json]

TEXT is a file (by default the first million characters of the Python that runs this; tiny Shakespeare is what the
recipes are made for). Its last tenth is held out, and scored whole in bits for each of its bytes. The peer trains with
the settings that nanoGPT's README gives for a CPU (characters, 4 layers of 128, context 64, batch 12, 2000 iterations
of AdamW), as `benchmarks.training_systems.torch_gpt` in PyTorch. The recipe shakespeare of this project gets such
shares of the time which the peer takes. All time counts, from the start of the process to its end. Needs the extra
`test`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.training_systems import torch_gpt
from gpt_keras.config import GPTConfig

RECIPE = Path(__file__).parents[1] / "pipelines" / "recipes" / "shakespeare.yaml"
PEER = "torch, nanoGPT's CPU recipe"
CHARACTERS = 1_000_000
AROUND = 25.0
"""Seconds that a run of ours takes beside training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 1.0], help="of the peer's time, for each run")
    parser.add_argument("--peer-iterations", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the peer's iterations")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--minutes", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--iterations", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.minutes is not None:
        print(ours(options.text, options.minutes))
        return
    if options.iterations is not None:
        print(nano(options.text, options.iterations))
        return
    with tempfile.TemporaryDirectory(prefix="gpt_keras_benchmark_") as temporary:
        options.text = options.text or standard_library(Path(temporary) / "python-stdlib.txt")
        if not options.text.is_file():
            sys.exit(f"{options.text}: no such file")
        compare(options)


def standard_library(path: Path) -> Path:
    """Write the beginning of Python's own sources to a file."""
    from gpt_keras.data.sources import open_source

    texts, size = [], 0
    for document in open_source("python-stdlib")():
        texts.append(document.text)
        if (size := size + len(document.text)) > CHARACTERS:
            break
    path.write_text("".join(texts)[:CHARACTERS], "utf-8")
    return path


def compare(options: argparse.Namespace) -> None:
    """Train both, and print what was found."""
    iterations = options.peer_iterations // 10 if options.quick else options.peer_iterations
    seconds, bits = timed(options.text, "--iterations", iterations)
    found = {PEER if iterations == 2000 else f"{PEER}, {iterations} iterations": (seconds, bits)}
    for share in options.shares:
        minutes = max(0.05, (share * seconds - AROUND) / 60)
        ours = timed(options.text, "--minutes", minutes)
        found[f"gpt_keras, {ours[0] / seconds:.0%} of its time"] = ours
    rows = [[name, f"{seconds:.0f}", f"{bits:.3f}"] for name, (seconds, bits) in found.items()]
    report.print_table([[f"{options.text.name}, last tenth", "seconds", "bits per byte"], *rows])
    if options.json:
        results: list[dict[str, Any]] = []
        for name, (seconds, bits) in found.items():
            system, _, case = name.partition(", ")
            results.append(report.result(system, case, seconds, "s"))
            results.append(report.result(system, case, bits, "bits per byte"))
        report.print_json("quality", results, ["torch", "tensorflow", "keras"])


def timed(text: Path, option: str, value: float) -> tuple[float, float]:
    """Seconds of a process, and the bits per byte that it reports."""
    start = time.perf_counter()
    line = report.in_own_process("benchmarks.quality", [str(text), option, str(value)], {})
    return time.perf_counter() - start, float(line)


def ours(text: Path, minutes: float) -> float:
    """`python -m gpt_keras.train` with the recipe."""
    import yaml

    from gpt_keras.train import main as train
    from gpt_keras.training.options import TrainOptions

    with tempfile.TemporaryDirectory() as folder:
        recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
        places = {"data": [str(text)], "run_dir": Path(folder) / "run", "export_dir": None}
        train(TrainOptions(**{**recipe, **places, "minutes": minutes, "json": True}))
        return float(
            json.loads((Path(folder) / "run" / "summary.json").read_text("utf-8"))["metrics"]["val_bits_per_byte"]
        )


def nano(text: Path, iterations: int) -> float:
    """nanoGPT's settings; in float32, as it trains on a CPU, and without what it evaluates and prints meanwhile."""
    import torch

    context, batch = 64, 12
    raw = text.read_text("utf-8")
    characters = {character: number for number, character in enumerate(sorted(set(raw)))}
    data = torch.tensor([characters[character] for character in raw])
    cut = len(data) * 9 // 10
    training, held_out = data[:cut], data[cut:]
    torch.manual_seed(1337)
    model = torch_gpt(GPTConfig(len(characters), context_length=context, num_layers=4, num_heads=4, hidden_dim=128))
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.99))
    for iteration in range(iterations):
        decayed = 1e-4 + 0.5 * (1 + math.cos(math.pi * iteration / iterations)) * 9e-4
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = decayed * min(1.0, (iteration + 1) / 100)
        starts = torch.randint(len(training) - context, (batch,))
        rows = torch.stack([training[start : start + context + 1] for start in starts])
        loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(held_out) - 1, context):
            row = held_out[None, start : start + context + 1]
            nats += float(model(row[:, :-1], row[:, 1:], reduction="sum"))
    size = len(raw[cut:].encode())
    return float(np.round(nats / math.log(2) / size, 4))


if __name__ == "__main__":
    main()
