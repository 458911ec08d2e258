"""What every task has to say."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gpt_keras.data.conversations import Message
from gpt_keras.data.errors import InputError
from gpt_keras.data.records import Fields
from gpt_keras.tasks.metrics import Metric

Record = dict[str, Any]


@dataclass(frozen=True)
class Outputs:
    """What a system, a model or a baseline, made of some records.

    Attributes:
        answers: For each record its answers, the first of which counts where only one does.
        label_probabilities: float [records, labels], where the task has labels.
        nats: float [records]; negative log-likelihood of the reference answers.
        tokens: int [records]; how many tokens those are.
    """

    answers: list[list[str]] | None = None
    label_probabilities: np.ndarray | None = None
    nats: np.ndarray | None = None
    tokens: np.ndarray | None = None

    @property
    def first_answers(self) -> list[str]:
        """One answer for each record."""
        assert self.answers is not None
        return [answers[0] for answers in self.answers]


class Task(abc.ABC):
    """One application of a language model.

    Attributes:
        name: What it is found by.
        fields: What its records have.
        max_new_tokens: Of an answer.
        watched: The metric that a model is chosen by.
        lower_is_better: Whether that one should be low.
    """

    name: str = ""
    fields: ClassVar[Fields]
    max_new_tokens: ClassVar[int] = 64
    watched: ClassVar[str] = "answer_perplexity"
    lower_is_better: ClassVar[bool] = True

    @abc.abstractmethod
    def messages(self, record: Record) -> list[Message]:
        """The conversation to learn from; its last turn is the assistant's, the answer.

        Raises:
            InputError: A field holds something else than it should.
        """

    def prompt(self, record: Record) -> list[Message]:
        """The conversation before the answer."""
        return self.messages(record)[:-1]

    def conversations(self, record: Record) -> Sequence[Sequence[Message]]:
        """As `gpt_keras.data.finetuning.Form`."""
        return [self.messages(record)]

    def labels(self, records: Sequence[Record]) -> list[str]:
        """The only answers there are; empty where an answer is free."""
        return []

    @abc.abstractmethod
    def metrics(self, records: Sequence[Record], outputs: Outputs) -> list[Metric]:
        """How good the outputs are; those parts that `outputs` has not are left out."""

    def baselines(self, records: Sequence[Record], training: Sequence[Record]) -> dict[str, Outputs]:
        """What simple systems make of the records, by name.

        Args:
            records: To be answered.
            training: What may be learned from; empty where there is nothing.
        """
        return {}

    def __reduce__(self) -> Any:
        """Another process finds it by its name."""
        return importlib.import_module("gpt_keras.tasks").find_task, (self.name,)


def text_of(record: Record, field: str) -> str:
    """The text in a field.

    Raises:
        InputError: It holds something else, or nothing.
    """
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        found = "nothing" if isinstance(value, str) else type(value).__name__
        raise InputError(f"the field {field!r} must hold text, not {found}")
    return value


def texts_of(record: Record, field: str) -> list[str]:
    """The list of texts in a field.

    Raises:
        InputError: It holds something else.
    """
    value = record[field]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"the field {field!r} must hold a list of texts")
    return value


def turns(question: str, answer: str) -> list[Message]:
    """A conversation of one question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
