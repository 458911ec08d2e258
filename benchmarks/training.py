"""Time of a training step beside PyTorch (eager and compiled), keras-hub and Keras's own layers.

    python -m benchmarks.training [--case small|gpt2|gpt2-1024] [--systems NAME,...] [--quick] [--json]

Every system trains the same shape on the same random tokens with AdamW and clipping, each in a process of its own, in
turns; the figure is the fastest of all its steps after the first three. A system whose packages are not installed is
named and left out. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import report
from benchmarks.training_systems import CASES, SYSTEMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="small", choices=CASES)
    parser.add_argument("--systems", default="", help="only those that begin with one of these")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one turn of four steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    options = parser.parse_args()
    turns, steps = (1, 4) if options.quick else (options.turns, options.steps)
    if options.system:
        print(min(SYSTEMS[options.system].measure(CASES[options.case], steps)))
        return
    wanted = [name for name in SYSTEMS if name.startswith(tuple(options.systems.split(",")))]
    best: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for _ in range(turns):
        for name in wanted:
            if name in left_out:
                continue
            if SYSTEMS[name].missing:
                left_out[name] = "not installed: " + ", ".join(SYSTEMS[name].missing)
                continue
            arguments = ["--system", name, "--case", options.case, "--steps", str(steps)]
            try:
                line = report.in_own_process("benchmarks.training", arguments, SYSTEMS[name].environment)
            except report.SystemFailedError as error:
                sys.exit(f"{name}: {error}")
            best[name] = min(best.get(name, float("inf")), 1000 * float(line))
    case = CASES[options.case]
    tokens = case.batch_size * case.config.context_length
    peer = min((value for name, value in best.items() if not name.startswith("gpt_keras")), default=float("nan"))
    rows = [[name, f"{ms:.0f}", f"{1000 * tokens / ms:,.0f}", f"{peer / ms:.2f}x"] for name, ms in best.items()]
    title = f"step of {case.batch_size} x {case.config.context_length} tokens"
    report.print_table([[title, "ms", "tokens/s", "of the fastest peer"], *rows, *map(list, left_out.items())])
    if options.json:
        words = f"training step, {options.case}"
        results = [report.result(name, words, ms, "ms") for name, ms in best.items()]
        report.print_json("training", results, ("keras", "tensorflow", "jax", "torch", "keras-hub"))


if __name__ == "__main__":
    main()
