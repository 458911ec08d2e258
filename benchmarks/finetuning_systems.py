"""The systems that `benchmarks.finetuning` measures, and the model and examples that all of them get.

folder/model/  what every system opens
folder/examples.npz
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.data.finetuning import Examples, PackedBatches

WARM_UP = 2
LEARNING_RATE = 5e-4


@dataclass(frozen=True)
class Work:
    """What is done.

    Attributes:
        folder: The model and the examples.
        context_length: Tokens of a row.
        batch_size: Rows of a step.
        rank: Of every adapter, whose scale is 2.
        steps: To be measured.
    """

    folder: Path
    context_length: int
    batch_size: int
    rank: int
    steps: int

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    @property
    def examples(self) -> Examples:
        found = np.load(self.folder / "examples.npz")
        return Examples(found["tokens"], found["trained"], found["ends"], {})


Measure = Callable[[Work], float]
"""Tokens a second, compilation and the first steps left out."""


@dataclass(frozen=True)
class System:
    """One way to fine-tune.

    Attributes:
        measure: Measures it.
        needs: Packages, by the names they have both for pip and for import.
        environment: Variables of its process.
    """

    measure: Measure
    needs: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def _rate(tokens: list[int], ends: list[float]) -> float:
    """Of the steps after the first and `WARM_UP` more, from when each ended."""
    return sum(tokens[WARM_UP + 1 :]) / (ends[-1] - ends[WARM_UP])


def prepare(folder: Path, model: str, task: str, data: str | None, context_length: int) -> str:
    """Write model and examples, and say in words what they are."""
    from gpt_keras.chat_vocabulary import ready_to_chat
    from gpt_keras.data.embedded import embedded_records
    from gpt_keras.data.finetuning import examples_of, read_examples
    from gpt_keras.language_model import load
    from gpt_keras.tasks import find_task

    lm = ready_to_chat(load(model), None, grow=False)
    form, tokenizer = find_task(task), lm.text_tokenizer
    if form.compares:
        raise InputError(f"--task {task} is not measured here")
    if context_length > lm.config.context_length:
        raise InputError(f"--context-length {context_length} is more than the model's {lm.config.context_length}")
    lm.save(folder / "model")
    if data is None:
        examples = examples_of(embedded_records(task)[0], tokenizer, context_length, "drop", form=form)
    else:
        examples = read_examples(data, tokenizer, context_length, "drop", form=form)
    np.savez(folder / "examples.npz", tokens=examples.tokens, trained=examples.trained, ends=examples.ends)
    share = examples.trained.sum() / len(examples.tokens)
    words = f"{len(examples):,} examples of {len(examples.tokens) / len(examples):.0f} tokens on average"
    return f"{words}, {share:.0%} of which the assistant says"


def gpt_keras(precision: str, int8: bool = False) -> Measure:
    """As `python -m gpt_keras.finetune` does it."""

    def measure(work: Work) -> float:
        import keras

        from gpt_keras.language_model import load
        from gpt_keras.lora import add_lora, hold_frozen
        from gpt_keras.training.finetune_options import FinetuneOptions
        from gpt_keras.training.objectives import Answers
        from gpt_keras.training.optimizer import make_optimizer
        from gpt_keras.training.precision import choose_precision

        lm = load(work.model, dtype=choose_precision(precision)[0])
        add_lora(lm.model, work.rank)
        hold_frozen(lm.model, "int8" if int8 else lm.model.compute_dtype)
        options = FinetuneOptions(
            model=work.model,
            task="chat",
            lora=work.rank,
            learning_rate=LEARNING_RATE,
            context_length=work.context_length,
            batch_size=work.batch_size,
            weight_decay=0.0,
            steps=10**6,
        )
        padding_id = lm.text_tokenizer.padding_id
        examples = work.examples
        objective = Answers(lm.model, examples, examples, options, padding_id)
        lm.model.watch_gradient_norm = True
        optimizer = make_optimizer(options, lm.model.dtype_policy.name)
        lm.model.compile(optimizer, objective.loss, jit_compile="auto")
        ends: list[float] = []

        class Clock(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                float(logs["loss"])  # waits for the step
                ends.append(time.perf_counter())

        count = WARM_UP + work.steps + 1
        lm.model.fit(objective.dataset(0), epochs=1, steps_per_epoch=count, verbose=0, callbacks=[Clock()])
        tokens = [int((objective.packed.batch(n)[0]["segment_ids"] > 0).sum()) for n in range(count)]
        return _rate(tokens, ends)

    return measure


def transformers(bfloat16: bool, packed: bool) -> Measure:
    """The Trainer of transformers, an adapter by PEFT.

    Args:
        bfloat16: The base in bfloat16, the rest in automatic mixed precision.
        packed: On the rows of `PackedBatches`, each token with its position in its example; otherwise a batch is of
            examples, filled up to the longest.
    """

    def measure(work: Work) -> float:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import (
            AutoModelForCausalLM,
            AutoTokenizer,
            DataCollatorForSeq2Seq,
            Trainer,
            TrainerCallback,
            TrainingArguments,
        )

        count = WARM_UP + work.steps + 1
        tokenizer = AutoTokenizer.from_pretrained(work.model)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.bfloat16 if bfloat16 else torch.float32)
        rank = LoraConfig(r=work.rank, lora_alpha=2 * work.rank, target_modules="all-linear", task_type="CAUSAL_LM")
        rows: list[dict[str, list[int]]] = []
        tokens: list[int] = []
        examples, batch_size = work.examples, work.batch_size
        batches = PackedBatches(examples, work.context_length, work.batch_size, tokenizer.pad_token_id)
        if packed:
            for number in range(count):
                inputs, targets, weights = batches.batch(number)
                # The Trainer's models shift the labels themselves.
                labels = np.full_like(targets, -100)
                labels[:, 1:] = np.where(weights > 0, targets, -100)[:, :-1]
                named = zip(inputs["token_ids"], inputs["positions"], labels, strict=True)
                rows += [
                    {"input_ids": x.tolist(), "position_ids": p.tolist(), "labels": y.tolist()} for x, p, y in named
                ]
                tokens.append(int((inputs["segment_ids"] > 0).sum()))
        else:
            batch_size = max(1, round(work.batch_size * len(examples) / len(batches.rows)))
            chosen = np.random.default_rng(0).permutation(len(examples))
            chosen = np.resize(chosen, count * batch_size)
            for number in chosen.tolist():
                part = slice(examples.starts[number], examples.ends[number])
                ids, says = examples.tokens[part], examples.trained[part]
                rows.append({"input_ids": ids.tolist(), "labels": np.where(says, ids, -100).tolist()})
            lengths = [len(row["input_ids"]) - 1 for row in rows]  # the last token is a target only
            tokens = np.reshape(lengths, (count, batch_size)).sum(1).tolist()
        ends: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())

        arguments = TrainingArguments(
            str(work.folder / "trainer"),
            per_device_train_batch_size=batch_size,
            max_steps=count,
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            bf16=bfloat16,
            use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="sequential",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        collator = DataCollatorForSeq2Seq(tokenizer) if not packed else None
        Trainer(
            get_peft_model(model, rank), arguments, train_dataset=rows, data_collator=collator, callbacks=[Clock()]
        ).train()
        return _rate(tokens, ends)

    return measure


TENSORFLOW, JAX = {"KERAS_BACKEND": "tensorflow"}, {"KERAS_BACKEND": "jax"}
PEFT = ("peft", "transformers", "torch")
SYSTEMS = {
    "gpt_keras tensorflow auto": System(gpt_keras("auto"), ("tensorflow",), TENSORFLOW),
    "gpt_keras tensorflow auto int8": System(gpt_keras("auto", int8=True), ("tensorflow",), TENSORFLOW),
    "gpt_keras jax auto": System(gpt_keras("auto"), ("jax",), JAX),
    "transformers float32": System(transformers(False, packed=False), PEFT),
    "transformers bfloat16": System(transformers(True, packed=False), PEFT),
    "transformers float32 packed": System(transformers(False, packed=True), PEFT),
    "transformers bfloat16 packed": System(transformers(True, packed=True), PEFT),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prepare", nargs="+", required=True)
    parser.add_argument("--context-length", type=int, required=True)
    options = parser.parse_args()
    folder, model, task, data = (*options.prepare, None)[:4]
    try:
        print(prepare(Path(folder), model, task, data, options.context_length))
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
