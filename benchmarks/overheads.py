"""What a training step costs around the step itself: its input, and checkpoints.

    python -m benchmarks.overheads [--case small|gpt2] [--json]

The step is timed on one repeated batch and on batches read from a corpus on disk, in turns, in one process. Then
a checkpoint is begun behind a step, and what it adds to this step and the following ones is set against the time of
writing it with nothing else to do; beside it `keras.Model.save`, which training would wait for. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.training_systems import CASES, Case

TURNS = 3
SAVE_BEHIND = 2
"""Steps of a measured piece before the one behind which a checkpoint is begun."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="small", choices=("small", "gpt2"))
    parser.add_argument("--steps", type=int, default=12, help="of a measured piece; it must outlast a checkpoint")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(CASES[options.case], options.steps)))
        return
    arguments = ["--measure", "--case", options.case, "--steps", str(options.steps)]
    found = json.loads(report.in_own_process("benchmarks.overheads", arguments, {"KERAS_BACKEND": "tensorflow"}))
    repeated, corpus = found["repeated"], found["corpus"]
    rows = [
        ["step on one repeated batch", f"{1000 * repeated:.1f}", ""],
        ["step on batches of a corpus", f"{1000 * corpus:.1f}", f"{corpus / repeated - 1:+.1%} of the step"],
        ["checkpoint, nothing else to do", f"{1000 * found['write']:.0f}", f"{found['bytes'] / 1e6:.0f} MB"],
        ["checkpoint, held at its step", f"{1000 * found['held']:.1f}", f"{found['held'] / found['write']:.1%} of it"],
        [
            "checkpoint, added to all steps",
            f"{1000 * found['added']:.0f}",
            f"{found['added'] / found['write']:.0%} of it",
        ],
        ["keras.Model.save", f"{1000 * found['keras']:.0f}", f"{found['keras'] / found['held']:.0f} x as long as held"],
    ]
    report.print_table([[f"overheads, {options.case}", "ms", ""], *rows])
    if options.json:
        units = {"repeated": "step on one repeated batch", "corpus": "step on batches of a corpus"}
        units |= {"write": "checkpoint, nothing else to do", "held": "checkpoint, held at its step"}
        units |= {"added": "checkpoint, added to all steps"}
        results = [report.result("gpt_keras", f"{words}, {options.case}", 1000 * found[name], "ms")
                   for name, words in units.items()]  # fmt: skip
        results.append(report.result("keras", f"Model.save, {options.case}", 1000 * found["keras"], "ms"))
        report.print_json("overheads", results, ("keras", "tensorflow"))


def measure(case: Case, steps: int) -> dict[str, float]:
    """Seconds of everything in the table, and the bytes of a checkpoint."""
    import keras
    import tensorflow as tf

    from gpt_keras.model import GPT
    from gpt_keras.training.checkpoint import CheckpointWriter, Progress
    from gpt_keras.training.loss import NextTokenLoss
    from gpt_keras.training.optimizer import make_optimizer
    from gpt_keras.training.options import TrainOptions
    from gpt_keras.training.precision import choose_precision

    model = GPT(case.config, dtype=choose_precision("auto")[0])
    model.compile(
        make_optimizer(TrainOptions(optimizer="adamw", learning_rate=1e-4)), NextTokenLoss(), jit_compile="auto"
    )
    tokens = case.tokens

    def train(data: Any, act: Callable[[], None] | None = None) -> list[float]:
        """Seconds from one step's end to the next one's."""
        ends: list[float] = []

        class Clock(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                float(logs["loss"])
                ends.append(time.perf_counter())
                if act is not None and batch == SAVE_BEHIND:
                    act()

        model.fit(data, epochs=1, steps_per_epoch=steps + 1, verbose=0, shuffle=False, callbacks=[Clock()])
        return np.diff(ends).tolist()

    with tempfile.TemporaryDirectory() as folder:
        batches = _batches(case, Path(folder))
        repeated = tf.data.Dataset.from_tensors((tokens[:, :-1], tokens[:, 1:])).repeat(steps + 1)
        train(repeated), train(batches.dataset())  # compiles
        times: dict[str, list[float]] = {
            name: [] for name in ("repeated", "corpus", "held", "write", "with", "without")
        }
        for turn in range(TURNS):
            times["repeated"] += train(repeated)
            times["corpus"] += train(batches.dataset(start=100 * turn))
        writer = CheckpointWriter(Path(folder) / "checkpoints", keep=1)

        def save() -> None:
            start = time.perf_counter()
            writer.save(model, Progress(len(times["held"])))
            times["held"].append(time.perf_counter() - start)

        for _ in range(TURNS):
            times["without"].append(sum(train(repeated)[SAVE_BEHIND:]))
            times["with"].append(sum(train(repeated, save)[SAVE_BEHIND:]))
            writer.wait()
            start = time.perf_counter()
            writer.save(model, Progress(len(times["held"])))
            writer.wait()
            times["write"].append(time.perf_counter() - start)
        size = sum(file.stat().st_size for file in Path(folder, "checkpoints").rglob("*.safetensors"))
        start = time.perf_counter()
        model.save(Path(folder) / "model.keras")
        best = {name: min(values) for name, values in times.items()}
        added = max(0.0, best.pop("with") - best.pop("without"))
        return {**best, "added": added, "bytes": size, "keras": time.perf_counter() - start}


def _batches(case: Case, folder: Path) -> Any:
    """Batches of Python's own sources, in the case's vocabulary as far as it goes."""
    from gpt_keras.data.mixture import Mixture
    from gpt_keras.data.preparation import prepare, split_and_train_tokenizer
    from gpt_keras.data.pretraining import Batches

    tokenizer = split_and_train_tokenizer("python-stdlib", min(4096, case.config.vocabulary_size)).tokenizer
    corpus = prepare("python-stdlib", tokenizer, folder / "corpus")
    return Batches.of(Mixture([(corpus, None)]), case.config.context_length, case.batch_size)


if __name__ == "__main__":
    main()
