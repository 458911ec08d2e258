"""A piece of writing to an instruction: a title, an outline, a style or words to use."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gpt_keras.data.conversations import Message
from gpt_keras.data.records import Fields
from gpt_keras.tasks import metrics
from gpt_keras.tasks.metrics import Metric
from gpt_keras.tasks.task import Outputs, Record, Task, text_of, turns


class Content(Task):
    """{instruction, text}. Measured by variety, repetition, and how many of the instruction's words are taken up; best
    read beside the same figures of the model that was tuned."""

    fields = Fields(("instruction", "text"))
    max_new_tokens = 192

    def messages(self, record: Record) -> list[Message]:
        return turns(text_of(record, "instruction").strip(), text_of(record, "text").strip())

    def metrics(self, records: Sequence[Record], outputs: Outputs) -> list[Metric]:
        if outputs.answers is None:
            return []
        answers = outputs.first_answers
        covered = [_coverage(record["instruction"], answer) for record, answer in zip(records, answers, strict=True)]
        return [
            metrics.distinct("distinct_2", answers, 2),
            metrics.repetition("repetition_4", answers),
            metrics.mean("coverage", covered),
            metrics.mean("words", [len(answer.split()) for answer in answers]),
        ]

    def baselines(self, records: Sequence[Record], training: Sequence[Record]) -> dict[str, Outputs]:
        return {"the references": Outputs([[record["text"]] for record in records])}


def _coverage(instruction: str, answer: str) -> float:
    """The share of the instruction's long words that the answer has, by their first five letters, in percent."""
    wanted, there = ({word[:5] for word in re.findall(r"\w{4,}", text.lower())} for text in (instruction, answer))
    return 100 * len(wanted & there) / len(wanted) if wanted else float(np.nan)


TASK = Content()
