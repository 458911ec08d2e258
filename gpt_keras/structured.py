"""Output in a given form: text that always matches a regular expression, or always is JSON of a schema.

outlines-core turns the expression into a finite automaton over the tokenizer's tokens (Willard and Louf 2023,
https://arxiv.org/abs/2307.09702). From it follows, for each state, how many tokens the shortest way to a whole text
takes, and only tokens are allowed from which the rest still fits: the text is whole however few tokens it gets.

    automaton = Vocabulary(token_bytes, end_ids).automaton(json_schema={"type": "object", ...})
    form = Form(automaton, max_new_tokens=50)
    form.allowed(prompt + new, len(prompt), remaining=50 - len(new))
"""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError

_KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
    "integer": set[str](),
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}
_ANY_TYPE = {"type", "enum", "const", "anyOf", "oneOf", "$ref"}
_NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$defs", "definitions", "$comment"}
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
            expression = regex if regex is not None else _schema_expression(json_schema)
            found = TokenAutomaton(self.index(expression, frozenset(banned)), self.ends)
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

    def index(self, expression: str, without: frozenset[int] = frozenset()) -> Any:
        """outlines-core's automaton of an expression."""
        tokens: dict[bytes, list[int]] = {}
        for token, text in enumerate(self._token_bytes):
            if text and not self.ends[token] and token not in without:
                tokens.setdefault(bytes(text), []).append(token)
        return _build(expression, tokens, len(self.ends))


def _key(
    regex: str | None = None, json_schema: dict[str, Any] | bool | str | None = None, banned: Iterable[int] = ()
) -> tuple[Any, ...]:
    return regex, json_schema if isinstance(json_schema, str) else json.dumps(json_schema), frozenset(banned)


class TokenAutomaton:
    """States joined by tokens, and the number of tokens from each state to a whole text.

    Args:
        index: outlines-core's automaton.
        ends: Of each token id, whether it ends a text, bool [vocabulary_size].

    Attributes:
        ends: As given.
        start: The state before any token.
        distance: Of each state, the fewest tokens to a whole text, int64.
        nbytes: Memory that it takes, about.
    """

    def __init__(self, index: Any, ends: np.ndarray) -> None:
        self.ends = ends
        transitions: dict[int, dict[int, int]] = index.get_transitions()
        finals = index.get_final_states()
        number = {state: i for i, state in enumerate({index.get_initial_state(), *transitions, *finals})}
        self.start = number[index.get_initial_state()]
        self.accepting = np.zeros(len(number), bool)
        self.accepting[[number[state] for state in finals]] = True
        nothing = np.zeros(0, np.int32)
        self._rows = [(nothing, nothing)] * len(number)
        for state, row in transitions.items():
            tokens = np.fromiter(row.keys(), np.int32, len(row))
            targets = np.fromiter((number[target] for target in row.values()), np.int32, len(row))
            kept = tokens < len(ends)  # outlines-core's own end token is one beyond
            order = np.argsort(tokens[kept])
            self._rows[number[state]] = (tokens[kept][order], targets[kept][order])
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


def _outlines(module: str = "outlines_core") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            "output in a given form needs outlines-core, which is not here: pip install 'gpt_keras[constrained]'"
        ) from error


def _build(expression: str, tokens: dict[bytes, list[int]], end_id: int) -> Any:
    core = _outlines()
    expression = _ascii_classes(expression)
    if not expression:
        raise InputError("the regular expression is empty")
    try:
        return _index(expression, core.Vocabulary(end_id, tokens))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        if "incompatible with the regex" in reason:
            raise InputError("no text that the tokenizer's tokens can spell has the asked form") from error
        hint = "; look-around, back-references and word boundaries are not supported, ^ and $ are implied"
        raise InputError(f"the regular expression {_short(expression)} cannot be used ({reason}){hint}") from error


def _index(expression: str, vocabulary: Any) -> Any:
    core = _outlines()
    try:
        # Anchored, or the first alternative that matches would hide longer ones: `1|12` would never be 12.
        return core.Index(rf"(?:{expression})\z", vocabulary)
    except ValueError as error:
        if "universal start" not in str(error):
            raise
        return core.Index(expression, vocabulary)  # what may be empty cannot be anchored


def _schema_expression(schema: dict[str, Any] | bool | str | None) -> str:
    """The regular expression of a JSON schema's texts.

    Raises:
        InputError: The schema is not valid, or asks for what a regular expression of outlines-core does not keep.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InputError(f"the JSON schema is not JSON ({error})") from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InputError(f"a JSON schema is an object, not {type(schema).__name__}")
    try:
        _check_schema(schema, "#")
        _check_recursion(schema)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the JSON schema is malformed: a keyword's value is not of the kind it has to be") from error
    return _quick(_regex_of(schema))


def _quick(expression: str) -> str:
    r"""The expression without `\"` in strings, where a text begins with a string of bounded length.

    outlines-core looks for the expression everywhere in a text, before it keeps to its beginning. Where a match begins
    with a quotation mark, each escaped one in it might be a beginning, too: the automaton would double with every
    character that the string may have.
    """
    if expression.lstrip("(?:").startswith('"') and re.search(r"\{\d", expression):
        return expression.replace(r'\\["\\/bfnrt]', r"\\[\\/bfnrt]")
    return expression


def _regex_of(schema: dict[str, Any]) -> str:
    builder = _outlines("outlines_core.json_schema")
    try:
        return str(builder.build_regex_from_schema(json.dumps(_grouped(schema))))
    except (ValueError, TypeError) as error:
        raise InputError(f"the JSON schema cannot be used ({str(error).splitlines()[0].strip()})") from error


def _check_schema(schema: Any, place: str) -> None:
    """Refuse what outlines-core would ignore or get wrong, so that the output always is what the schema says."""

    def refuse(what: str) -> InputError:
        return InputError(f"the JSON schema at {place}: {what}")

    if not isinstance(schema, dict):
        raise refuse(f"expected an object, found {json.dumps(schema)}")
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    for kind in types:
        if kind not in _KEYWORDS:
            raise refuse(f"type {json.dumps(kind)} is none of {', '.join(_KEYWORDS)}")
    own = set().union(*(_KEYWORDS[kind] for kind in types or _KEYWORDS))
    for keyword in schema:
        if keyword not in own | _ANY_TYPE | _NOTES:
            raise refuse(f"{keyword} is not supported")
    given = [keyword for keyword in ("enum", "const", "anyOf", "oneOf", "$ref") if keyword in schema]
    if len(given) > 1 or (given and own & set(schema)):
        raise refuse(f"{given[0]} together with other keywords is not supported")
    properties = schema.get("properties", {})
    for name in properties:
        if json.dumps(name, ensure_ascii=False) != f'"{name}"':
            raise refuse(f"the property name {json.dumps(name)} is not supported")
    for name in schema.get("required", []):
        if name not in properties:
            raise refuse(f"required names {json.dumps(name)}, which properties does not")
    if (schema.get("minItems", 0) or "maxItems" in schema) and "prefixItems" in schema:
        raise refuse("minItems or maxItems together with prefixItems is not supported")
    if {"minLength", "maxLength"} & set(schema) and {"pattern", "format"} & set(schema):
        raise refuse("minLength or maxLength together with pattern or format is not supported")
    if "oneOf" in schema and not _apart(schema["oneOf"]):
        raise refuse("oneOf is supported for different types alone: use anyOf")
    if {} in [*properties.values(), schema.get("additionalProperties")]:
        raise refuse("a property that may be anything is not supported: say its type")
    for keyword in {"pattern", "format"} & set(schema):
        _check_text(_regex_of({"type": "string", keyword: schema[keyword]}), refuse)
    inner = []
    for keyword in ("properties", "$defs", "definitions"):
        inner += [(f"{place}/{keyword}/{name}", entry) for name, entry in schema.get(keyword, {}).items()]
    for keyword in ("anyOf", "oneOf", "prefixItems"):
        inner += [(f"{place}/{keyword}/{i}", entry) for i, entry in enumerate(schema.get(keyword, []))]
    for keyword in ("items", "additionalProperties"):
        if not isinstance(schema.get(keyword, True), bool):
            inner.append((f"{place}/{keyword}", schema[keyword]))
    for where, entry in inner:
        _check_schema(entry, where)


def _apart(alternatives: Any) -> bool:
    """Whether no value fits two of these schemas, by their types."""
    types = [entry.get("type") for entry in alternatives]
    return all(isinstance(kind, str) for kind in types) and len(types) == len({*types} - {"integer"}) + (
        "integer" in types and "number" not in types
    )


def _check_recursion(schema: dict[str, Any]) -> None:
    """Refuse definitions that hold themselves in a property that is required.

    outlines-core goes some levels deep, and there leaves the property out, also one that must not be.
    """

    def references(entry: Any, required: bool) -> Iterator[tuple[str, bool]]:
        """What a schema refers to, and whether by a required property."""
        if isinstance(entry, list):
            for part in entry:
                yield from references(part, required)
        elif isinstance(entry, dict):
            if isinstance(entry.get("$ref"), str):
                yield entry["$ref"], required
            for name, part in entry.get("properties", {}).items():
                yield from references(part, name in entry.get("required", ()))
            for keyword in ("anyOf", "oneOf", "prefixItems", "items", "additionalProperties"):
                yield from references(entry.get(keyword), required)

    definitions = {"#": schema}
    for keyword in ("$defs", "definitions"):
        definitions |= {f"#/{keyword}/{name}": entry for name, entry in schema.get(keyword, {}).items()}
    leads = {place: list(references(entry, False)) for place, entry in definitions.items()}

    def reached(place: str) -> set[str]:
        found, new = set[str](), [place]
        while new:
            if (here := new.pop()) not in found:
                found.add(here)
                new += [target for target, _ in leads.get(here, ())]
        return found

    for place, targets in leads.items():
        for target, required in targets:
            if required and place in reached(target):
                raise InputError(
                    f"the JSON schema at {place}: a required property that holds {target} again is not supported"
                )


def _grouped(schema: Any) -> Any:
    """The schema with each pattern in a group, which outlines-core forgets: of `yes|no` it makes `("yes|no")`."""
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for keyword in {"properties", "$defs", "definitions"} & set(schema):
        found[keyword] = {name: _grouped(entry) for name, entry in schema[keyword].items()}
    for keyword in {"anyOf", "oneOf", "prefixItems"} & set(schema):
        found[keyword] = [_grouped(entry) for entry in schema[keyword]]
    for keyword in {"items", "additionalProperties"} & set(schema):
        found[keyword] = _grouped(schema[keyword])
    if isinstance(pattern := schema.get("pattern"), str):
        pattern = pattern.removeprefix("^")
        ends = pattern.endswith("$") and not re.search(r"(?<!\\)(\\\\)*\\\$$", pattern)
        found["pattern"] = f"^(?:{pattern[:-1] if ends else pattern})$"
    return found


def _check_text(expression: str, refuse: Any) -> None:
    """See that what stands between the quotes can be no quote, backslash or control character, which JSON escapes."""
    index = _build(
        expression.removeprefix("(").removesuffix(")")[1:-1] or "a{0}", {bytes([b]): [b] for b in range(256)}, 256
    )
    for row in index.get_transitions().values():
        for byte in row:
            if byte in (0x22, 0x5C) or byte < 0x20:
                raise refuse(f"a pattern or format that matches {bytes([byte]).decode()!r} is not supported")


def _ascii_classes(expression: str) -> str:
    """`\\d`, `\\w` and `\\s` for ASCII alone, so that programs of every kind read the text the same way."""
    inside, parts = False, []
    for part in re.findall(r"\\.|.", expression, re.DOTALL):
        inside = (inside or part == "[") and not (part == "]" and inside)
        plain = _ASCII.get(part)
        parts.append(part if plain is None else plain if inside else f"[{plain}]")
    return "".join(parts)


_ASCII = {r"\d": "0-9", r"\w": "0-9A-Za-z_", r"\s": r" \t\n\r\f\v"}


def _short(expression: str) -> str:
    return repr(expression if len(expression) < 60 else expression[:57] + "...")
