"""Regular expressions as automata over a tokenizer's tokens, by outlines-core.

Their syntax is Rust's (https://docs.rs/regex/latest/regex/#syntax).
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from gpt_keras.data.errors import InputError

_UNSUPPORTED = "look-around, back-references and word boundaries are not supported, ^ and $ are implied"
_ASCII = {r"\d": "0-9", r"\w": "0-9A-Za-z_", r"\s": r" \t\n\r\f\v"}
_END = "\U0010ffff"
"""What ends a text for outlines-core: no character, so that no text has it."""


def automaton(
    expression: str, tokens: dict[bytes, list[int]], end_id: int
) -> tuple[int, dict[int, dict[int, int]], set[int]]:
    """The automaton of an expression that the whole text matches.

    Args:
        expression: The regular expression. Its digits, word characters and spaces are ASCII ones.
        tokens: The token ids that add the same bytes, by these.
        end_id: From it on there are no token ids.

    Returns:
        The state before any token, the states that tokens lead to from each state, and those after a whole text.

    Raises:
        InputError: The expression is invalid, unsupported or empty, or these tokens spell no text that it matches.
    """
    core = outlines()
    if not expression:
        raise InputError("the regular expression is empty")
    # Without an end, the first alternative that matches would hide longer ones: `1|12` would never be 12.
    ended = f"(?:{plain(expression)}){_END}"
    mark, marked = end_id + 1, _END.encode()
    try:
        index = core.Index(ended, core.Vocabulary(end_id, tokens | {marked: [*tokens.get(marked, []), mark]}))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        if "incompatible with the regex" in reason:
            raise InputError("no text that the tokenizer's tokens can spell has the asked form") from error
        raise _unusable(expression, reason) from error
    transitions, finals = index.get_transitions(), index.get_final_states()
    whole = {state for state, row in transitions.items() if row.get(mark) in finals}
    for row in transitions.values():
        row.pop(mark, None)
        row.pop(end_id, None)
    return index.get_initial_state(), transitions, whole


def outlines(module: str = "outlines_core") -> Any:
    """The library, or a module of it.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            "output in a given form needs outlines-core, which is not here: pip install 'gpt_keras[constrained]'"
        ) from error


def plain(expression: str) -> str:
    r"""The expression without `^` and `$` around its alternatives, and with `\d`, `\w` and `\s` for ASCII alone.

    So that programs of every kind read the text the same way.

    Raises:
        InputError: A `^` or `$` is elsewhere, or a group ends that has not begun.
    """
    parts = re.findall(r"\\.|.", expression, re.DOTALL)
    classes, groups, found = 0, 0, []
    for i, part in enumerate(parts):
        before, after = parts[i - 1 : i], parts[i + 1 : i + 2]
        if part == "[":
            classes += 1
        elif part == "]" and classes and before != ["["] and parts[i - 2 : i] != ["[", "^"]:
            classes -= 1
        elif part in _ASCII:
            part = _ASCII[part] if classes else f"[{_ASCII[part]}]"
        elif not classes:
            groups += (part == "(") - (part == ")")
            if groups < 0:
                raise _unusable(expression, "a ) without its (")
            if part in ("^", r"\A", "$", r"\z"):
                beside = before if part in ("^", r"\A") else after
                if groups or beside not in ([], ["|"]):
                    raise _unusable(expression, f"{part} inside of it")
                continue
        found.append(part)
    return "".join(found)


def _unusable(expression: str, reason: str) -> InputError:
    shown = repr(expression if len(expression) < 60 else expression[:57] + "...")
    return InputError(f"the regular expression {shown} cannot be used ({reason}); {_UNSUPPORTED}")
