"""All benchmarks: their figures into benchmarks/results/, and from there into the documentation.

    python -m benchmarks [NAME ...] [--all] [--into FOLDER] [--list] [--write-pages]

Each runs with settings that suit two cores, together half an hour; --all adds those that take as long
again, or want a network or a GPU. NAME runs only these. --into keeps the figures of another kind of machine in a
folder of their own there, for the pages that show them. --write-pages only writes the documentation's tables and
pictures anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks import pages, report
from gpt_keras.data.files import whole_file

SUITE = {
    "default_run": "default_run",
    "training": "training --turns 1 --steps 6",
    "finetuning": "finetuning --quick",
    "data": "data --quick",
    "data_beam": "data --beam --quick",
    "tokenizers": "tokenizers --quick",
    "generation": "generation --quick",
    "serving": "serving --quick",
    "edge": "edge smollm2 --quick",
    "quality": "quality",
    "sizing": "sizing",
}
"""Arguments of `python -m benchmarks.` by the names of their results."""
MORE = {
    "training_gpt2": "training --case gpt2 --quick",
    "agreement": "agreement --quick --systems int8 llama",
    "engines": "engines --texts 8 --new-tokens 32 --environments build/engines",
}
"""The same, of those that --all adds."""
ON_GPU = {
    "training_gpu": "training --case gpt2-1024 --batch-size 8 32 --turns 2 "
    "--systems 'gpt_keras jax,torch compile bfloat16'",
}
"""The same, of those that --all adds on a machine with a GPU; TensorFlow may be missing there."""
KNOWN = {**SUITE, **MORE, **ON_GPU}
FAST = {
    "training": "--systems 'gpt_keras,keras_hub .* mixed,keras layers mixed,torch eager bfloat16,torch compile'",
    "finetuning": "--systems 'gpt_keras tensorflow auto,transformers bfloat16'",
    "generation": "--new-tokens 32",
    "serving": "--new-tokens 32",
    "training_gpt2": "--systems 'gpt_keras tensorflow auto,torch compile bfloat16'",
}
"""More arguments, on a machine that multiplies in bfloat16."""
SLOW = {
    "default_run": "--minutes 2",
    "training": "--batch-size 8 --systems 'gpt_keras tensorflow auto,keras_hub .* float32,torch compile float32'",
    "finetuning": "--context-length 256 --batch-size 1 --systems 'gpt_keras tensorflow auto$,transformers float32$'",
    "generation": "--new-tokens 16 --systems tensorflow 'litert float32' torch CTranslate2 'llama.cpp float32'",
    "serving": "--new-tokens 16 --systems int8 '^gpt_keras float32$' transformers llama",
    "edge": "--systems 'int8$' llama",
    "quality": "--peer-iterations 1000 --shares 1",
    "training_gpt2": "--systems 'gpt_keras tensorflow auto,torch compile float32'",
}
"""The same, on another machine: there float32 is what `auto` is, and all take some three times as long."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="those of --list's second part, too")
    parser.add_argument("--into", default="", metavar="FOLDER", help="of benchmarks/results, such as avx2")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--write-pages", action="store_true", help="run nothing")
    options = parser.parse_args()
    every = [name for name in KNOWN if name not in ON_GPU or report.gpus()]
    if unknown := [name for name in options.names if name not in KNOWN]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(KNOWN)}")
    if not re.fullmatch(r"\w*", options.into):
        parser.error(f"--into {options.into}: no name of a folder")
    if options.list:
        print("\n".join(f"{name}: python -m benchmarks.{shlex.join(arguments(name))}" for name in KNOWN))
        return
    failed = []
    if not options.write_pages:
        for name in (bar := tqdm(options.names or (every if options.all else list(SUITE)), unit="benchmark")):
            bar.set_description(name)
            if problem := run(name, pages.RESULTS / options.into):
                failed.append(f"{name}: {problem}")
    pages.write()
    if failed:
        sys.exit("\n".join(failed))


def arguments(name: str) -> list[str]:
    """Of the benchmark of this name, on this machine."""
    more = FAST if report.computes_bfloat16() else SLOW
    return shlex.split(f"{KNOWN[name]} {more.get(name, '')}")


def run(name: str, folder: Path) -> str:
    """Run one, and write what it found into this folder; else what was wrong."""
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
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / f"{name}.json") as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return ""


if __name__ == "__main__":
    main()
