"""Which tokens a row may take next, for rules that are sets: bans, n-grams, lengths, output in a form.

On the host, in NumPy; `sampling.apply_mask` carries them out. A rule belongs to one row and keeps what it has read of
it, so that a step costs what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from gpt_keras.data.errors import InputError


class TokenRule(Protocol):
    """A rule for one row."""

    def allowed(self, history: Sequence[int], num_prompt: int, remaining: int) -> np.ndarray | None:
        """The tokens that may come next.

        Args:
            history: Token ids of the prompt and of what was generated so far.
            num_prompt: How many of them are the prompt.
            remaining: How many new tokens are left, this one included.

        Returns:
            Boolean [vocabulary], not to be written to, or `None` for all.
        """


class BannedTokens:
    """All tokens but `tokens` (transformers' SuppressTokensLogitsProcessor).

    Raises:
        InputError: A token is outside the vocabulary.
    """

    def __init__(self, tokens: Iterable[int], vocabulary_size: int) -> None:
        self._mask = ~_members(tokens, vocabulary_size)

    def allowed(self, history: Sequence[int], num_prompt: int, remaining: int) -> np.ndarray | None:
        return self._mask


class AllowedTokens:
    """No token but `tokens`; an end token must be among them for the text to end.

    Raises:
        InputError: A token is outside the vocabulary, or there is none.
    """

    def __init__(self, tokens: Iterable[int], vocabulary_size: int) -> None:
        self._mask = _members(tokens, vocabulary_size)
        if not self._mask.any():
            raise InputError("allowed tokens: there must be at least one")

    def allowed(self, history: Sequence[int], num_prompt: int, remaining: int) -> np.ndarray | None:
        return self._mask


class MinNewTokens:
    """No end token before `count` new tokens (transformers' MinNewTokensLengthLogitsProcessor)."""

    def __init__(self, count: int, end_ids: Iterable[int], vocabulary_size: int) -> None:
        self._count = count
        self._mask = ~_members(end_ids, vocabulary_size)

    def allowed(self, history: Sequence[int], num_prompt: int, remaining: int) -> np.ndarray | None:
        return self._mask if len(history) - num_prompt < self._count else None


class NoRepeatNgrams:
    """No run of `size` tokens twice, in prompt and new tokens together (transformers' NoRepeatNGramLogitsProcessor).

    Raises:
        InputError: The size is below 1.
    """

    def __init__(self, size: int, vocabulary_size: int) -> None:
        if size < 1:
            raise InputError(f"the size of n-grams that may not repeat must be at least 1, not {size}")
        self._size, self._vocabulary_size = size, vocabulary_size
        self._read: list[int] = []
        self._followers: dict[tuple[int, ...], list[int]] = {}

    def allowed(self, history: Sequence[int], num_prompt: int, remaining: int) -> np.ndarray | None:
        history, before = list(history), self._size - 1
        if history[: len(self._read)] != self._read:
            self._read, self._followers = [], {}
        for end in range(max(len(self._read), before), len(history)):
            self._followers.setdefault(tuple(history[end - before : end]), []).append(history[end])
        self._read = history
        if len(history) < before:
            return None
        banned = self._followers.get(tuple(history[len(history) - before :]))
        if banned is None:
            return None
        mask = np.ones(self._vocabulary_size, bool)
        mask[banned] = False
        return mask


class All:
    """All of `rules` at once. One that would leave no token gives way to those before it, so put what matters first."""

    def __init__(self, rules: Sequence[TokenRule]) -> None:
        self._rules = list(rules)

    def allowed(self, history: Sequence[int], num_prompt: int, remaining: int) -> np.ndarray | None:
        mask: np.ndarray | None = None
        for rule in self._rules:
            other = rule.allowed(history, num_prompt, remaining)
            both = other if mask is None or other is None else mask & other
            if other is not None and both is not None and both.any():
                mask = both
        return mask


def _members(tokens: Iterable[int], vocabulary_size: int) -> np.ndarray:
    """Boolean [vocabulary], true at `tokens`."""
    mask = np.zeros(vocabulary_size, bool)
    for token in tokens:
        if not 0 <= token < vocabulary_size:
            raise InputError(f"token id {token} is outside the vocabulary of {vocabulary_size}")
        mask[token] = True
    return mask
