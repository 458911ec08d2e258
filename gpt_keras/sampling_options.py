"""What one may ask of a generation. Imports no keras, so that a command can check it before anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt_keras.data.errors import InputError

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen and when to stop.

    Penalties come first, then what is banned, then temperature, top-k, top-p and min-p, as in transformers.

    Args:
        max_new_tokens: Stop after this many tokens; by default after 128 (or min_new_tokens, if that is more), or
            where the context is full.
        min_new_tokens: Do not end before this many.
        temperature: 0 is greedy; below 1 sharper, above 1 flatter.
        top_k: Draw from this many most probable tokens; 0 from all.
        top_p: Draw from the most probable tokens that make up this much probability; 1 from all.
        min_p: Draw from tokens at least this many times as probable as the most probable one; 0 from all.
        repetition_penalty: Above 1 makes every token of the prompt and the continuation less probable (CTRL).
        presence_penalty: Taken from the logits of tokens that the continuation has.
        frequency_penalty: Taken from them for each time that it has them.
        no_repeat_ngram_size: No n-gram of this many tokens comes twice; 0 is off.
        banned_tokens: Token ids that are never chosen.
        allowed_tokens: The only token ids that are chosen, end tokens included; `None` is all.
        regex: The text matches this regular expression.
        json_schema: The text is JSON that this schema (its text, or a dict) allows.
        stop: The text ends before any of these strings.
        num_sequences: Continuations of each prompt.
        num_beams: Beam search over this many; 1 is none.
        length_penalty: Beams are ranked by log-probability / length ** this.
        log_probabilities: Report the log-probability of every token under the model, before any of these options.
        seed: The same seed gives the same text for a prompt, whatever else is in the batch.
        sliding: When the context is full, go on with its newer half (and the begin token) instead of refusing.

    Raises:
        InputError: A value is out of range.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    banned_tokens: Sequence[int] = ()
    allowed_tokens: Sequence[int] | None = None
    regex: str | None = None
    json_schema: str | dict[str, Any] | None = None
    stop: Sequence[str] = ()
    num_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    log_probabilities: bool = False
    seed: int = 0
    sliding: bool = False

    def __post_init__(self) -> None:
        infinity = float("inf")
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        checks = {
            "max_new_tokens must be at least 1": self.max_new_tokens is None or self.max_new_tokens >= 1,
            "min_new_tokens must be at least 0": self.min_new_tokens >= 0,
            "temperature must be 0 (greedy) or above": 0.0 <= self.temperature < infinity,
            "top_k must be 0 (off) or above": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0.0 < self.top_p <= 1.0,
            "min_p must be at least 0 and at most 1": 0.0 <= self.min_p <= 1.0,
            "repetition_penalty must be above 0": 0.0 < self.repetition_penalty < infinity,
            "presence_penalty must be a number": abs(self.presence_penalty) < infinity,
            "frequency_penalty must be a number": abs(self.frequency_penalty) < infinity,
            "no_repeat_ngram_size must be 0 (off) or above": self.no_repeat_ngram_size >= 0,
            "stop must hold no empty string": all(self.stop),
            "num_sequences must be at least 1": self.num_sequences >= 1,
            "num_beams must be at least 1": self.num_beams >= 1,
            "length_penalty must be a number": abs(self.length_penalty) < infinity,
            "seed must be 0 or above": self.seed >= 0,
        }
        for message, holds in checks.items():
            if not holds:
                raise InputError(f"{message}, not {getattr(self, message.split()[0])}")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"min_new_tokens={self.min_new_tokens} must be at most max_new_tokens={self.max_new_tokens}"
            )
        if self.regex is not None and self.json_schema is not None:
            raise InputError("regex and json_schema exclude each other: give one of them")
        if self.num_beams > 1:
            self._check_beams()

    @property
    def penalties(self) -> dict[str, float]:
        """Those that change something."""
        neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        return {name: getattr(self, name) for name, value in neutral.items() if getattr(self, name) != value}

    def _check_beams(self) -> None:
        if self.temperature > 0.0:
            raise InputError("beam search takes the most probable tokens: set temperature to 0, or num_beams to 1")
        if self.num_sequences > self.num_beams:
            raise InputError(f"num_sequences={self.num_sequences} must be at most num_beams={self.num_beams}")
        if self.stop or self.sliding:
            raise InputError("beam search takes neither stop strings nor sliding: set num_beams to 1")
