"""Fine-tune a model for a task: records in, a model folder or an adapter out.

    python -m gpt_keras.finetune smollm2 --task sentiment --data train.jsonl --valid valid.jsonl
    python -m gpt_keras.finetune smollm2 --task chat --data chats.jsonl --lora 8 --run-dir runs/chat
    python -m gpt_keras.finetune runs/chat/model --task preference --data pairs.jsonl
    python -m gpt_keras.finetune RECIPE.yaml                  options from a file; flags given as well win

Without --data it learns from a small set that is made here. Run it again to go on after an interruption.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_keras import command
from gpt_keras.backend import choose_backend, demand_determinism, start_backend
from gpt_keras.data.errors import InputError
from gpt_keras.tasks import find_task
from gpt_keras.training.finetune_data import check_data
from gpt_keras.training.finetune_options import FIXED, UNTOLD, FinetuneOptions
from gpt_keras.training.recorded import changes, damaged, differing, plain, read_recorded, refuse_differences
from gpt_keras.training.run_folder import put_aside, say


def main(options: FinetuneOptions) -> None:
    console = Console(stderr=options.json)
    backend = choose_backend(options.backend)
    task = check_data(options, find_task(options.task))
    changed = None if options.restart else _changed(options)
    summary = _finished(options.run_dir) if changed == [] else None
    if summary is None:
        task.task.get_ready(options.unsafe)
    if options.restart and options.run_dir.exists():
        say(console, f"{options.run_dir} is now {put_aside(options.run_dir)}")
    if changed:
        say(console, f"changed     {', '.join(changed)}")
    if summary is not None:
        show(summary, console)
        say(console, f"\n{options.run_dir} holds this finished run; nothing was done. To start over: --restart")
    else:
        if options.deterministic:
            demand_determinism()
        start_backend(backend)
        from gpt_keras.training.finetune_run import FinetuneRun

        summary = FinetuneRun(options, task, console).execute()
        show(summary, console)
    if options.json:
        print(json.dumps({"run": summary["run"], "task": options.task, "metrics": summary["metrics"]}))


def _changed(options: FinetuneOptions) -> list[str] | None:
    """In words, what differs from when the run was begun; `None` if it was not.

    Raises:
        InputError: Something does that must not.
    """
    recorded = read_recorded(options.run_dir)
    if recorded is None:
        return None
    given = plain(options)
    try:
        recorded = {**plain(FinetuneOptions(model="", task=recorded["task"])), **recorded}  # older ones lack some
        differences = differing(recorded, given, FIXED)
        if bool(recorded["ema"]) != bool(given["ema"]):  # the average is of all steps, or there is none
            differences.append(f"--ema {recorded['ema']}, not {given['ema']}")
    except (KeyError, TypeError, InputError) as error:
        raise damaged(options.run_dir, error) from error
    refuse_differences(options.run_dir, differences)
    return changes(recorded, given, {*FIXED, *UNTOLD})


def _finished(run_dir: Path) -> dict[str, Any] | None:
    """The summary of a run that has ended."""
    try:
        summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text("utf-8"))
        return summary if summary["metrics"]["steps"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def show(summary: dict[str, Any], console: Console) -> None:
    """The samples, what was measured before and after, and what to do next."""
    for sample in summary["samples"]:
        console.rule(style="dim")
        console.print(Text(sample["prompt"][-600:], style="bold"))
        console.print(Text(sample["answer"]))
    console.rule(style="dim")
    metrics, before = summary["metrics"], summary["before"]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("held out", "before", "after"):
        table.add_column(heading, justify="left" if heading == "held out" else "right")
    for name in (name for name in before if name in metrics):
        table.add_row(name, f"{before[name]:.4g}", f"{metrics[name]:.4g}")
    console.print(table, highlight=False)
    best, steps = metrics.get("best_step"), metrics["steps"]
    chosen = "" if best in (None, steps) else f", the best of which was after {best:,}"
    console.print(
        f"{steps:,} steps{chosen}; {metrics['tokens_per_second']:,.0f} tokens/s, {metrics['train_seconds'] / 60:.1f} "
        f"minutes{'; stopped early' if summary['stopped_early'] else ''}",
        highlight=False,
    )
    model, task = summary["model"], summary["task"]
    what = "The adapter" if Path(model).name == "adapter" else "The model"
    say(console, f"\n{what} is in {model}. Try:")
    say(console, f"  python -m gpt_keras.evaluate {model} --task {task} --data FILE")
    if task == "chat":
        say(console, f"  python -m gpt_keras.chat {model}")
        say(console, f"  python -m gpt_keras.serve --model talk={model}")


def cli() -> int:
    return command.run(main, FinetuneOptions, "python -m gpt_keras.finetune")


if __name__ == "__main__":
    sys.exit(cli())
