"""Automata of output forms, made in another process."""

import asyncio
import time

import pytest

from gpt_keras.data.errors import InputError
from gpt_keras.serving import forms
from gpt_keras.structured import Form, Vocabulary

TOKENS = [b"", *(bytes([i]) for i in range(256)), b'{"', b'":', b"12", b"true"]
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def vocabulary():
    return Vocabulary(TOKENS, [0])


def test_it_is_the_automaton_that_is_made_here(vocabulary):
    asyncio.run(forms.prepare(vocabulary, None, OBJECT))
    found = vocabulary.remembered(None, OBJECT)
    assert found is not None and vocabulary.automaton(json_schema=OBJECT) is found
    expected = Vocabulary(TOKENS, [0]).automaton(json_schema=OBJECT)
    text, rules = [], (Form(found, 30), Form(expected, 30))
    for remaining in range(30, 0, -1):
        masks = [rule.allowed(text, 0, remaining) for rule in rules]
        assert (masks[0] == masks[1]).all() and masks[0].any()
        text.append(int(masks[0].nonzero()[0][-1]))
        if text[-1] == 0:
            break
    assert b"".join(TOKENS[token] for token in text).startswith(b'{"a":')


def test_what_is_wrong_with_a_schema_is_told(vocabulary):
    with pytest.raises(InputError, match="what"):
        asyncio.run(forms.prepare(vocabulary, None, {"type": "what"}))


def test_a_form_without_end_ends_with_its_request(vocabulary, monkeypatch):
    schema = {"type": "array", "maxItems": 2000, "items": {"type": "string", "maxLength": 2000}}
    children = []
    start = asyncio.create_subprocess_exec

    async def watched(*arguments, **given):
        children.append(await start(*arguments, **given))
        return children[-1]

    async def ask():
        longest, last = 0.0, time.perf_counter()
        task = asyncio.create_task(forms.prepare(vocabulary, None, schema))
        for _ in range(200):
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(children[0].wait(), 20)
        return longest

    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)

    assert asyncio.run(ask()) < 1.0 and children[0].returncode != 0  # nothing waits meanwhile
