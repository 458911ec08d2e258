"""Conversations to prompts: a model's own chat template, rendered and tokenized.

A conversation is a list of `{"role": "system" | "user" | "assistant", "content": text}`, as OpenAI's and Hugging Face's
libraries have it; the template is Jinja, run in a sandbox, since it comes with the model.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from gpt_keras.data.errors import InputError
from gpt_keras.data.tokenizer import Tokenizer

Message = Mapping[str, str]

_MARK = "\ue000"
"""A private-use character that keeps a special token's text inside a message from being taken for the token."""


def render(template: str, messages: Sequence[Message], tokenizer: Tokenizer, reply: bool = True) -> str:
    """The conversation as the model has seen conversations in training.

    Args:
        template: Jinja source (`tokenizer.chat_template`).
        messages: The conversation.
        tokenizer: Its begin and end tokens are the template's `bos_token` and `eos_token`.
        reply: Whether the assistant's next turn is opened at the end.

    Raises:
        InputError: The template cannot be rendered, or refuses this conversation (roles out of turn, say).
    """
    import jinja2

    _check(messages)
    try:
        return _compile(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=reply,
            bos_token=_piece(tokenizer, tokenizer.begin_id),
            eos_token=_piece(tokenizer, tokenizer.end_id),
            pad_token=_piece(tokenizer, tokenizer.padding_id),
            tools=None,
        )
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template does not take this conversation: {error}") from error
    except Exception as error:  # a template runs code of its own, which may fail in any way
        raise InputError(f"the chat template fails on this conversation: {type(error).__name__}: {error}") from error


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], template: str | None = None, reply: bool = True
) -> list[int]:
    """Token ids of the conversation. Special tokens written out in a message are text, so nobody can forge a turn.

    Args:
        tokenizer: Has the chat template.
        messages: The conversation.
        template: Another template than the tokenizer's.
        reply: Whether the assistant's next turn is opened at the end.

    Raises:
        InputError: There is no template, or it does not take this conversation.
    """
    template = template or tokenizer.chat_template
    if not template:
        raise InputError(
            "this model has no chat template: it was not trained to chat. Continue texts with it instead "
            "(python -m gpt_keras.generate), or give a template"
        )
    special = [piece for piece in tokenizer.special if piece]
    forged = re.compile("|".join(f"({re.escape(piece)})" for piece in special)) if special else None
    if forged is None or not any(forged.search(message["content"]) for message in _check(messages)):
        return _with_begin(tokenizer, tokenizer.encode(render(template, messages, tokenizer, reply), special=True))
    marked = [
        {**message, "content": forged.sub(lambda found: found[0][0] + _MARK + found[0][1:], message["content"])}
        for message in messages
    ]
    ids: list[int] = []
    for part in forged.split(render(template, marked, tokenizer, reply)):
        if part and forged.fullmatch(part):
            ids += tokenizer.encode(part, special=True)
        elif part:
            ids += tokenizer.encode(part.replace(_MARK, ""))
    return _with_begin(tokenizer, ids)


def turn_ends(tokenizer: Tokenizer, template: str | None = None) -> frozenset[int]:
    """The special tokens that close an assistant's turn: what the template writes behind its words."""
    template = template or tokenizer.chat_template
    if not template:
        return frozenset()
    said = "f3a9c1"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
    rest = render(template, messages, tokenizer, reply=False).rpartition(said)[2]
    ids = tokenizer.encode(rest, special=True) if rest else []
    return frozenset(ids[:1]) & frozenset(tokenizer.special.values())


def _with_begin(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Templates that do not write the begin token leave it to the tokenizer."""
    if tokenizer.adds_begin and tokenizer.begin_id is not None and ids[:1] != [tokenizer.begin_id]:
        return [tokenizer.begin_id, *ids]
    return ids


def _check(messages: Sequence[Message]) -> Sequence[Message]:
    for number, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise InputError(f'message {number} of the conversation needs a {key}: {{"role": ..., "content": ...}}')
    return messages


def _piece(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.piece(token_id)


@lru_cache(maxsize=16)
def _compile(template: str) -> Any:
    """The template with the few functions that Hugging Face's templates count on."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        import jinja2

        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment.from_string(template)
