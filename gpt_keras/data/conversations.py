"""Conversations to prompts, and to examples to learn from: a model's own chat template, rendered and tokenized.

A conversation is a list of `{"role": "system" | "user" | "assistant", "content": text}`, as OpenAI's and Hugging Face's
libraries have it; the template is Jinja, run in a sandbox, since it comes with the model.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.data.tokenizer import Tokenizer

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant")
DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""What a model with this project's own tokenizer is taught to chat with."""

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n\n' }}{% endfor %}"
)
"""For a model without tokens for roles: questions and answers as text."""

# Marks are noncharacters, which Unicode sets aside for use inside a program.
_GUARD = "\ufdd0"
"""Keeps a special token's text inside a message from being taken for the token."""
_START, _STOP = "\ufdd1", "\ufdd2"
"""Around the assistant's words."""
_MARKS = re.compile(f"[{_GUARD}{_START}{_STOP}]")


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
    return _MARKS.sub("", _render(template, _check(messages), tokenizer, reply))


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
    guarded = [_guarded(message, tokenizer) for message in _check(messages)]
    rendered = _render(template, guarded, tokenizer, reply)
    return _with_begin(tokenizer, _encode(tokenizer, re.sub(f"[{_START}{_STOP}]", "", rendered)))


def encode_for_training(
    tokenizer: Tokenizer, messages: Sequence[Message], template: str | None = None
) -> tuple[list[int], list[bool]]:
    """Token ids of a whole conversation, and which of them the model is trained to say: the assistant's words and the
    token that ends its turn. The ids are those of `encode_conversation`.

        token    <s> <|user|> 2 + 2 ? </s> <|assistant|> 4 </s> <|user|> Why ? </s> <|assistant|> So it is </s>
        trained   .      .    . . . .  .         .       x  x      .      .  .  .         .       x  x  x  x

    What the assistant says is found by marks around it that go through the template, or, in a template that has them,
    by its own `{% generation %}` blocks. A token is the assistant's if its first character other than a space is. An
    assistant's message with `"weight": 0` is not trained on.

    Args:
        tokenizer: The model's.
        messages: The conversation; at least one turn is the assistant's.
        template: Another template than the tokenizer's, which is `DEFAULT_TEMPLATE` where it has none of its own but
            tokens for the roles.

    Raises:
        InputError: There is no template, it does not take this conversation, it drops or changes what the assistant
            says, or it writes no special token behind it, so that a model would not learn to stop.
    """
    template = training_template(tokenizer, template)
    ends = turn_ends(tokenizer, template)
    if not ends:
        raise InputError(
            "the chat template writes no special token, such as eos_token, behind the assistant's words: a model that "
            "is trained with it would not learn to stop"
        )
    weights = _weights(_check(messages))
    pieces = _turns(template, [_guarded(message, tokenizer) for message in messages], tokenizer, len(weights))
    ids, bounds = _encode_pieces(tokenizer, pieces)
    trained = [False] * len(ids)
    for first, last, weight in zip(bounds[0::2], bounds[1::2], weights, strict=False):
        if last == first or ids[last - 1] not in ends:  # a {% generation %} block may hold the end
            while last < len(ids) and ids[last] not in ends and not tokenizer.token_bytes(ids[last]).strip():
                last += 1
            last += last < len(ids) and ids[last] in ends
        trained[first:last] = [weight] * (last - first)
    return ids, trained


def read_template(path: Path) -> str:
    """The chat template in a file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--template {path}: cannot be read ({error})") from error


def training_template(tokenizer: Tokenizer, template: str | None = None) -> str:
    """The template that this tokenizer's model is trained to chat with.

    Raises:
        InputError: It has none, and no tokens for the roles.
    """
    if template or tokenizer.chat_template:
        return template or tokenizer.chat_template or ""
    if all(f"<|{role}|>" in tokenizer.special for role in ROLES):
        return DEFAULT_TEMPLATE
    raise InputError("the tokenizer has neither a chat template nor tokens for the roles: give a template")


def turn_ends(tokenizer: Tokenizer, template: str | None = None) -> frozenset[int]:
    """The special tokens that close an assistant's turn: what the template writes behind its words."""
    template = template or tokenizer.chat_template
    if not template:
        return frozenset()
    said = "f3a9c1"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
    rest = render(template, messages, tokenizer, reply=False).rpartition(said)[2].lstrip()
    ids = tokenizer.encode(rest, special=True) if rest else []
    return frozenset(ids[:1]) & frozenset(tokenizer.special.values())


def _weights(messages: Sequence[Message]) -> list[bool]:
    """Whether to train on each of the assistant's turns.

    Raises:
        InputError: It has none, or other turns than this project can train on.
    """
    weights = []
    for number, message in enumerate(messages):
        if message["role"] not in ROLES or "tool_calls" in message:
            what = "calls a tool" if "tool_calls" in message else f"has the role {message['role']!r}"
            raise InputError(f"message {number} {what}: only {', '.join(ROLES)} turns are supported so far")
        if message["role"] == "assistant":
            weight = message.get("weight", 1)
            if weight not in (0, 1):
                raise InputError(f"message {number} has the weight {weight!r}, expected 0 or 1")
            weights.append(bool(weight))
    if not any(weights):
        raise InputError("the conversation has no turn of the assistant to learn from")
    return weights


def _turns(template: str, messages: Sequence[Message], tokenizer: Tokenizer, count: int) -> list[str]:
    """The rendered conversation cut where the assistant begins and ends to speak: every second piece is its own."""
    if _GENERATION.search(template):
        attempts = [list(messages)]
    else:  # marks around the words; inside of spaces for a template that strips what it is given
        attempts = [[_marked(message, pattern) for message in messages] for pattern in (_WHOLE, _STRIPPED)]
    expected = _MARKS.sub("", _render(template, messages, tokenizer, reply=False))
    for attempt in attempts:
        rendered = _render(template, attempt, tokenizer, reply=False)
        pieces = re.split(f"[{_START}{_STOP}]", rendered)
        in_turn = re.findall(f"[{_START}{_STOP}]", rendered) == [_START, _STOP] * count
        if in_turn and _MARKS.sub("", rendered) == expected:
            return pieces
    raise InputError(
        "the chat template does not show every turn of the assistant as it is: to train on this conversation give a "
        "template that does, or one that says with {% generation %} blocks what the assistant says"
    )


_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
_WHOLE, _STRIPPED = re.compile(r"()(.*)()", re.DOTALL), re.compile(r"(\s*)(.*?)(\s*)", re.DOTALL)


def _marked(message: Message, pattern: re.Pattern[str]) -> Message:
    if message["role"] != "assistant":
        return message
    found = pattern.fullmatch(message["content"])
    assert found is not None
    before, words, behind = found.groups()
    return {**message, "content": f"{before}{_START}{words}{_STOP}{behind}"}


def _encode_pieces(tokenizer: Tokenizer, pieces: Sequence[str]) -> tuple[list[int], list[int]]:
    """Token ids of the pieces behind one another, and for each piece but the last the token that it ends before."""
    text = "".join(pieces)
    ids = _with_begin(tokenizer, _encode(tokenizer, text))
    places = _places(tokenizer, ids, _MARKS.sub("", text).encode())
    if places is not None:
        ends = np.cumsum([len(_MARKS.sub("", piece).encode()) for piece in pieces[:-1]])
        return ids, np.searchsorted(places, ends).tolist()
    # The tokenizer changes the text, so that tokens cannot be found in it: each piece has its own.
    runs = [_encode(tokenizer, piece) for piece in pieces]
    ids = _with_begin(tokenizer, list(itertools.chain.from_iterable(runs)))
    added = len(ids) - sum(len(run) for run in runs)
    return ids, (added + np.cumsum([len(run) for run in runs[:-1]])).tolist()


def _places(tokenizer: Tokenizer, ids: Sequence[int], raw: bytes) -> list[int] | None:
    """Where in the text the first character other than a space of each token is; `None` if they spell another text."""
    names = {token: piece.encode() for piece, token in tokenizer.special.items()}
    places, at = [], 0
    for number, token in enumerate(ids):
        piece = names.get(token)
        if piece is None:
            piece = tokenizer.token_bytes(token)
            if not raw.startswith(piece, at) and number == 0 and piece.startswith(b" "):
                piece = piece[1:]  # SentencePiece may begin a text with a space of its own
        elif number == 0 and not raw.startswith(piece):
            piece = b""  # the begin token, which the template leaves to the tokenizer
        if not raw.startswith(piece, at):
            return None
        places.append(at + (len(piece) - len(piece.lstrip()) if piece.strip() else 0))
        at += len(piece)
    return places if at == len(raw) else None


def _guarded(message: Message, tokenizer: Tokenizer) -> Message:
    """The message with the text of special tokens broken up."""
    for piece in tokenizer.special:
        if piece and piece in message["content"]:
            guard = _special(tokenizer)
            return {
                **message,
                "content": guard.sub(lambda found: found[0][0] + _GUARD + found[0][1:], message["content"]),
            }
    return message


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids; the text of a special token is that token, unless it is guarded."""
    if _GUARD not in text:
        return tokenizer.encode(text, special=True) if text else []
    ids: list[int] = []
    for part in re.split(f"({_special(tokenizer).pattern})", text):
        if part in tokenizer.special:
            ids += tokenizer.encode(part, special=True)
        elif part:
            ids += tokenizer.encode(part.replace(_GUARD, ""))
    return ids


def _special(tokenizer: Tokenizer) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(piece) for piece in sorted(tokenizer.special, key=len, reverse=True) if piece))


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
        if _MARKS.search(message["content"]):
            raise InputError(f"message {number} of the conversation holds a noncharacter (U+FDD0 to U+FDD2)")
    return messages


def _render(template: str, messages: Sequence[Message], tokenizer: Tokenizer, reply: bool) -> str:
    """As `render`, with the marks in the messages and those of the template's `{% generation %}` blocks."""
    import jinja2

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


def _piece(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.piece(token_id)


@lru_cache(maxsize=16)
def _compile(template: str) -> Any:
    """The template with the few functions and blocks that Hugging Face's templates count on."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        import jinja2

        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`: what the assistant says, in between marks."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Callable[[], str]) -> str:
            return _START + caller() + _STOP

    extensions = [loopcontrols, Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment.from_string(template)
