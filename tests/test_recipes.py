import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PATIENCE

RECIPES = sorted((Path(__file__).parents[1] / "pipelines" / "recipes").glob("*.yaml"))


def test_every_recipe_tells_what_it_needs_and_gives():
    for recipe in RECIPES:
        header = "".join(line for line in recipe.read_text("utf-8").splitlines(True) if line.startswith("#"))
        assert f"pipelines/recipes/{recipe.name}" in header and "Expected:" in header, recipe


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(recipe, source, tmp_path):
    small = ["--data", source, "--minutes", "null", "--steps", "2", "--vocabulary-size", "512", "--batch-size", "2",
             "--accumulate", "1", "--context-length", "64", "--precision", "auto", "--num-layers", "2"]  # fmt: skip
    places = ["--run-dir", str(tmp_path / "run"), "--export-dir", str(tmp_path / "saved"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "gpt_keras.train", str(recipe), *small, *places],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metrics"]["steps"] == 2
