"""A Python program without its bug, judged by running its tests."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from gpt_keras.data.conversations import Message
from gpt_keras.data.records import Fields
from gpt_keras.tasks.code import Programs, fenced
from gpt_keras.tasks.task import Outputs, Record, text_of, texts_of, turns


class Debugging(Programs):
    """{name, buggy, fixed, tests}. The baseline leaves the bug where it is.

    In a test `assert a == b` a tuple equals a list of the same, and a float one that is off by 1e-5 of it, as where
    such results were written down as JSON (QuixBugs, Lin et al. 2017): that is not the bug.
    """

    fields = Fields(("buggy", "fixed", "tests"), {"name": ""})
    max_new_tokens = 384

    def messages(self, record: Record) -> list[Message]:
        texts_of(record, "tests")
        question = f"This program has a bug. Write it without the bug.\n\n{fenced(text_of(record, 'buggy'))}"
        return turns(question, fenced(text_of(record, "fixed")))

    def tested(self, record: Record, program: str) -> str:
        return "\n".join([program, _SAME, *map(_tolerant, texts_of(record, "tests"))])

    def baselines(self, records: Sequence[Record], training: Sequence[Record]) -> dict[str, Outputs]:
        return {
            "the buggy program": Outputs([[record["buggy"]] for record in records]),
            "the references": Outputs([[record["fixed"]] for record in records]),
        }


_SAME = """
def _same_result(a, b):
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same_result, a, b))
    if isinstance(a, float) and isinstance(b, (int, float)) or isinstance(b, float) and isinstance(a, int):
        return a == b or abs(a - b) <= 1e-5 * max(abs(a), abs(b))
    return a == b
"""


def _tolerant(test: str) -> str:
    """A test whose one comparison, if it is `assert a == b`, goes by `_same_result`."""
    try:
        (statement,) = ast.parse(test).body
    except (SyntaxError, ValueError):
        return test
    compared = statement.test if isinstance(statement, ast.Assert) else None
    if not isinstance(compared, ast.Compare) or [type(op) for op in compared.ops] != [ast.Eq]:
        return test
    return f"assert _same_result({ast.unparse(compared.left)}, {ast.unparse(compared.comparators[0])})"


TASK = Debugging()
