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
_MOST_SECONDS = 600
"""Of a processor's time, should nobody be there any more to end it."""
_TOO_LARGE = "the asked form is too large to be prepared"


async def prepare(vocabulary: Vocabulary, *form: Any) -> None:
    """Have the automaton of a form, given as to `Vocabulary.automaton`, be there when it is asked for.

    The process ends with the task that waits for it.

    Raises:
        InputError: As `Vocabulary.automaton`, or it is too large.
    """
    if vocabulary.remembered(*form) is not None:
        return
    question = await asyncio.to_thread(pickle.dumps, (vocabulary, form))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, stdin=pipe, stdout=pipe)
    try:
        answer, _ = await process.communicate(question)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    status = process.returncode or 0
    if status < 0:  # ended for want of memory or time
        raise InputError(_TOO_LARGE)
    if status:
        raise RuntimeError("the process that prepares forms failed")
    found = await asyncio.to_thread(pickle.loads, answer)
    if isinstance(found, InputError):
        raise found
    vocabulary.remember(found, *form)


def _main() -> None:
    for limit, most in ((resource.RLIMIT_AS, _MOST_BYTES), (resource.RLIMIT_CPU, _MOST_SECONDS)):
        with contextlib.suppress(ValueError, OSError):  # a lower one holds, or the system has none
            resource.setrlimit(limit, (most, most))
    vocabulary, form = pickle.load(sys.stdin.buffer)
    try:
        found = vocabulary.automaton(*form)
    except InputError as error:
        found = error
    except MemoryError:
        found = InputError(_TOO_LARGE)
    sys.stdout.buffer.write(pickle.dumps(found))


if __name__ == "__main__":
    _main()
