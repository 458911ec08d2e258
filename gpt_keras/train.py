"""Train a GPT: text in, a model folder and a SavedModel out.

    python -m gpt_keras.train                              Python's own sources, about 7 minutes on two cores
    python -m gpt_keras.train --data book.txt --minutes 3 --run-dir runs/book
    python -m gpt_keras.train RECIPE.yaml                  options from a file; flags given as well win

Run it again to go on after an interruption.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_keras import command
from gpt_keras.backend import choose_backend, demand_determinism, start_backend
from gpt_keras.training.options import TrainOptions
from gpt_keras.training.processes import LostProcessError, end, join, leave, meet, processes, telling_of_lost_ones
from gpt_keras.training.run_folder import (
    check_data,
    check_options,
    finished_summary,
    known_vocabulary_size,
    prepare_run,
    put_aside,
    say,
)

PROGRAM = "python -m gpt_keras.train"


def main(options: TrainOptions) -> None:
    console = Console(stderr=options.json)
    backend = choose_backend(options.backend)
    options.model_config()
    if options.dry_run:
        start_backend(backend)
        show_estimate(options, console)
        return
    if options.deterministic:
        demand_determinism()
    if join(options.coordinator, options.processes, options.process, backend) and not processes().first:
        console = Console(quiet=True)
    with telling_of_lost_ones():
        _run(options, backend, console)


def _run(options: TrainOptions, backend: str, console: Console) -> None:
    """Prepare, train and tell. What is on disk the first process prepares, and then meets the others."""
    if processes().first:
        check_data(options)
        if options.restart and options.run_dir.exists():
            say(console, f"{options.run_dir} is now {put_aside(options.run_dir)}")
        check_options(options)
    else:
        meet()
    summary = finished_summary(options)
    if summary is not None:
        if processes().first:
            meet()
        leave()
        show(summary, console)
        say(console, f"\n{options.run_dir} holds this finished run; nothing was done.")
        where = "" if options.run_dir == TrainOptions.run_dir else f" --run-dir {options.run_dir}"
        minutes = summary["metrics"]["train_seconds"] / 60
        say(console, f"To train it further: {_python()} -m gpt_keras.train{where} --minutes M   (above {minutes:.1f})")
        say(
            console,
            f"To start over:       {_python()} -m gpt_keras.train{where} --restart     (this run is kept beside it)",
        )
    else:
        prepared = prepare_run(options, console)
        if processes().first:
            meet()
        start_backend(backend)
        from gpt_keras.training.run import TrainingRun

        summary = TrainingRun(options, console, prepared).execute()
        if summary is not None:
            show(summary, console)
    if options.json and summary is not None:
        print(json.dumps({"run": summary["run"], "metrics": summary["metrics"]}))


def show_estimate(options: TrainOptions, console: Console) -> None:
    """What the run would take."""
    from gpt_keras.compilation import on_cpu, physical_memory
    from gpt_keras.training.estimate import UTILIZATION, estimate
    from gpt_keras.training.flops import measured_flops_per_second
    from gpt_keras.training.precision import choose_precision

    policy, why = choose_precision(options.precision)
    speed = measured_flops_per_second("bfloat16" if policy == "mixed_bfloat16" else "float32")
    size = known_vocabulary_size(options)
    config, found = options.model_config(size), estimate(options, policy, speed, size)
    total = found.state_bytes + found.activation_bytes
    tokens = options.batch_size * config.context_length
    rows = [
        ("model", f"{config.num_layers} layers, width {config.hidden_dim}, {config.num_heads} heads, context "
                  f"{config.context_length}, vocabulary {config.vocabulary_size:,}"),
        ("parameters", f"{found.parameters:,}"),
        ("step", f"{options.batch_size} x {config.context_length} = {tokens:,} tokens, learning rate "
                 f"{options.learning_rate:.3g} ({options.optimizer})"),
        ("tokens", f"{found.tokens:,} in {found.tokens // tokens:,} steps"),
        ("arithmetic", f"{found.flops:.3g} FLOPs in {policy} ({why})"),
        ("memory", f"{total / 1e9:.2f} GB: {found.state_bytes / 1e9:.2f} for weights, gradients and optimizer, "
                   f"{found.activation_bytes / 1e9:.2f} for activations"),
        ("time", f"{_duration(found.seconds)}, at {UTILIZATION:.0%} of the {speed / 1e9:,.0f} GFLOP/s that matrix "
                 "products reach here"),
    ]  # fmt: skip
    if total > (there := physical_memory()) and on_cpu():
        parts = "--accumulate with a divisor of the batch size, "
        rows.insert(6, ("", f"this machine has {there / 1e9:.0f} GB: use {parts}--rematerialize, or a smaller batch"))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)
    if options.json:
        metrics = {**dataclasses.asdict(found), "memory_bytes": total, "flops_per_second": speed}
        print(json.dumps({"run": str(options.run_dir), "metrics": metrics}))


def _duration(seconds: float) -> str:
    for size, unit in ((86400 * 365, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds"


def show(summary: dict[str, Any], console: Console) -> None:
    """The samples, the table and what to do next."""
    metrics, folder = summary["metrics"], Path(summary["run"])
    for sample in summary["samples"]:
        console.rule(style="dim")
        console.print(Text(sample["prompt"], style="bold").append(Text(sample["text"], style="not bold")))
    console.rule(style="dim")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = [
        ("parameters", f"{metrics['parameters']:,}"),
        (
            "tokens seen",
            f"{metrics['tokens']:,} in {metrics['steps']:,} steps, {metrics['tokens_per_second']:,.0f} a second",
        ),
        ("validation loss", f"{metrics['val_loss']:.4f} nats per token"),
        ("bits per byte", f"{metrics['val_bits_per_byte']:.4f} on {metrics['val_bytes']:,} held-out bytes"),
        ("  xz -9e, each document", f"{metrics['xz_bits_per_byte']:.4f}"),
        ("  xz -9e, as one file", f"{metrics['xz_concatenated_bits_per_byte']:.4f}"),
        ("time", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in summary["stage_seconds"].items())),
        ("in all", f"{metrics['total_seconds'] / 60:.1f} minutes"),
        ("loss curve, samples", f"{folder / 'loss.png'}, {folder / 'samples.md'}"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)
    console.print(f"\nThe model is in {folder / 'model'}" + _exported(summary) + ". Try:", highlight=False)
    model, prompt = folder / "model", shlex.quote(summary["samples"][0]["prompt"])
    console.print(
        f"  {_python()} -m gpt_keras.generate {model} --prompt={prompt} --temperature 0.8\n"
        f"  {_python()} -m gpt_keras.finetune {model} --task chat --steps 20 --lora 8 --run-dir runs/chat\n"
        f"  {_python()} -m tensorboard.main --logdir {folder / 'logs'}",
        highlight=False,
        soft_wrap=True,
    )


def _python() -> str:
    """How the reader's shell calls this Python: by name where it is active, else by its path."""
    active = os.environ.get("VIRTUAL_ENV") == sys.prefix or sys.prefix == sys.base_prefix
    return "python" if active else os.path.relpath(sys.executable)


def _exported(summary: dict[str, Any]) -> str:
    return f", exported for TF Serving to {summary['exported']}" if summary["exported"] else ""


def cli() -> int:
    try:
        return end(command.run(main, TrainOptions, PROGRAM))
    except LostProcessError as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception:
        if processes().count == 1:
            raise
        traceback.print_exc()
    return end(1)


if __name__ == "__main__":
    sys.exit(cli())
