"""Output in a given form is whole and right, whatever the model and however few tokens it gets."""

import itertools
import json
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_keras.data.errors import InputError
from gpt_keras.structured import Form, Vocabulary

END = 0


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    """Our tokenizer's, which has bytes for what no piece spells."""
    return Vocabulary([tokenizer.token_bytes(i) for i in range(tokenizer.vocabulary_size)], tokenizer.end_ids)


def write(vocabulary, tokenizer, automaton, budget: int, seed: int) -> str:
    """What a random model says within `budget` tokens."""
    draw = np.random.default_rng(seed)
    form, new = Form(automaton, budget), []
    while len(new) < budget:
        mask = form.allowed([1, 2, 3, *new], 3, budget - len(new))
        token = int(np.argmax(np.where(mask, draw.gumbel(size=len(mask)), -np.inf)))
        assert mask[token]
        if vocabulary.ends[token]:
            break
        new.append(token)
    return b"".join(map(tokenizer.token_bytes, new)).decode("utf-8")


EXPRESSIONS = [
    r"\d{3}-\d{4}",
    r"(yes|no|perhaps), (sir|madam)\.",
    r"[a-z]+@[a-z]+\.(com|org)",
    r"(é|🎉|[α-ω])+!?",
    r"\s*-?\d+(\.\d+)?",
    r"[^\n]{5,}",
    r"x*",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_text_matches_the_expression_at_every_budget(vocabulary, tokenizer, expression):
    automaton = vocabulary.automaton(regex=expression)
    for budget in (max(1, automaton.shortest), automaton.shortest + 1, automaton.shortest + 3, 60):
        for seed in range(4):
            assert re.fullmatch(expression, write(vocabulary, tokenizer, automaton, budget, seed))


NAMES = st.sampled_from(["a", "name", "é", "two words"])
LEAVES = st.one_of(
    st.builds(dict, type=st.sampled_from(["integer", "number", "boolean", "null"])),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, *[st.integers(0, 3)] * 2
    ),
    st.builds(lambda values: {"enum": values}, st.lists(st.sampled_from(["x.y", 'a"b', 1, None, True]), min_size=1)),
    st.just({"type": "string", "pattern": "^[a-c]{2}$"}),
    st.just({"type": "string", "pattern": "^yes|no$"}),
    st.just({"type": "string", "pattern": "^yes$|^no$"}),
    st.just({"oneOf": [{"type": "integer"}, {"type": "string", "pattern": "a|b"}]}),
    st.just({"type": "string", "format": "date"}),
)


NESTED = {
    "$ref": "#/$defs/n",
    "$defs": {
        "n": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}},
            "required": ["a", "b"],
        }
    },
}


def _containers(inner):
    return st.one_of(
        st.builds(lambda item, low: {"type": "array", "items": item, "minItems": low}, inner, st.integers(0, 2)),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(
            lambda properties, all_of_them: {
                "type": "object",
                "properties": properties,
                "required": list(properties) if all_of_them else [],
                "additionalProperties": False,
            },
            st.dictionaries(NAMES, inner, min_size=1, max_size=3),
            st.booleans(),
        ),
    )


@given(
    schema=st.recursive(LEAVES, _containers, max_leaves=4), slack=st.sampled_from([0, 1, 7, 40]), seed=st.integers(0)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_json_is_what_its_schema_says_at_every_budget(vocabulary, tokenizer, schema, slack, seed):
    automaton = vocabulary.automaton(json_schema=schema)
    text = write(vocabulary, tokenizer, automaton, automaton.shortest + slack, seed)
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("holds", ["items", "an optional property of a required one"])
def test_what_is_optional_may_hold_itself(vocabulary, tokenizer, holds):
    tree = {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#"}}}, "required": []}
    tree = {
        "$ref": "#/$defs/t",
        "$defs": {"t": {**tree, "properties": {"c": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}},
    }
    optional = {"type": "object", "properties": {"next": {"$ref": "#/$defs/t"}}}
    tree = (
        {"$ref": "#/$defs/t", "$defs": {**tree["$defs"], "o": optional}}
        if holds == "items"
        else {
            "$ref": "#/$defs/t",
            "$defs": {"t": {"type": "object", "properties": {"meta": optional}, "required": ["meta"]}},
        }
    )
    automaton = vocabulary.automaton(json_schema=tree)
    for seed in range(5):
        jsonschema.validate(json.loads(write(vocabulary, tokenizer, automaton, automaton.shortest + 30, seed)), tree)


def test_no_alternative_hides_another(vocabulary, tokenizer):
    for expression, schema, every in (("a|ab|abc", None, {"a", "ab", "abc"}), (None, {"enum": [1, 12]}, {"1", "12"})):
        automaton = vocabulary.automaton(regex=expression, json_schema=schema)
        assert {write(vocabulary, tokenizer, automaton, 5, seed) for seed in range(40)} == every


BYTES = Vocabulary([b"", *(bytes([byte]) for byte in range(256))], [END])
"""The end token, then one for each byte."""


def texts(automaton, characters: bytes, length: int) -> set[bytes]:
    """All that it allows of at most `length` of these characters."""
    found, new = set(), [(automaton.start, b"")]
    while new:
        state, text = new.pop()
        allowed = automaton.allowed(state, 2**30)
        if allowed[END]:
            found.add(text)
        if len(text) < length:
            new += [(automaton.step(state, 1 + c), text + bytes([c])) for c in characters if allowed[1 + c]]
    return found


PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "ab", "", "[ab]", "[^b]", r"\d"]),
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("(?:{}|{})".format, inner, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{1,2}", "*?", "+?", "??"])),
    ),
    max_leaves=6,
)


@given(pattern=PATTERNS.filter(bool), anchored=st.sampled_from(["{}", "^{}$", "{}$"]))
@settings(max_examples=200, deadline=None)
def test_exactly_the_texts_that_match_are_allowed(pattern, anchored):
    drawn = (bytes(text) for length in range(5) for text in itertools.product(b"ab1", repeat=length))
    matching = {text for text in drawn if re.fullmatch(pattern.encode(), text)}
    assert texts(BYTES.automaton(regex=anchored.format(pattern)), b"ab1", 4) == matching


def test_without_enough_tokens_the_shortest_length_is_named(vocabulary):
    automaton = vocabulary.automaton(regex=r"\d{9}")
    with pytest.raises(InputError, match=f"at least {automaton.shortest} tokens, and there is room for 2"):
        Form(automaton, 2)


def test_the_end_token_comes_exactly_after_a_whole_text(vocabulary, tokenizer):
    form = Form(vocabulary.automaton(regex="ab?"), 10)
    assert not form.allowed([], 0, 10)[list(tokenizer.end_ids)].any()
    mask = form.allowed(tokenizer.encode("a"), 0, 9)
    assert mask[list(tokenizer.end_ids)].all() and mask.sum() > 1
    mask = form.allowed([*tokenizer.encode("a"), *tokenizer.encode("b")], 0, 8)
    assert mask.sum() == len(tokenizer.end_ids)


def test_banned_tokens_are_done_without(vocabulary, tokenizer):
    banned = {i for i in range(tokenizer.vocabulary_size) if b"a" in tokenizer.token_bytes(i)}
    text = write(vocabulary, tokenizer, vocabulary.automaton(regex="(a|b)c", banned=banned), 3, 0)
    assert text == "bc"
    with pytest.raises(InputError, match="no text"):
        vocabulary.automaton(regex="ac", banned=banned)


def test_the_same_form_is_built_once(vocabulary):
    assert vocabulary.automaton(regex="abc") is vocabulary.automaton(regex="abc")


def test_large_forms_are_not_all_remembered(tokenizer, monkeypatch):
    vocabulary = Vocabulary([tokenizer.token_bytes(i) for i in range(tokenizer.vocabulary_size)], tokenizer.end_ids)
    first = vocabulary.automaton(regex="a{30}")
    monkeypatch.setattr("gpt_keras.structured._REMEMBERED_BYTES", 2 * first.nbytes + 1000)
    for letter in "bcd":
        vocabulary.automaton(regex=f"{letter}{{30}}")
    assert vocabulary.remembered("a{30}") is None
    assert vocabulary.remembered("d{30}") is not None
    monkeypatch.setattr("gpt_keras.structured._REMEMBERED_BYTES", 10)
    large = vocabulary.automaton(regex="e{30}")  # the newest one stays, however large it is
    assert vocabulary.automaton(regex="e{30}") is large and vocabulary.remembered("d{30}") is None


@pytest.mark.parametrize("expression", ["(a", "[a-", r"(a)\1", "a(?=b)", "", "a)|(b", "(a$|b)", "a^b", r"a\bb"])
def test_an_expression_that_cannot_be_used_is_one_clear_line(vocabulary, expression):
    with pytest.raises(InputError, match="regular expression") as error:
        vocabulary.automaton(regex=expression)
    assert "\n" not in str(error.value) and str(error.value).count("cannot be used") == bool(expression)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "an object"),
        ({"type": "text"}, 'type "text" is none of'),
        ({"type": "integer", "minimum": 3}, "at #: minimum is not supported"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
            "#/properties/a: uniqueItems",
        ),
        ({"type": "object", "properties": {}, "required": ["b"]}, 'required names "b"'),
        ({"type": "string", "pattern": ".*"}, "is not supported"),
        (
            {"type": "object", "properties": {"x": {"type": "string", "pattern": "a)|(b"}}},
            "at #/properties/x: the regular expression",
        ),
        ({"type": "string", "pattern": 5}, "pattern must be a text"),
        ({"allOf": [{"type": "string"}]}, "allOf is not supported"),
        ({"properties": {'a"b': {"type": "null"}}}, "property name"),
        ({"type": "string", "minLength": 3, "maxLength": 1}, "cannot be used"),
        ({"$ref": "#/nowhere"}, "cannot be used"),
        ({"type": "string", "maxLength": 3, "pattern": "^[a-c]+$"}, "maxLength together with pattern"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "array", "prefixItems": [{"type": "null"}] * 2, "maxItems": 1}, "together with prefixItems"),
        ({"type": "object", "properties": {"a": {}}}, "may be anything"),
        (NESTED, "a required property that holds #/$defs/n again"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(vocabulary, schema, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        vocabulary.automaton(json_schema=schema)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_end_token_is_refused():
    with pytest.raises(InputError, match="needs an end token"):
        Vocabulary([b"a", b"b"], [])
