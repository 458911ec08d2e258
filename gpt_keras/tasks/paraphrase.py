"""The same in other words."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_keras.data.conversations import Message
from gpt_keras.data.records import Fields
from gpt_keras.tasks import metrics
from gpt_keras.tasks.metrics import Metric
from gpt_keras.tasks.task import Outputs, Record, Task, text_of, turns


class Paraphrase(Task):
    """{text, paraphrase}. Measured against the reference, and against the text itself, where copying shows."""

    fields = Fields(("text", "paraphrase"))
    watched = "chrf"
    lower_is_better = False

    def messages(self, record: Record) -> list[Message]:
        question = f"Say this in other words.\n\n{text_of(record, 'text').strip()}"
        return turns(question, text_of(record, "paraphrase").strip())

    def metrics(self, records: Sequence[Record], outputs: Outputs) -> list[Metric]:
        if outputs.answers is None:
            return []
        references, sources = ([record[field] for record in records] for field in ("paraphrase", "text"))
        return [
            metrics.chrf("chrf", references, outputs.first_answers),
            metrics.bleu("bleu", references, outputs.first_answers),
            metrics.bleu("bleu_to_source", sources, outputs.first_answers),
            metrics.chrf("chrf_to_source", sources, outputs.first_answers),
        ]

    def baselines(self, records: Sequence[Record], training: Sequence[Record]) -> dict[str, Outputs]:
        return {"copy of the text": Outputs([[record["text"]] for record in records])}


TASK = Paraphrase()
