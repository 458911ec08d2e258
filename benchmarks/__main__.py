"""All benchmarks: their figures into benchmarks/results/, and from there into the documentation.

    python -m benchmarks [NAME ...] [--all] [--list] [--write-pages]

Each runs with settings that suit two cores, with AVX-512 together half an hour; --all adds those that take as long
again, or want a network. NAME runs only these. --write-pages only writes the documentation's tables and pictures anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import time

from tqdm import tqdm

from benchmarks import pages, report
from gpt_keras.data.files import whole_file

SUITE = {
    "default_run": "default_run",
    "training": "training --turns 1 --steps 6 "
    "--systems '{ours},keras_hub tensorflow {mixed},keras layers {mixed},torch eager {dtype},torch compile'",
    "finetuning": "finetuning --quick --batch-size {rows} --systems 'gpt_keras tensorflow auto,transformers {dtype}'",
    "data": "data --quick",
    "data_beam": "data --beam --quick",
    "tokenizers": "tokenizers --quick",
    "generation": "generation --quick --new-tokens 32 --systems {engines}",
    "serving": "serving --quick --new-tokens 32",
    "edge": "edge smollm2 --quick",
    "quality": "quality",
    "sizing": "sizing",
}
"""Arguments of `python -m benchmarks.` by the names of their results; in braces what depends on the machine."""
MORE = {
    "training_gpt2": "training --case gpt2 --quick --systems 'gpt_keras tensorflow auto,torch compile {dtype}'",
    "agreement": "agreement --quick --systems int8 llama",
    "engines": "engines --texts 8 --new-tokens 32 --environments build/engines",
}
"""The same, of those that --all adds."""
FAST = {"ours": "gpt_keras", "dtype": "bfloat16", "mixed": "mixed_bfloat16", "rows": 4, "engines": "''"}
SLOW = {
    "ours": "gpt_keras tensorflow auto",
    "dtype": "float32",
    "mixed": "float32",
    "rows": 1,
    "engines": "tensorflow litert torch CTranslate2 'llama.cpp float32' q8_0",
}
"""What is in braces, on a machine that multiplies in bfloat16 and on another, where `auto` is float32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="those of --list's second part, too")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--write-pages", action="store_true", help="run nothing")
    options = parser.parse_args()
    known = {**SUITE, **MORE}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    if options.list:
        print("\n".join(f"{name}: python -m benchmarks.{shlex.join(arguments(name))}" for name in known))
        return
    failed = []
    if not options.write_pages:
        for name in (bar := tqdm(options.names or list(known if options.all else SUITE), unit="benchmark")):
            bar.set_description(name)
            if problem := run(name):
                failed.append(f"{name}: {problem}")
    pages.write()
    if failed:
        sys.exit("\n".join(failed))


def arguments(name: str) -> list[str]:
    """Of the benchmark of this name, on this machine."""
    return shlex.split((SUITE.get(name) or MORE[name]).format(**(FAST if report.computes_bfloat16() else SLOW)))


def run(name: str) -> str:
    """Run one, and write what it found; else what was wrong."""
    module, *options = arguments(name)
    command = ["-m", f"benchmarks.{module}", *options]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command, "--json"], capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return "its last line is no JSON"
    record = {
        "command": "python " + shlex.join(command),
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - start),
        **found,
    }
    pages.RESULTS.mkdir(exist_ok=True)
    with whole_file(pages.RESULTS / f"{name}.json") as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return ""


if __name__ == "__main__":
    main()
