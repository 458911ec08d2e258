"""The one dial, the dry run, and the choice of arithmetic."""

import itertools
import json
import types

import numpy as np
import pytest

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.model import GPT
from gpt_keras.training import precision
from gpt_keras.training.callbacks import Checkpoint, Pace
from gpt_keras.training.checkpoint import CheckpointWriter, Progress
from gpt_keras.training.estimate import estimate
from gpt_keras.training.optimizer import make_optimizer
from gpt_keras.training.options import TrainOptions
from gpt_keras.training.precision import choose_precision
from gpt_keras.training.run_folder import known_vocabulary_size
from gpt_keras.training.scaling import scaled

from ..conftest import TENSORFLOW
from .test_train import train


def test_depth_sets_everything_that_is_not_given():
    options = TrainOptions(depth=6)
    config = options.model_config()
    assert (config.num_layers, config.hidden_dim, config.num_heads, config.head_dim) == (6, 384, 6, 64)
    rules = scaled(6)
    tokens_per_step = options.batch_size * config.context_length
    assert tokens_per_step == pytest.approx(rules.batch_tokens, rel=0.02)
    assert options.steps * tokens_per_step == pytest.approx(rules.tokens, rel=0.02)
    assert options.learning_rate == rules.learning_rate
    given = TrainOptions(depth=6, batch_size=3, learning_rate=0.5, context_length=64, minutes=1)
    assert (given.batch_size, given.learning_rate, given.context_length, given.steps) == (3, 0.5, 64, None)


def test_the_rules_are_those_of_the_papers():
    """A model of 85 million parameters beside its embedding, on 20 tokens each: 8.7e17 operations."""
    rules = scaled(12)
    parameters = rules.tokens / 20
    assert parameters == pytest.approx(12 * 12 * 768**2, rel=0.01)
    operations = 6 * parameters * rules.tokens
    assert np.log(rules.learning_rate / 0.3118) / np.log(operations) == pytest.approx(-0.1250)
    assert np.log(rules.batch_tokens / 0.2920) / np.log(operations) == pytest.approx(0.3271, abs=1e-4)
    depths = [scaled(depth) for depth in range(1, 40)]
    assert all(a.learning_rate > b.learning_rate and a.tokens < b.tokens for a, b in itertools.pairwise(depths))


@pytest.mark.parametrize("depth", [0, -3, 5000])
def test_an_absurd_depth_is_refused(depth):
    with pytest.raises(InputError, match="--depth must be from 1 to 200"):
        TrainOptions(depth=depth)


@pytest.mark.parametrize("arguments", [["--preset", "nano", "--steps", "5"], ["--depth", "2", "--optimizer", "adamw"]])
def test_a_dry_run_only_tells(arguments, tmp_path):
    done = train(*arguments, "--dry-run", "--json", "--run-dir", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])["metrics"]
    options = TrainOptions(**{k.removeprefix("--"): int(v) if v.isdigit() else v for k, v in
                              zip(arguments[::2], arguments[1::2], strict=True)})  # fmt: skip
    model = GPT(options.model_config())
    assert metrics["parameters"] == model.count_params()
    assert metrics["tokens"] == options.steps * options.batch_size * model.config.context_length
    assert 0 < metrics["memory_bytes"] < 1e12 and metrics["seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_an_estimate_is_of_the_vocabulary_that_there_is(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.model")
    options = TrainOptions(preset="nano", steps=5, tokenizer=tmp_path / "t.model")
    assert known_vocabulary_size(options) == tokenizer.vocabulary_size
    assert known_vocabulary_size(TrainOptions(preset="nano", steps=5)) is None
    found = estimate(options, "float32", 1e9, tokenizer.vocabulary_size)
    assert found.parameters == GPT(options.model_config(tokenizer.vocabulary_size)).count_params()


@pytest.mark.slow
def test_rematerialization_and_parts_are_in_the_estimate(tmp_path):
    sizes = []
    for more in ([], ["--accumulate", 8], ["--rematerialize"]):
        shape = ("--preset", "gpt2", "--steps", 2, "--precision", "float32")
        done = train(*shape, "--dry-run", "--json", *more, cwd=tmp_path)
        sizes.append(json.loads(done.stdout.splitlines()[-1])["metrics"]["activation_bytes"])
    assert sizes[1] < sizes[0] / 4 and sizes[2] < sizes[0] / 4


def test_the_choice_of_arithmetic_says_why():
    policy, why = choose_precision("auto")
    assert policy in ("float32", "mixed_bfloat16") and why
    assert choose_precision("float32") == ("float32", "as asked")


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("before", "ratio", "policy"),
    [
        (None, 1.2, "mixed_bfloat16"),
        (None, 1.0, "float32"),
        ("float32", 1.2, "float32"),
        ("float32", 2.0, "mixed_bfloat16"),
        ("mixed_bfloat16", 1.0, "mixed_bfloat16"),
        ("mixed_bfloat16", 0.5, "float32"),
    ],
)
def test_a_run_that_goes_on_stays_with_its_arithmetic(before, ratio, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "compare_products", lambda dtypes: {"bfloat16": ratio, "float32": 1.0})
    if before:
        model = GPT(GPTConfig.from_preset("nano", vocabulary_size=300), dtype=before)
        model.compile(make_optimizer(TrainOptions(steps=1, run_dir=tmp_path), before), "mse")
        pace = Pace(TrainOptions(steps=1, run_dir=tmp_path), Progress(1))
        checkpoint = Checkpoint(pace, CheckpointWriter(tmp_path), tmp_path, 1.0, None)
        checkpoint.set_model(model)
        checkpoint.save()
        checkpoint.writer.wait()
    assert choose_precision("auto", tmp_path)[0] == policy


@pytest.mark.parametrize(
    ("capability", "policy"), [("7.5", "float32"), ("8.0", "mixed_bfloat16"), ("12.0", "mixed_bfloat16")]
)
def test_a_gpu_without_bfloat16_computes_in_float32(capability, policy, monkeypatch):
    if TENSORFLOW:
        import tensorflow as tf

        details = {"compute_capability": tuple(map(int, capability.split(".")))}
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a card"])
        monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda card: details)
    else:
        import jax

        card = types.SimpleNamespace(platform="gpu", compute_capability=capability)
        monkeypatch.setattr(jax, "devices", lambda: [card])
    assert choose_precision("auto")[0] == policy
