"""A document in a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpt_keras.data.conversations import Message
from gpt_keras.data.records import Fields
from gpt_keras.tasks import metrics
from gpt_keras.tasks.metrics import Metric
from gpt_keras.tasks.task import Outputs, Record, Task, text_of, turns


class Summarization(Task):
    """{document, summary}. Measured by ROUGE; the baseline LEAD-1 is the document's first sentence."""

    fields = Fields(("document", "summary"))
    max_new_tokens = 96
    watched = "rougeL"
    lower_is_better = False

    def messages(self, record: Record) -> list[Message]:
        return turns(
            f"Summarize this text.\n\n{text_of(record, 'document').strip()}", text_of(record, "summary").strip()
        )

    def metrics(self, records: Sequence[Record], outputs: Outputs) -> list[Metric]:
        if outputs.answers is None:
            return []
        return metrics.rouge([record["summary"] for record in records], outputs.first_answers)

    def baselines(self, records: Sequence[Record], training: Sequence[Record]) -> dict[str, Outputs]:
        return {"LEAD-1": Outputs([[_first_sentence(record["document"])] for record in records])}


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]


TASK = Summarization()
