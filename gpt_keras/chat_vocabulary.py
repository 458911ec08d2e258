"""What a model needs to be taught conversations: a chat template, and tokens for the roles."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gpt_keras.data.conversations import DEFAULT_TEMPLATE, PLAIN_TEMPLATE, ROLES, turn_ends
from gpt_keras.data.errors import InputError
from gpt_keras.language_model import LanguageModel
from gpt_keras.model import GPT
from gpt_keras.parts import zero_weights

ROLE_TOKENS = [f"<|{role}|>" for role in ROLES]


def ready_to_chat(lm: LanguageModel, template: str | None = None, grow: bool = True) -> LanguageModel:
    """The model with a chat template among its tokenizer's files: its own if it has one, else this project's.

    Args:
        lm: The model.
        template: Another template than its own.
        grow: Whether the vocabulary may grow by tokens for the roles, if it has none. Else conversations are written
            as plain text, each answer with the end token behind it.

    Raises:
        InputError: The model has no tokenizer, or none with an end token.
    """
    tokenizer = lm.text_tokenizer
    chosen = template or tokenizer.chat_template
    if chosen is None:
        if tokenizer.end_id is None:
            raise InputError("the model's tokenizer has no end token, with which answers end: give a --template")
        has_roles = all(piece in tokenizer.special for piece in ROLE_TOKENS)
        chosen = DEFAULT_TEMPLATE if has_roles or grow else PLAIN_TEMPLATE
        if grow and not has_roles:
            tokenizer = tokenizer.with_special(ROLE_TOKENS)
            if tokenizer.vocabulary_size > lm.config.vocabulary_size:
                lm = LanguageModel(grown(lm.model, tokenizer.vocabulary_size), tokenizer)
    if not turn_ends(tokenizer, chosen):
        raise InputError(
            "the chat template writes no special token, such as eos_token, behind the assistant's words: a model that "
            "is trained with it would not learn to stop"
        )
    if chosen != tokenizer.chat_template:
        tokenizer = tokenizer.with_template(chosen)
    return LanguageModel(lm.model, tokenizer)


def grown(model: GPT, vocabulary_size: int) -> GPT:
    """The model with a larger vocabulary. New tokens begin as the mean of the old ones, which makes them neither likely
    nor strange, so that what the model says elsewhere stays what it was.

    Source: Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html.
    """
    config = dataclasses.replace(model.config, vocabulary_size=vocabulary_size)
    with zero_weights():
        larger = GPT(config, dtype=model.embedding.dtype_policy)
    for source, target in zip(model.weights, larger.weights, strict=True):
        value: Any = np.asarray(source)
        if tuple(source.shape) != tuple(target.shape):  # a table of tokens
            rows = vocabulary_size - value.shape[0]
            value = np.concatenate([value, np.repeat(value.mean(0, keepdims=True), rows, axis=0)])
        target.assign(value)
    return larger
