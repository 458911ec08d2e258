"""What a run tells while it trains: metrics.jsonl, TensorBoard, Weights & Biases, a progress bar, a curve.

Of several processes, the first one tells.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.training.callbacks import Pace
from gpt_keras.training.checkpoint import Score
from gpt_keras.training.optimizer import averaged_weights
from gpt_keras.training.options import LoopOptions
from gpt_keras.training.processes import processes
from gpt_keras.training.run_folder import say


@dataclass(frozen=True)
class Measured:
    """What held-out data says of the model.

    Attributes:
        values: Name to value, as metrics.jsonl gets them; `validation_loss` is among them.
        score: What checkpoints are compared by.
    """

    values: dict[str, float]
    score: Score


class Record(keras.callbacks.Callback):
    """Writes metrics.jsonl and TensorBoard logs, measures held-out data a few times, and shows how it goes.

    Args:
        pace: Counts the steps.
        measure: Measures held-out data.
        options: Of the run: when to measure and to profile, and whether to log to Weights & Biases.
        tokens_per_step: Tokens in a batch.
        console: A terminal gets a progress bar, anything else a plain line now and then.
        utilization: Share of the machine's matrix products that a token a second is worth; `None` to leave
            that out.
        sample: Writes samples of a step, told its number.
        sample_steps: Steps between samples; 0 for none.

    Attributes:
        measures_at_end: Whether held-out data is measured behind the last step, too.
        earlier_scores: What was measured before this process.
    """

    LINE_SECONDS = 20.0

    def __init__(
        self,
        pace: Pace,
        measure: Callable[[], Measured],
        options: LoopOptions,
        tokens_per_step: float,
        console: Console,
        utilization: float | None,
        sample: Callable[[int], None],
        sample_steps: int,
    ) -> None:
        super().__init__()
        self.pace, self.measure, self.options, self.folder = pace, measure, options, options.run_dir
        self.tokens_per_step, self.console, self.evaluations = tokens_per_step, console, options.evaluations
        self.utilization, self.sample, self.sample_steps = utilization, sample, sample_steps
        self.measures_at_end = False
        self._profile = [int(step) for step in options.profile.split("-")] if options.profile else []
        self._profiling = False
        self._wandb: Any = None
        self._metrics: Any = None
        self._failed = False
        self._losses: tuple[type[Exception], ...] = (OSError, InputError)
        self._step_seconds: deque[float] = deque(maxlen=101)
        self._validation_loss = float("nan")
        self._next_evaluation = self._next_share(pace.progress)
        self._last_line = time.perf_counter()
        self._board: Any = None
        self._bar: Progress | None = None
        # A run that goes on after a kill does the steps behind its checkpoint again; their old lines go.
        records = [r for r in read_metrics(self.folder) if r["step"] <= pace.step]
        self.earlier_scores = [tuple(record["score"]) for record in records if "score" in record]
        self._earlier_speed = float(records[-1]["tokens_per_second"]) if records else 0.0
        if processes().first:
            with whole_file(self.folder / "metrics.jsonl") as partial:
                partial.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")

    @property
    def tokens_per_second(self) -> float:
        """Training speed: the median of the last steps', so that pauses for evaluation and checkpoints do not count."""
        if not self._step_seconds:
            return self._earlier_speed
        return self.tokens_per_step / sorted(self._step_seconds)[len(self._step_seconds) // 2]

    def on_train_begin(self, logs: Any = None) -> None:
        if not processes().first:
            return
        import tensorflow as tf

        self._losses = (*self._losses, tf.errors.OpError)
        self._board = tf.summary.create_file_writer(str(self.folder / "logs"))
        if self.options.wandb is not None:
            import wandb

            settings = {name: str(value) for name, value in dataclasses.asdict(self.options).items()}
            name, where = self.folder.name, str(self.folder)
            try:
                self._wandb = wandb.init(
                    project=self.options.wandb, name=name, dir=where, config=settings, resume="allow"
                )
            except Exception as error:  # nobody is logged in, say; of a class that only wandb knows
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise InputError(f"--wandb {self.options.wandb}: {reason}") from error
        self._metrics = open(self.folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.description}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self._task = self._bar.add_task("compiling the training step", total=1.0)
            self._bar.start()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._profile and self.pace.step + 1 == self._profile[0]:
            profiler(True, self.folder / "logs")
            self._profiling = True
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch > 0:
            self._step_seconds.append(time.perf_counter() - self._begin)
        loss, step = float(logs["loss"]), self.pace.step
        record: dict[str, Any] = {
            "step": step,
            "seconds": round(self.pace.seconds, 3),
            "loss": loss,
            "learning_rate": self.pace.learning_rate,
            "tokens_per_second": round(self.tokens_per_second),
        }
        if "gradient_norm" in logs:
            record["gradient_norm"] = float(logs["gradient_norm"])
        if self._step_seconds and self.utilization is not None:
            record["flops_utilization"] = round(self.tokens_per_second * self.utilization, 4)
        if self._profiling and step >= self._profile[1]:
            self._stop_profiler()
        if self._evaluation_is_due():
            _ = self.model  # on JAX, this brings the trained values into the model's variables
            with averaged_weights(self.model):
                measured = self.measure()
            self.pace.score, self._validation_loss = measured.score, measured.values["validation_loss"]
            record |= {**measured.values, "score": measured.score}
            self._next_evaluation = self._next_share(self.pace.progress)
        if self.sample_steps and step % self.sample_steps == 0:
            _ = self.model
            with averaged_weights(self.model), self._going_on():
                self.sample(step)
        if processes().first:
            self._write(record)
            self._show(loss, step)

    def close(self) -> None:
        """Stop the display and close the files, however training ended."""
        if self._bar is not None:
            self._bar.stop()
        self._stop_profiler()
        if self._wandb is not None:
            self._wandb.finish()
        for file in (self._board, self._metrics):
            with self._going_on():
                if file is not None:
                    file.close()

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Where the disk is full, say so once instead of ending the training."""
        try:
            yield
        except self._losses as error:
            if not self._failed:
                say(self.console, f"warning: the record of the run is not whole: {error}")
            self._failed = True

    def _share(self) -> str:
        if not self._step_seconds or self.utilization is None:
            return ""
        return f"  {self.tokens_per_second * self.utilization:.0%} of matrix products"

    def _evaluation_is_due(self) -> bool:
        if self.pace.over and self.measures_at_end:
            return True
        if self.options.evaluation_steps is not None:
            return self.pace.step % self.options.evaluation_steps == 0
        return bool(self.evaluations) and self._next_evaluation <= self.pace.progress < 1.0

    def _stop_profiler(self) -> None:
        if self._profiling:
            profiler(False, self.folder / "logs")
            self._profiling = False

    def _next_share(self, progress: float) -> float:
        return (math.floor(progress * self.evaluations + 1e-9) + 1) / self.evaluations if self.evaluations else 2.0

    def _write(self, record: dict[str, Any]) -> None:
        with self._going_on():
            self._metrics.write(json.dumps(record) + "\n")
            self._metrics.flush()
        with self._going_on():
            self._to_board(record)
        if self._wandb is not None:
            self._wandb.log(
                {name: value for name, value in record.items() if name not in ("step", "score")}, step=record["step"]
            )

    def _to_board(self, record: dict[str, Any]) -> None:
        import tensorflow as tf

        with self._board.as_default(step=record["step"]):
            for name, value in record.items():
                if name not in ("step", "score"):
                    tf.summary.scalar(name, value)

    def _show(self, loss: float, step: int) -> None:
        held_out = "" if math.isnan(self._validation_loss) else f"  validation {self._validation_loss:.3f}"
        words = f"step {step}  loss {loss:.3f}{held_out}  {self.tokens_per_second:,.0f} tokens/s{self._share()}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.pace.progress, description=words)
        elif time.perf_counter() - self._last_line > self.LINE_SECONDS:
            self._last_line = time.perf_counter()
            share = self.pace.progress
            left = self.pace.seconds * (1.0 - share) / share if share else 0.0
            self.console.print(f"  {share:4.0%}  {words}  {left / 60:.1f} min left", highlight=False)


def profiler(on: bool, folder: Path) -> None:
    """Start or stop the backend's profiler, which writes for TensorBoard's profile page."""
    if keras.backend.backend() == "jax":
        import jax

        jax.profiler.start_trace(str(folder)) if on else jax.profiler.stop_trace()
        return
    import tensorflow as tf

    tf.profiler.experimental.start(str(folder)) if on else tf.profiler.experimental.stop()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line that a kill cut short is left out."""
    records = []
    path = folder / "metrics.jsonl"
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def draw_loss(folder: Path) -> None:
    """Draw loss.png from metrics.jsonl: training loss, smoothed and raw, and held-out loss over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_metrics(folder)
    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    held_out = [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, _smoothed(losses), color="tab:blue", label="training")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title="Training")
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(folder / "loss.png") as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)


def _smoothed(values: list[float], weight: float = 0.95) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smooth, average, mass = [], 0.0, 0.0
    for value in values:
        average, mass = weight * average + (1 - weight) * value, weight * mass + (1 - weight)
        smooth.append(average / mass)
    return smooth
