"""`model.fit` with all that a run needs around its steps: pace, measuring, early stopping, checkpoints, signals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import keras
from rich.console import Console

from gpt_keras.backend import import_tensorflow
from gpt_keras.data.errors import InputError
from gpt_keras.training.callbacks import Checkpoint, DivergedError, EarlyStopping, Pace, StopBetweenSteps
from gpt_keras.training.checkpoint import CheckpointWriter, Progress, newest_step
from gpt_keras.training.options import LoopOptions
from gpt_keras.training.processes import leave
from gpt_keras.training.record import Measured, Record
from gpt_keras.training.run_folder import say


class Loop:
    """The steps of one run, those of earlier processes included.

    Args:
        model: Compiled, with the newest checkpoint in it.
        options: Of the run, whose folder gets metrics and checkpoints.
        done: How far the checkpoint is.
        console: Where progress is shown.
        measure: Measures held-out data with the model as it is.
        tokens_per_step: Tokens in a batch, padding left out.
        utilization: Share of the machine's matrix products that a token a second is worth; `None` to leave
            that out.
        sample: Writes samples of a step, told its number.
        sample_steps: Steps between samples; 0 for none.
        measures_at_end: Whether held-out data is measured behind the last step, too.
        patience: End after so many measurements in a row that were no better; 0 never to.

    Attributes:
        pace: How far the run is.
        record: What it has told.
    """

    def __init__(
        self,
        model: keras.Model,
        options: LoopOptions,
        done: Progress,
        console: Console,
        measure: Callable[[], Measured],
        tokens_per_step: float,
        utilization: float | None = None,
        sample: Callable[[int], None] = lambda step: None,
        sample_steps: int = 0,
        measures_at_end: bool = False,
        patience: int = 0,
    ) -> None:
        self._model, self._options, self._console = model, options, console
        self._folder = options.run_dir / "checkpoints"
        self.pace = Pace(options, done)
        self.record = Record(self.pace, measure, options, tokens_per_step, console, utilization, sample, sample_steps)
        self._writer = CheckpointWriter(self._folder, options.keep_checkpoints, self._warn)
        self._checkpoints = Checkpoint(
            self.pace, self._writer, self._folder, options.checkpoint_minutes, options.checkpoint_steps
        )
        self.record.measures_at_end = measures_at_end
        self._stopping = []
        if patience:
            self._stopping = [EarlyStopping(self.pace, patience, self.record.earlier_scores)]
            self.pace.ended = self._stopping[0].out_of_patience

    def run(self, dataset: Any) -> None:
        """Train until the run's budget is used.

        Args:
            dataset: Its batches, from the first one that was not trained on yet.

        Raises:
            InputError: Training diverged; the message says what to do.
            KeyboardInterrupt: It was interrupted; if between two steps, there is a checkpoint of the last one,
                unless the loss was far above where it had been.
        """
        if self.pace.over:
            return
        import_tensorflow()  # for tf.data and TensorBoard, on any backend
        interrupt = StopBetweenSteps()
        try:
            with interrupt:
                self._model.fit(
                    dataset,
                    epochs=1,
                    steps_per_epoch=sys.maxsize,  # Pace ends the run
                    shuffle=False,  # the data set has its own order
                    verbose=0,
                    callbacks=[self.pace, self.record, *self._stopping, self._checkpoints, interrupt],
                )
        except KeyboardInterrupt:
            if interrupt.stopped:
                self._checkpoints.save()
                self._writer.wait()
                leave()
                say(self._console, f"stopped after step {self.pace.step}{self._whence()}")
            raise
        except DivergedError as error:
            self._writer.wait()
            raise InputError(f"training diverged: {error}. {self._advice()}") from None
        finally:
            self.record.close()
            self._writer.wait()

    def _whence(self) -> str:
        if self.pace.sound:
            return "; the same command goes on from there"
        last = newest_step(self._folder)
        where = f"from step {last}, the last checkpoint" if last else "at the beginning, for there is no checkpoint"
        return f", the loss being far above where it was; the same command goes on {where}"

    def _advice(self) -> str:
        last = newest_step(self._folder)
        way = "the same command goes on from there" if last else "begin again with --restart"
        return (
            f"The last good checkpoint is {f'of step {last}' if last else 'missing'}: lower --learning-rate (now "
            f"{self._options.learning_rate}), and {way}"
        )

    def _warn(self, words: str) -> None:
        say(self._console, f"warning: {words}")
