"""The same in other words."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_keras.data.conversations import Message
from gpt_keras.data.records import Fields
from gpt_keras.tasks import metrics
from gpt_keras.tasks.metrics import Metric
from gpt_keras.tasks.task import Outputs, Record, Task, text_of, turns

COPYING = 1 / 3
"""What a point of BLEU to the text costs, in points of chrF."""


class Paraphrase(Task):
    """{text, paraphrase}. Measured against the reference, and against the text itself, where copying shows.

    A small model's most probable answer is often the text itself, or the text without some words. So it writes several,
    and the one is taken that keeps most of what the text says (chrF) in other words and in another order (BLEU).
    """

    fields = Fields(("text", "paraphrase"))
    samples, temperature = 16, 0.6
    watched = "chrf"
    lower_is_better = False

    def messages(self, record: Record) -> list[Message]:
        question = f"Say this in other words.\n\n{text_of(record, 'text').strip()}"
        return turns(question, text_of(record, "paraphrase").strip())

    def best_first(self, record: Record, answers: Sequence[str]) -> list[str]:
        scores = metrics.likeness(text_of(record, "text").strip(), answers)
        order = sorted(range(len(answers)), key=lambda i: COPYING * scores[i][1] - scores[i][0])
        return [answers[i] for i in order]

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
