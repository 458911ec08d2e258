"""Beam search: keep the few most probable beginnings, extend each by every token, keep the few most probable again.

The rules are those of transformers' `generate(num_beams=..., early_stopping=False)`: candidates are ranked by the sum
of log-probabilities, finished ones by that sum over length ** length_penalty, and a prompt is done once no running
beam can still beat the worst of its finished ones.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gpt_keras import token_rules

if TYPE_CHECKING:
    from gpt_keras.continuation import Completion
    from gpt_keras.generation import Generator
    from gpt_keras.sampling_options import SamplingOptions


@dataclass
class _Beam:
    """A beginning. `row` is the row of the batch whose cache holds it."""

    prompt: list[int]
    limit: int
    row: int
    score: float = 0.0
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    rule: token_rules.TokenRule | None = None
    finish_reason: str | None = None


class _Search:
    """The beams of one prompt."""

    def __init__(self, first: _Beam, options: SamplingOptions, end_ids: frozenset[int]) -> None:
        self._options, self._end_ids = options, end_ids
        self.running, self.finished, self.done = [first], list[_Beam](), False

    def extend(self, values: np.ndarray, tokens: np.ndarray, log_probabilities: np.ndarray) -> None:
        """One step.

        Args:
            values: [running beams, candidates], what each beam's best continuations add to its score.
            tokens: Their token ids, of the same shape.
            log_probabilities: Those that the model gives them before any rule, of the same shape.
        """
        width = self._options.num_beams
        candidates = [
            (beam.score + float(value), beam, int(token), float(log_probability))
            for beam, *row in zip(self.running, values, tokens, log_probabilities, strict=True)
            for value, token, log_probability in zip(*row, strict=True)
            if np.isfinite(value)
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        length = len(self.running[0].tokens) + 1
        running: list[_Beam] = []
        most = max(2, 1 + len(self._end_ids)) * width
        for rank, (score, beam, token, log_probability) in enumerate(candidates[:most]):
            ends, full = token in self._end_ids, length >= beam.limit
            if (ends or full) and rank >= width:
                continue  # a worse one than the beams that go on does not end here
            if not (ends or full) and len(running) >= width:
                continue
            new = copy.copy(beam)
            new.rule = copy.deepcopy(beam.rule)
            new.tokens = beam.tokens + ([] if ends else [token])
            new.log_probabilities = beam.log_probabilities + ([] if ends else [log_probability])
            new.score = score
            if ends or full:
                new.score = score / length**self._options.length_penalty
                new.finish_reason = "stop" if ends else "length"
                self.finished.append(new)
            else:
                running.append(new)
        self.finished.sort(key=lambda beam: -beam.score)
        del self.finished[width:]
        self.running = running
        self.done = not running or (
            len(self.finished) == width
            and running[0].score / length**self._options.length_penalty <= self.finished[-1].score
        )


def search(generator: Generator, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> list[list[Completion]]:
    """The `options.num_sequences` best of `options.num_beams` continuations of each prompt, best first."""
    from gpt_keras.continuation import Completion

    searches = []
    for row, prompt in enumerate(prompts):
        ids = [int(i) for i in prompt]
        limit = generator.limit(row, ids, options)
        searches.append(
            _Search(_Beam(ids, limit, row, rule=generator.rule(options, limit)), options, generator.end_ids)
        )
    if not searches:
        return []
    rows = generator.decoder.start([s.running[0].prompt for s in searches], max(s.running[0].limit for s in searches))
    count = max(2, 1 + len(generator.end_ids)) * options.num_beams
    count = min(count, generator.config.vocabulary_size)
    while True:
        going = [s for s in searches if not s.done]
        beams = [beam for s in going for beam in s.running]
        inputs = generator.rules(rows.batch_size, beams, options)
        best = [np.asarray(x) for x in generator.chooser("best", inputs, count)(rows.logits, inputs)]
        for row, beam in enumerate(beams):
            beam.row = row
        start = 0
        for s in going:
            stop = start + len(s.running)
            s.extend(*(part[start:stop] for part in best))
            start = stop
        beams = [beam for s in going if not s.done for beam in s.running]
        if not beams:
            break
        rows.take([beam.row for beam in beams])
        new = np.zeros(rows.batch_size, np.int32)
        new[: len(beams)] = [beam.tokens[-1] for beam in beams]
        rows.advance(new)
    results = []
    for s in searches:
        texts = [
            (beam, generator.tokenizer.continuation(beam.tokens) if generator.tokenizer else "")
            for beam in s.finished[: options.num_sequences]
        ]
        results.append(
            [
                Completion(
                    text,
                    beam.tokens,
                    beam.finish_reason or "",
                    beam.log_probabilities if options.log_probabilities else None,
                    beam.score,
                )
                for beam, text in texts
            ]
        )
    return results
