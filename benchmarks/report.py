"""What the benchmarks share: a process for every system, the table, and the JSON line."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gpt_keras.machine import instructions, processor


class SystemFailedError(Exception):
    """A system's process ended with an error; the message is what it wrote."""


def in_own_process(module: str, arguments: Sequence[str], environment: dict[str, str]) -> str:
    """Run `python -m module` and return the last line that it prints.

    Args:
        module: A benchmark's module, which measures one system where it is told to.
        arguments: Its command line.
        environment: Variables on top of this process's own.

    Raises:
        SystemFailedError: It exited with an error.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemFailedError(done.stderr.strip() or f"exit code {done.returncode}")
    return done.stdout.splitlines()[-1]


_tables: list[list[list[str]]] = []
"""That have been printed."""


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells; the first row is the header, the first column stands left, the others right."""
    _tables.append([list(row) for row in rows])
    columns = max(len(row) for row in rows)
    # A row that says only one thing, such as why there is no figure, does not widen the columns.
    widths = [max(len(row[i]) for row in rows if len(row) == columns) for i in range(columns)]
    widths[0] = max(len(row[0]) for row in rows)
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
        print("  ".join(cells).rstrip())


def result(system: str, case: str, value: float, unit: str) -> dict[str, Any]:
    """One figure of the JSON line; what follows the system's first word ("gpt_keras jax float32") joins the case."""
    name, _, variant = system.partition(" ")
    return {"system": name, "case": f"{case}, {variant}" if variant else case, "value": round(value, 2), "unit": unit}


def print_json(
    benchmark: str, results: list[dict[str, Any]], packages: Sequence[str], elsewhere: Mapping[str, str] = {}
) -> None:
    """Print the one line that `--json` promises; the tables above are in it, too.

    Args:
        benchmark: Its name.
        results: Of `result`.
        packages: Whose versions are told.
        elsewhere: Versions of packages that are not in this environment.
    """
    numbers = {**versions(packages), **elsewhere}
    line = {"benchmark": benchmark, "machine": machine(), "commit": commit(), "versions": numbers, "results": results}
    print(json.dumps({**line, "tables": _tables}))


def commit() -> str | None:
    """Of this repository; `None` where there is no git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always"], cwd=os.path.dirname(__file__), capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def machine() -> dict[str, Any]:
    """System, processor, cores and memory, and the GPUs where there are some."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    found: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "memory_gb": round(memory / 1e9, 1)}
    found |= {"instructions": instructions(), "system": platform.platform(terse=True)}
    return {**found, "gpus": names} if (names := gpus()) else found


def gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    done = subprocess.run([program, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return [] if done.returncode else done.stdout.split("\n")[:-1]


def computes_bfloat16() -> bool:
    """Whether products in bfloat16 are of use here: on a GPU, and on a processor with instructions for them."""
    return bool(gpus()) or bool({"bfloat16", "AMX"} & set(instructions()))


def chosen(systems: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The systems in whose names one of these regular expressions is found; exits with a message if there are none."""
    systems = list(systems)
    try:
        found = [name for name in systems if any(re.search(pattern, name) for pattern in patterns)]
    except re.error as error:
        sys.exit(f"--systems {error.pattern!r}: no regular expression: {error}")
    return found or sys.exit(f"--systems {' '.join(patterns)}: there are {', '.join(systems)}")


def why_left_out(system: str, missing: Sequence[str]) -> str:
    """Why a system is not measured here, `missing` being the packages that it lacks; nothing if it is."""
    if missing:
        return "not installed: " + ", ".join(missing)
    return "this processor multiplies no bfloat16" if "bfloat16" in system and not computes_bfloat16() else ""


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
