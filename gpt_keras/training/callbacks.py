"""What happens around the steps of `model.fit`: pace, display, records, held-out loss, checkpoints."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.evaluation.bits_per_byte import HeldOutScorer
from gpt_keras.training import checkpoint
from gpt_keras.training.optimizer import averaged_weights
from gpt_keras.training.options import TrainOptions
from gpt_keras.training.schedule import learning_rate_factor


class Pace(keras.callbacks.Callback):
    """Keeps count of steps and seconds, sets the learning rate by them, and ends the run when its budget is used.

    The clock starts when the first step of this process, which compiles, is over.

    Attributes:
        step: Optimizer steps done, those of earlier processes included.
        seconds: Seconds spent, likewise.
        learning_rate: Of the step at hand or just done.
        validation_loss: After the step just done, if it was measured then.
    """

    def __init__(self, options: TrainOptions, done: checkpoint.Progress) -> None:
        super().__init__()
        self.options = options
        self.step = done.step
        self._before = self.seconds = done.seconds
        self.learning_rate = 0.0
        self.validation_loss: float | None = None
        self._started: float | None = None

    @property
    def progress(self) -> float:
        """Share of the budget that is used, 0 to 1."""
        if self.options.steps is not None:
            return min(1.0, self.step / self.options.steps)
        assert self.options.minutes is not None
        return min(1.0, self.seconds / (60.0 * self.options.minutes))

    @property
    def next_learning_rate(self) -> float:
        options = self.options
        factor = learning_rate_factor(options.schedule, self.step, self.progress, options.warmup_steps, options.decay)
        return options.learning_rate * factor

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        model = self.model
        self.validation_loss = None
        self.learning_rate = model.optimizer.learning_rate = self.next_learning_rate
        model.reset_metrics()  # the loss reported is this step's, not the mean since the beginning

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = float(logs["loss"])  # waits for the step
        self.step += 1
        if self._started is None:
            self._started = time.perf_counter()
        self.seconds = self._before + time.perf_counter() - self._started
        if not math.isfinite(loss):
            raise InputError(
                f"training diverged: the loss is {loss} at step {self.step}; lower --learning-rate "
                f"(now {self.options.learning_rate}) or raise --warmup-steps, and begin again with --restart"
            )
        if self.progress >= 1.0:
            self.model.stop_training = True


class Record(keras.callbacks.Callback):
    """Writes metrics.jsonl and TensorBoard logs, measures the held-out loss a few times, and shows how it goes.

    Args:
        pace: Counts the steps.
        scorer: Measures the held-out loss.
        folder: The run folder.
        tokens_per_step: Tokens in a batch.
        console: A terminal gets a progress bar, anything else a plain line now and then.
        evaluations: How many times to measure along the way.
    """

    LINE_SECONDS = 20.0
    EVALUATION_TOKENS = 32768

    def __init__(
        self,
        pace: Pace,
        scorer: HeldOutScorer,
        folder: Path,
        tokens_per_step: int,
        console: Console,
        evaluations: int,
    ) -> None:
        super().__init__()
        self.pace, self.scorer, self.folder = pace, scorer, folder
        self.tokens_per_step, self.console, self.evaluations = tokens_per_step, console, evaluations
        self._step_seconds: deque[float] = deque(maxlen=101)
        self._validation_loss = float("nan")
        self._next_evaluation = self._next_share(pace.progress)
        self._last_line = time.perf_counter()
        self._board: Any = None
        self._bar: Progress | None = None
        # A run that goes on after a kill does the steps behind its checkpoint again; their old lines go.
        records = [r for r in read_metrics(folder) if r["step"] <= pace.step]
        self._earlier_speed = float(records[-1]["tokens_per_second"]) if records else 0.0
        with whole_file(folder / "metrics.jsonl") as partial:
            partial.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")

    @property
    def tokens_per_second(self) -> float:
        """Training speed: the median of the last steps', so that pauses for evaluation and checkpoints do not count."""
        if not self._step_seconds:
            return self._earlier_speed
        return self.tokens_per_step / sorted(self._step_seconds)[len(self._step_seconds) // 2]

    def on_train_begin(self, logs: Any = None) -> None:
        import tensorflow as tf

        self._board = tf.summary.create_file_writer(str(self.folder / "logs"))
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
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch > 0:
            self._step_seconds.append(time.perf_counter() - self._begin)
        loss, step = float(logs["loss"]), self.pace.step
        record = {
            "step": step,
            "seconds": round(self.pace.seconds, 3),
            "loss": loss,
            "learning_rate": self.pace.learning_rate,
            "tokens_per_second": round(self.tokens_per_second),
        }
        if self.evaluations and self.pace.progress >= self._next_evaluation and self.pace.progress < 1.0:
            _ = self.model  # on JAX, this brings the trained values into the model's variables
            with averaged_weights(self.model):
                score = self.scorer.score(self.EVALUATION_TOKENS)
            self.pace.validation_loss = self._validation_loss = record["validation_loss"] = score.loss
            self._next_evaluation = self._next_share(self.pace.progress)
        self._metrics.write(json.dumps(record) + "\n")
        self._metrics.flush()
        self._to_board(record)
        self._show(loss, step)

    def close(self) -> None:
        """Stop the display and close the files, however training ended."""
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()
            self._metrics.close()

    def _next_share(self, progress: float) -> float:
        return (math.floor(progress * self.evaluations + 1e-9) + 1) / self.evaluations if self.evaluations else 2.0

    def _to_board(self, record: dict[str, Any]) -> None:
        import tensorflow as tf

        with self._board.as_default(step=record["step"]):
            for name, value in record.items():
                if name != "step":
                    tf.summary.scalar(name, value)

    def _show(self, loss: float, step: int) -> None:
        held_out = "" if math.isnan(self._validation_loss) else f"  validation {self._validation_loss:.3f}"
        words = f"step {step}  loss {loss:.3f}{held_out}  {self.tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.pace.progress, description=words)
        elif time.perf_counter() - self._last_line > self.LINE_SECONDS:
            self._last_line = time.perf_counter()
            share = self.pace.progress
            left = self.pace.seconds * (1.0 - share) / share if share else 0.0
            self.console.print(f"  {share:4.0%}  {words}  {left / 60:.1f} min left", highlight=False)


class Checkpoint(keras.callbacks.Callback):
    """Saves every so often, and whenever the held-out loss has never been lower; behind `Record` among callbacks.

    Args:
        pace: Knows how far the run is.
        writer: Writes them.
        folder: Where they go.
        minutes: Time between two, if `steps` is `None`. One that is due while another is being written waits.
        steps: Steps between two.
    """

    def __init__(
        self, pace: Pace, writer: checkpoint.CheckpointWriter, folder: Path, minutes: float, steps: int | None
    ) -> None:
        super().__init__()
        self.pace, self.writer, self.minutes, self.steps = pace, writer, minutes, steps
        self._best = checkpoint.best_validation_loss(folder)
        self._last = time.perf_counter()
        self._saved_step = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = self.pace.validation_loss
        # The last one is saved here, since `fit` ends by putting the averages of the weights in their place.
        if self._due() or (loss is not None and loss < self._best) or self.pace.progress >= 1.0:
            self.save()

    def save(self) -> None:
        """Begin to write a checkpoint of the step just done, unless that was begun already."""
        if self.pace.step != self._saved_step:
            progress = checkpoint.Progress(self.pace.step, self.pace.seconds, self.pace.validation_loss)
            self.writer.save(self.model, progress)
            self._saved_step = self.pace.step
        if self.pace.validation_loss is not None:
            self._best = min(self._best, self.pace.validation_loss)
        self._last = time.perf_counter()

    def _due(self) -> bool:
        if self.steps is not None:
            return self.pace.step % self.steps == 0
        return time.perf_counter() - self._last >= 60.0 * self.minutes and not self.writer.busy


class StopBetweenSteps(keras.callbacks.Callback):
    """Holds a Ctrl-C or a SIGTERM back until the step at hand is done, when what is in memory is the state after a
    whole step.

    Use as a context around `fit`, and as its last callback. A second signal is not held back.

    Attributes:
        stopped: The run was stopped, and between two steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopped = self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopBetweenSteps:
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._ask) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._asked:
            self.stopped = True
            raise KeyboardInterrupt

    def _ask(self, *_: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


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
