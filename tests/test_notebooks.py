"""Every notebook runs from top to bottom, and shows what its code gives."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
REPOSITORY = "gpt-keras/gpt_keras"
pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    import nbformat

    return nbformat.read(path, as_version=4)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, runner, tmp_path, monkeypatch):
    for name in ("KERAS_BACKEND", "XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):  # as somebody's own machine
        monkeypatch.delenv(name, raising=False)
    notebook = runner.execute(path, tmp_path, 600, {"MINUTES": 0.1, "STEPS": 30, "TOKENS": 12})
    assert not runner.failed_commands(notebook)
    assert runner.kinds(notebook) == runner.kinds(read(path)), "run python notebooks/execute.py"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_shows_is_of_its_code(path, runner):
    notebook = read(path)
    assert notebook.metadata[runner.KEY] == runner.digest(notebook), "run python notebooks/execute.py"
    shown = [cell for cell in notebook.cells if cell.get("outputs")]
    assert len(shown) > 3 and not runner.failed_commands(notebook)


def test_all_begin_alike():
    first = {next(cell.source for cell in read(path).cells if cell.cell_type == "code") for path in NOTEBOOKS}
    assert len(NOTEBOOKS) == 5 and len(first) == 1
    for path in NOTEBOOKS:
        notebook = read(path)
        assert (
            f"colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{path.name}" in notebook.cells[0].source
        )
        assert [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
