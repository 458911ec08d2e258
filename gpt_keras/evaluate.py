"""Measure a model at a task, beside simple baselines and other models.

    python -m gpt_keras.evaluate smollm2 --task sentiment --data valid.jsonl --train train.jsonl
    python -m gpt_keras.evaluate runs/tuned/model --task summarization --data valid.jsonl --compare smollm2
    python -m gpt_keras.evaluate runs/default/model --task perplexity --data book.txt --json

Every figure comes with its 95 % confidence interval, from resampling the records.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpt_keras import command
from gpt_keras.backend import choose_backend, start_backend
from gpt_keras.data.embedded import embedded_records
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import check_writable, whole_file
from gpt_keras.data.records import parse_columns
from gpt_keras.data.sources import open_source
from gpt_keras.sampling_options import SamplingOptions
from gpt_keras.tasks import find_task, metrics, read_task_records
from gpt_keras.tasks.metrics import Metric
from gpt_keras.tasks.task import MappedTask, Outputs, Record, Task

PERPLEXITY = "perplexity"


@dataclass
class EvaluateOptions:
    """Options of `python -m gpt_keras.evaluate`.

    Args:
        model: A model folder, a .gguf file, hf:ORG/NAME or smollm2.
        task: chat, code, content, debugging, paraphrase, preference, sentiment or summarization, or a .py file that
            defines one; or perplexity, of any text.
        data: The records: .jsonl, .csv, .tsv or .parquet files, tfds:NAME or hf:NAME; for perplexity any text. Without
            any, small sets that are made here, for trying out.
        map: Fields that have other names in the data, as FIELD=COLUMN; for perplexity text=COLUMN.
        train: Records that the baselines may learn from.
        limit: Take only so many records, spread evenly over the data.
        compare: Other models, to be measured in the same way.
        likelihoods_only: Have the model write no answers, which take the most time.
        samples: Answers to each record, for pass@k, or for the task to take one of; by default the task's own number.
        temperature: Of the answers; 0 is greedy, and one answer; by default the task's own.
        max_new_tokens: Most tokens of an answer; by default the task's own number.
        seed: Of the answers.
        batch_size: Records at a time.
        precision: Of the model's arithmetic: float32 or mixed_bfloat16.
        output: A .jsonl file to write each record with the model's answers to.
        unsafe: Run programs even where the system keeps them from neither files nor the network.
        backend: tensorflow or jax; the environment's KERAS_BACKEND, else tensorflow.
        json: Print one JSON object as the last line.
    """

    POSITIONAL: ClassVar = ("model",)
    model: str
    task: str
    data: list[str] = field(default_factory=list)
    map: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)
    limit: int | None = None
    compare: list[str] = field(default_factory=list)
    likelihoods_only: bool = False
    samples: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    batch_size: int = 16
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    output: Path | None = None
    unsafe: bool = False
    backend: Literal["tensorflow", "jax"] | None = None
    json: bool = False

    def __post_init__(self) -> None:
        for name in ("limit", "samples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if self.task == PERPLEXITY and not self.data:
            raise InputError("--task perplexity needs --data: files of text, python-stdlib, tfds:NAME or hf:NAME")
        if self.train and not self.data:
            raise InputError("--train needs --data: the records that the baselines are measured with")
        if self.output is not None and self.task == PERPLEXITY:
            raise InputError("--output is for the answers to a task's records; perplexity has none")


def main(options: EvaluateOptions) -> None:
    console = Console(stderr=options.json)
    found = _measure_texts(options, console) if options.task == PERPLEXITY else _measure_task(options, console)
    figures: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    with console.status("confidence intervals") if console.is_terminal else nullcontext():
        for system, measured in found.items():
            figures[system] = {metric.name: metric.value for metric in measured}
            intervals[system] = {metric.name: metric.interval() for metric in measured}
    _show(figures, intervals, console)
    if options.json:
        print(
            json.dumps(
                {
                    "task": options.task,
                    "model": options.model,
                    "metrics": _finite(figures[options.model]),
                    "intervals": {
                        name: pair if all(map(math.isfinite, pair)) else None
                        for name, pair in intervals[options.model].items()
                    },
                    "systems": {system: _finite(values) for system, values in figures.items()},
                }
            )
        )


def _measure_task(options: EvaluateOptions, console: Console) -> dict[str, list[Metric]]:
    task = find_task(options.task)
    sampling = _sampling(options, task)
    task.get_ready(options.unsafe)
    if options.output is not None:
        check_writable(options.output)
    mapped = MappedTask(task, parse_columns(options.map, [*task.fields.names, *task.fields.optional]))
    if options.data:
        training = read_task_records(options.train, mapped) if options.train else []
        records = read_task_records(options.data, mapped)
    else:
        training, records = embedded_records(options.task)
        console.print(
            f"no --data: {len(records)} records made here, which are for trying out and say nothing about quality",
            highlight=False,
        )
    records = _limited(records, options.limit)
    start_backend(choose_backend(options.backend))
    from gpt_keras.evaluation.answers import Answerer
    from gpt_keras.language_model import load

    baselines = task.baselines(records, training)  # first, for they may refuse the records
    found: dict[str, list[Metric]] = {}
    for name in [options.model, *options.compare]:
        answerer = Answerer(load(name, dtype=options.precision), task, options.batch_size)
        with _progress(console, name) as report:
            generate = task.writes and not options.likelihoods_only
            outputs = answerer.outputs(records, sampling, generate, report=report)
        if answerer.cut:
            console.print(
                f"{name}: {answerer.cut} of {len(records)} records' conversations lost their beginning, which did not "
                f"fit the context of {answerer.lm.config.context_length} tokens",
                highlight=False,
            )
        if name == options.model and options.output is not None:
            _write(options.output, records, outputs)
        found[name] = _metrics(task, records, outputs)
    for name, outputs in baselines.items():
        found[name] = _metrics(task, records, outputs)
    return found


def _sampling(options: EvaluateOptions, task: Task) -> SamplingOptions:
    """How answers are drawn: as the options say, else as the task does."""
    temperature = task.temperature if options.temperature is None else options.temperature
    samples = options.samples or (task.samples if temperature > 0 else 1)
    if samples > 1 and temperature <= 0:
        raise InputError("--samples above 1 needs a --temperature: greedy answers are all the same")
    return SamplingOptions(
        temperature=temperature,
        num_sequences=samples,
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
    )


def _metrics(task: Task, records: Sequence[Record], outputs: Outputs) -> list[Metric]:
    found = task.metrics(records, outputs)
    if outputs.nats is not None and outputs.tokens is not None:
        found.append(metrics.perplexity("answer_perplexity", outputs.nats, outputs.tokens))
    return found


def _measure_texts(options: EvaluateOptions, console: Console) -> dict[str, list[Metric]]:
    text_key = parse_columns(options.map, ["text"]).get("text", "text")
    texts = [document.text for source in options.data for document in open_source(source, text_key)()]
    texts = _limited(texts, options.limit)
    start_backend(choose_backend(options.backend))
    from gpt_keras.evaluation.answers import text_likelihoods
    from gpt_keras.language_model import load

    found = {}
    for name in [options.model, *options.compare]:
        with _progress(console, name) as report:
            nats, tokens, size = text_likelihoods(
                load(name, dtype=options.precision), texts, options.batch_size, report
            )

        def bits(chosen: np.ndarray, nats: np.ndarray = nats, size: np.ndarray = size) -> float:
            return float(nats[chosen].sum() / math.log(2) / size[chosen].sum())

        found[name] = [
            Metric("bits_per_byte", bits, len(texts)),
            metrics.perplexity("perplexity", nats, tokens),
        ]
    return found


def _limited(items: list[Any], limit: int | None) -> list[Any]:
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _write(path: Path, records: Sequence[Record], outputs: Outputs) -> None:
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as stream:
        for number, record in enumerate(records):
            line: dict[str, Any] = {"record": record}
            if outputs.answers is not None:
                line["answers"] = outputs.answers[number]
            if outputs.choice_probabilities is not None:
                line["choice_probabilities"] = outputs.choice_probabilities[number].tolist()
            if outputs.nats is not None and outputs.tokens is not None:
                line |= {"nats": float(outputs.nats[number]), "tokens": int(outputs.tokens[number])}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _show(
    figures: dict[str, dict[str, float]], intervals: dict[str, dict[str, tuple[float, float]]], console: Console
) -> None:
    """A table: a row for each figure with its confidence interval, a column for each system."""
    names = list(dict.fromkeys(name for values in figures.values() for name in values))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for system in figures:
        table.add_column(escape("/".join(Path(system).parts[-2:])), justify="right", overflow="fold")
    for name in names:
        cells = []
        for system, values in figures.items():
            if name not in values:
                cells.append("")
                continue
            low, high = intervals[system][name]
            cells.append(f"{values[name]:.4g}\n[dim]{low:.4g} – {high:.4g}[/dim]")
        table.add_row(name, *cells)
    console.print(table, highlight=False)


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


@contextmanager
def _progress(console: Console, system: str) -> Iterator[Any]:
    """A bar for each kind of work on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def report(words: str, done: int, total: int) -> None:
            if words not in tasks:
                tasks[words] = bar.add_task(f"{system}: {words}", total=total)
            bar.update(tasks[words], completed=done)

        yield report


def cli() -> int:
    return command.run(main, EvaluateOptions, "python -m gpt_keras.evaluate")


if __name__ == "__main__":
    sys.exit(cli())
