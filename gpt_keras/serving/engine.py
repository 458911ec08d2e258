"""Continuous batching: requests join a running batch, and leave it, between any two tokens.

One thread does all the work. In every turn it takes new requests in, a piece of a prompt through the model, and all
rows that run one token further. What a request gets depends on its own prompt, options and seed alone.

Source: Yu et al. 2022, "Orca: a distributed serving system for Transformer-based generative models".
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from keras import ops

from gpt_keras import sampling
from gpt_keras.compilation import compile_function
from gpt_keras.continuation import Continuation
from gpt_keras.decoding import bucket
from gpt_keras.generation import Generator
from gpt_keras.serving.metrics import EngineMetrics, Metrics
from gpt_keras.slots import Prefill, Slots, groups

LOGGER = logging.getLogger("gpt_keras.serving")

MOST_ALTERNATIVES = 20
_STEPS_BEFORE_SHRINKING = 8
_SOON = 64
"""So many tokens more than a row has should fit its slot."""
_CUTS = {"top_k": (np.int32, 0), "top_p": (np.float32, 1.0), "min_p": (np.float32, 0.0)}
_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class BusyError(Exception):
    """So many requests wait already that no more are taken."""


class ClosedError(Exception):
    """The engine takes no more requests, since the server ends."""


@dataclass(frozen=True)
class Part:
    """What one step adds to a request.

    Attributes:
        text: What is certain of the text by now.
        token: The new token; `None` for one that ends the text, and is none of it.
        log_probability: The token's, in nats, where asked for.
        alternatives: The most probable tokens with theirs, where asked for.
        finish_reason: `stop` or `length` in the last part; `timeout` or `error` where there is no more to come.
    """

    text: str = ""
    token: int | None = None
    log_probability: float = 0.0
    alternatives: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None


@dataclass(eq=False)
class Job:
    """One text to be written.

    Attributes:
        sequence: From `Generator.begin`.
        listener: Told every part, in the engine's thread; it must not wait.
        end_ids: Tokens that end it.
        seconds: What it may take, waiting included.
        alternatives: How many to report of every token; `None` for no log-probabilities at all.
    """

    sequence: Continuation
    listener: Callable[[Part], None]
    end_ids: frozenset[int]
    seconds: float = 120.0
    alternatives: int | None = None
    submitted: float = field(default_factory=time.perf_counter)
    cancelled: bool = False
    last_token: float | None = None

    def cancel(self) -> None:
        """Nobody waits for it any more: its slot is free before the next step."""
        self.cancelled = True

    @property
    def over(self) -> bool:
        """Whether it is to end before its text does: cancelled, or out of time."""
        return self.cancelled or time.perf_counter() - self.submitted > self.seconds


class Engine:
    """Runs one model for many requests.

    Args:
        generator: Of the model; used by the engine alone from then on, but for `Generator.begin`. Sequences may come
            from another one of the same model.
        slots: Requests that run at a time.
        queue: Requests that may wait for that.
        metrics: Told what happens.

    Attributes:
        ready: Set when it works.
    """

    def __init__(
        self, generator: Generator, slots: int = 16, queue: int = 64, metrics: EngineMetrics | None = None
    ) -> None:
        self.generator, self.most_running, self.queue = generator, slots, queue
        self._metrics = metrics or Metrics().of_model("")
        self._metrics.slots.set(slots)
        self._slots = Slots(generator.decoder, slots)
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._prefills: deque[tuple[Prefill, list[Job]]] = deque()
        self._rows: dict[int, Job] = {}
        self._admitted: set[Job] = set()  # all that are past the queue and have not ended
        self._closing = self._warms_up = False
        self.ready = threading.Event()
        self._too_large = 0
        self._reporting = compile_function(_log_probabilities)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # === From any thread ===

    def start(self, warm_up: bool = False) -> None:
        """Begin to work, after a warm-up if wanted; requests are taken at once."""
        self._warms_up = warm_up
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Have these written.

        Raises:
            BusyError: The queue has no place for all of them.
            ClosedError: The engine was closed.
        """
        with self._changed:
            if self._closing:
                raise ClosedError
            if len(jobs) + len(self._waiting) > self.queue + self.most_running - self.num_running:
                raise BusyError
            self._waiting.extend(jobs)
            self._show()
            self._changed.notify()

    def close(self) -> None:
        """Take no more requests, and return when those that are there have ended."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def num_running(self) -> int:
        return len(self._admitted)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def warm_up(self) -> None:
        """Compile, before `start`, what requests of common sizes need."""
        counts, count = [1], 1
        while count < self.most_running:
            count = min(4 * count, self.most_running)
            counts.append(count)
        context = self.generator.config.context_length
        for rows, width in Prefill.sizes(context) or [(1, context)]:
            prefill = Prefill(self.generator.decoder, [[0] * width] * rows)
            prefill.step()
        for count in counts:
            self._slots.resize([], *self._slots.size_for(count, 1))
            self._slots.insert(prefill.cache, 0, 0, 1)
            self._slots.advance(np.zeros(self._slots.count, np.int32))
        self._slots.resize([], *self._slots.size_for(1, 1))

    # === The engine's thread ===

    def _run(self) -> None:
        try:
            if self._warms_up:
                try:
                    self.warm_up()
                except Exception:
                    LOGGER.exception("the warm-up failed; requests are taken, and the first ones are slow")
                    self._give_up()
            self.ready.set()
            while self._wait():
                try:
                    self._turn(self._take_waiting())
                except Exception:
                    LOGGER.exception("a step failed; the requests in it are given up")
                    self._give_up()
                self._show()
        except Exception:
            LOGGER.exception("the engine ended; it takes no more requests")
        finally:
            with self._changed:
                self._closing = True
                self._admitted |= set(self._waiting)
                self._waiting.clear()
            self._give_up()

    def _wait(self) -> bool:
        """Until there is something to do; false when it is to end."""
        with self._changed:
            while not (self._waiting or self._admitted or self._closing):
                self._changed.wait()
            return bool(self._waiting or self._admitted)

    def _take_waiting(self) -> list[Job]:
        """Requests there is a slot for; those nobody waits for any more are dropped on the way."""
        arrived: list[Job] = []
        with self._changed:
            gone = [job for job in self._waiting if job.over]
            self._waiting = deque(job for job in self._waiting if job not in gone)
            while self._waiting and self.num_running < self.most_running:
                arrived.append(self._waiting.popleft())
                self._admitted.add(arrived[-1])
        for job in gone:
            self._end(job)
        return arrived

    def _turn(self, arrived: list[Job]) -> None:
        for slot, job in list(self._rows.items()):
            if job.over:
                self._leave(slot)
                self._end(job)
        if not self._rows and not self._prefills:
            self.generator.decoder.weights_may_have_changed()
        self._begin(arrived)
        if self._prefills:
            prefill, jobs = self._prefills[0]
            if all(job.over for job in jobs):
                self._prefills.popleft()
                for job in jobs:
                    self._end(job)
            else:
                prefill.step()
                if prefill.done:
                    self._prefills.popleft()
                    self._join(prefill, jobs)
                else:
                    self._prefills.rotate(-1)  # a long prompt does not keep a short one waiting
        if self._rows:
            self._advance()

    def _begin(self, arrived: list[Job]) -> None:
        """Prompts that are short go through the model together, long ones alone and a piece at a time."""
        prompts = [job.sequence.prompt for job in arrived]
        self._metrics.prompt_tokens.inc(sum(map(len, prompts)))
        for group in groups(prompts):
            prefill = Prefill(self.generator.decoder, [prompts[i] for i in group])
            self._prefills.append((prefill, [arrived[i] for i in group]))

    def _join(self, prefill: Prefill, jobs: list[Job]) -> None:
        """The first tokens of prompts that are through, and a slot for each that goes on."""
        gone = [job for job in jobs if job.over]
        for job in gone:
            self._end(job)
        going = [(row, job) for row, job in enumerate(jobs) if job not in gone]
        self._choose(prefill.logits, prefill.best, prefill.batch_size, dict(going))
        going = [(row, job) for row, job in going if job.sequence.finish_reason is None]
        if not going:
            return
        self._make_room([job for _, job in going])
        free = [slot for slot in range(self._slots.count) if slot not in self._rows]
        for (row, job), slot in zip(going, free, strict=False):
            self._slots.insert(prefill.cache, row, slot, len(job.sequence.prompt))
            self._rows[slot] = job

    def _advance(self) -> None:
        """All rows one token further."""
        self._shrink()
        self._make_room()
        tokens = np.zeros(self._slots.count, np.int32)
        for slot, job in self._rows.items():
            tokens[slot] = job.sequence.tokens[-1]
        logits, best = self._slots.advance(tokens)
        rows = dict(self._rows)
        self._choose(logits, best, self._slots.count, rows)
        for slot, job in rows.items():
            if job.sequence.finish_reason is not None:
                self._leave(slot)

    def _leave(self, slot: int) -> None:
        del self._rows[slot]
        self._slots.free(slot)

    def _end(self, job: Job) -> None:
        """Of one that was cancelled, or took too long."""
        self._tell(job, Part(finish_reason="timeout"))

    def _give_up(self) -> None:
        """End all that run."""
        self._rows.clear()
        self._prefills.clear()
        self._slots = Slots(self.generator.decoder, self.most_running)
        for job in list(self._admitted):
            self._tell(job, Part(finish_reason="error"))

    def _tell(self, job: Job, part: Part) -> None:
        if part.finish_reason is not None:
            self._admitted.discard(job)
        if not job.cancelled:
            try:
                job.listener(part)
            except Exception:  # whoever asked is gone, with the event loop
                job.cancel()

    # === Sizes ===

    def _wanted_size(self, more: Sequence[Job] = ()) -> tuple[int, int]:
        """Slots for those that run and these, with some tokens more; the last token of a text is never read."""
        jobs = [*self._rows.values(), *more]
        longest = 1
        for sequence in (job.sequence for job in jobs):
            longest = max(longest, len(sequence.prompt) + min(sequence.limit, len(sequence.tokens) + _SOON))
        return self._slots.size_for(len(jobs) + sum(len(others) for _, others in self._prefills), longest)

    def _make_room(self, more: Sequence[Job] = ()) -> None:
        """Slots for these besides those that run, and for the tokens of the next step."""
        count, length = self._wanted_size(more)
        if self._rows:
            full = any(self._slots.lengths[slot] >= self._slots.length for slot in self._rows)
            count = max(count, self._slots.count)
            length = max(length, self._slots.length) if more or full else self._slots.length
        if (count, length) != (self._slots.count, self._slots.length):
            self._resize(count, length)

    def _shrink(self) -> None:
        """Fewer or shorter slots, once they have been enough for a while: it takes as long as a step or two."""
        count, length = self._wanted_size()
        smaller = count < self._slots.count or length < self._slots.length
        self._too_large = self._too_large + 1 if smaller else 0
        if self._too_large > _STEPS_BEFORE_SHRINKING:
            self._resize(count, min(length, self._slots.length))

    def _resize(self, count: int, length: int) -> None:
        self._too_large = 0
        kept = sorted(self._rows)
        self._slots.resize(kept, count, length)
        self._rows = {new: self._rows[old] for new, old in enumerate(kept)}

    # === Tokens ===

    def _choose(self, logits: Any, best: Any, batch_size: int, rows: dict[int, Job]) -> None:
        """The next token of every row, by its own options, and what its listener is told of it."""
        inputs = self._inputs(batch_size, {row: job.sequence for row, job in rows.items()})
        reports = any(job.alternatives is not None for job in rows.values())
        if inputs or reports:
            logits = ops.convert_to_tensor(logits)  # which another process may still hold
        tokens = np.asarray(self.generator.chooser("token", inputs)(logits, inputs) if inputs else best)
        reported: Any = None
        if reports:
            reported = [np.asarray(x) for x in self._reporting(logits, tokens)]
        now = time.perf_counter()
        for row, job in rows.items():
            sequence, token = job.sequence, int(tokens[row])
            sequence.accept(token, job.end_ids)
            kept = None if token in job.end_ids else token
            value, alternatives = 0.0, []
            if job.alternatives is not None:
                value = float(reported[0][row])
                pairs = zip(reported[2][row].tolist(), reported[1][row].tolist(), strict=True)
                alternatives = list(pairs)[: job.alternatives]
            self._tell(job, Part(sequence.delta, kept, value, tuple(alternatives), sequence.finish_reason))
            self._metrics.new_tokens.inc()
            figure = self._metrics.first_token if job.last_token is None else self._metrics.next_token
            figure.observe(now - (job.last_token or job.submitted))
            job.last_token = now

    def _inputs(self, batch_size: int, rows: dict[int, Continuation]) -> dict[str, Any]:
        """What the generator's chooser takes, a row's own options in its row."""
        inputs: dict[str, Any] = {}

        def column(name: str, neutral: float, dtype: Any) -> np.ndarray:
            values = np.full((batch_size, 1), neutral, dtype)
            for row, sequence in rows.items():
                values[row, 0] = getattr(sequence.options, name)
            return values

        penalties = {name for sequence in rows.values() for name in sequence.options.penalties}
        if penalties:
            longest = max(len(s.prompt) + len(s.tokens) for s in rows.values())
            history = np.full((batch_size, bucket(longest, 64)), -1, np.int32)
            num_prompt = np.zeros(batch_size, np.int32)
            for row, s in rows.items():
                history[row, : len(s.prompt) + len(s.tokens)] = [*s.prompt, *s.tokens]
                num_prompt[row] = len(s.prompt)
            inputs |= {"history": history, "num_prompt": num_prompt}
            inputs |= {name: column(name, _PENALTIES[name], np.float32) for name in penalties}
        ruled = {row: s for row, s in rows.items() if s.rule is not None}
        if ruled:
            allowed = np.ones((batch_size, self.generator.config.vocabulary_size), bool)
            for row, s in ruled.items():
                assert s.rule is not None
                mask = s.rule.allowed([*s.prompt, *s.tokens], len(s.prompt), s.limit - len(s.tokens))
                if mask is not None:
                    allowed[row] = mask
            inputs["allowed"] = allowed
        if any(s.options.temperature > 0.0 for s in rows.values()):
            uniform = np.zeros(batch_size, np.float32)
            uniform[list(rows)] = sampling.uniforms(
                [s.key for s in rows.values()], [len(s.tokens) for s in rows.values()]
            )
            inputs |= {"uniform": uniform, "temperature": column("temperature", 0.0, np.float32)}
            for name, (dtype, off) in _CUTS.items():
                if any(getattr(s.options, name) != off for s in rows.values()):
                    inputs[name] = column(name, off, dtype)
        return inputs

    def _show(self) -> None:
        self._metrics.waiting.set(len(self._waiting))
        self._metrics.running.set(self.num_running)


def _log_probabilities(logits: Any, tokens: Any) -> tuple[Any, Any, Any]:
    """Of the chosen tokens [batch], and the largest with their tokens [batch, MOST_ALTERNATIVES]."""
    every = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    values, ids = ops.top_k(every, min(MOST_ALTERNATIVES, logits.shape[-1]))
    return ops.take_along_axis(every, ops.cast(tokens, "int32")[:, None], axis=-1)[:, 0], values, ids
