"""What `python -m build` makes is whole: it trains and generates away from the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import gpt_keras

from .conftest import PATIENCE, program

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.tensorflow


def run(*command, **given) -> str:
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, **given)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Both packages; the wheel is made of what is in the other one."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("gpt_keras", "tests"):  # without what an earlier build has left
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    run("-m", "build", "--no-isolation", "--outdir", folder, source)
    return folder


def test_the_wheel_does_the_main_job(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"gpt_keras-{gpt_keras.__version__}-py3-none-any")
    place = tmp_path / "installed"
    # Without what it needs, which is here: only its own files are looked at.
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-cache-dir", "--target", place, wheel)
    package = place / "gpt_keras"
    assert {"py.typed", "serving", "litert"} <= {path.name for path in package.iterdir()}
    assert list((package / "serving").glob("*.html")) and not (place / "tests").exists()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one.txt").write_text("\n\n".join(program(i) for i in range(300)), "utf-8")
    there = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(place), "KERAS_BACKEND": "tensorflow"}}
    assert Path(run("-c", "import gpt_keras; print(gpt_keras.__file__)", **there).strip()).is_relative_to(place)
    options = "--preset nano --context-length 64 --vocabulary-size 400 --steps 3 --run-dir runs/one --export-dir null"
    run("-m", "gpt_keras.train", "--data", "text", *options.split(), **there)
    assert run(place / "bin" / "gpt-keras", "generate", "runs/one/model", "--prompt", "def ", **there)


def test_the_source_package_has_all_that_is_built_from(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gpt_keras").rglob("*.py")}
    assert {"pyproject.toml", "README.md", "gpt_keras/py.typed", *modules} <= names
    assert not any(name.startswith("tests") for name in names)
