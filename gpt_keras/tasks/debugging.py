"""A Python program without its bug, judged by running its tests."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_keras.data.conversations import Message
from gpt_keras.data.records import Fields
from gpt_keras.tasks.code import fenced, passed, program
from gpt_keras.tasks.metrics import Metric
from gpt_keras.tasks.task import Outputs, Record, Task, text_of, texts_of, turns


class Debugging(Task):
    """{name, buggy, fixed, tests}. Measured as `gpt_keras.tasks.code`; the baseline leaves the bug where it is."""

    fields = Fields(("buggy", "fixed", "tests"), {"name": ""})
    max_new_tokens = 384
    watched = "pass@1"
    lower_is_better = False
    allow_weaker = False

    def messages(self, record: Record) -> list[Message]:
        texts_of(record, "tests")
        question = f"This program has a bug. Write it without the bug.\n\n{fenced(text_of(record, 'buggy'))}"
        return turns(question, fenced(text_of(record, "fixed")))

    def metrics(self, records: Sequence[Record], outputs: Outputs) -> list[Metric]:
        if outputs.answers is None:
            return []
        programs = [
            "\n".join([program(answer), *record["tests"]])
            for record, answers in zip(records, outputs.answers, strict=True)
            for answer in answers
        ]
        return passed(programs, [len(answers) for answers in outputs.answers], self.allow_weaker)

    def baselines(self, records: Sequence[Record], training: Sequence[Record]) -> dict[str, Outputs]:
        return {
            "the buggy program": Outputs([[record["buggy"]] for record in records]),
            "the references": Outputs([[record["fixed"]] for record in records]),
        }


TASK = Debugging()
