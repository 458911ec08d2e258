"""Two answers to a question, one of which people prefer: to be taught by direct preference optimization."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt_keras.data.conversations import Message
from gpt_keras.data.errors import InputError
from gpt_keras.data.records import Fields
from gpt_keras.tasks import metrics
from gpt_keras.tasks.metrics import Metric
from gpt_keras.tasks.task import Outputs, Record, Task, text_of


class Preference(Task):
    """{prompt, chosen, rejected}, each text; the prompt may be a list of turns. Measured by how often, and by how much,
    the chosen answer is the more probable one. Best read beside the same figures of the model that was tuned."""

    fields = Fields(("prompt", "chosen", "rejected"))
    watched = "preference_loss"
    compares = True
    writes = False

    def messages(self, record: Record) -> list[Message]:
        return self.conversations(record)[0]

    def conversations(self, record: Record) -> list[list[Message]]:
        prompt = record["prompt"]
        opening = prompt if isinstance(prompt, list) else [{"role": "user", "content": text_of(record, "prompt")}]
        if not all(isinstance(message, dict) for message in opening):
            raise InputError("the field 'prompt' must hold text or a list of turns")
        # Earlier answers are no part of what is preferred.
        opening = [{**turn, "weight": 0} if turn.get("role") == "assistant" else turn for turn in opening]
        answers = [text_of(record, name) for name in ("chosen", "rejected")]
        return [[*opening, {"role": "assistant", "content": answer}] for answer in answers]

    def choices(self, records: Sequence[Record]) -> list[list[str]]:
        return [[record["chosen"], record["rejected"]] for record in records]

    def metrics(self, records: Sequence[Record], outputs: Outputs) -> list[Metric]:
        if outputs.choice_probabilities is None:
            return []
        # A probability may be too small for a float; margins end at 690 nats.
        chosen, rejected = np.log(np.maximum(outputs.choice_probabilities, 1e-300)).T
        return [
            metrics.mean("preference_accuracy", 100 * (chosen > rejected)),
            metrics.mean("margin", chosen - rejected),
        ]

    def baselines(self, records: Sequence[Record], training: Sequence[Record]) -> dict[str, Outputs]:
        longer = np.array([len(record["chosen"]) > len(record["rejected"]) for record in records], float)
        return {"the longer": Outputs(choice_probabilities=np.stack([longer, 1 - longer], 1) * 0.98 + 0.01)}


TASK = Preference()
