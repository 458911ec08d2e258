"""A chat template inside a TensorFlow graph, which has no Jinja.

What nearly all templates write depends on two turns at a time: what stands before the first turn, between a turn of one
role and one of another, and behind the last, before the answer. `ChatTransitions` finds those texts by rendering small
conversations, and sees that longer ones come out the same; `GraphChat` puts them together in the graph.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from gpt_keras.data.conversations import ROLES, Message, render
from gpt_keras.data.errors import InputError
from gpt_keras.data.graph_tokenizer import GraphTokenizer, rows_of, valid
from gpt_keras.data.tokenizer import Tokenizer

Tensor = Any
_OPENING, _ANSWER = "", "answer"
"""What stands before the first turn, and behind the last one."""
_MARK = "\ufdd3"
"""Around the ids of special tokens; a noncharacter, which no text has."""
_WHITE = r"[\s\x0b\x1c-\x1f\x85\p{Z}]+"


@dataclass(frozen=True)
class ChatTransitions:
    """What a template writes around the turns.

    Attributes:
        between: By the roles before and behind, the text in between; missing where the template refuses the order.
        stripped: The roles whose words lose the white space around them.
    """

    between: dict[tuple[str, str], str]
    stripped: frozenset[str]

    @classmethod
    def of(cls, template: str, tokenizer: Tokenizer) -> ChatTransitions:
        """Those of a template.

        Raises:
            InputError: It is not made of such transitions; the message says where it showed.
        """
        if "strftime_now" in template:
            raise InputError("the chat template writes the date, which a graph cannot")
        between: dict[tuple[str, str], str] = {}
        stripped: set[str] = set()
        for roles in _SHORT:
            words = [f"  {_word(number)}  " for number in range(len(roles))]
            try:
                messages = [{"role": role, "content": text} for role, text in zip(roles, words, strict=True)]
                rendered = render(template, messages, tokenizer)
            except InputError:
                continue  # the template refuses this order
            places = [rendered.find(_word(number)) for number in range(len(roles))]
            if min(places) < 0 or places != sorted(places):
                continue  # the template has no use for it
            at, before = 0, _OPENING
            for role, place, text in zip(roles, places, words, strict=True):
                if not rendered.startswith(text, place - 2):
                    stripped.add(role)
                    place, text = place + 2, text.strip()
                between.setdefault((before, role), rendered[at : place - 2])
                at, before = place - 2 + len(text), role
            between.setdefault((before, _ANSWER), rendered[at:])
        if not {(_OPENING, "user"), ("user", "assistant"), ("assistant", "user"), ("user", _ANSWER)} <= set(between):
            raise InputError("the chat template does not show every turn of a user and an assistant in their order")
        found = cls(between, frozenset(stripped))
        found._check(template, tokenizer)
        return found

    def render(self, messages: Sequence[Message]) -> str | None:
        """The conversation with the answer opened; `None` where the template refuses the order."""
        parts, before = [], _OPENING
        for message in messages:
            role, words = message["role"], message["content"]
            parts += [self.between.get((before, role)), words.strip() if role in self.stripped else words]
            before = role
        parts.append(self.between.get((before, _ANSWER)))
        return None if None in parts else "".join(part for part in parts if part is not None)

    def _check(self, template: str, tokenizer: Tokenizer) -> None:
        """Compare with the template itself on conversations of all kinds.

        Raises:
            InputError: One comes out differently.
        """
        draw, compared = random.Random(0), 0
        for number in range(200):
            roles = ["user", "assistant"] * draw.randint(0, 3) + ["user"]
            if number % 5 == 0:
                roles = [draw.choice(["user", "assistant"]) for _ in roles]
            roles = ["system"] * draw.randint(0, 1) + roles
            messages = [{"role": role, "content": draw.choice(_CONTENTS)} for role in roles]
            try:
                expected = render(template, messages, tokenizer)
            except InputError:
                continue
            ours = self.render(messages)
            if ours is None:
                continue
            if ours != expected:
                raise InputError(
                    "the chat template writes more than what two turns that follow each other tell, as it shows on "
                    f"turns of {', '.join(roles)}"
                )
            compared += 1
        if compared < 20:
            raise InputError("the chat template refuses most conversations of a user and an assistant")


_CONTENTS = ["Hi", "2 + 2?", " spaces around ", "two\nlines\n", "", "\n", "é🎉", "{{ x }} {% y %}", "a" * 50]
_CONTENTS += ["<think>a</think>b", "<tool_call>a</tool_call>", "<tool_response>a</tool_response>"]
_SHORT = [
    [*first, *turns]
    for turns in (
        ["user"],
        ["user", "assistant", "user"],
        ["user", "user"],
        ["assistant", "user"],
        ["assistant", "assistant"],
        ["user", "assistant"],
        [],
    )
    for first in ([], ["system"])
    if first or turns
]
"""With a system prompt in front or without one; elsewhere it is refused."""


def _word(number: int) -> str:
    return f"q{number}j5x{number}w"


class GraphChat:
    """Conversations to prompts, as `encode_conversation`.

    Args:
        tokenizer: In the graph, with a chat template.

    Raises:
        InputError: There is no template, or not one that a graph can follow.
    """

    def __init__(self, tokenizer: GraphTokenizer) -> None:
        self._tokenizer, plain = tokenizer, tokenizer.tokenizer
        if not plain.chat_template:
            raise InputError("the model has no chat template")
        transitions = ChatTransitions.of(plain.chat_template, plain)
        self._stripped = [role in transitions.stripped for role in ROLES]
        # Rows: the opening, then the roles; columns: the roles, then the answer.
        rows, columns = [_OPENING, *ROLES], [*ROLES, _ANSWER]
        self._between = [[self._marked(transitions.between.get((a, b), "")) for b in columns] for a in rows]
        self._allowed = [[(a, b) in transitions.between for b in columns] for a in rows]

    def _marked(self, text: str) -> str:
        """The text with ids between marks in place of special tokens."""
        special = self._tokenizer.tokenizer.special
        pattern = "|".join(re.escape(piece) for piece in sorted(special, key=len, reverse=True) if piece)
        return re.sub(pattern, lambda found: f"{_MARK}{special[found[0]]}{_MARK}", text) if pattern else text

    def encode(self, roles: Tensor, contents: Tensor) -> tf.RaggedTensor:
        """Token ids of conversations with the assistant's next turn opened, int32 RaggedTensor [batch, (tokens)].

        Special tokens written out in a turn are text. A conversation with a role that there is not, in an order that
        the template refuses, or without a turn fails, and names the roles.

        Args:
            roles: string [batch, turns]: system, user or assistant; empty behind the last turn of a row.
            contents: string [batch, turns].
        """
        shape = tf.shape(roles)
        known = tf.stack([roles == role for role in ROLES], axis=-1)
        there = tf.strings.length(roles) > 0
        number = tf.argmax(known, axis=-1, output_type=tf.int32)
        following = tf.concat([there[:, 1:], tf.zeros([shape[0], 1], tf.bool)], axis=1)
        before = tf.concat([tf.zeros([shape[0], 1], tf.int32), number[:, :-1] + 1], axis=1)
        edges = tf.stack([before, number], axis=-1)
        last = tf.stack([number + 1, tf.fill(shape, len(ROLES))], axis=-1)
        ends = tf.logical_and(there, tf.logical_not(following))
        allowed = tf.constant(self._allowed)
        fine = tf.logical_and(tf.reduce_any(known, axis=-1), tf.gather_nd(allowed, edges))
        fine = tf.logical_and(fine, tf.logical_or(tf.logical_not(ends), tf.gather_nd(allowed, last)))
        gapless = tf.logical_not(tf.logical_and(tf.logical_not(there), following))
        fine = tf.logical_and(tf.logical_or(fine, tf.logical_not(there)), gapless)
        fine = tf.logical_and(tf.reduce_all(fine), tf.reduce_all(tf.reduce_any(there, axis=1)))
        message = (
            f"a conversation takes turns of {', '.join(ROLES)} in the order that the chat template allows, at least one"
        )
        with tf.control_dependencies([tf.debugging.Assert(fine, [message, roles])]):
            contents = tf.identity(contents)
        # Repaired first, or else broken bytes around a mark would make one when it is taken out.
        contents = tf.reshape(valid(tf.reshape(contents, [-1])), shape)
        contents = tf.strings.regex_replace(contents, _MARK, "")
        trimmed = tf.strings.regex_replace(contents, f"^{_WHITE}|{_WHITE}$", "")
        contents = tf.where(tf.gather(self._stripped, number), trimmed, contents)
        between, none = tf.constant(self._between), tf.fill(shape, "")
        closing = tf.where(ends, tf.gather_nd(between, last), none)
        turns = tf.strings.join([tf.gather_nd(between, edges), contents, closing])
        texts = tf.strings.reduce_join(tf.where(there, turns, none), axis=1)
        return self._with_begin(self._encode_marked(texts))

    def _encode_marked(self, texts: Tensor) -> tf.RaggedTensor:
        """Ids of texts in which every second part between marks is the id of a token."""
        parts = tf.strings.split(texts, _MARK)
        place = tf.ragged.range(parts.row_lengths()).values
        special = place % 2 == 1
        ids = tf.strings.to_number(tf.where(special, parts.values, "-1"), tf.int32)
        return self._tokenizer.encode_parts(parts.values, ids, rows_of(parts), parts.nrows())

    def _with_begin(self, ids: tf.RaggedTensor) -> tf.RaggedTensor:
        plain = self._tokenizer.tokenizer
        if not plain.adds_begin or plain.begin_id is None:
            return ids
        missing = ids[:, :1].to_tensor(-1, shape=(None, 1))[:, 0] != plain.begin_id
        return tf.concat([tf.ragged.boolean_mask(tf.fill([ids.nrows(), 1], plain.begin_id), missing[:, None]), ids], 1)
