"""What every task has to say."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
        choice_probabilities: float [records, choices], where the task has answers to choose from.
        nats: float [records]; negative log-likelihood of the reference answers.
        tokens: int [records]; how many tokens those are.
    """

    answers: list[list[str]] | None = None
    choice_probabilities: np.ndarray | None = None
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
        samples: How many answers `evaluate` has a model write, of which `best_first` prefers one.
        temperature: At which; 0 is greedy.
        watched: The metric that a model is chosen by.
        lower_is_better: Whether that one should be low.
        writes: Whether what the model writes is measured, and not only probabilities.
        compares: Whether a record makes two conversations, of which the first is preferred to the second.
    """

    name: str = ""
    fields: ClassVar[Fields]
    max_new_tokens: ClassVar[int] = 64
    samples: ClassVar[int] = 1
    temperature: ClassVar[float] = 0.0
    watched: ClassVar[str] = "answer_perplexity"
    lower_is_better: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    compares: ClassVar[bool] = False

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

    def choices(self, records: Sequence[Record]) -> list[list[str]]:
        """For each record answers to compare by probability, as many for all; empty where there are none."""
        return []

    def best_first(self, record: Record, answers: Sequence[str]) -> list[str]:
        """Several answers to a record, sorted by what can be told without the reference; as they are if nothing can."""
        return list(answers)

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

    def get_ready(self, unsafe: bool = False) -> None:  # noqa: B027 (most tasks have nothing to do)
        """Called before anything is measured.

        Args:
            unsafe: Whether programs may run where the system keeps them from neither files nor the network; until this
                is called again.

        Raises:
            InputError: Answers cannot be measured on this system.
        """

    def __reduce__(self) -> Any:
        """Another process finds it by its name."""
        return importlib.import_module("gpt_keras.tasks").find_task, (self.name,)


@dataclass(frozen=True)
class MappedTask:
    """A task's records in a file that has other names for their fields; a `gpt_keras.data.finetuning.Form`.

    Attributes:
        task: The task.
        columns: Field to column, for those that go by another name.
    """

    task: Task
    columns: Mapping[str, str]

    @property
    def fields(self) -> Fields:
        """The task's, with their columns."""
        return replace(self.task.fields, columns=self.columns)

    def conversations(self, record: Record) -> Sequence[Sequence[Message]]:
        """As the task's."""
        return self.task.conversations(record)


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
    """The list of texts in a field; of one, where it holds a text, as in a CSV file.

    Raises:
        InputError: It holds something else.
    """
    value = record[field]
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"the field {field!r} must hold a list of texts")
    return value


def turns(question: str, answer: str) -> list[Message]:
    """A conversation of one question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
