"""One training run from text to an exported model: the stages behind `python -m gpt_keras.train`.

    runs/NAME/  config.yaml  tokenizer.model  corpus/  metrics.jsonl  logs/  loss.png  checkpoints/
                model/  samples.md  summary.json

Every stage leaves something whole behind or nothing, so a run that is stopped anywhere goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from gpt_keras.architectures import architecture_for
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import readable, sweep, whole_file
from gpt_keras.data.preparation import prepare, split_and_train_tokenizer
from gpt_keras.data.pretraining import Batches
from gpt_keras.data.shards import Corpus
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.evaluation.bits_per_byte import HeldOutScorer, xz_bits_per_byte
from gpt_keras.folder import load_folder, save_folder
from gpt_keras.generation import Generator, SamplingOptions
from gpt_keras.model import GPT
from gpt_keras.training.callbacks import Checkpoint, Pace, Record, draw_loss
from gpt_keras.training.checkpoint import restore_checkpoint
from gpt_keras.training.loss import NextTokenLoss
from gpt_keras.training.optimizer import make_optimizer
from gpt_keras.training.options import MAY_CHANGE, TrainOptions
from gpt_keras.training.precision import choose_precision

NUM_SAMPLES = 3
PROMPT_CHARACTERS = 40
SAMPLE_OPTIONS = SamplingOptions(max_new_tokens=96, temperature=0.8, top_k=50, top_p=0.95)


class TrainingRun:
    """The stages of one run, in order, each timed.

    Args:
        options: What was asked for.
        console: Where progress is shown.

    Raises:
        InputError: From any stage: one line that says what is wrong.
    """

    def __init__(self, options: TrainOptions, console: Console) -> None:
        self.options, self.console = options, console
        self.folder = options.run_dir
        self.seconds: dict[str, float] = {}

    def execute(self) -> dict[str, Any]:
        """Run all stages. The summary, which is also written to summary.json."""
        started = time.perf_counter()
        self._config(self.options.vocabulary_size)  # a bad shape is told before any work is done
        self._record_options()
        with self._stage("corpus"):
            corpus = self._corpus()
        config = self._config(corpus.tokenizer.vocabulary_size)
        batches = Batches(corpus.streams["train"], config.context_length, self.options.batch_size, self.options.seed)
        with self._stage("training"):
            metrics = self._train(config, corpus, batches)
        with self._stage("evaluation"):
            model, tokenizer = load_folder(self.folder / "model", dtype="float32")
            metrics |= self._evaluate(model, corpus)
        with self._stage("samples"):
            samples = self._sample(model, tokenizer, corpus)
        with self._stage("export"):
            exported = self._export(model, tokenizer)
        summary = {
            "run": str(self.folder),
            "metrics": {**metrics, "total_seconds": round(time.perf_counter() - started, 1)},
            "stage_seconds": self.seconds,
            "samples": samples,
            "exported": exported and str(exported),
        }
        with whole_file(self.folder / "summary.json") as partial:
            partial.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        return summary

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)

    def _config(self, vocabulary_size: int | None) -> GPTConfig:
        overrides: dict[str, Any] = self.options.model_overrides()
        if vocabulary_size is not None:
            overrides["vocabulary_size"] = vocabulary_size
        if "hidden_dim" in overrides or "num_heads" in overrides:
            overrides |= {"head_dim": None, "num_key_value_heads": None}
        try:
            return GPTConfig.from_preset(self.options.preset, **overrides)
        except ValueError as error:
            raise InputError(str(error)) from error

    def _record_options(self) -> None:
        """Write config.yaml, or see that the run there was made with the same options."""
        given = {
            field.name: str(value) if isinstance(value := getattr(self.options, field.name), Path) else value
            for field in dataclasses.fields(self.options)
        }
        path = self.folder / "config.yaml"
        if path.exists():
            try:
                recorded = yaml.safe_load(path.read_text("utf-8"))
                changed = [name for name in given if name not in MAY_CHANGE and recorded[name] != given[name]]
            except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
                raise InputError(f"{path}: damaged ({error}); use --restart to begin again") from error
            if changed:
                flag = "--" + changed[0].replace("_", "-")
                raise InputError(
                    f"{self.folder} was begun with {flag} {recorded[changed[0]]}, not {given[changed[0]]}: give the "
                    "same to go on, another --run-dir, or --restart to begin again"
                )
        with whole_file(path) as partial:
            partial.write_text(yaml.safe_dump(given, sort_keys=False), "utf-8")
        sweep(self.folder)

    def _corpus(self) -> Corpus:
        """The prepared corpus: the one given, the one this run has, or a new one."""
        options = self.options
        if (Path(options.data) / "corpus.json").is_file():
            return Corpus(options.data)
        folder = self.folder / "corpus"
        if (folder / "corpus.json").is_file():
            return Corpus(folder)
        tokenizer = self._tokenizer()
        with self._bytes_bar() as (progress, task):
            report = lambda done, total: progress.update(task, completed=done, total=total)  # noqa: E731
            corpus = prepare(options.data, tokenizer, folder, options.validation, options.text_key, report)
        train, held_out = (corpus.manifest["splits"][split] for split in ("train", "validation"))
        self._say(
            f"corpus      {train['bytes'] / 1e6:.1f} MB, {train['tokens']:,} tokens in {train['documents']} documents "
            f"to train on, {held_out['bytes'] / 1e6:.2f} MB in {held_out['documents']} documents held out"
        )
        return corpus

    def _tokenizer(self) -> Tokenizer:
        options, path = self.options, self.folder / "tokenizer.model"
        if options.tokenizer is not None:
            return Tokenizer.load(options.tokenizer)
        if path.is_file():
            return Tokenizer.load(path)
        size = options.vocabulary_size or self._config(None).vocabulary_size
        with self._stage("tokenizer"):
            tokenizer = split_and_train_tokenizer(options.data, size, options.validation, options.text_key)
            tokenizer.save(path)
        self._say(f"tokenizer   SentencePiece, {tokenizer.vocabulary_size:,} pieces, {self.seconds['tokenizer']:.0f} s")
        return tokenizer

    def _train(self, config: GPTConfig, corpus: Corpus, batches: Batches) -> dict[str, Any]:
        options = self.options
        policy, why = choose_precision(options.precision)
        keras.utils.set_random_seed(options.seed)
        model = GPT(config, dtype=policy)
        on_cpu = keras.backend.backend() == "tensorflow" and policy == "float32"
        model.compile(make_optimizer(options), NextTokenLoss(), jit_compile=False if on_cpu else "auto")
        done = restore_checkpoint(model, self.folder / "checkpoints")
        architecture, field = architecture_for(config)
        kind = architecture.model_type if architecture else f"gpt_keras ({field} is beyond Hugging Face's types)"
        self._say(
            f"model       {config.num_layers} layers, width {config.hidden_dim}, context {config.context_length}: "
            f"{model.count_params():,} parameters, saved as {kind}"
        )
        self._say(f"arithmetic  {policy} on {keras.backend.backend()} ({why})")
        if done.step:
            self._say(f"resuming    after step {done.step}")

        pace = Pace(options, done)
        record = Record(
            pace,
            HeldOutScorer(model, corpus, options.batch_size),
            self.folder,
            options.batch_size * config.context_length,
            self.console,
            options.evaluations,
        )
        checkpoints = Checkpoint(pace, self.folder / "checkpoints", options.checkpoint_seconds)
        if pace.progress < 1.0:
            try:
                model.fit(
                    batches.dataset(start=done.step),
                    epochs=1,
                    steps_per_epoch=sys.maxsize,  # Pace ends the run
                    shuffle=False,  # the data set has its own order
                    verbose=0,
                    callbacks=[pace, record, checkpoints],
                )
            except KeyboardInterrupt:
                checkpoints.save()
                self._say(f"stopped after step {pace.step}; the same command goes on from there")
                raise
            finally:
                record.close()
            checkpoints.save()
            draw_loss(self.folder)
        some = [document.text[:2000] for document, _ in zip(corpus.held_out_documents(), range(20), strict=False)]
        save_folder(model, corpus.tokenizer, self.folder / "model", some)
        return {
            "parameters": model.count_params(),
            "steps": pace.step,
            "tokens": pace.step * options.batch_size * config.context_length,
            "tokens_per_second": round(record.tokens_per_second, 1),
            "train_seconds": round(pace.seconds, 1),
        }

    def _evaluate(self, model: GPT, corpus: Corpus) -> dict[str, Any]:
        """Figures from the written model folder, in float32, over every held-out token."""
        with self._bytes_bar("evaluating") as (progress, task):
            total = len(corpus.streams["validation"])
            report = lambda tokens: progress.update(task, completed=tokens, total=total)  # noqa: E731
            score = HeldOutScorer(model, corpus, self.options.batch_size).score(report=report)
        one_by_one, together = xz_bits_per_byte(document.text for document in corpus.held_out_documents())
        return {
            "val_loss": score.loss,
            "val_bits_per_byte": score.bits_per_byte,
            "val_bytes": corpus.bytes("validation"),
            "xz_bits_per_byte": one_by_one,
            "xz_concatenated_bits_per_byte": together,
        }

    def _sample(self, model: GPT, tokenizer: Tokenizer, corpus: Corpus) -> list[dict[str, str]]:
        """Continuations of the first words of held-out documents."""
        prompts: list[str] = []
        for document in corpus.held_out_documents():
            line = document.text.strip().split("\n", 1)[0][:PROMPT_CHARACTERS]
            if line and line not in prompts and len(prompts) < NUM_SAMPLES:
                prompts.append(line)
        room = model.config.context_length - 1
        prompts = [prompt if len(tokenizer.encode(prompt)) + 1 < room else "" for prompt in prompts]
        texts = Generator(model, tokenizer).generate(prompts, SAMPLE_OPTIONS)
        samples = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
        with whole_file(self.folder / "samples.md") as partial:
            blocks = [f"````text\n{s['prompt']}⟶{s['text']}\n````\n" for s in samples]
            partial.write_text("# Samples\n\nPrompt ⟶ continuation.\n\n" + "\n".join(blocks), "utf-8")
        return samples

    def _export(self, model: GPT, tokenizer: Tokenizer) -> Path | None:
        """A SavedModel under the run's name. TensorFlow exports, so under JAX another process does it."""
        if self.options.export_dir is None:
            return None
        base = self.options.export_dir / self.folder.resolve().name
        longest = min(128, model.config.context_length // 2)
        if keras.backend.backend() == "tensorflow":
            from gpt_keras.exporting.saved_model import export_saved_model

            return export_saved_model(model, tokenizer, base, longest)
        command = [sys.executable, "-m", "gpt_keras.export", str(self.folder / "model"), "--format", "saved_model"]
        command += ["--output", str(base), "--max-new-tokens", str(longest), "--quiet"]
        done = subprocess.run(
            command, env={**os.environ, "KERAS_BACKEND": "tensorflow"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise InputError(f"the export failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return Path(done.stdout.strip().splitlines()[-1])

    @contextlib.contextmanager
    def _bytes_bar(self, words: str = "tokenizing") -> Iterator[tuple[Progress, Any]]:
        columns = (TextColumn(words), BarColumn(), DownloadColumn(), TimeRemainingColumn(compact=True))
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            yield bar, bar.add_task("", total=None)

    def _say(self, words: str) -> None:
        self.console.print(words, highlight=False, soft_wrap=True)


def put_aside(folder: Path) -> Path:
    """Rename an existing run to the first free `NAME-old-N`; where it went."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}-old-{number}")).exists():
        number += 1
    try:
        folder.rename(aside)
    except OSError as error:
        raise readable(error, aside) from error
    return aside


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, `None` of any other folder."""
    try:
        return json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
