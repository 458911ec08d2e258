"""What a fine-tuning run can be told. Imports no keras, so that the backend can still be chosen."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from gpt_keras.data.errors import InputError
from gpt_keras.training.options import LoopOptions


@dataclass(kw_only=True)
class FinetuneOptions(LoopOptions):
    """Options of `python -m gpt_keras.finetune`.

    Args:
        model: A model folder, a .gguf file, hf:ORG/NAME or smollm2; also an adapter's folder, to train a new one behind
            it.
        task: chat, code, content, debugging, paraphrase, preference, sentiment or summarization, or a .py file that
            defines one.
        data: Records to learn from: .jsonl, .csv, .tsv or .parquet files, tfds:NAME or hf:NAME. Without any, small sets
            that are made here, for trying out.
        valid: Records to measure with; by default a tenth of the data, at most 500 of them, which are then not trained
            on.
        map: Fields that have other names in the data, as FIELD=COLUMN.
        lora: Train an adapter of this rank (low-rank matrices beside each kernel) instead of the model itself.
        lora_alpha: The adapter is scaled by this over its rank; twice the rank by default.
        int8: With lora, hold the model's own kernels in 8 bits, for a quarter of their memory in float32.
        template: A file with another chat template (Jinja) than the model's own.
        context_length: Tokens of a row, into which short examples are packed; at most the model's. For preference a row
            holds twice as many, for pairs.
        truncation: What happens to longer examples: drop, cut_start, cut_end, or refuse the data.
        epochs: Go through the data so many times. Where neither steps nor minutes are given either: 3 times, and more
            often where that would be fewer than 100 steps; the best checkpoint is what counts.
        patience: End after so many measurements in a row that were no better than the best before them; 0 for never.
        watch_records: How many held-out records the task's own metric is measured with along the way; by default 400,
            and 48 where answers have to be written.
        beta: For preference, how strongly the model is held to what it was (DPO's beta).
        unsafe: Run programs that the model writes even where the system keeps them from neither files nor the network.
        minutes: Train for this many minutes.
        batch_size: Rows of context_length tokens in a step.
        optimizer: adamw, or muon (for matrices, Adam for the rest).
        learning_rate: Peak learning rate; by default 1e-4, with lora 5e-4, and a tenth of these for preference; larger
            for models of less than 576 dimensions, by as much as they have fewer.
        evaluations: How many times the held-out records are measured, the last time at the end.
        run_dir: Where everything of this run goes; runs/TASK by default.

    Raises:
        InputError: A value is out of range.
    """

    POSITIONAL: ClassVar = ("model",)
    model: str
    task: str
    data: list[str] = field(default_factory=list)
    valid: list[str] = field(default_factory=list)
    map: list[str] = field(default_factory=list)
    lora: int | None = None
    lora_alpha: float | None = None
    int8: bool = False
    template: Path | None = None
    context_length: int = 512
    truncation: Literal["drop", "cut_start", "cut_end", "refuse"] = "drop"
    epochs: float | None = None
    patience: int = 3
    watch_records: int | None = None
    beta: float = 0.1
    unsafe: bool = False
    batch_size: int = 8
    optimizer: Literal["muon", "adamw"] = "adamw"
    adam_ratio: float = 0.3
    schedule: Literal["wsd", "cosine", "linear"] = "linear"
    evaluations: int = 6
    run_dir: Path = None  # type: ignore[assignment]  # by default it follows from the task

    def __post_init__(self) -> None:
        for name in ("data", "valid", "map"):
            if isinstance(getattr(self, name), str):  # in Python, or in a recipe
                setattr(self, name, [getattr(self, name)])
        if self.run_dir is None:
            self.run_dir = Path("runs") / Path(self.task).stem
        if self.epochs is not None and (self.steps is not None or self.minutes is not None):
            raise InputError("give one of --epochs, --steps and --minutes")
        super().__post_init__()
        for name in ("lora", "lora_alpha", "epochs", "watch_records", "beta"):
            self._check(name, above=True)
        self._check("patience")
        if self.context_length < 8:
            raise InputError(f"--context-length must be at least 8, not {self.context_length}")
        for name in ("lora_alpha", "int8"):
            if getattr(self, name) and self.lora is None:
                raise InputError(f"--{name.replace('_', '-')} is for adapters: give --lora RANK as well")
        if self.valid and not self.data:
            raise InputError("--valid needs --data: the records to learn from")

    def settled(self, rows: int, width: int) -> FinetuneOptions:
        """These with what follows from the data and the model where it is not given: steps and learning rate.

        Args:
            rows: That there are to learn from, of `context_length` tokens.
            width: The model's; small models learn with larger steps (Yang et al. 2022, https://arxiv.org/abs/2203.03466,
                of Adam: in inverse proportion).
        """
        steps, rate = self.steps, self.learning_rate
        if self.steps is None and self.minutes is None:
            steps = max(1 if self.epochs else _STEPS, math.ceil((self.epochs or _EPOCHS) * rows / self.batch_size))
        if rate is None:
            rate = (1e-4 if self.lora is None else 5e-4) * (0.1 if self.task == "preference" else 1.0)
            rate *= max(1.0, _WIDTH / width)
        return dataclasses.replace(self, epochs=None, steps=steps, learning_rate=rate)


_EPOCHS, _STEPS = 3, 100
"""Where nothing is said of how long: so many times through the data, and at least so many steps."""
_WIDTH = 576
"""SmolLM2-135M's, for which the learning rates were found."""

FIXED = (
    "model",
    "task",
    "data",
    "valid",
    "map",
    "lora",
    "lora_alpha",
    "int8",
    "template",
    "context_length",
    "truncation",
    "beta",
    "optimizer",
)
"""Options of a run that cannot change when it goes on."""

UNTOLD = ("restart", "json", "run_dir", "unsafe")
"""Options that change nothing in training."""
