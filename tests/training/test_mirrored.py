"""Training over two devices on TensorFlow: equal to one device; what it cannot do is refused by name."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpt_keras.training.record import read_metrics

from ..conftest import PATIENCE

pytestmark = pytest.mark.tensorflow

PROGRAM = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv.pop(1)))
from gpt_keras.train import cli
sys.exit(cli())
"""


def train(folder: Path, source: str, devices: int, *more: str) -> subprocess.CompletedProcess:
    small = ["--preset", "nano", "--vocabulary-size", "512", "--context-length", "64", "--batch-size", "4",
             "--precision", "float32", "--evaluation-steps", "3", "--export-dir", "null"]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(devices), "--data", source, *small, "--run-dir", str(folder), *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--optimizer", "muon"], ["--optimizer", "adamw", "--mask-documents"]])
def test_two_devices_equal_one(source, tmp_path, options):
    for devices, steps, more in (
        (1, "8", []),
        (2, "5", ["--distribution", "data"]),
        (2, "8", ["--distribution", "data"]),
    ):
        done = train(tmp_path / str(devices), source, devices, "--steps", steps, "--decay", "0", *more, *options)
        assert done.returncode == 0, done.stderr
    assert "2, data parallel" in done.stdout and "resuming    after step 5" in done.stdout
    one, two = read_metrics(tmp_path / "1"), read_metrics(tmp_path / "2")
    assert len(one) == len(two) == 8
    for name in ("loss", "gradient_norm"):
        assert [r[name] for r in two] == pytest.approx([r[name] for r in one], rel=2e-5), name
    assert one[2]["validation_loss"] == pytest.approx(two[2]["validation_loss"], rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [["--distribution", "model"], ["--distribution", "auto", "--mesh", "1x2"], ["--accumulate", "2"], ["--ema", "0.9"]],
)
def test_what_it_cannot_do_is_refused_by_name(source, tmp_path, options):
    both = options if "--distribution" in options else ["--distribution", "data", *options]
    done = train(tmp_path / "run", source, 2, "--steps", "1", *both)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "over several devices needs JAX: --backend jax" in line and line.count("--") > 1, done.stderr


@pytest.mark.slow
def test_on_one_device_auto_refuses_nothing(source, tmp_path):
    options = ["--distribution", "auto", "--accumulate", "2", "--ema", "0.9"]
    done = train(tmp_path / "run", source, 1, "--steps", "1", *options)
    assert done.returncode == 0, done.stderr


def test_several_processes_need_jax(source, tmp_path):
    several = ["--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "0"]
    done = train(tmp_path / "run", source, 1, "--steps", "1", *several)
    assert done.returncode == 2 and "several processes need JAX" in done.stderr
