"""One training run from text to an exported model: the stages behind `python -m gpt_keras.train`.

Every stage leaves something whole behind or nothing, so a run that is stopped anywhere goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from gpt_keras.architectures import architecture_for
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.data.mixture import Mixture
from gpt_keras.data.pretraining import Batches
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.evaluation.bits_per_byte import HeldOutScore, HeldOutScorer, xz_bits_per_byte
from gpt_keras.folder import load_folder, save_folder
from gpt_keras.generation import Generator
from gpt_keras.model import GPT
from gpt_keras.sampling_options import SamplingOptions
from gpt_keras.training.checkpoint import restore_checkpoint
from gpt_keras.training.distribution import Devices, distribute, hosts, local_copy, one_device, spread_rows
from gpt_keras.training.estimate import state_bytes
from gpt_keras.training.flops import measured_flops_per_second, training_flops_per_token
from gpt_keras.training.loop import Loop
from gpt_keras.training.loss import NextTokenLoss
from gpt_keras.training.optimizer import averaged_weights, make_optimizer
from gpt_keras.training.options import TrainOptions
from gpt_keras.training.precision import choose_precision
from gpt_keras.training.processes import leave, processes
from gpt_keras.training.record import Measured, draw_loss
from gpt_keras.training.run_folder import PreparedRun, bytes_bar, say

NUM_SAMPLES = 3
PROMPT_CHARACTERS = 40
SAMPLE_OPTIONS = SamplingOptions(temperature=0.8, top_k=50, top_p=0.95)
SAMPLE_TOKENS = 96
EARLY_WINDOWS = 2
EVALUATION_TOKENS = 32768


class TrainingRun:
    """The stages of one run, in order, each timed.

    Args:
        options: What was asked for.
        console: Where progress is shown.
        prepared: The run folder with its corpus, from `prepare_run`.

    Raises:
        InputError: From any stage: one line that says what is wrong.
    """

    def __init__(self, options: TrainOptions, console: Console, prepared: PreparedRun) -> None:
        self.options, self.console, self.corpus = options, console, prepared.corpus
        self.folder = options.run_dir
        self.seconds = dict(prepared.seconds)
        self._started = prepared.started
        self._sampler: Generator | None = None
        self._copy: GPT | None = None

    def execute(self) -> dict[str, Any] | None:
        """Run all stages. The summary, which is also written to summary.json; `None` in all but the first process,
        which leave after training."""
        corpus = self.corpus
        config = self.options.model_config(corpus.tokenizer.vocabulary_size)
        with self._stage("training"):
            metrics = self._train(config, corpus)
        leave()
        keras.distribution.set_distribution(None)
        if not processes().first:
            return None
        with self._stage("evaluation"):
            model, _ = load_folder(self.folder / "model", dtype="float32")
            metrics |= self._evaluate(model, corpus)
        with self._stage("samples"):
            samples = self._sample(model, corpus.tokenizer, corpus)
        with self._stage("export"):
            exported = self._export(model, corpus.tokenizer)
        summary = {
            "run": str(self.folder),
            "metrics": {**metrics, "total_seconds": round(time.perf_counter() - self._started, 1)},
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

    def _train(self, config: GPTConfig, corpus: Mixture) -> dict[str, Any]:
        options = self.options
        policy, why = choose_precision(options.precision, self.folder / "checkpoints")
        keras.utils.set_random_seed(options.seed)
        devices = self._distribute(config, policy)
        host, num_hosts = hosts()
        shape, ends = (config.context_length, options.batch_size), dict[str, Any]()
        if options.mask_documents:
            ends = {"begin_id": corpus.tokenizer.begin_id, "end_id": corpus.tokenizer.end_id}
        batches = Batches.of(corpus, *shape, seed=options.seed, **ends, host=host, num_hosts=num_hosts)
        with devices.building():
            model = GPT(config, dtype=policy)
            model.rematerialize, model.num_parts = options.rematerialize, options.accumulate
            model.watch_gradient_norm = True
            loss = NextTokenLoss(options.label_smoothing, options.z_loss)
            jit = False if devices.strategy else "auto"
            model.compile(make_optimizer(options, policy), loss, jit_compile=jit)
            done = restore_checkpoint(model, self.folder / "checkpoints")
        architecture, field = architecture_for(config)
        kind = architecture.model_type if architecture else f"gpt_keras ({field} is beyond Hugging Face's types)"
        say(
            self.console,
            f"model       {config.num_layers} layers, width {config.hidden_dim}, context {config.context_length}: "
            f"{model.count_params():,} parameters, saved as {kind}",
        )
        say(self.console, f"arithmetic  {policy} on {keras.backend.backend()} ({why})")
        if done.step:
            say(self.console, f"resuming    after step {done.step}")

        scorer = HeldOutScorer(model, corpus, options.batch_size, spread_rows)
        tokens_per_step = options.batch_size * config.context_length
        loop = Loop(
            model,
            options,
            done,
            self.console,
            lambda: _measured(scorer.score(EVALUATION_TOKENS)),
            tokens_per_step,
            training_flops_per_token(config) / self._flops_per_second(policy, devices),
            lambda step: self._sample_during(model, corpus, step),
            options.sample_steps,
        )
        if not loop.pace.over:
            with averaged_weights(model):  # what is wrong with validation shows now, not after hours
                scorer.score(EARLY_WINDOWS * tokens_per_step)
        loop.run(batches.dataset(start=done.step))
        with averaged_weights(model):
            self._copy = local_copy(model, self._copy)
        if processes().first:
            draw_loss(self.folder)
            save_folder(self._copy, corpus.tokenizer, self.folder / "model")
        return {
            "parameters": model.count_params(),
            "steps": loop.pace.step,
            "tokens": loop.pace.step * tokens_per_step,
            "tokens_per_second": round(loop.record.tokens_per_second, 1),
            "train_seconds": loop.pace.seconds,
        }

    def _distribute(self, config: GPTConfig, policy: str) -> Devices:
        """Set up the devices, and say how."""
        devices = distribute(self.options, config, state_bytes(self.options, config, policy))
        if devices.words:
            say(self.console, f"devices     {devices.words}")
        if devices.undivided:
            self._warn(f"{', '.join(devices.undivided)} cannot be divided: they are whole on every device")
        return devices

    def _flops_per_second(self, policy: str, devices: Devices) -> float:
        found = measured_flops_per_second("bfloat16" if policy == "mixed_bfloat16" else "float32")
        say(self.console, f"            matrix products reach {found / 1e9:,.0f} GFLOP/s here")
        return found * devices.count

    def _sample_during(self, model: GPT, corpus: Mixture, step: int) -> None:
        self._copy = local_copy(model, self._copy)
        if processes().first:
            with one_device():
                self._sample(self._copy, corpus.tokenizer, corpus, step)

    def _warn(self, words: str) -> None:
        say(self.console, f"warning: {words}")

    def _evaluate(self, model: GPT, corpus: Mixture) -> dict[str, Any]:
        """Figures from the written model folder, in float32, over every held-out token."""
        with bytes_bar(self.console, "evaluating") as (bar, task):
            total = len(corpus.streams["validation"])

            def report(tokens: int) -> None:
                bar.update(task, completed=tokens, total=total)

            score = HeldOutScorer(model, corpus, self.options.batch_size).score(report=report)
        one_by_one, together = xz_bits_per_byte(document.text for document in corpus.held_out_documents())
        return {
            "val_loss": score.loss,
            "val_bits_per_byte": score.bits_per_byte,
            "val_bytes": corpus.splits["validation"]["bytes"],
            "xz_bits_per_byte": one_by_one,
            "xz_concatenated_bits_per_byte": together,
        }

    def _sample(
        self, model: GPT, tokenizer: Tokenizer, corpus: Mixture, step: int | None = None
    ) -> list[dict[str, str]]:
        """Continuations of the first words of held-out documents."""
        prompts: list[str] = []
        for document in corpus.held_out_documents():
            line = document.text.strip().split("\n", 1)[0][:PROMPT_CHARACTERS]
            if line and line not in prompts and len(prompts) < NUM_SAMPLES:
                prompts.append(line)
        room = model.config.context_length - 1
        prompts = [prompt if len(tokenizer.encode(prompt)) + 1 < room else "" for prompt in prompts]
        longest = max(len(tokenizer.encode_prompt(prompt)) for prompt in prompts)
        length = min(SAMPLE_TOKENS, model.config.context_length - longest)
        options = dataclasses.replace(SAMPLE_OPTIONS, max_new_tokens=length)
        texts = self._generator(model, tokenizer).generate(prompts, options)
        samples = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
        path = self.folder / "samples.md"
        earlier = path.read_text("utf-8") if path.exists() else "# Samples\n\nPrompt ⟶ continuation.\n"
        at_the_end = "\n## At the end\n\n"
        title = at_the_end if step is None else f"\n## Step {step}\n\n"
        earlier = earlier.split(at_the_end)[0].split(title)[0]  # what is done again, or goes on
        with whole_file(path) as partial:
            blocks = [f"````text\n{s['prompt']}⟶{s['text']}\n````\n" for s in samples]
            partial.write_text(earlier + title + "\n".join(blocks), "utf-8")
        return samples

    def _generator(self, model: GPT, tokenizer: Tokenizer) -> Generator:
        """The one of this model, which has compiled already when it is asked for again."""
        if self._sampler is None or self._sampler.decoder.model is not model:
            self._sampler = Generator(model, tokenizer)
        return self._sampler

    def _export(self, model: GPT, tokenizer: Tokenizer) -> Path | None:
        """A SavedModel under the run's name. TensorFlow exports, so under JAX another process does it."""
        if self.options.export_dir is None:
            return None
        base = self.options.export_dir / self.folder.resolve().name
        if keras.backend.backend() == "tensorflow":
            from gpt_keras.exporting.saved_model import export_saved_model

            return export_saved_model(model, tokenizer, base)
        command = [sys.executable, "-m", "gpt_keras.export", str(self.folder / "model"), "--format", "saved_model"]
        command += ["--output", str(base), "--quiet"]
        done = subprocess.run(
            command, env={**os.environ, "KERAS_BACKEND": "tensorflow"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise InputError(f"the export failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return Path(done.stdout.strip().splitlines()[-1])


def _measured(score: HeldOutScore) -> Measured:
    values = {
        "validation_loss": score.loss,
        "validation_bits_per_byte": score.bits_per_byte,
        "validation_perplexity": math.exp(min(score.loss, 700.0)),
    }
    return Measured(values, (score.loss,))
