"""Draw records from a function that composes them, until there are enough to train and to validate with."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from random import Random
from typing import Any

Record = dict[str, Any]
Records = list[Record]

_ATTEMPTS = 50


def compose(
    make: Callable[[Random], tuple[Hashable, Record]], draw: Random, train: int, valid: int
) -> tuple[Records, Records]:
    """Different records, so many of each.

    Args:
        make: Composes a record and says what it is made of; records made of the same are all on one side.
        draw: What `make` draws from.
        train: Records to train on.
        valid: Records to validate with.
    """
    sides: tuple[Records, Records] = ([], [])
    is_valid: dict[Hashable, bool] = {}
    seen: set[str] = set()
    for _ in range(_ATTEMPTS * (train + valid)):
        key, record = make(draw)
        if key not in is_valid:
            is_valid[key] = draw.random() < valid / (train + valid)
        side, size = (sides[1], valid) if is_valid[key] else (sides[0], train)
        if len(side) < size and repr(record) not in seen:
            seen.add(repr(record))
            side.append(record)
        if len(sides[0]) == train and len(sides[1]) == valid:
            return sides
    raise AssertionError("there are more different records than are asked for")


def sentence(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def articles(text: str) -> str:
    """The text with "an" for "a" in front of a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)


def listed(words: list[str]) -> str:
    """As in "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
