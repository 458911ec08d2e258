"""What a model is fine-tuned towards: to say what the assistant says, or to prefer one answer to another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from gpt_keras.data.errors import InputError
from gpt_keras.data.finetuning import Examples, PackedBatches
from gpt_keras.evaluation.example_scoring import ExampleScorer
from gpt_keras.model import GPT
from gpt_keras.training.finetune_options import FinetuneOptions
from gpt_keras.training.loss import NextTokenLoss
from gpt_keras.training.preference import PairBatches, PreferenceLoss, margins_of, preference_losses

Report = Callable[[int, int], None]


class Objective(Protocol):
    """Attributes:
    loss: What the model is compiled with.
    packed: How the examples are packed into rows.
    """

    loss: NextTokenLoss
    packed: PackedBatches

    def dataset(self, start: int) -> Any:
        """Batches to train on, from number `start` on."""

    def measure(self, report: Report) -> dict[str, float]:
        """Figures of held-out examples, `validation_loss` among them."""


class Answers:
    """Supervised fine-tuning: the likelihood of what the assistant says.

    Args:
        model: The model, whose weights are the base's.
        training: Examples to learn from.
        validation: Held-out examples.
        options: Of the run.
        padding_id: The token that rows are filled up with.
    """

    def __init__(
        self, model: GPT, training: Examples, validation: Examples, options: FinetuneOptions, padding_id: int
    ) -> None:
        length, rows = _context(model, options), options.batch_size
        self.packed = PackedBatches(training, length, rows, padding_id, options.seed)
        most = self.packed.most_trained(rows // options.accumulate)
        self.loss = NextTokenLoss(options.label_smoothing, options.z_loss, most)
        self._scorer = ExampleScorer(model, validation, length, rows, padding_id)

    def dataset(self, start: int) -> Any:
        return self.packed.dataset(start)

    def measure(self, report: Report) -> dict[str, float]:
        loss = float(self._scorer.nats(report).sum() / self._scorer.trained.sum())
        return {"validation_loss": loss, "answer_perplexity": math.exp(min(loss, 700.0))}


class Preferences:
    """Direct preference optimization. Arguments as `Answers`; examples are chosen, rejected, chosen, ...

    A row is twice as long as the context, so that the two answers of a pair, each of which may fill that, fit it.
    """

    def __init__(
        self, model: GPT, training: Examples, validation: Examples, options: FinetuneOptions, padding_id: int
    ) -> None:
        if options.accumulate > 1:
            raise InputError("--accumulate does not go with preferences: use a smaller --batch-size")
        if options.label_smoothing or options.z_loss:
            raise InputError("--label-smoothing and --z-loss do not go with preferences: leave them out")
        length, rows = _context(model, options), options.batch_size
        self.packed = PackedBatches(training, 2 * length, rows, padding_id, options.seed, group=2)
        self._beta, self._validation = options.beta, ExampleScorer(model, validation, length, rows, padding_id)
        self.loss = PreferenceLoss(options.beta, most_weighted=self.packed.most_trained(rows))
        self._reference = margins_of(self._validation.nats())
        self._batches = PairBatches(
            self.packed, margins_of(ExampleScorer(model, training, length, rows, padding_id).nats())
        )

    def dataset(self, start: int) -> Any:
        return self._batches.dataset(start)

    def measure(self, report: Report) -> dict[str, float]:
        margins = margins_of(self._validation.nats(report))
        advantages = margins - self._reference
        return {
            "validation_loss": float(preference_losses(margins, self._reference, self._beta).mean()),
            "margin": float(margins.mean()),
            "reward_margin": float(self._beta * advantages.mean()),
            "reward_accuracy": float(100 * (advantages > 0).mean()),
        }


def _context(model: GPT, options: FinetuneOptions) -> int:
    return min(options.context_length, model.config.context_length)
