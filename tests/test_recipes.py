import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[1] / "pipelines" / "recipes").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(recipe, source, tmp_path):
    small = ["--data", source, "--minutes", "null", "--steps", "2", "--vocabulary-size", "512", "--batch-size", "2"]
    places = ["--run-dir", str(tmp_path / "run"), "--export-dir", str(tmp_path / "saved"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "gpt_keras.train", str(recipe), *small, *places],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metrics"]["steps"] == 2
