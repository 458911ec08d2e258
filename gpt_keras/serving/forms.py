"""Automata of output forms, made in a process of their own: that takes seconds, holds the interpreter's lock, and for
some schemas would never end."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import resource
import sys
from typing import Any

from gpt_keras.data.errors import InputError
from gpt_keras.structured import Vocabulary

_MOST_BYTES = 2**32
"""Of memory that a form may take."""


async def prepare(vocabulary: Vocabulary, *form: Any) -> None:
    """Have the automaton of a form, given as to `Vocabulary.automaton`, be there when it is asked for.

    The process ends with the task that waits for it.

    Raises:
        InputError: As `Vocabulary.automaton`.
    """
    if vocabulary.remembered(*form) is not None:
        return
    question = await asyncio.to_thread(pickle.dumps, (vocabulary, form))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, stdin=pipe, stdout=pipe)
    try:
        answer, _ = await process.communicate(question)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if not answer:
        raise InputError("the asked form is too large to be prepared")
    found = await asyncio.to_thread(pickle.loads, answer)
    if isinstance(found, InputError):
        raise found
    vocabulary.remember(found, *form)


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    vocabulary, form = pickle.load(sys.stdin.buffer)
    try:
        found = vocabulary.automaton(*form)
    except InputError as error:
        found = error
    sys.stdout.buffer.write(pickle.dumps(found))


if __name__ == "__main__":
    _main()
