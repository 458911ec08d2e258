"""Continue a text, printed as it is made.

    python -m gpt_keras.generate runs/default/model --prompt "def main("
    python -m gpt_keras.generate runs/default/model --prompt "import " --temperature 0.8 --top-k 50 --seed 1

Only the continuation goes to standard output; on a terminal the prompt is shown before it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt_keras import command
from gpt_keras.backend import choose_backend, start_backend


@dataclass
class GenerateOptions:
    """Options of `python -m gpt_keras.generate`.

    Args:
        model: A model folder.
        prompt: The text to continue.
        max_new_tokens: Stop after this many tokens, or where the context is full.
        temperature: 0 is greedy; below 1 sharper, above 1 flatter.
        top_k: Draw from this many most probable tokens; 0 from all.
        top_p: Draw from the most probable tokens that make up this much probability; 1 from all.
        seed: The same seed gives the same text.
        backend: tensorflow or jax; the environment's KERAS_BACKEND, else tensorflow.
    """

    model: Path
    prompt: str
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    backend: Literal["tensorflow", "jax"] | None = None


def main(options: GenerateOptions) -> None:
    start_backend(choose_backend(options.backend))
    from gpt_keras.generation import SamplingOptions
    from gpt_keras.language_model import load

    sampling = SamplingOptions(options.max_new_tokens, options.temperature, options.top_k, options.top_p, options.seed)
    lm = load(options.model, dtype="float32")
    if sys.stdout.isatty():
        print(f"\033[2m{options.prompt}\033[0m", end="", flush=True)
    for text in lm.generator.stream(options.prompt, sampling):
        sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()
    print(flush=True)


def cli() -> int:
    return command.run(main, GenerateOptions, "python -m gpt_keras.generate", positional=["model"])


if __name__ == "__main__":
    sys.exit(cli())
