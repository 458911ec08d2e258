"""Training speed: tokens a second of one optimizer step, this project beside transformers on PyTorch.

    python -m benchmarks.training [--preset micro] [--batch-size 8] [--quick] [--json]

Every system trains the same architecture and shape (the peer gets our config.json) on random tokens with AdamW, each
in a process of its own, in turns; the figure is the fastest of all its steps after the first three. `plain` is this
project without its fast kernels. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from benchmarks import report

SYSTEMS = {
    "gpt_keras tensorflow float32": ("keras", {"KERAS_BACKEND": "tensorflow"}, "float32"),
    "gpt_keras tensorflow mixed_bfloat16": ("keras", {"KERAS_BACKEND": "tensorflow"}, "mixed_bfloat16"),
    "gpt_keras tensorflow float32 plain": ("plain", {"KERAS_BACKEND": "tensorflow"}, "float32"),
    "gpt_keras jax float32": ("keras", {"KERAS_BACKEND": "jax"}, "float32"),
    "transformers torch float32": ("torch", {}, "float32"),
    "transformers torch bfloat16": ("torch", {}, "mixed_bfloat16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="one short turn instead of three")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = 5 if options.quick else 15
    if options.system:
        kind, _, precision = SYSTEMS[options.system]
        step, tokens = (torch_step if kind == "torch" else keras_step)(
            options.preset, options.batch_size, precision, kind
        )
        print(tokens / fastest(step, steps))
        return
    best = dict.fromkeys(SYSTEMS, 0.0)
    for _ in range(1 if options.quick else 3):
        for system, (_, environment, _) in SYSTEMS.items():
            arguments = ["--system", system, "--preset", options.preset, "--batch-size", str(options.batch_size)]
            arguments += ["--quick"] if options.quick else []
            try:
                line = report.in_own_process("benchmarks.training", arguments, environment)
            except report.SystemFailedError as error:
                sys.exit(f"{system}: {error}")
            best[system] = max(best[system], float(line))
    peer = max(value for system, value in best.items() if system.startswith("transformers"))
    rows = [[system, f"{value:,.0f}", f"{value / peer:.2f}x"] for system, value in best.items()]
    report.print_table([["", "tokens/s", "of the best peer"], *rows])
    if options.json:
        case = f"training step, {options.preset}, batch {options.batch_size}"
        results = [report.result(system, case, value, "tokens/s") for system, value in best.items()]
        report.print_json("training", results, ("keras", "tensorflow", "jax", "torch", "transformers"))


def fastest(step: Callable[[], float], steps: int) -> float:
    """Seconds of the fastest of `steps` steps, after three that compile and warm up."""
    seconds = []
    for _ in range(3 + steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return min(seconds[3:])


def keras_step(preset: str, batch_size: int, precision: str, kind: str) -> tuple[Callable[[], float], int]:
    import keras
    import numpy as np

    from gpt_keras.config import GPTConfig
    from gpt_keras.model import GPT
    from gpt_keras.training.loss import NextTokenLoss

    config = GPTConfig.from_preset(preset)

    class Plain(GPT):
        train_step = keras.Model.train_step

    model = (Plain if kind == "plain" else GPT)(config, dtype=precision)
    model.compile(keras.optimizers.AdamW(1e-3, global_clipnorm=1.0), NextTokenLoss())
    shape = (batch_size, config.context_length)
    tokens = np.random.default_rng(0).integers(0, config.vocabulary_size, shape).astype(np.int32)
    return lambda: float(model.train_on_batch(tokens, tokens)), batch_size * config.context_length


def torch_step(preset: str, batch_size: int, precision: str, _: str) -> tuple[Callable[[], float], int]:
    import torch
    import transformers

    from gpt_keras.architectures import write_config
    from gpt_keras.config import GPTConfig

    config = GPTConfig.from_preset(preset)
    raw = write_config(config)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**raw), attn_implementation="sdpa", dtype=torch.float32
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    tokens = torch.randint(0, config.vocabulary_size, (batch_size, config.context_length))

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step, batch_size * config.context_length


if __name__ == "__main__":
    main()
