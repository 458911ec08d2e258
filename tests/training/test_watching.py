"""What a run shows and records, and when it stops by itself."""

import io
import json
import math
import shutil
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from gpt_keras.config import PRESETS, GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.training.callbacks import Checkpoint, DivergedError, Guard, Pace
from gpt_keras.training.checkpoint import Progress
from gpt_keras.training.flops import measured_flops_per_second, training_flops_per_token
from gpt_keras.training.options import TrainOptions
from gpt_keras.training.record import Record

from ..conftest import build
from .test_train import SMALL, train


@pytest.mark.parametrize("preset", PRESETS)
def test_flops_are_those_of_the_matrices_and_of_attention(preset):
    config = GPTConfig.from_preset(preset)
    width, inner = config.hidden_dim, config.intermediate_dim
    queries, keys = config.num_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    block = (
        width * (queries + 2 * keys) + queries * width + (3 if config.feed_forward == "swiglu" else 2) * width * inner
    )
    matrices = config.num_layers * block + width * config.vocabulary_size
    attention = 6 * config.num_layers * queries * config.context_length
    assert training_flops_per_token(config) == 6 * matrices + attention


def test_the_ceiling_is_a_plausible_speed():
    assert 1e9 < measured_flops_per_second("float32", 0.1, 256) < 1e15


def test_guard_stops_on_what_is_not_a_number_and_on_a_spike_that_stays():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(DivergedError, match="at step 7"):
            Guard(1.0, 5).check(7, bad, 1.0)
        with pytest.raises(DivergedError, match="gradient's norm"):
            Guard(1.0, 5).check(7, 1.0, bad)
    guard = Guard(1.0, 60)
    for step in range(100):
        guard.check(step, 4.0 - step / 100, 1.0)
        assert guard.sound
    for step in range(100, 125):  # a spike that comes back
        guard.check(step, 7.0, 1.0)
    assert not guard.sound
    for step in range(125, 160):
        guard.check(step, 3.0, 1.0)
    assert guard.sound
    with pytest.raises(DivergedError, match=r"above 4\.0"):
        for step in range(160, 300):
            guard.check(step, 7.0, 1.0)
    assert 215 < step < 235
    patient = Guard(1.0, 0)
    for step in range(500):
        patient.check(step, 1.0 if step < 10 else 9.0, 1.0)
    assert patient.sound  # or there would never be a checkpoint again
    with pytest.raises(DivergedError):
        patient.check(500, float("nan"), 1.0)
    assert not patient.sound


def test_nothing_is_saved_while_the_loss_is_far_above_where_it_was(tmp_path):
    """Not even by Ctrl-C: the weights of then would be the newest ones."""
    pace = types.SimpleNamespace(sound=False, step=3, seconds=1.0, score=(2.0,), over=True)
    saved: list[int] = []
    writer = types.SimpleNamespace(save=lambda model, progress: saved.append(progress.step))
    checkpoint = Checkpoint(pace, writer, tmp_path, 1.0, 1)
    checkpoint.set_model(
        types.SimpleNamespace(layers=[types.SimpleNamespace(dtype_policy=keras.DTypePolicy("float32"))])
    )
    checkpoint.on_train_batch_end(0)
    checkpoint.save()
    assert saved == []
    pace.sound, pace.step = True, 4
    checkpoint.save()
    assert saved == [4]


@pytest.fixture(scope="module")
def watched(source, tmp_path_factory) -> Path:
    """A run with everything on, and with a stand-in for the package wandb that writes down what it is told."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "wandb.py").write_text(
        "import json\n"
        "def init(**settings):\n    return Run(settings)\n"
        "class Run:\n"
        f"    def __init__(self, settings):\n        self.out = open({str(folder / 'wandb.jsonl')!r}, 'w')\n"
        "        self.log({'project': settings['project'], 'name': settings['name']}, step=0)\n"
        "    def log(self, values, step):\n        print(json.dumps({'step': step, **values}), file=self.out)\n"
        "    def finish(self):\n        self.out.close()\n"
    )
    import os

    done = train("--data", source, *SMALL, "--steps", 24, "--run-dir", folder / "run", "--export-dir", "null",
                 "--evaluation-steps", 8, "--sample-steps", 10, "--profile", "5-6", "--wandb", "tests",
                 env={**os.environ, "PYTHONPATH": str(folder)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_records_have_what_one_watches(watched):
    records = [json.loads(line) for line in (watched / "run" / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        assert record["gradient_norm"] > 0 and record["learning_rate"] > 0
    measured = [record for record in records if "validation_loss" in record]
    assert [record["step"] for record in measured] == [8, 16, 24]
    for record in measured:
        assert record["validation_perplexity"] == pytest.approx(math.exp(record["validation_loss"]))
        assert 0 < record["validation_bits_per_byte"] < 8
    assert all(0 < record["flops_utilization"] < 1 for record in records[1:])
    told = [json.loads(line) for line in (watched / "wandb.jsonl").read_text().splitlines()]
    assert told[0] == {"step": 0, "project": "tests", "name": "run"}
    assert told[1:] == [{name: value for name, value in record.items() if name != "score"} for record in records]


def test_samples_are_kept_by_step_and_the_profile_is_there(watched):
    text = (watched / "run" / "samples.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Step 10",
        "## Step 20",
        "## At the end",
    ]
    assert list((watched / "run" / "logs").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_samples_of_a_run_that_goes_on_are_kept(watched, source):
    run = shutil.copytree(watched / "run", watched / "on")
    done = train("--data", source, *SMALL, "--steps", 32, "--run-dir", run, "--export-dir", "null",
                 "--evaluation-steps", 8, "--sample-steps", 10)  # fmt: skip
    assert done.returncode == 0, done.stderr
    headings = [line for line in (run / "samples.md").read_text().splitlines() if line.startswith("## ")]
    assert headings == ["## Step 10", "## Step 20", "## Step 30", "## At the end"]


def test_wandb_that_refuses_is_one_line(tmp_path, monkeypatch):
    def refuse(**settings):
        raise RuntimeError("nobody is logged in\nlog in")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=refuse))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    options = TrainOptions(steps=9, run_dir=tmp_path, wandb="mine")
    record = Record(Pace(options, Progress()), lambda: None, options, 64.0, Console(), None, lambda step: None, 0)
    with pytest.raises(InputError, match=r"^--wandb mine: nobody is logged in$"):
        record.on_train_begin()
    record.close()


def test_a_full_disk_costs_the_record_and_not_the_training(tmp_path, monkeypatch):
    import tensorflow as tf

    options, told = TrainOptions(steps=9, run_dir=tmp_path, evaluations=0), io.StringIO()

    def no_room(step):
        raise InputError("the disk is full")

    def no_board(*given):
        raise tf.errors.ResourceExhaustedError(None, None, "no space left")

    pace = Pace(options, Progress())
    record = Record(pace, lambda: None, options, 64.0, Console(file=told), None, no_room, 2)
    model = build(GPTConfig.from_preset("nano", vocabulary_size=300))
    model.compile("sgd", "mse")
    record.set_model(model)
    record.on_train_begin()
    record._metrics.close()
    record._metrics = open("/dev/full", "a")  # noqa: SIM115
    monkeypatch.setattr(tf.summary, "scalar", no_board)
    for pace.step in range(1, 4):
        record.on_train_batch_begin(pace.step - 1)
        record.on_train_batch_end(pace.step - 1, {"loss": 1.0})
    record.close()
    assert told.getvalue().count("warning: the record of the run is not whole") == 1


def test_the_best_checkpoint_stays_beside_the_newest(watched):
    folder = watched / "run" / "checkpoints"
    states = [json.loads((path / "state.json").read_text()) for path in sorted(folder.iterdir())]
    assert states[-1]["step"] == 24
    assert 1 <= len(states) <= 3


@pytest.mark.parametrize(("arguments", "message"), [
    (["--profile", "5"], "--profile must be two steps"),
    (["--profile", "9-5"], "--profile must be two steps"),
    (["--accumulate", "3", "--batch-size", "8"], "--accumulate 3 does not divide --batch-size 8"),
    (["--ema", "1.0"], "--ema must be"),
])  # fmt: skip
def test_bad_options_are_one_line(arguments, message, tmp_path):
    done = train(*arguments, "--run-dir", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr


def test_logging_to_wandb_without_the_package_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install wandb"):
        TrainOptions(wandb="x")


@pytest.mark.slow
def test_accumulation_rematerialization_and_averages_train(source, tmp_path):
    done = train("--data", source, *SMALL, "--steps", 12, "--run-dir", tmp_path / "run", "--export-dir", "null",
                 "--accumulate", 2, "--rematerialize", "--ema", 0.9, "--z-loss", 1e-4, "--label-smoothing", 0.1,
                 "--dropout", 0.1, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"]
    from safetensors.numpy import load_file

    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    state = load_file(newest / "state-00000-of-00001.safetensors")
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    averages = {name: value for name, value in state.items() if name.startswith("optimizer/") and "average" in name}
    weights = [value for name, value in state.items() if name.startswith("model/") and "token_embedding" in name]
    table = next(value for name, value in saved.items() if "embed_tokens" in name)
    assert any(value.shape == table.shape and np.array_equal(value, table) for value in averages.values())
    assert not np.array_equal(weights[0], table)
