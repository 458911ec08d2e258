"""Records for every task of fine-tuning, made at run time from what each machine has: to try things out, and for tests.

Code is functions of Python's standard library and of `gpt_keras.data.embedded.exercises`; all else is composed of
words. The records of a seed are always the same, except that another version of Python has other functions.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from gpt_keras.data.embedded.chats import chat_records
from gpt_keras.data.embedded.coding import code_records, debugging_records
from gpt_keras.data.embedded.paraphrases import paraphrase_records
from gpt_keras.data.embedded.preferences import preference_records
from gpt_keras.data.embedded.sentiment import sentiment_records
from gpt_keras.data.embedded.summaries import summary_records
from gpt_keras.data.embedded.writing import content_records
from gpt_keras.data.errors import InputError

_Maker = Callable[[Random, int, int], tuple[list[dict[str, Any]], list[dict[str, Any]]]]
_TASKS: dict[str, tuple[_Maker, int, int]] = {  # records to train and to validate with
    "sentiment": (sentiment_records, 600, 120),
    "summarization": (summary_records, 400, 80),
    "paraphrase": (paraphrase_records, 400, 80),
    "code": (code_records, 320, 40),
    "debugging": (debugging_records, 150, 30),
    "chat": (chat_records, 400, 60),
    "content": (content_records, 300, 60),
    "preference": (preference_records, 300, 60),
}


def embedded_records(task: str, seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of a task, to train and to validate with.

        sentiment      text, label ("positive" or "negative")
        summarization  document, summary
        paraphrase     text, paraphrase
        code           prompt, code, setup (imports, or nothing), tests (assert statements)
        debugging      name, buggy, fixed, tests
        chat           messages
        content        instruction, text
        preference     prompt, chosen, rejected

    Args:
        task: One of these.
        seed: Another one gives other records.

    Raises:
        InputError: There is no such task.
    """
    if task not in _TASKS:
        raise InputError(f"there is no data for the task {task!r}; there is for {', '.join(_TASKS)}")
    make, train, valid = _TASKS[task]
    return make(Random(f"{task} {seed}"), train, valid)
