"""One dial: everything about a run from the depth of the model, by published rules. Imports no keras.

    shape           width 64 * depth, heads of 64 (the aspect ratio of GPT-2 and of nanochat)
    tokens          20 for each parameter (Hoffmann et al. 2022, Chinchilla, https://arxiv.org/abs/2203.15556)
    learning rate   0.3118 * C^-0.1250, and
    batch           0.2920 * C^0.3271 tokens, for C operations in all (Bi et al. 2024, DeepSeek LLM, section 3.1,
                    https://arxiv.org/abs/2401.02954)

The rate holds for AdamW, and for Muon, whose updates are scaled to the size of AdamW's (Liu et al. 2025,
https://arxiv.org/abs/2502.16982).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scaled:
    """What a depth implies.

    Attributes:
        hidden_dim: Width.
        num_heads: Attention heads.
        intermediate_dim: Inner width of the feed-forward network, 8 / 3 of the width as SwiGLU has it.
        context_length: Tokens of context.
        tokens: Tokens to train on.
        batch_tokens: Tokens of a batch.
        learning_rate: Peak learning rate.
    """

    hidden_dim: int
    num_heads: int
    intermediate_dim: int
    context_length: int
    tokens: int
    batch_tokens: int
    learning_rate: float


def scaled(depth: int) -> Scaled:
    """The rules for a model of `depth` layers."""
    width = 64 * depth
    inner = -(-8 * width // 3 // 64) * 64
    context = next(length for length, most in ((256, 5), (512, 9), (1024, 19), (2048, depth)) if depth <= most)
    parameters = depth * (4 * width * width + 3 * width * inner)
    tokens = 20 * parameters
    operations = 6.0 * parameters * tokens
    return Scaled(
        width, depth, inner, context, tokens, round(0.2920 * operations**0.3271), 0.3118 * operations**-0.1250
    )
