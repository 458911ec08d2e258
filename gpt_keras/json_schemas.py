"""JSON schemas as regular expressions, by outlines-core.

What it would ignore or get wrong is refused here, so that a text of the expression always is what the schema says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from gpt_keras import expressions
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


def regular_expression(schema: dict[str, Any] | bool | str | None) -> str:
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
    builder = expressions.outlines("outlines_core.json_schema")
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
    if "pattern" in schema:
        if not isinstance(schema["pattern"], str):
            raise refuse("pattern must be a text")
        try:
            expressions.plain(schema["pattern"])
        except InputError as error:
            raise refuse(str(error)) from error
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
        found["pattern"] = f"^(?:{expressions.plain(pattern)})$"
    return found


def _check_text(expression: str, refuse: Any) -> None:
    """See that what stands between the quotes can be no quote, backslash or control character, which JSON escapes."""
    inner = expression.removeprefix("(").removesuffix(")")[1:-1]
    _, transitions, _ = expressions.automaton(inner or "a{0}", {bytes([byte]): [byte] for byte in range(256)}, 256)
    for row in transitions.values():
        for byte in row:
            if byte in (0x22, 0x5C) or byte < 0x20:
                raise refuse(f"a pattern or format that matches {bytes([byte]).decode()!r} is not supported")
