"""The commands as processes, on a model folder."""

import json
import subprocess
import sys

import pytest

from gpt_keras.folder import save_folder
from gpt_keras.language_model import LanguageModel

from .conftest import TENSORFLOW, build


def run(module, *arguments, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"gpt_keras.{module}", *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=300,
        **kwargs,
    )


@pytest.fixture
def folder(config, tokenizer, tmp_path):
    save_folder(build(config), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_generate_prints_the_continuation(folder, config, tokenizer):
    done = run("generate", folder, "--prompt", "def main(", "--max-new-tokens", 12)
    assert done.returncode == 0, done.stderr
    expected = LanguageModel(build(config), tokenizer).generate("def main(", max_new_tokens=12)
    assert done.stdout.decode() == expected + "\n"


@pytest.mark.slow
def test_generate_with_a_seed_is_repeatable(folder):
    options = ["--prompt", "x", "--temperature", 1.2, "--top-k", 40, "--top-p", 0.9, "--max-new-tokens", 8]
    first, again, other = (run("generate", folder, *options, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--prompt", "x"], "no model folder there"),
        (["MODEL"], "prompt"),
        (["MODEL", "--prompt", "x " * 500], "leaves no room"),
        (["MODEL", "--prompt", "x", "--temprature", "1"], "did you mean --temperature"),
        (["MODEL", "--prompt", "x", "--top-p", "7"], "top_p must be above 0"),
    ],
)
def test_bad_input_to_generate_is_one_line(folder, tmp_path, arguments, message):
    done = run("generate", *[folder if a == "MODEL" else a for a in arguments], cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.decode().strip().splitlines()
    assert message in line


@pytest.mark.tensorflow
def test_export_writes_the_next_version(folder, tmp_path):
    assert TENSORFLOW
    arguments = ["export", folder, "--format", "saved_model", "--output", tmp_path / "out", "--max-new-tokens", 8]
    for version in ("1", "2"):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().splitlines()[-1] == str(tmp_path / "out" / version)


def test_tokenizer_and_corpus_commands(source, tmp_path):
    model, folder = tmp_path / "t.model", tmp_path / "corpus"
    done = run("tokenizer", "train", source, "--vocabulary-size", 512, "--output", model)
    assert done.returncode == 0, done.stderr
    done = run("corpus", "prepare", source, "--tokenizer", model, "--output", folder, "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout.splitlines()[-1])
    assert manifest["vocabulary_size"] == 512
    shown = run("corpus", "inspect", folder)
    assert f"{manifest['splits']['train']['tokens']:,}" in shown.stdout.decode()
    assert run("corpus", "inspect", tmp_path).returncode == 2


def test_help_names_every_flag():
    shown = run("train", "--help").stdout.decode()
    for flag in ("--data", "--preset", "--minutes", "--run-dir", "--learning-rate"):
        assert flag in shown
