"""Generation speed: this project beside keras-hub, transformers, llama.cpp and CTranslate2, on the CPU.

    python -m benchmarks.generation [--quick] [--json] [--systems REGEX ...] [--preset gpt2]
        [--prompt-length 32] [--new-tokens 96] [--batch-sizes 1 16] [--prefill-length 256]

Needs the extra `benchmark`; a system that is not installed is named and left out. All run one GPT-2 with the same
random weights, greedily, each in a process of its own, in three turns (`--quick`: one); the best figure counts.
On two cores a turn takes about 12 minutes; 4 GB of memory and 2 GB of temporary files.

    decode          new tokens of all rows over the seconds of the whole call, prefill included
    prefill         prompt tokens over the seconds of a call that gives one new token
    first token     the same call's milliseconds, with the short prompt
    first call      seconds of the first call in the process (decode, first batch size): tracing, compiling and running
    same tokens     whether the first 16 tokens are those of transformers; at lower precision they need not be

Every call but the first is measured after one of the same shape.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.generation_systems import PACKAGES, REFERENCE, SYSTEMS, Generate, end_id, write_model_folder
from gpt_keras.config import PRESETS, GPTConfig

COMPARED_TOKENS = 16


@dataclass(frozen=True)
class Case:
    """One figure: the call that it is of, and its unit."""

    title: str
    unit: str
    rows: int
    prompt_length: int
    new_tokens: int

    @property
    def higher_is_better(self) -> bool:
        return self.unit == "tokens/s"

    def figure(self, seconds: float) -> float:
        if self.unit == "tokens/s":
            return self.rows * (self.prompt_length if self.new_tokens == 1 else self.new_tokens) / seconds
        return seconds * {"ms": 1000, "s": 1}[self.unit]

    def better(self, one: float, other: float) -> float:
        return max(one, other) if self.higher_is_better else min(one, other)

    def times_better(self, ours: float, theirs: float) -> float:
        return ours / theirs if self.higher_is_better else theirs / ours


def cases_of(options: argparse.Namespace) -> list[Case]:
    """All cases; the first is the first call that a process makes."""
    length, new, prefill = options.prompt_length, options.new_tokens, options.prefill_length
    return [
        Case("first call", "s", options.batch_sizes[0], length, new),
        *(Case(f"decode, batch {rows}", "tokens/s", rows, length, new) for rows in options.batch_sizes),
        Case(f"prefill of {prefill}", "tokens/s", 1, prefill, 1),
        Case("first token", "ms", 1, length, 1),
    ]


# === The command ===


def main() -> None:
    options = parse()
    if options.prepare:
        prepare = SYSTEMS[options.prepare].prepare
        assert prepare is not None
        prepare(Path(options.folder))
        print("done")
    elif options.system:
        print(json.dumps(measure(options)))
    else:
        compare(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--preset", default="gpt2", choices=[name for name in PRESETS if name.startswith("gpt2")])
    parser.add_argument("--prompt-length", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prefill-length", type=int, default=256)
    parser.add_argument("--systems", nargs="+", default=[""], help="only those whose name matches one of these")
    parser.add_argument("--quick", action="store_true", help="one turn instead of three, of fewer calls")
    parser.add_argument("--json", action="store_true")
    for private in ("--system", "--prepare", "--folder"):
        parser.add_argument(private, help=argparse.SUPPRESS)
    options = parser.parse_args()
    longest = max(options.prompt_length + options.new_tokens, options.prefill_length + 1)
    context = GPTConfig.from_preset(options.preset).context_length
    if longest > context:
        parser.error(f"{longest} tokens do not fit {options.preset}'s context of {context}")
    if options.new_tokens < 2 or min(options.prompt_length, options.prefill_length, *options.batch_sizes) < 1:
        parser.error("--new-tokens must be at least 2, the other numbers at least 1")
    return options


@dataclass
class Outcome:
    """What is known of one system: its best figure in each case and its first tokens, or why there are none."""

    figures: dict[str, float] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    problem: str = ""


def compare(options: argparse.Namespace) -> None:
    """Run every chosen system in turns, then print the tables and, if asked, the JSON line."""
    outcomes = {name: Outcome() for name in report.chosen(SYSTEMS, options.systems)}
    for name, outcome in outcomes.items():
        if SYSTEMS[name].missing:
            outcome.problem = f"not installed: pip install {' '.join(SYSTEMS[name].missing)}"
    with tempfile.TemporaryDirectory(prefix="gpt_keras_benchmark_") as folder:
        write_model_folder(GPTConfig.from_preset(options.preset), Path(folder))
        turns = 1 if options.quick else 3
        for turn in range(turns):
            for name, outcome in outcomes.items():
                if not outcome.problem:
                    print(f"turn {turn + 1} of {turns}: {name}", file=sys.stderr, flush=True)
                    take_turn(name, outcome, folder, options, first=turn == 0)
    print_tables(outcomes, cases_of(options))
    if options.json:
        print_json(outcomes, options)
    if any(outcome.problem.startswith("failed") for outcome in outcomes.values()):
        sys.exit(1)


def take_turn(name: str, outcome: Outcome, folder: str, options: argparse.Namespace, first: bool) -> None:
    """Measure one system once; the better of old and new figures stay."""
    try:
        if first and SYSTEMS[name].prepare:
            run_system("--prepare", name, folder, options)
        measured = json.loads(run_system("--system", name, folder, options))
    except report.SystemFailedError as error:
        print(error, file=sys.stderr)
        outcome.problem = f"failed: {str(error).splitlines()[-1][:100]}"
        return
    outcome.tokens = measured["tokens"]
    for case in cases_of(options):
        figure = measured["figures"][case.title]
        outcome.figures[case.title] = case.better(figure, outcome.figures.get(case.title, figure))


def run_system(task: str, name: str, folder: str, options: argparse.Namespace) -> str:
    arguments = [task, name, "--folder", folder, "--preset", options.preset]
    for number in ("prompt_length", "new_tokens", "prefill_length"):
        arguments += [f"--{number.replace('_', '-')}", str(getattr(options, number))]
    arguments += ["--batch-sizes", *map(str, options.batch_sizes), *(["--quick"] if options.quick else [])]
    environment = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    return report.in_own_process("benchmarks.generation", arguments, {**environment, **SYSTEMS[name].environment})


def print_tables(outcomes: dict[str, Outcome], cases: list[Case]) -> None:
    """All systems; then, for each of ours, how it compares with the peers of its precision."""
    measured = {name: outcome for name, outcome in outcomes.items() if not outcome.problem}
    reference = measured.get(REFERENCE) or next(iter(measured.values()), Outcome())
    header = [["", *(case.title for case in cases)], ["", *(case.unit for case in cases)]]
    table = [[*header[0], "same tokens"], [*header[1], f"first {COMPARED_TOKENS}"]]
    for name, outcome in outcomes.items():
        if outcome.problem:
            table.append([name, outcome.problem])
            continue
        figures = [f"{outcome.figures[case.title]:,.1f}" for case in cases]
        table.append([name, *figures, "yes" if outcome.tokens == reference.tokens else "no"])
    report.print_table(table)
    for name, ours in measured.items():
        precision = name.split()[-1]
        peers = [peer for peer in measured if not peer.startswith("gpt_keras") and peer.split()[-1] == precision]
        if not name.startswith("gpt_keras") or not peers:
            continue
        table = [[f"{name}, times better than", *header[0][1:]]]
        for peer in peers:
            pairs = [(case, ours.figures[case.title], measured[peer].figures[case.title]) for case in cases]
            table.append([peer, *(f"{case.times_better(mine, theirs):.2f}x" for case, mine, theirs in pairs)])
        print()
        report.print_table(table)


def print_json(outcomes: dict[str, Outcome], options: argparse.Namespace) -> None:
    setting = f"{options.preset}, prompt {options.prompt_length}, {options.new_tokens} new"
    results = [
        report.result(name, f"{case.title}, {setting}", outcome.figures[case.title], case.unit)
        for name, outcome in outcomes.items()
        if not outcome.problem
        for case in cases_of(options)
    ]
    report.print_json("generation", results, ("gpt_keras", "keras", "numpy", *PACKAGES.values()))


# === One system ===


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of all cases of the system in this process, and the first tokens that it generates."""
    config = GPTConfig.from_preset(options.preset)
    shape = (max(options.batch_sizes), max(options.prompt_length, options.prefill_length))
    prompts = np.random.default_rng(1).integers(0, end_id(config), shape)
    generate = SYSTEMS[options.system].load(Path(options.folder))
    first, *others = cases_of(options)
    seconds, tokens = timed(generate, prompts, first)
    figures = {first.title: first.figure(seconds)}
    for case in others:
        # The first call of a shape traces and compiles: it is never the fastest.
        repeats = 3 if options.quick else 5 if case.new_tokens == 1 else 4
        figures[case.title] = case.figure(min(timed(generate, prompts, case)[0] for _ in range(repeats)))
    return {"figures": figures, "tokens": tokens[0][:COMPARED_TOKENS]}


def timed(generate: Generate, prompts: np.ndarray, case: Case) -> tuple[float, list[list[int]]]:
    """Seconds of one call, and the new tokens of each row."""
    rows = prompts[: case.rows, : case.prompt_length].tolist()
    start = time.perf_counter()
    tokens = generate(rows, case.new_tokens)
    seconds = time.perf_counter() - start
    if [len(row) for row in tokens] != [case.new_tokens] * case.rows:
        raise RuntimeError(f"{case.title}: expected {case.rows} x {case.new_tokens} new tokens, found {tokens}")
    return seconds, tokens


if __name__ == "__main__":
    main()
