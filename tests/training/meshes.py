"""Train a small model on several meshes of eight devices, one after another; prints what came of it as JSON.

Not a test: `test_distribution.py` runs it in a process of its own, whose number of devices it sets.
"""

import json
import sys

import keras
import numpy as np

from gpt_keras.config import GPTConfig
from gpt_keras.model import GPT
from gpt_keras.training.distribution import distribute, local_copy, one_device
from gpt_keras.training.loss import NextTokenLoss
from gpt_keras.training.optimizer import make_optimizer
from gpt_keras.training.options import TrainOptions

STEPS = 4


def bytes_on_a_device(variables) -> int:
    return sum(v.value.addressable_shards[0].data.nbytes for v in variables)


def train(case: dict) -> dict:
    keras.distribution.set_distribution(None)
    options = TrainOptions(**{"batch_size": 16, "learning_rate": 0.02, "z_loss": 1e-4, **case["options"]})
    shape = {"vocabulary_size": 512, "context_length": 32, "num_heads": 4, "hidden_dim": 64, "num_key_value_heads": 4,
             "head_dim": 16, "initializer_range": 0.1}  # fmt: skip
    config = GPTConfig.from_preset("nano", **{**shape, **case.get("shape", {})})
    distribute(options, config, 0)
    keras.utils.set_random_seed(0)
    model = GPT(config)
    model.num_parts, model.rematerialize = options.accumulate, options.rematerialize
    model.compile(make_optimizer(options), NextTokenLoss(z_loss=options.z_loss))
    random = np.random.default_rng(0)
    tokens = random.integers(0, 512, (STEPS, 16, 33)).astype("int32")
    weights = (random.random((STEPS, 16, 32)) < 0.8).astype("float32")
    losses = [float(model.train_on_batch(t[:, :-1], t[:, 1:], w)) for t, w in zip(tokens, weights, strict=True)]
    copy = local_copy(model)
    with one_device():
        logits = np.asarray(copy(tokens[0, :1, :-1]))
    return {
        "losses": losses,
        "weights": bytes_on_a_device(model.trainable_variables),
        "optimizer": bytes_on_a_device(model.optimizer.variables),
        "logits": float(np.abs(logits).mean()),
    }


if __name__ == "__main__":
    print(json.dumps({name: train(case) for name, case in json.loads(sys.argv[1]).items()}))
