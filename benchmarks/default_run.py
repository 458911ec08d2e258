"""The default run, `make train`, from a fresh folder: what it comes to, beside xz, and how long it takes.

    python -m benchmarks.default_run [--minutes 0.5] [--json]

Needs the extra `test`, as all benchmarks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="of training, instead of the default run's own")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpt_keras_benchmark_") as temporary:
        command = [sys.executable, "-m", "gpt_keras.train", "--run-dir", "run", "--json"]
        command += ["--minutes", str(options.minutes)] if options.minutes else []
        done = subprocess.run(command, cwd=temporary, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"the run ended with {done.returncode}")
        metrics = json.loads(done.stdout.splitlines()[-1])["metrics"]
        stages = json.loads((Path(temporary) / "run" / "summary.json").read_text("utf-8"))["stage_seconds"]
    minutes, name = metrics["total_seconds"] / 60, "gpt_keras"
    rows = [
        [f"the default run, {options.minutes:g} minutes" if options.minutes else "the default run", ""],
        ["parameters", f"{metrics['parameters']:,}"],
        ["tokens seen", f"{metrics['tokens']:,}, {metrics['tokens_per_second']:,.0f} a second"],
        ["held-out bits per byte", f"{metrics['val_bits_per_byte']:.3f}, on {metrics['val_bytes']:,} bytes"],
        ["xz -9e of each held-out document", f"{metrics['xz_bits_per_byte']:.3f}"],
        ["xz -9e of all in one file", f"{metrics['xz_concatenated_bits_per_byte']:.3f}"],
        ["minutes", f"{minutes:.1f}: " + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in stages.items())],
    ]
    report.print_table(rows)
    if options.json:
        results = [
            report.result(name, "held-out documents", metrics["val_bits_per_byte"], "bits per byte"),
            report.result("xz", "held-out documents, each", metrics["xz_bits_per_byte"], "bits per byte"),
            report.result(
                "xz", "held-out documents, one file", metrics["xz_concatenated_bits_per_byte"], "bits per byte"
            ),
            report.result(name, "in all", minutes, "minutes"),
        ]
        report.print_json("default_run", results, ("keras", "tensorflow", "sentencepiece"))


if __name__ == "__main__":
    main()
