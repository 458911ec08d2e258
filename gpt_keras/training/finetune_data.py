"""Records of a task, to learn from and to measure with, as tokenized examples. Imports no keras."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from gpt_keras.data.embedded import embedded_records
from gpt_keras.data.errors import InputError
from gpt_keras.data.finetuning import Examples, examples_of, read_examples
from gpt_keras.data.records import open_records, parse_columns
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.tasks import read_task_records
from gpt_keras.tasks.task import MappedTask, Record, Task
from gpt_keras.training.finetune_options import FinetuneOptions
from gpt_keras.training.run_folder import say

HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 500


@dataclass(frozen=True)
class FinetuneData:
    """Attributes:
    training: To learn from.
    validation: To measure with.
    records: Those that validation examples are made of, and those of them that are too long.
    """

    training: Examples
    validation: Examples
    records: list[Record]


def check_data(options: FinetuneOptions, task: Task) -> MappedTask:
    """See that there is such data, and under which names its fields go.

    Raises:
        InputError: Naming what is wrong.
    """
    mapped = MappedTask(task, parse_columns(options.map, [*task.fields.names, *task.fields.optional]))
    for source in [*options.data, *options.valid]:
        open_records(source)
    return mapped


def read_data(
    options: FinetuneOptions, task: MappedTask, tokenizer: Tokenizer, context_length: int, console: Console
) -> FinetuneData:
    """Read all records and tokenize them.

    Args:
        options: Of the run.
        task: What the records are, and under which names.
        tokenizer: The model's, with a chat template.
        context_length: Of a row, no longer than the model's.
        console: Where it is said what there is.

    Raises:
        InputError: Naming the file and line of what is wrong.
    """

    def tokenized(records: list[Record]) -> Examples:
        return examples_of(records, tokenizer, context_length, options.truncation, form=task.task)

    with console.status("reading the data") if console.is_terminal else contextlib.nullcontext():
        if not options.data:
            records, held_out = embedded_records(_embedded_name(options.task))
            say(console, "data        made here, for trying out; it says nothing about quality: give --data")
        elif options.valid:
            held_out = read_task_records(options.valid, task)
        else:
            records, held_out = _held_out(read_task_records(options.data, task), options.seed)
        if options.data and options.valid:
            training = read_examples(options.data, tokenizer, context_length, options.truncation, form=task)
        else:
            training = tokenized(records)
        validation = tokenized(held_out)
    say(console, f"data        {_count(training, task)} to learn from, {_count(validation, task)} to measure with")
    for examples, words in ((training, ""), (validation, "held-out ")):
        if count := examples.dropped["too_long"]:
            say(
                console,
                f"warning: {count:,} {words}records are longer than {context_length:,} tokens and left out: give a "
                "longer --context-length, or --truncation cut_start or cut_end",
            )
        if count := examples.dropped["nothing_to_learn"]:
            hint = ": give a longer --context-length, or --truncation cut_start" if examples.cut else ""
            say(console, f"warning: {count:,} {words}records have no answer that is left, and are left out{hint}")
    return FinetuneData(training, validation, held_out)


def _count(examples: Examples, task: MappedTask) -> str:
    number = len(examples) // (2 if task.task.compares else 1)
    return f"{number:,} {'pairs' if task.task.compares else 'examples'} ({int(examples.trained.sum()):,} tokens)"


def _held_out(records: list[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """Records to learn from, and others to measure with."""
    count = min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(records))))
    if len(records) < 2:
        raise InputError(f"--data holds {len(records)} records: at least 2 are needed, or --valid as well")
    chosen = set(np.random.default_rng(seed).permutation(len(records))[:count].tolist())
    return [r for i, r in enumerate(records) if i not in chosen], [records[i] for i in sorted(chosen)]


def _embedded_name(task: str) -> str:
    if task.endswith(".py"):
        raise InputError(f"--task {task} needs --data: there are no records for it here")
    return task
