"""Runs on eight devices by the command line, in one process and in two, on JAX: killed, signalled, gone on with."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt_keras.training.record import read_metrics

from ..conftest import PATIENCE, TENSORFLOW, slow_but, virtual_devices

pytestmark = pytest.mark.skipif(TENSORFLOW, reason="what JAX does; test_mirrored.py has TensorFlow's")

SMALL = ["--preset", "nano", "--num-heads", "4", "--vocabulary-size", "512", "--context-length", "64", "--batch-size",
         "8", "--precision", "float32", "--evaluations", "0", "--checkpoint-steps", "4"]  # fmt: skip


class Run:
    """`python -m gpt_keras.train` as one process or several on the loopback."""

    def __init__(self, folder: Path, source: str, *more: str, processes: int = 1) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "gpt_keras.train", "--data", source, *SMALL, "--run-dir", str(folder)]
        command += ["--export-dir", "null", *more]
        self.folder = folder
        self.processes = []
        for number in range(processes):
            several = {"KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}", "KERAS_DISTRIBUTION_PROCESS_ID":
                       str(number), "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes)}  # fmt: skip
            env = virtual_devices(8 // processes, **(several if processes > 1 else {}))
            pipe = subprocess.PIPE
            self.processes.append(subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True))

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and all(process.poll() is None for process in self.processes):
            records = read_metrics(self.folder)
            if records and records[-1]["step"] >= step:
                return
            time.sleep(0.05)
        raise AssertionError(f"step {step} did not come: {self.end()}")

    def end(self, seconds: float = PATIENCE) -> list[tuple[int, str]]:
        """Exit code and standard error of every process, each of which ends within so many seconds."""
        results = []
        for process in self.processes:
            try:
                _, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                _, errors = process.communicate()
                errors += "\nnever ended"
            results.append((process.returncode, errors))
        return results


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder)]


@pytest.fixture(scope="module")
def reference(source, tmp_path_factory) -> list[float]:
    """Of one device."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    [(code, errors)] = Run(folder, source, "--steps", "16").end()
    assert code == 0, errors
    return losses(folder)


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(source, tmp_path):
    for steps, more in (("5", ["--mesh", "2x4"]), ("8", [])):
        [(code, errors)] = Run(tmp_path, source, "--steps", steps, "--schedule", "linear", "--decay", "0",
                               "--distribution", "model", *more).end()  # fmt: skip
        assert code == 0, errors
    assert len(losses(tmp_path)) == 8


def kill_one(folder: Path, source: str, number: int, *more: str) -> None:
    """Begin a run in two processes, and kill one of them between the checkpoints of steps 4 and 8, where drawing
    samples holds the run up."""
    run = Run(folder, source, "--steps", "16", "--sample-steps", "6", *more, processes=2)
    run.wait_for_step(5)
    first = folder / "checkpoints" / "step_00000004"  # the next one is not begun before this one is there
    deadline = time.monotonic() + PATIENCE
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.processes[number].kill()
    code, errors = run.end(60)[1 - number]
    assert code == 1 and "error: another process of this run is gone" in errors, errors
    assert first.exists()


@pytest.mark.slow
def test_without_the_first_process_the_other_ends(source, tmp_path):
    kill_one(tmp_path, source, 0)


@pytest.mark.slow
def test_two_processes_go_on_after_a_kill(source, tmp_path, reference):
    folder = tmp_path / "run"
    mesh = ["--distribution", "model", "--mesh"]
    kill_one(folder, source, 1, *mesh, "2x4")
    ended = Run(folder, source, "--steps", "16", "--sample-steps", "6", *mesh, "4x2", processes=2).end()
    assert [code for code, _ in ended] == [0, 0], ended
    assert losses(folder) == pytest.approx(reference, rel=1e-5)
    assert (folder / "model" / "model.safetensors").is_file() and (folder / "summary.json").is_file()
    newest = folder / "checkpoints" / "step_00000016"
    assert {path.name for path in newest.iterdir()} == {
        "state.json", "state-00000-of-00002.safetensors", "state-00001-of-00002.safetensors",
    }  # fmt: skip
    # What two processes wrote, one reads.
    [(code, errors)] = Run(folder, source, "--steps", "17", "--distribution", "data").end()
    assert code == 0, errors
    assert len(losses(folder)) == 17


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_behind_the_same_step(source, tmp_path):
    run = Run(tmp_path, source, "--steps", "100000", "--sample-steps", "50", processes=2)
    run.wait_for_step(6)
    run.processes[1].send_signal(signal.SIGTERM)
    assert [code for code, _ in run.end()] == [130, 130]
    step = read_metrics(tmp_path)[-1]["step"]
    assert (tmp_path / "checkpoints" / f"step_{step:08d}" / "state.json").is_file()


BAD = [
    (["--distribution", "model", "--mesh", "3x5"], "--mesh 3x5 asks for 15 devices: there are 8"),
    (["--distribution", "data", "--mesh", "2x4"], "--distribution model"),
    (["--distribution", "data", "--batch-size", "12"], "cannot be divided among 8 devices"),
    (["--distribution", "data", "--mesh", "two"], "--mesh must be two numbers of devices, as 2x4, not two"),
    (["--coordinator", "127.0.0.1:1"], "--processes is missing"),
    (["--coordinator", "nowhere", "--processes", "2", "--process", "0"], "HOST:PORT"),
    (["--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "2"], "--process must be from 0 to 1"),
]


@pytest.mark.parametrize("case", slow_but(range(len(BAD)), 0, 4))
def test_what_cannot_be_is_told_in_one_line(source, tmp_path, case):
    arguments, words = BAD[case]
    [(code, errors)] = Run(tmp_path / "run", source, "--steps", "1", *arguments).end()
    assert code == 2 and words in errors.splitlines()[-1], errors


@pytest.mark.slow
def test_slurm_tells_the_processes(source, tmp_path):
    """As `srun --ntasks 2` sets the environment."""
    processes = []
    for number in range(2):
        slurm = {"SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_PROCID":
                 str(number), "SLURM_LOCALID": str(number), "SLURM_STEP_NUM_NODES": "1"}  # fmt: skip
        command = [sys.executable, "-m", "gpt_keras.train", "--data", source, *SMALL, "--steps", "2"]
        command += ["--run-dir", str(tmp_path), "--export-dir", "null"]
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(command, env=virtual_devices(1, **slurm), stdout=pipe, stderr=pipe, text=True)
        )
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "2 in 2 processes, data parallel" in outputs[0][0]
