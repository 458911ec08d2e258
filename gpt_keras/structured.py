"""Output in a given form: text that always matches a regular expression, or always is JSON of a schema.

outlines-core turns the expression into a finite automaton over the tokenizer's tokens (Willard and Louf 2023,
https://arxiv.org/abs/2307.09702). From it follows, for each state, how many tokens the shortest way to a whole text
takes, and only tokens are allowed from which the rest still fits: the text is whole however few tokens it gets.

    automaton = Vocabulary(token_bytes, end_ids).automaton(json_schema={"type": "object", ...})
    form = Form(automaton, max_new_tokens=50)
    form.allowed(prompt + new, len(prompt), remaining=50 - len(new))
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpt_keras import expressions, json_schemas
from gpt_keras.data.errors import InputError

_REMEMBERED, _REMEMBERED_BYTES = 32, 512 * 2**20


class Vocabulary:
    """What each token adds to a text, and the automata built for it so far.

    Make one for a tokenizer and keep it: asking for the same form again is free. May be shared between threads.

    Args:
        token_bytes: Of each token id, the bytes that it adds, which need not be whole characters; b"" for special
            tokens, which no form allows.
        end_ids: Tokens that end a text.

    Raises:
        InputError: There is no end token, or outlines-core is not installed.
    """

    def __init__(self, token_bytes: Sequence[bytes], end_ids: Iterable[int]) -> None:
        self.ends = np.zeros(len(token_bytes), bool)
        self.ends[list(end_ids)] = True
        if not self.ends.any():
            raise InputError("output in a given form needs an end token, and the tokenizer has none")
        self._token_bytes = token_bytes
        self._automata: dict[tuple[Any, ...], TokenAutomaton] = {}
        self._lock = threading.Lock()

    def automaton(
        self,
        regex: str | None = None,
        json_schema: dict[str, Any] | bool | str | None = None,
        banned: Iterable[int] = (),
    ) -> TokenAutomaton:
        """The automaton of a form.

        Args:
            regex: A regular expression (Rust's syntax: Perl's without look-around and back-references) that the whole
                text matches. Its digits, word characters and spaces are ASCII ones.
            json_schema: A JSON schema, or its text. Keywords that cannot be kept are refused, not ignored.
            banned: Tokens that the text must do without.

        Raises:
            InputError: The expression or schema is invalid or unsupported, or no text of these tokens fits.
        """
        found = self.remembered(regex, json_schema, banned)
        if found is None:  # made outside of the lock, for it may take long
            expression = regex if regex is not None else json_schemas.regular_expression(json_schema)
            found = TokenAutomaton(*self._states(expression, frozenset(banned)), self.ends)
            self.remember(found, regex, json_schema, banned)
        return found

    def remembered(self, *form: Any) -> TokenAutomaton | None:
        """The automaton of a form, given as to `automaton`, if it is there already."""
        with self._lock:
            return self._automata.get(_key(*form))

    def remember(self, automaton: TokenAutomaton, *form: Any) -> None:
        """Keep the automaton of a form, and forget those that are there for longest if they are many, or large."""
        with self._lock:
            self._automata[_key(*form)] = automaton
            while len(self._automata) > 1 and (
                len(self._automata) > _REMEMBERED
                or sum(kept.nbytes for kept in self._automata.values()) > _REMEMBERED_BYTES
            ):
                self._automata.pop(next(iter(self._automata)))

    def __reduce__(self) -> Any:
        return Vocabulary, (self._token_bytes, np.flatnonzero(self.ends).tolist())

    def _states(self, expression: str, without: frozenset[int]) -> tuple[int, dict[int, dict[int, int]], set[int]]:
        tokens: dict[bytes, list[int]] = {}
        for token, text in enumerate(self._token_bytes):
            if text and not self.ends[token] and token not in without:
                tokens.setdefault(bytes(text), []).append(token)
        return expressions.automaton(expression, tokens, len(self.ends))


def _key(
    regex: str | None = None, json_schema: dict[str, Any] | bool | str | None = None, banned: Iterable[int] = ()
) -> tuple[Any, ...]:
    return regex, json_schema if isinstance(json_schema, str) else json.dumps(json_schema), frozenset(banned)


class TokenAutomaton:
    """States joined by tokens, and the number of tokens from each state to a whole text.

    Args:
        start: The state before any token.
        transitions: The states that tokens lead to, from each state.
        whole: The states after a whole text.
        ends: Of each token id, whether it ends a text, bool [vocabulary_size].

    Attributes:
        ends: As given.
        start: The state before any token.
        distance: Of each state, the fewest tokens to a whole text, int64.
        nbytes: Memory that it takes, about.
    """

    def __init__(self, start: int, transitions: dict[int, dict[int, int]], whole: set[int], ends: np.ndarray) -> None:
        self.ends = ends
        targets = {target for row in transitions.values() for target in row.values()}
        number = {state: i for i, state in enumerate({start, *transitions, *targets})}
        self.start = number[start]
        self.accepting = np.zeros(len(number), bool)
        self.accepting[[number[state] for state in whole]] = True
        nothing = np.zeros(0, np.int32)
        self._rows = [(nothing, nothing)] * len(number)
        for state, row in transitions.items():
            tokens = np.fromiter(row.keys(), np.int32, len(row))
            leads = np.fromiter((number[target] for target in row.values()), np.int32, len(row))
            order = np.argsort(tokens)
            self._rows[number[state]] = (tokens[order], leads[order])
        self.nbytes = sum(_OF_A_STATE + tokens.nbytes + targets.nbytes for tokens, targets in self._rows)
        self.distance = self._distances()
        if self.distance[self.start] == _NEVER:
            raise InputError("no text that the tokenizer's tokens can spell has the asked form")

    def _distances(self) -> np.ndarray:
        """Backwards from the accepting states, in rings of one more token each."""
        edges = [(state, target) for state, (_, targets) in enumerate(self._rows) for target in np.unique(targets)]
        sources, targets = np.array(edges, np.int64).reshape(-1, 2).T
        distance = np.where(self.accepting, 0, _NEVER)
        while True:
            closer = np.full(len(distance), _NEVER)
            np.minimum.at(closer, sources, np.minimum(distance[targets] + 1, _NEVER))
            if (closer >= distance).all():
                return distance
            distance = np.minimum(distance, closer)

    @property
    def shortest(self) -> int:
        """The fewest tokens of a text in this form, without the end token."""
        return int(self.distance[self.start])

    def step(self, state: int, token: int) -> int | None:
        """The state after `token`; `None` if it may not come there."""
        tokens, targets = self._rows[state]
        place = int(np.searchsorted(tokens, token))
        return int(targets[place]) if place < len(tokens) and tokens[place] == token else None

    def allowed(self, state: int, remaining: int) -> np.ndarray:
        """Tokens from which a whole text is at most `remaining - 1` tokens away, and end tokens after a whole one."""
        tokens, targets = self._rows[state]
        mask = np.zeros(len(self.ends), bool)
        mask[tokens[self.distance[targets] <= remaining - 1]] = True
        if self.accepting[state]:
            mask |= self.ends
        return mask


_NEVER = np.int64(2**40)
_OF_A_STATE = 300
"""Bytes of the objects that hold a state's tokens."""


class Form:
    """A rule (`token_rules.TokenRule`): one row's output, always whole within `max_new_tokens`.

    The end token is allowed exactly after a whole text, and alone where none goes on from there.

    Raises:
        InputError: No text of the form has so few tokens; the message says how many the shortest has.
    """

    def __init__(self, automaton: TokenAutomaton, max_new_tokens: int) -> None:
        if automaton.shortest > max_new_tokens:
            raise InputError(
                f"output in the asked form takes at least {automaton.shortest} tokens, and there is room for "
                f"{max_new_tokens}: raise max_new_tokens or shorten the prompt"
            )
        self._automaton = automaton
        self._read: list[int] = []
        self._state: int | None = automaton.start

    def __deepcopy__(self, memory: Any) -> Form:
        copied = Form.__new__(Form)
        copied._automaton, copied._read, copied._state = self._automaton, list(self._read), self._state
        return copied

    def allowed(self, history: Sequence[int], num_prompt: int, remaining: int) -> np.ndarray | None:
        new = list(history[num_prompt:])
        for token in new[len(self._read) :]:
            self._state = None if self._state is None else self._automaton.step(self._state, token)
        self._read = new
        if self._state is None:  # a token that was not allowed, from elsewhere than this rule
            return self._automaton.ends
        return self._automaton.allowed(self._state, remaining)
