"""What a run will take, before it starts: parameters, memory, arithmetic, tokens and time on this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_keras.config import GPTConfig
from gpt_keras.kernels.vocabulary_loss import PIECE
from gpt_keras.training.flops import training_flops_per_token
from gpt_keras.training.options import TrainOptions

UTILIZATION = 0.6
"""Share of the speed of matrix products that training usually reaches."""


@dataclass(frozen=True)
class Estimate:
    """Attributes:
    parameters: Numbers in the model.
    tokens: Tokens that training goes through; `None` where minutes are given.
    flops: Floating-point operations of all of training, likewise.
    seconds: Of training.
    state_bytes: Weights, gradients and the optimizer's state.
    activation_bytes: What a step keeps for its gradient.
    """

    parameters: int
    tokens: int
    flops: float
    seconds: float
    state_bytes: int
    activation_bytes: int


def estimate(
    options: TrainOptions, policy: str, flops_per_second: float, vocabulary_size: int | None = None
) -> Estimate:
    """Estimate a run.

    Args:
        options: Of the run.
        policy: Its dtype policy.
        flops_per_second: What matrix products reach here in that dtype (`measured_flops_per_second`).
        vocabulary_size: Of the tokenizer, where there is one already.
    """
    config = options.model_config(vocabulary_size)
    parameters = sum(math.prod(shape) for _, shape in config.weight_shapes())
    tokens_per_step = options.batch_size * config.context_length
    per_token = training_flops_per_token(config)
    speed = UTILIZATION * flops_per_second / per_token
    if options.steps is not None:
        tokens = options.steps * tokens_per_step
        seconds = tokens / speed
    else:
        assert options.minutes is not None
        seconds = 60.0 * options.minutes
        tokens = int(seconds * speed)
    return Estimate(
        parameters,
        tokens,
        tokens * per_token,
        seconds,
        state_bytes(options, config, policy),
        _activation_bytes(options, config, policy),
    )


def state_bytes(options: TrainOptions, config: GPTConfig, policy: str) -> int:
    """float32 weights and gradients, one or two moments, and what is cast to bfloat16."""
    sizes = {path: math.prod(shape) for path, shape in config.weight_shapes()}
    parameters = sum(sizes.values())
    matrices = sum(size for path, size in sizes.items() if path.endswith("/kernel"))
    moments = 2 * parameters - (matrices if options.optimizer == "muon" else 0)
    average = parameters if options.ema else 0
    return 4 * (2 * parameters + moments + average) + (2 * parameters if policy == "mixed_bfloat16" else 0)


def _activation_bytes(options: TrainOptions, config: GPTConfig, policy: str) -> int:
    """Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, section 4.1: 34 bytes for each number of the residual
    stream and 5 for each attention probability, a layer, at 16 bits; without dropout 32 and 4 of them, and half the
    probabilities, since no query sees later keys. Rematerialized, what goes into each block is kept, and one block.
    """
    tokens = options.batch_size // options.accumulate * config.context_length
    width = 2 if policy == "mixed_bfloat16" else 4
    stream = tokens * config.hidden_dim
    probabilities = tokens * config.num_heads * config.context_length // 2
    block = (34 * stream + 5 * probabilities if config.dropout else 32 * stream + 4 * probabilities) * width // 2
    layers = config.num_layers
    kept = width * stream * layers + block if options.rematerialize else block * layers
    return kept + 2 * width * min(PIECE, tokens * config.vocabulary_size)
