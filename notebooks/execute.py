"""Run notebooks from top to bottom on this machine, and keep what they show in them.

    python notebooks/execute.py                      # all of them
    python notebooks/execute.py notebooks/5_serve.ipynb

Each runs in an empty folder of its own. With what it shows a notebook keeps a digest of its code, by which a test finds
one that was changed and not run again.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
KEY = "executed_sources"
"""Of a notebook's metadata: the digest of the code that its outputs are of."""
MOST_SECONDS = 180
"""What a notebook may take."""
_UP, _CODES = "\x1b[1A", re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LOGGED = re.compile(r"WARNING: All log messages|[IWE]\d{4} |To enable the following|(rounding|measuring): ")
_PYTHON = re.compile(r"\S*/bin/python\S*")


def digest(notebook: Any) -> str:
    """Of all code in it."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\0".join(code).encode()).hexdigest()


def execute(
    path: Path, folder: Path, seconds: int = MOST_SECONDS, parameters: Mapping[str, float] | None = None
) -> Any:
    """The notebook with what its cells show.

    Args:
        path: The notebook.
        folder: Where it runs.
        seconds: What each cell may take.
        parameters: Instead of those in its cell of parameters; what is not there is left out.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            lines = [f"{n} = {v}" for n, v in (parameters or {}).items() if re.search(rf"^{n} = ", cell.source, re.M)]
            cell.source = "\n".join([cell.source, *lines])
    paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    # A plain terminal is one without progress bars that move.
    terminal = {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "120"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **terminal}
    client = NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it was run
        if cell.cell_type == "code":
            cell.outputs = _readable(cell.outputs)
    notebook.metadata[KEY] = digest(notebook)
    return notebook


def _readable(outputs: list[Any]) -> list[Any]:
    """Pieces of the same stream together, without what TensorFlow logs when it starts."""
    found: list[Any] = []
    for output in outputs:
        if found and output.output_type == "stream" and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    for output in found:
        if output.output_type == "stream":
            output.text = _as_shown(output.text)
    return [output for output in found if output.output_type != "stream" or output.text.strip()]


def _as_shown(text: str) -> str:
    """What is left on a terminal in the end."""
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        upwards = line.count(_UP)
        del lines[len(lines) - upwards :]  # what it writes over
        shown = _CODES.sub("", line.rpartition("\r")[2])
        if not _LOGGED.match(shown):
            lines.append(_PYTHON.sub("python", shown))
    return "\n".join(lines)


def kinds(notebook: Any) -> list[set[str]]:
    """What every cell of code shows: text, pictures, tables."""
    return [
        {kind for output in cell.outputs for kind in output.get("data", {"text": ""}) if output.get("name") != "stderr"}
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def failed_commands(notebook: Any) -> list[str]:
    """Lines of cells that a command ended with in an error."""
    lines = [
        line for cell in notebook.cells for o in cell.get("outputs", []) for line in o.get("text", "").splitlines()
    ]
    return [line for line in lines if line.startswith(("Traceback", "error:", "usage:"))]


def main() -> None:
    for path in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        if wrong := failed_commands(notebook):
            sys.exit(f"{path}: {wrong[0]}")
        if (seconds := time.monotonic() - begin) > MOST_SECONDS:
            sys.exit(f"{path}: took {seconds:.0f} s, where {MOST_SECONDS} are the most")
        nbformat.write(notebook, path)
        print(f"{path.name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
