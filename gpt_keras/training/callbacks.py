"""What happens around the steps of `model.fit`: pace, a guard against divergence, checkpoints, signals."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from gpt_keras.training import checkpoint, processes
from gpt_keras.training.options import LoopOptions
from gpt_keras.training.schedule import learning_rate_factor


class DivergedError(Exception):
    """The loss is not a number, or went up and stayed there. The message says so."""


class Guard:
    """Watches the loss.

    Args:
        size: How far above its lowest smoothed value, in nats, the loss counts as a spike.
        steps: How many steps in a row a spike may last; 0 for ever.
    """

    SMOOTHING = 0.9

    def __init__(self, size: float, steps: int) -> None:
        self._size, self._steps = size, steps
        self._smoothed: float | None = None
        self._lowest = math.inf
        self._above = 0
        self._finite = True

    @property
    def sound(self) -> bool:
        """Whether there is no spike that may end the run."""
        return self._finite and (self._above == 0 or not self._steps)

    def check(self, step: int, loss: float, gradient_norm: float) -> None:
        """Take the loss and gradient of a step into account.

        Raises:
            DivergedError: One is not finite, or a spike has lasted too long.
        """
        if not math.isfinite(loss) or not math.isfinite(gradient_norm):
            self._finite = False
            raise DivergedError(f"the loss is {loss} and the gradient's norm {gradient_norm} at step {step}")
        before = loss if self._smoothed is None else self._smoothed
        self._smoothed = self.SMOOTHING * before + (1 - self.SMOOTHING) * loss
        self._lowest = min(self._lowest, self._smoothed)
        self._above = self._above + 1 if self._smoothed > self._lowest + self._size else 0
        if self._steps and self._above >= self._steps:
            raise DivergedError(
                f"the loss has been above {self._lowest + self._size:.2f} for {self._above} steps, up to step {step}, "
                f"after it had come down to {self._lowest:.2f}"
            )


class Pace(keras.callbacks.Callback):
    """Keeps count of steps and seconds, sets the learning rate by them, and ends the run when its budget is used.

    The clock starts when the first step of this process, which compiles, is over.

    Attributes:
        step: Optimizer steps done, those of earlier processes included.
        seconds: Seconds spent, likewise.
        learning_rate: Of the step at hand or just done.
        score: Of held-out data after the step just done, if it was measured then.
        ended: Whether the run ends before its budget is used.
    """

    def __init__(self, options: LoopOptions, done: checkpoint.Progress) -> None:
        super().__init__()
        self.options = options
        self.step = done.step
        self._before = self.seconds = done.seconds
        self.learning_rate = 0.0
        self.score: checkpoint.Score | None = None
        self.ended = False
        self._started: float | None = None
        self._guard = Guard(options.spike_size, options.spike_steps)

    @property
    def sound(self) -> bool:
        """Whether the loss is where it was, so that a checkpoint is worth having."""
        return self._guard.sound

    @property
    def progress(self) -> float:
        """Share of the budget that is used, 0 to 1."""
        if self.options.steps is not None:
            return min(1.0, self.step / self.options.steps)
        assert self.options.minutes is not None
        return min(1.0, self.seconds / (60.0 * self.options.minutes))

    @property
    def over(self) -> bool:
        """Whether there are no more steps to do."""
        return self.ended or self.progress >= 1.0

    @property
    def next_learning_rate(self) -> float:
        options = self.options
        factor = learning_rate_factor(options.schedule, self.step, self.progress, options.warmup_steps, options.decay)
        return options.learning_rate * factor

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.score = None
        self.learning_rate = self.next_learning_rate
        self._model.prepare_step(self.learning_rate)  # `self.model` would bring JAX's values back into the variables

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = float(logs["loss"])  # waits for the step
        self.step += 1
        if self._started is None:
            self._started = time.perf_counter()
        self.seconds = processes.largest([self._before + time.perf_counter() - self._started])[0]
        self._guard.check(self.step, loss, logs.get("gradient_norm", 0.0))
        if self.over:
            self.model.stop_training = True


class EarlyStopping(keras.callbacks.Callback):
    """Ends a run whose score gets no better; behind `Record` among callbacks.

    Args:
        pace: Has the scores.
        patience: How many measurements in a row may be no better than the best one before them.
        earlier: Scores of the run before this process.
    """

    def __init__(self, pace: Pace, patience: int, earlier: Sequence[checkpoint.Score]) -> None:
        super().__init__()
        self.pace, self.patience = pace, patience
        self._best: checkpoint.Score = (math.inf,)
        self._worse = 0
        for score in earlier:
            self._take(score)

    @property
    def out_of_patience(self) -> bool:
        return self._worse >= self.patience

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.pace.score is not None:
            self._take(self.pace.score)
            if self.out_of_patience:
                self.pace.ended = self.model.stop_training = True

    def _take(self, score: checkpoint.Score) -> None:
        self._worse = 0 if score < self._best else self._worse + 1
        self._best = min(self._best, score)


class Checkpoint(keras.callbacks.Callback):
    """Saves every so often, and whenever the score has never been better; behind `Record` among callbacks.

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
        self._best = checkpoint.best_score(folder)
        self._last = pace.seconds
        self._saved_step = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        score = self.pace.score
        # The last one is saved here, since `fit` ends by putting the averages of the weights in their place.
        if self._due() or (score is not None and score < self._best) or self.pace.over:
            self.save()

    def save(self) -> None:
        """Begin to write a checkpoint of the step just done, unless that was begun already or the loss is not sound."""
        if not self.pace.sound:
            return
        if self.pace.step != self._saved_step:
            precision = self.model.layers[-1].dtype_policy.name
            progress = checkpoint.Progress(self.pace.step, self.pace.seconds, self.pace.score, precision)
            self.writer.save(self.model, progress)
            self._saved_step = self.pace.step
        if self.pace.score is not None:
            self._best = min(self._best, self.pace.score)
        self._last = self.pace.seconds

    def _due(self) -> bool:
        if self.steps is not None:
            return self.pace.step % self.steps == 0
        if self.pace.seconds - self._last < 60.0 * self.minutes:  # the same in all processes
            return False
        return not processes.largest([self.writer.busy])[0]


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
        if processes.largest([self._asked])[0]:  # wherever it was asked, all stop behind the same step
            self.stopped = True
            raise KeyboardInterrupt

    def _ask(self, *_: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
