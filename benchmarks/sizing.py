"""What models of some sizes take, calculated by the formulas that `train --depth N --dry-run` uses; nothing is run.

    python -m benchmarks.sizing [--utilization 0.4] [--json]

"state" is weights, gradients and the optimizer's state, and "a row" what a step keeps of one row of its batch, both in
GB, in mixed bfloat16 with Muon; --accumulate sets how many rows there are at a time. "hours" is the arithmetic of all
tokens over so much of the peak of one such chip in bfloat16, a T4 in float32; the cost is that times what an hour of it
costs, for which --price is put here (dollars an hour, one for each chip).
"""

from __future__ import annotations

import argparse
import math

from benchmarks import report
from gpt_keras.config import PRESETS, GPTConfig
from gpt_keras.training.estimate import Estimate, estimate
from gpt_keras.training.options import TrainOptions

DEPTHS = (4, 8, 12, 16, 20, 26, 32)
CHIPS = {"T4, float32": 8.1e12, "L4": 121e12, "TPU v5e": 197e12, "A100": 312e12, "H100": 989e12}
"""Peak operations a second, as their makers give them: in bfloat16, which a T4 has not."""
PRICES = (0.35, 0.7, 1.2, 2.0, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utilization", type=float, default=0.4)
    parser.add_argument("--price", type=float, nargs=len(CHIPS), default=PRICES, metavar=tuple(CHIPS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [["--depth", "parameters", "tokens", "FLOPs", "state", "a row", *(f"{chip}, hours" for chip in CHIPS)]]
    costs = [["--depth", *(f"{chip} at ${price:g}/h" for chip, price in zip(CHIPS, options.price, strict=True))]]
    results = []
    for depth in DEPTHS:
        found, config = estimated(depth)
        memory = found.state_bytes / 1e9, found.activation_bytes / 1e9
        hours = [found.flops / (options.utilization * peak) / 3600 for peak in CHIPS.values()]
        counts = f"{found.parameters / 1e6:,.0f}M", f"{found.tokens / 1e9:,.2f}B", f"{found.flops:.1e}"
        rows.append([str(depth), *counts, *map(_short, memory), *map(_short, hours)])
        costs.append([str(depth), *(f"${_short(h * price)}" for h, price in zip(hours, options.price, strict=True))])
        results.append(report.result("gpt_keras", f"depth {depth}, context {config.context_length}", memory[0], "GB"))
    report.print_table(rows)
    print()
    report.print_table(costs)
    print()
    report.print_table(
        [["preset", "parameters", "float32", "at a byte each", "keys and values of 1,000 tokens"], *map(_run, PRESETS)]
    )
    if options.json:
        report.print_json("sizing", results, ())


def estimated(depth: int) -> tuple[Estimate, GPTConfig]:
    """The estimate of a run of this depth, and the model's configuration."""
    options = TrainOptions(depth=depth, accumulate=TrainOptions(depth=depth).batch_size)
    return estimate(options, "mixed_bfloat16", 1.0), options.model_config()


def _run(preset: str) -> list[str]:
    """What it takes to run one."""
    config = GPTConfig.from_preset(preset)
    parameters = sum(math.prod(shape) for _, shape in config.weight_shapes())
    cache = 2 * config.num_layers * config.num_key_value_heads * config.head_dim * 4 * 1000
    sizes = 4 * parameters, parameters, cache
    return [preset, f"{parameters / 1e6:,.1f}M", *(f"{size / 1e6:,.1f} MB" for size in sizes)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    main()
