"""A Python program to a description, judged by running its tests."""

from __future__ import annotations

import abc
import re
from collections.abc import Sequence

from gpt_keras.data.conversations import Message
from gpt_keras.data.records import Fields
from gpt_keras.tasks import metrics
from gpt_keras.tasks.metrics import Metric
from gpt_keras.tasks.task import Outputs, Record, Task, text_of, texts_of, turns


class Programs(Task):
    """Tasks whose answers are programs. A sample passes if its program and then all tests run without an exception, in
    the sandbox of `gpt_keras.evaluation.sandbox`."""

    watched = "pass@1"
    lower_is_better = False
    _unsafe = False

    def get_ready(self, unsafe: bool = False) -> None:
        from gpt_keras.evaluation.sandbox import check_isolation

        check_isolation(unsafe)
        self._unsafe = unsafe

    @abc.abstractmethod
    def tested(self, record: Record, program: str) -> str:
        """The program with what must stand before and behind it."""

    def metrics(self, records: Sequence[Record], outputs: Outputs) -> list[Metric]:
        """pass@1, and pass@k for as many samples as every record has."""
        from gpt_keras.evaluation.sandbox import run_programs

        if outputs.answers is None:
            return []
        samples = zip(records, outputs.answers, strict=True)
        programs = [self.tested(record, program(answer)) for record, answers in samples for answer in answers]
        outcomes = iter(run_programs(programs, allow_weaker=self._unsafe))
        passed = [[next(outcomes).passed for _ in answers] for answers in outputs.answers]
        return [metrics.pass_at_k(k, passed) for k in sorted({1, min(map(len, passed))})]


class Code(Programs):
    """{prompt, code, setup, tests}."""

    fields = Fields(("prompt", "code", "tests"), {"setup": ""})
    max_new_tokens = 256

    def messages(self, record: Record) -> list[Message]:
        tests, _ = texts_of(record, "tests"), _setup(record)
        question = text_of(record, "prompt").strip()
        if tests:
            question += f"\n\nIt must pass this test:\n{tests[0].strip()}"
        return turns(question, fenced(text_of(record, "code")))

    def tested(self, record: Record, program: str) -> str:
        return "\n".join([*_setup(record), program, *texts_of(record, "tests")])

    def baselines(self, records: Sequence[Record], training: Sequence[Record]) -> dict[str, Outputs]:
        return {"the references": Outputs([[record["code"]] for record in records])}


def _setup(record: Record) -> list[str]:
    """What runs before the program: a text, a list of lines, or nothing."""
    return texts_of(record, "setup") if record["setup"] else []


def fenced(code: str) -> str:
    """A program as an answer shows it."""
    return f"```python\n{code.strip()}\n```"


def program(answer: str) -> str:
    """The program in an answer: its first fenced block that names no language or Python, also one that was never
    closed, or else all of it."""
    for language, content in re.findall(r"```[ \t]*([^\s`]*)[^\n`]*\n(.*?)(?:(?<=\n)[ \t]*```|\Z)", answer, re.DOTALL):
        if not language or language.lower().startswith(("py", "{.py")):
            return content.removesuffix("\n").removesuffix("\r")
    return answer


TASK = Code()
