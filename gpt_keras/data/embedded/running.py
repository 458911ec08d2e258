"""Run small functions, and broken ones, with a limit on how long they take and how large their values grow."""

from __future__ import annotations

import sys
import warnings
from types import FrameType
from typing import Any

FILE = "<exercise>"
"""The file name that code is compiled under, by which its frames are told from others."""
_STEPS, _BITS, _LENGTH = 20_000, 4_096, 10_000


class LimitError(BaseException):
    """More lines were run, or a larger value made, than is allowed. Not an `Exception`, lest the code catch it."""


def namespace_of(*sources: str) -> dict[str, Any]:
    """The names that the sources define, run one after the other."""
    names: dict[str, Any] = {"__name__": "exercise"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for source in sources:
            exec(compile(source, FILE, "exec"), names)
    return names


def run_limited(line: str, names: dict[str, Any]) -> Any:
    """The value of an expression, or `None` for a statement.

    Raises:
        LimitError: It ran too long or its values grew too large.
    """
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > _STEPS or (frame.f_code.co_filename == FILE and any(map(_is_large, frame.f_locals.values()))):
            raise LimitError
        return trace

    code = compile(line, FILE, "exec" if line.startswith("assert ") else "eval")
    previous = sys.gettrace()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.settrace(trace)
        try:
            return eval(code, names)
        finally:
            sys.settrace(previous)


def _is_large(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() > _BITS
    return isinstance(value, str | bytes | list | dict | tuple) and len(value) > _LENGTH
