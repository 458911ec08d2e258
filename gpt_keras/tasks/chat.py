"""A conversation, as the assistant goes on with it."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_keras.data.conversations import Message
from gpt_keras.data.errors import InputError
from gpt_keras.data.records import Fields
from gpt_keras.tasks import metrics
from gpt_keras.tasks.metrics import Metric
from gpt_keras.tasks.task import Outputs, Record, Task


class Chat(Task):
    """{messages}. Measured by the perplexity of all the assistant's turns, and by how varied its last ones are."""

    fields = Fields(("messages",))
    max_new_tokens = 128

    def messages(self, record: Record) -> list[Message]:
        messages = record["messages"]
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise InputError("the field 'messages' must hold a list of turns")
        return messages

    def prompt(self, record: Record) -> list[Message]:
        """Up to the assistant's last turn."""
        messages = self.messages(record)
        last = max((i for i, message in enumerate(messages) if message.get("role") == "assistant"), default=None)
        if last is None:
            raise InputError("the conversation has no turn of the assistant")
        return messages[:last]

    def metrics(self, records: Sequence[Record], outputs: Outputs) -> list[Metric]:
        if outputs.answers is None:
            return []
        return [metrics.distinct(f"distinct_{n}", outputs.first_answers, n) for n in (1, 2)]


TASK = Chat()
