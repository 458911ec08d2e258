"""One row of a generation: its tokens so far, their text, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpt_keras import token_rules
from gpt_keras.data.tokenizer import TextStream, Tokenizer
from gpt_keras.sampling_options import SamplingOptions


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt.

    Attributes:
        text: Without the prompt, the end token and the stop string.
        token_ids: Its tokens, without the end token.
        finish_reason: `stop` (an end token or a stop string) or `length` (the most tokens, or the context is full).
        log_probabilities: Of each token, in nats, where asked for.
        score: Of beam search: the sum of log-probabilities over length ** length_penalty.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    log_probabilities: list[float] | None = None
    score: float | None = None


@dataclass
class Continuation:
    """A row in progress.

    Attributes:
        prompt: Its token ids.
        options: What was asked for.
        key: What its random numbers depend on: seed, prompt, and how many times the prompt came before.
        limit: Most new tokens.
        tokens: New token ids so far.
        skipped: Of prompt and tokens, how many the model does not see any more.
        text: What is certain of their text.
        delta: What the last step added to the text.
        finish_reason: `None` while it goes on.
    """

    prompt: list[int]
    options: SamplingOptions
    key: tuple[int, int, int]
    limit: int
    rule: token_rules.TokenRule | None
    stream: StoppingStream | None
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    skipped: int = 0
    text: str = ""
    delta: str = ""
    finish_reason: str | None = None

    def accept(self, token: int, end_ids: frozenset[int]) -> None:
        """Take the next token."""
        ends = token in end_ids
        if not ends:
            self.tokens.append(token)
        self.delta = self.stream.push(token) if self.stream and not ends else ""
        if ends or (self.stream and self.stream.stopped):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish_reason = "length"
        if self.finish_reason and self.stream:
            self.delta += self.stream.flush()
        self.text += self.delta


class StoppingStream:
    """Text of tokens as they come, up to the first stop string, which may begin in one token and end in another."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._stream, self._stop = TextStream(tokenizer), tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        return self._emit(self._stream.push(token), final=False)

    def flush(self) -> str:
        return "" if self.stopped else self._emit(self._stream.flush(), final=True)

    def _emit(self, text: str, final: bool) -> str:
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
