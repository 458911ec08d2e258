"""One fine-tuning run from records to a model or an adapter: the stages behind `python -m gpt_keras.finetune`.

runs/NAME/  config.yaml  metrics.jsonl  logs/  loss.png  checkpoints/  before.json
            model/ or adapter/  samples.md  summary.json
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gpt_keras.chat_vocabulary import ready_to_chat
from gpt_keras.data.conversations import read_template
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.data.finetuning import Examples
from gpt_keras.evaluation.answers import Answerer
from gpt_keras.folder import save_folder
from gpt_keras.language_model import HUB, LanguageModel, load
from gpt_keras.lora import Adapter, add_lora, hold_frozen
from gpt_keras.model import GPT
from gpt_keras.tasks.task import MappedTask, Record
from gpt_keras.training.checkpoint import restore_checkpoint
from gpt_keras.training.finetune_data import FinetuneData, read_data
from gpt_keras.training.finetune_options import FinetuneOptions
from gpt_keras.training.loop import Loop
from gpt_keras.training.objectives import Answers, Objective, Preferences
from gpt_keras.training.optimizer import averaged_weights, make_optimizer
from gpt_keras.training.precision import choose_precision
from gpt_keras.training.record import Measured, draw_loss, read_metrics
from gpt_keras.training.recorded import read_recorded, refuse_differences, write_recorded
from gpt_keras.training.run_folder import say

WATCHED_RECORDS, WATCHED_ANSWERS = 400, 48
NUM_SAMPLES = 3


class FinetuneRun:
    """The stages of one run, in order.

    Args:
        options: What was asked for.
        task: The task, and under which names the data has its fields.
        console: Where progress is shown.

    Raises:
        InputError: From any stage: one line that says what is wrong.
    """

    def __init__(self, options: FinetuneOptions, task: MappedTask, console: Console) -> None:
        self.options, self.mapped, self.task, self.console = options, task, task.task, console
        self.folder = options.run_dir
        self._watched: list[Record] = []
        self._answerer: Answerer | None = None
        self._writes = False

    def execute(self) -> dict[str, Any]:
        """Run all stages: the summary, which is also written to summary.json."""
        started = time.perf_counter()
        options = self.options
        keras.utils.set_random_seed(options.seed)
        lm = self._open()
        data = read_data(options, self.mapped, lm.text_tokenizer, self._context(lm), self.console)
        fingerprints = {
            "examples_sha256": _digest(data.training),
            "held_out_sha256": _digest(data.validation),
            "base_crc32": _checksum(lm.model),
        }
        recorded = read_recorded(options.run_dir)
        words = ("other records", "other held-out records", "another model behind the same name")
        differences = [
            what
            for what, (name, found) in zip(words, fingerprints.items(), strict=True)
            if recorded and recorded.get(name, found) != found
        ]
        refuse_differences(options.run_dir, differences)
        if options.lora is not None:
            add_lora(lm.model, options.lora, options.lora_alpha)
            hold_frozen(lm.model, "int8" if options.int8 else lm.model.compute_dtype)
        make = Preferences if self.task.compares else Answers
        objective = make(lm.model, data.training, data.validation, options, lm.padding_id)
        settled = options.settled(len(objective.packed.rows), lm.config.hidden_dim)
        followed = {f"settled_{name}": getattr(settled, name) for name in ("steps", "learning_rate")}
        write_recorded(options, {**fingerprints, **followed})
        (self.folder / "summary.json").unlink(missing_ok=True)  # of a run that now goes on
        loop, best = self._train(lm, data, objective)
        draw_loss(self.folder)
        with averaged_weights(lm.model):
            path = self._save(lm)
            samples = self._sample(lm, data)
        summary = {
            "run": str(self.folder),
            "model": str(path),
            "task": options.task,
            "metrics": {
                **self._measured_at(best),
                "parameters": lm.model.count_params(),
                "trained_parameters": sum(math.prod(v.shape) for v in lm.model.trainable_variables),
                "steps": loop.pace.step,
                "tokens_per_second": round(loop.record.tokens_per_second, 1),
                "train_seconds": loop.pace.seconds,
                "total_seconds": round(time.perf_counter() - started, 1),
            },
            "before": self._before(None),
            "stopped_early": loop.pace.ended,
            "samples": samples,
        }
        with whole_file(self.folder / "summary.json") as partial:
            partial.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        return summary

    def _open(self) -> LanguageModel:
        """The base, in the arithmetic that is used, ready to be taught conversations."""
        options = self.options
        policy, why = choose_precision(options.precision, options.run_dir / "checkpoints")
        lm = load(options.model, dtype=policy)
        template = None if options.template is None else read_template(options.template)
        before = lm.config.vocabulary_size
        lm = ready_to_chat(lm, template, grow=options.lora is None)
        config = lm.config
        say(
            self.console,
            f"model       {options.model}: {config.num_layers} layers, width {config.hidden_dim}, "
            f"{lm.model.count_params():,} parameters",
        )
        if config.vocabulary_size > before:
            say(self.console, f"vocabulary  {config.vocabulary_size - before} tokens more, for the roles of a chat")
        say(self.console, f"arithmetic  {policy} on {keras.backend.backend()} ({why})")
        return lm

    def _context(self, lm: LanguageModel) -> int:
        return min(self.options.context_length, lm.config.context_length)

    def _train(self, lm: LanguageModel, data: FinetuneData, objective: Objective) -> tuple[Loop, int]:
        """Train, and leave the best checkpoint in the model: the loop that is done, and the step of that checkpoint."""
        model, rows = lm.model, len(objective.packed.rows)
        options = self.options.settled(rows, lm.config.hidden_dim)
        model.rematerialize, model.num_parts = options.rematerialize, options.accumulate
        model.watch_gradient_norm = True
        model.compile(make_optimizer(options, model.dtype_policy.name), objective.loss, jit_compile="auto")
        tokens = options.batch_size * objective.packed.context_length * (1.0 - objective.packed.padding_share)
        trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
        words = f"{rows:,} rows of {objective.packed.context_length}, {options.batch_size} a step"
        words += f", learning rate {options.learning_rate:.3g}"
        if options.steps is not None:
            words += f", {options.steps:,} steps ({options.steps * options.batch_size / rows:.1f} epochs)"
        say(self.console, f"training    {trained:,} parameters; {words}")
        self._watched = self._choose_watched(lm, data.records)
        folder = self.folder / "checkpoints"
        done = restore_checkpoint(model, folder)
        if done.step:
            say(self.console, f"resuming    after step {done.step}")
        else:
            self._before(self._measure(objective).values)

        def measure() -> Measured:
            measured = self._measure(objective)
            self._say_measured(measured)
            return measured

        loop = Loop(
            model, options, done, self.console, measure, tokens, measures_at_end=True, patience=options.patience
        )
        loop.run(objective.dataset(done.step))
        best = restore_checkpoint(model, folder, best=True).step or loop.pace.step  # 0: there is none
        if best != loop.pace.step:
            say(self.console, f"the best checkpoint, of step {best}, is taken")
        return loop, best

    def _choose_watched(self, lm: LanguageModel, records: list[Record]) -> list[Record]:
        """The records that the task's own metric is measured with, and whether answers must be written for it.

        Raises:
            InputError: The task has no such metric.
        """
        if self.task.compares or self.task.watched == "answer_perplexity":
            return []
        self._answerer = Answerer(lm, self.task)
        for self._writes, limit in ((False, WATCHED_RECORDS), (True, WATCHED_ANSWERS)):
            if self._task_metric(records[:1]) is not None:
                return _spread(records, self.options.watch_records or limit)
        raise InputError(f"the task {self.options.task} measures no {self.task.watched}, by which it is to be watched")

    def _task_metric(self, records: list[Record]) -> float | None:
        """The task's own metric; `None` if it is not among those that there are."""
        assert self._answerer is not None
        with self._bar("") as report:
            outputs = self._answerer.outputs(
                records,
                generate=self._writes,
                likelihoods=False,
                report=lambda words, done, total: report(done, total, words),
            )
        found = {metric.name: metric.value for metric in self.task.metrics(records, outputs)}
        return found.get(self.task.watched)

    def _measure(self, objective: Objective) -> Measured:
        """The objective's figures of held-out examples, and the task's own metric."""
        with self._bar("held-out loss") as report:
            values = objective.measure(report)
        watched, loss = self.task.watched, values["validation_loss"]
        if not self._watched:
            return Measured(values, (loss,))
        value = self._task_metric(self._watched)
        assert value is not None
        values[watched] = value
        return Measured(values, (value if self.task.lower_is_better else -value, loss))

    def _say_measured(self, measured: Measured) -> None:
        words = "  ".join(f"{name} {value:.4g}" for name, value in measured.values.items())
        self.console.print(f"  held out    {words}", highlight=False, soft_wrap=True)

    @contextmanager
    def _bar(self, words: str) -> Iterator[Any]:
        """A progress bar on a terminal, nothing elsewhere."""
        columns = (TextColumn("{task.description}"), BarColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(words, total=None)

            def report(done: int, total: int, description: str = words) -> None:
                bar.update(task, completed=done, total=total, description=description)

            yield report

    def _before(self, values: dict[str, float] | None) -> dict[str, float]:
        """What the base measures; kept in a file, for a run that goes on."""
        path = self.folder / "before.json"
        if values is not None:
            with whole_file(path) as partial:
                partial.write_text(json.dumps(values) + "\n", "utf-8")
            return values
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError):
            return {}

    def _measured_at(self, step: int) -> dict[str, float]:
        """What held-out data said of the checkpoint that was taken."""
        record = next((record for record in read_metrics(self.folder) if record["step"] == step), {})
        usual = ("seconds", "loss", "learning_rate", "tokens_per_second", "gradient_norm", "score", "step")
        return {"best_step": step, **{name: value for name, value in record.items() if name not in usual}}

    def _save(self, lm: LanguageModel) -> Path:
        if self.options.lora is None:
            path = self.folder / "model"
            save_folder(lm.model, lm.tokenizer, path)
        else:
            path = self.folder / "adapter"
            base = _lasting_name(self.options.model)
            Adapter.of(lm.model, base).save(path, lm.config, lm.text_tokenizer)
        return path

    def _sample(self, lm: LanguageModel, data: FinetuneData) -> list[dict[str, str]]:
        """What the tuned model answers to a few held-out prompts; also written to samples.md."""
        records = _spread(data.records, NUM_SAMPLES)
        answerer = self._answerer or Answerer(lm, self.task)
        outputs = answerer.outputs(records, likelihoods=False)
        samples = [
            {"prompt": str(self.task.prompt(record)[-1]["content"]), "answer": answer}
            for record, answer in zip(records, outputs.first_answers, strict=True)
        ]
        with whole_file(self.folder / "samples.md") as partial:
            blocks = [f"````text\n{s['prompt']}\n````\n\n````text\n{s['answer']}\n````\n" for s in samples]
            partial.write_text("# Held-out prompts and the model's answers\n\n" + "\n---\n\n".join(blocks), "utf-8")
        return samples


def _spread(records: list[Record], count: int) -> list[Record]:
    """So many, evenly spread."""
    return records if count >= len(records) else [records[i * len(records) // count] for i in range(count)]


def _digest(examples: Examples) -> str:
    found = hashlib.sha256()
    for array in (examples.tokens, examples.trained, examples.ends):
        found.update(array.tobytes())
    return found.hexdigest()


def _checksum(model: GPT) -> int:
    """Of all weights."""
    found = 0
    for weight in model.weights:
        found = zlib.crc32(np.asarray(weight).data, found)
    return found


def _lasting_name(model: str) -> str:
    """The base's name in an adapter, which is found from any folder; on the hub as PEFT writes it."""
    if model.startswith(HUB):
        return model.removeprefix(HUB)
    return str(Path(model).resolve()) if Path(model).exists() else model
