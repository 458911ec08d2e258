"""What is done to a document before it becomes tokens, each step only where it is asked for.

normalize, pii_scrub, then language_filter and the limits of length: the text as it will be trained on is what is
filtered, compared with others (`gpt_keras.data.duplicates`) and counted.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from gpt_keras.data.errors import InputError

SCRUB_ALL = "email,phone"


@dataclass(kw_only=True)
class CleaningOptions:
    """The steps.

    Args:
        normalize: Bring text to Unicode's form NFC and remove control characters other than tab and line ends.
        min_characters: Drop documents with fewer characters.
        max_characters: Drop documents with more characters; 0 for no limit.
        language_filter: MODULE:FUNCTION that says of a text whether to keep it.
        pii_scrub: Replace e-mail addresses and phone numbers: `email`, `phone`, `email,phone`, or MODULE:FUNCTION from
            text to text.
        deduplicate: Drop documents that equal an earlier one (exact), or are nearly equal to one as well (near).
        similarity: The share of five-word sequences in common from which on documents are nearly equal.

    Raises:
        InputError: A value is out of range, or there is no such function.
    """

    normalize: bool = False
    min_characters: int = 0
    max_characters: int = 0
    language_filter: str | None = None
    pii_scrub: str | None = None
    deduplicate: Literal["none", "exact", "near"] = "none"
    similarity: float = 0.8

    def __post_init__(self) -> None:
        for name in ("min_characters", "max_characters"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')} must be 0 or above, not {getattr(self, name)}")
        if 0 < self.max_characters < self.min_characters:
            raise InputError(f"--min-characters {self.min_characters} is above --max-characters {self.max_characters}")
        if not 0.5 <= self.similarity <= 1.0:
            raise InputError(f"--similarity must be from 0.5 to 1, not {self.similarity}")
        Cleaner(self)


@dataclass
class Cleaner:
    """The steps on one text.

    Attributes:
        counts: How many documents each step has changed.
    """

    options: CleaningOptions
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._keeps = _function(self.options.language_filter, "--language-filter")
        scrub = self.options.pii_scrub
        kinds = scrub.split(",") if scrub and ":" not in scrub else []
        for kind in kinds:
            if kind not in _PII:
                raise InputError(f"--pii-scrub {scrub}: expected {SCRUB_ALL}, one of them, or MODULE:FUNCTION")
        self._patterns = [(kind, *_PII[kind]) for kind in kinds]
        self._scrub = _function(scrub, "--pii-scrub") if not kinds else None

    def clean(self, text: str) -> tuple[str, str | None]:
        """The text as it will be trained on, and the name of the step that drops it, if one does."""
        options = self.options
        if options.normalize:
            text = self._changed("unicode_nfc", text, unicodedata.normalize("NFC", text))
            text = self._changed("control_characters", text, _CONTROL.sub("", text))
        for kind, pattern, mark in self._patterns:
            text = self._changed(f"pii_{kind}", text, pattern.sub(mark, text))
        if self._scrub is not None:
            scrubbed = self._scrub(text)
            if not isinstance(scrubbed, str):
                raise InputError(f"--pii-scrub {options.pii_scrub} gave {type(scrubbed).__name__}, not text")
            text = self._changed("pii_scrub", text, scrubbed)
        if not text.strip():
            return text, "empty"
        if len(text) < options.min_characters:
            return text, "min_characters"
        if 0 < options.max_characters < len(text):
            return text, "max_characters"
        if self._keeps is not None and not self._keeps(text):
            return text, "language_filter"
        return text, None

    def _changed(self, step: str, before: str, after: str) -> str:
        if after is not before and after != before:
            self.counts[step] += 1
        return after


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_PII: dict[str, tuple[re.Pattern[str], str]] = {
    "email": (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}"), "<email>"),
    # An international number, or one of North America's; dates, versions and sums have other shapes.
    "phone": (
        re.compile(
            r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
            r"|(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4})(?![\w-]|\.\d)"
        ),
        "<phone>",
    ),
}


def _function(name: str | None, flag: str) -> Callable[[str], Any] | None:
    if name is None:
        return None
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{flag} {name}: no such MODULE:FUNCTION ({error})") from error
    if not callable(found):
        raise InputError(f"{flag} {name}: not a function")
    return found
