"""Time of a training step beside PyTorch (eager and compiled), keras-hub and Keras's own layers.

    python -m benchmarks.training [--case small|gpt2|gpt2-1024] [--systems REGEX,...] [--batch-size N ...]
        [--quick] [--json]

Every system trains the same shape on the same random tokens with AdamW and clipping, each in a process of its own, in
turns; the figures are the fastest of its steps after the first three, what that is of the arithmetic that a matrix
product in bfloat16 reaches here (as gpt_keras measures it; in float32 on a processor without), and the peak memory:
of the process, or of the GPU that it trains on. A system whose packages are not installed, or in bfloat16 on a
processor that multiplies none, is named and left out: Needs the extra `test`; on a GPU, keras, JAX, PyTorch,
safetensors, tqdm and matplotlib are enough.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
from typing import Any

from benchmarks import report
from benchmarks.training_systems import CASES, SYSTEMS, Case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="small", choices=CASES)
    parser.add_argument("--systems", default="", help="only those whose name matches one of these")
    parser.add_argument("--batch-size", type=int, nargs="+", help="rows of a step, instead of the case's own")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one turn of four steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    options = parser.parse_args()
    turns, steps = (1, 4) if options.quick else (options.turns, options.steps)
    case = CASES[options.case]
    cases = [dataclasses.replace(case, batch_size=rows) for rows in options.batch_size or [case.batch_size]]
    if options.system:
        print(json.dumps(measured(options.system, cases[0], steps)))
        return
    systems = report.chosen(SYSTEMS, options.systems.split(","))
    results = []
    for case in cases:
        words = f"training step, {options.case}, batch of {case.batch_size}"
        results += compared(case, systems, turns, ["--case", options.case, "--steps", str(steps)], words)
    if options.json:
        report.print_json("training", results, ("keras", "tensorflow", "jax", "torch", "keras-hub"))


def measured(name: str, case: Case, steps: int) -> dict[str, float]:
    """One system in this process: seconds of its fastest step, and its peak memory in bytes; of ours, a token's FLOPs
    and how many a second a matrix product reaches, too."""
    found = {"seconds": min(SYSTEMS[name].measure(case, steps)), "bytes": peak_memory()}
    if name.startswith("gpt_keras"):
        # Imports keras, whose backend is this process's.
        from gpt_keras.training.flops import measured_flops_per_second, training_flops_per_token

        found["flops"] = training_flops_per_token(case.config)
        found["ceiling"] = measured_flops_per_second("bfloat16" if report.computes_bfloat16() else "float32")
    return found


def compared(case: Case, systems: list[str], turns: int, arguments: list[str], words: str) -> list[dict[str, Any]]:
    """Measure systems in turns, each in a process with these arguments, and print their table; gives the results, each
    with these words."""
    best: dict[str, float] = {}
    memory: dict[str, float] = {}
    left_out: dict[str, str] = {}
    flops = ceiling = 0.0
    for _ in range(turns):
        for name in systems:
            if name in left_out:
                continue
            if problem := report.why_left_out(name, SYSTEMS[name].missing):
                left_out[name] = problem
                continue
            own = ["--system", name, "--batch-size", str(case.batch_size), *arguments]
            try:
                line = report.in_own_process("benchmarks.training", own, SYSTEMS[name].environment)
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
    results = [report.result(name, words, ms, "ms") for name, ms in best.items()]
    results += [report.result(name, f"utilization, {words}", 100 * x, "%") for name, x in utilization.items()]
    results += [report.result(name, f"peak memory, {words}", size, "GB") for name, size in memory.items()]
    return results


def peak_memory() -> int:
    """Most memory that this process has had, in bytes: of the GPU where it computed on one, else resident."""
    if (torch := sys.modules.get("torch")) and (size := torch.cuda.max_memory_allocated()):
        return size
    if (jax := sys.modules.get("jax")) and jax.default_backend() == "gpu":
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


if __name__ == "__main__":
    main()
