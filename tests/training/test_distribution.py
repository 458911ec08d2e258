"""Training over eight devices on JAX: equal to one device, and divided among them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import PATIENCE, TENSORFLOW, virtual_devices

pytestmark = pytest.mark.skipif(TENSORFLOW, reason="what JAX does; test_mirrored.py has TensorFlow's")


def run_meshes(cases: dict) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.meshes", json.dumps(cases)],
        env=virtual_devices(8),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def meshes() -> dict:
    model = {"distribution": "model"}
    return run_meshes(
        {
            "one": {"options": {}},
            "data": {"options": {"distribution": "data"}},
            "8x1": {"options": model},
            "2x4": {"options": {**model, "mesh": "2x4"}},
            "1x4": {"options": {**model, "mesh": "1x4"}},
            "2x4 in parts": {"options": {**model, "mesh": "2x4", "accumulate": 2, "rematerialize": True, "ema": 0.9}},
        }
    )


def test_losses_on_every_mesh_equal_those_of_one_device(meshes):
    for name, result in meshes.items():
        assert result["losses"] == pytest.approx(meshes["one"]["losses"], rel=1e-5), name
        assert result["logits"] == pytest.approx(meshes["one"]["logits"], rel=1e-3), name
    assert meshes["one"]["losses"][-1] < meshes["one"]["losses"][0]


def test_weights_and_optimizer_are_divided_among_the_devices(meshes):
    whole = meshes["one"]
    assert meshes["data"]["weights"] == whole["weights"]
    for name, devices in (("8x1", 8), ("2x4", 8), ("1x4", 4)):
        for what in ("weights", "optimizer"):
            # All but the scales of normalizations is divided evenly.
            assert whole[what] / devices <= meshes[name][what] < 1.1 * whole[what] / devices, (name, what)


@pytest.mark.slow
def test_other_shapes_and_optimizers_are_equal_too():
    gpt2 = {"position": "learned", "normalization": "layer_norm", "feed_forward": "gelu", "use_bias": True,
            "qk_norm": False}  # fmt: skip
    cases = {
        "gpt2": ({"optimizer": "adamw", "learning_rate": 0.003}, gpt2),
        "grouped": ({}, {"num_key_value_heads": 2, "tie_embeddings": False}),
        "uneven": ({}, {"vocabulary_size": 514, "intermediate_dim": 190}),
    }
    results = run_meshes(
        {
            f"{name} {mesh}": {"options": {**options, "distribution": "model", "mesh": mesh}, "shape": shape}
            for name, (options, shape) in cases.items()
            for mesh in ("1x1", "2x4")
        }
    )
    for name in cases:
        assert results[f"{name} 2x4"]["losses"] == pytest.approx(results[f"{name} 1x1"]["losses"], rel=1e-5), name
