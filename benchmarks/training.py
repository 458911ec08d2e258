"""Time of a training step beside PyTorch (eager and compiled), keras-hub and Keras's own layers.

    python -m benchmarks.training [--case small|gpt2|gpt2-1024] [--systems REGEX,...] [--batch-size N]
        [--quick] [--json]

Every system trains the same shape on the same random tokens with AdamW and clipping, each in a process of its own, in
turns; the figures are the fastest of its steps after the first three, what that is of the arithmetic that a matrix
product in bfloat16 reaches here (as gpt_keras measures it; in float32 on a processor without), and the process's peak
memory, a GPU's not counted. A system whose packages are not installed, or in bfloat16 on a processor that multiplies
none, is named and left out: on a GPU, JAX and PyTorch are enough. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys

from benchmarks import report
from benchmarks.training_systems import CASES, SYSTEMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="small", choices=CASES)
    parser.add_argument("--systems", default="", help="only those whose name matches one of these")
    parser.add_argument("--batch-size", type=int, help="rows of a step, instead of the case's own")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one turn of four steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    options = parser.parse_args()
    turns, steps = (1, 4) if options.quick else (options.turns, options.steps)
    case = CASES[options.case]
    if options.batch_size:
        case = dataclasses.replace(case, batch_size=options.batch_size)
    if options.system:
        seconds = min(SYSTEMS[options.system].measure(case, steps))
        found = {"seconds": seconds, "bytes": peak_memory()}
        if options.system.startswith("gpt_keras"):
            # Imports keras, whose backend is this process's.
            from gpt_keras.training.flops import measured_flops_per_second, training_flops_per_token

            found["flops"] = training_flops_per_token(case.config)
            found["ceiling"] = measured_flops_per_second("bfloat16" if report.computes_bfloat16() else "float32")
        print(json.dumps(found))
        return
    wanted = report.chosen(SYSTEMS, options.systems.split(","))
    best: dict[str, float] = {}
    memory: dict[str, float] = {}
    left_out: dict[str, str] = {}
    flops = ceiling = 0.0
    for _ in range(turns):
        for name in wanted:
            if name in left_out:
                continue
            if problem := report.why_left_out(name, SYSTEMS[name].missing):
                left_out[name] = problem
                continue
            arguments = ["--system", name, "--case", options.case, "--steps", str(steps)]
            arguments += ["--batch-size", str(case.batch_size)]
            try:
                line = report.in_own_process("benchmarks.training", arguments, SYSTEMS[name].environment)
            except report.SystemFailedError as error:
                sys.exit(f"{name}: {error}")
            found = json.loads(line)
            best[name] = min(best.get(name, float("inf")), 1000 * found["seconds"])
            memory[name] = found["bytes"] / 1e9
            ceiling, flops = max(ceiling, found.get("ceiling", 0.0)), found.get("flops", flops)
    tokens = case.batch_size * case.config.context_length
    peer = min((value for name, value in best.items() if not name.startswith("gpt_keras")), default=float("nan"))
    utilization = {name: 1000 * tokens * flops / ms / ceiling for name, ms in best.items()} if ceiling else {}
    rows = [
        [
            name,
            f"{ms:.1f}",
            f"{1000 * tokens / ms:,.0f}",
            f"{peer / ms:.2f}x",
            f"{utilization.get(name, float('nan')):.0%}",
            f"{memory[name]:.2f}",
        ]
        for name, ms in best.items()
    ]
    title = f"step of {case.batch_size} x {case.config.context_length} tokens"
    report.print_table(
        [
            [title, "ms", "tokens/s", "of the fastest peer", "utilization", "peak memory, GB"],
            *rows,
            *map(list, left_out.items()),
        ]
    )
    if options.json:
        words = f"training step, {options.case}, batch of {case.batch_size}"
        results = [report.result(name, words, ms, "ms") for name, ms in best.items()]
        results += [report.result(name, f"utilization, {words}", 100 * x, "%") for name, x in utilization.items()]
        results += [report.result(name, f"peak memory, {words}", size, "GB") for name, size in memory.items()]
        report.print_json("training", results, ("keras", "tensorflow", "jax", "torch", "keras-hub"))


def peak_memory() -> int:
    """Most resident memory that this process has had, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


if __name__ == "__main__":
    main()
