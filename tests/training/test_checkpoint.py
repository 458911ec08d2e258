import dataclasses
import shutil

import keras
import numpy as np
import pytest

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.lora import add_lora, hold_frozen
from gpt_keras.model import GPT
from gpt_keras.training.checkpoint import Progress, best_score, restore_checkpoint, save_checkpoint
from gpt_keras.training.loss import NextTokenLoss
from gpt_keras.training.optimizer import Muon

from ..conftest import build, random_ids


def compiled(config, seed=0):
    model = build(config, seed)
    model.compile(Muon(0.01), NextTokenLoss())
    return model


def state(model) -> list[np.ndarray]:
    return [np.array(variable) for variable in [*model.variables, *model.optimizer.variables]]


@pytest.fixture(scope="module")
def config():
    return GPTConfig.from_preset("nano", vocabulary_size=512, context_length=96, dropout=0.1)


@pytest.fixture(scope="module")
def trained(config):
    model = compiled(config)
    model.fit(random_ids((8, 16), 512), random_ids((8, 16), 512, 1), batch_size=4, verbose=0)
    return model


def test_a_checkpoint_restores_weights_and_optimizer(config, trained, tmp_path):
    save_checkpoint(trained, tmp_path, Progress(2, 1.5))
    other = compiled(config, seed=1)
    assert restore_checkpoint(other, tmp_path) == Progress(2, 1.5)
    for a, b in zip(state(trained), state(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_dropout_may_be_turned_on_and_off(dropout, config, trained, tmp_path):
    plain = dataclasses.replace(config, dropout=0.0)
    began = trained if dropout == 0.0 else compiled(plain)
    save_checkpoint(began, tmp_path, Progress(2, 1.5))
    other = compiled(dataclasses.replace(config, dropout=dropout), seed=1)
    assert restore_checkpoint(other, tmp_path) == Progress(2, 1.5)
    for a, b in zip(began.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


def test_an_adapter_s_checkpoint_fits_either_arithmetic(config, tmp_path):
    models = []
    for policy in ("float32", "mixed_bfloat16"):
        model = GPT(config, dtype=policy)
        add_lora(model, 2)
        hold_frozen(model, model.compute_dtype)
        model.compile(Muon(0.01), NextTokenLoss())
        models.append(model)
    save_checkpoint(models[0], tmp_path, Progress(2, 1.5))
    assert restore_checkpoint(models[1], tmp_path) == Progress(2, 1.5)
    for a, b in zip(*(model.trainable_variables for model in models), strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


def test_only_the_newest_are_kept(trained, tmp_path):
    for step in (1, 2, 3, 10):
        save_checkpoint(trained, tmp_path, Progress(step, 0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000010"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "no tensors", "no state", "half state"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(config, trained, tmp_path, damage):
    save_checkpoint(trained, tmp_path, Progress(1, 1.0))
    newest = save_checkpoint(trained, tmp_path, Progress(2, 2.0))
    tensors, record = newest / "state-00000-of-00001.safetensors", newest / "state.json"
    raw = bytearray(tensors.read_bytes())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 1
        tensors.write_bytes(raw)
    elif damage == "cut":
        tensors.write_bytes(raw[:-100])
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "no state":
        record.unlink()
    else:
        record.write_text(record.read_text()[:20])
    with pytest.warns(UserWarning, match="damaged checkpoint passed over"):
        assert restore_checkpoint(compiled(config), tmp_path) == Progress(1, 1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002.damaged"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("best", [False, True])
def test_a_damaged_checkpoint_is_not_the_best_one(config, trained, tmp_path, best):
    save_checkpoint(trained, tmp_path, Progress(1, 1.0, (2.0,)))
    newest = save_checkpoint(trained, tmp_path, Progress(2, 2.0, (1.0,)))
    (newest / "state-00000-of-00001.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged checkpoint passed over"):
        assert restore_checkpoint(compiled(config), tmp_path, best=best).step == 1
    assert best_score(tmp_path) == (2.0,)
    assert restore_checkpoint(compiled(config), tmp_path, best=best).step == 1  # without a warning
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002.damaged"]


def test_half_written_checkpoints_are_not_seen(config, trained, tmp_path):
    whole = save_checkpoint(trained, tmp_path, Progress(1, 1.0))
    shutil.copytree(whole, tmp_path / "step_00000002.partial-999999999-abc")
    assert restore_checkpoint(compiled(config), tmp_path).step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path):
    save_checkpoint(trained, tmp_path, Progress(1, 1.0))
    with pytest.raises(InputError, match="step_00000001"):
        restore_checkpoint(compiled(GPTConfig.from_preset("nano", vocabulary_size=300)), tmp_path)


def test_muon_updates_matrices_of_one_shape_together_as_keras_does_one_by_one():
    config = GPTConfig.from_preset("nano", vocabulary_size=512, context_length=96)
    tokens, targets = random_ids((4, 16), 512), random_ids((4, 16), 512, 1)
    models = [build(config), build(config)]
    for model, optimizer in zip(models, (Muon(0.02), keras.optimizers.Muon(0.02)), strict=True):
        model.compile(
            optimizer, NextTokenLoss(), jit_compile=False if keras.backend.backend() == "tensorflow" else "auto"
        )
        for _ in range(3):
            model.train_on_batch(tokens, targets)
    for ours, theirs in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=3e-4, err_msg=ours.path)
