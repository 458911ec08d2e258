"""Text from a model: prefill the prompt, then one token at a time, through `GPT.step` and its cache.

Prompts, caches and batches are padded to powers of two, so that a handful of compiled functions serves every length:
`Generator.num_compilations` counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_keras import sampling
from gpt_keras.compilation import compile_for
from gpt_keras.data.errors import InputError
from gpt_keras.data.tokenizer import Tokenizer, stream_decode
from gpt_keras.model import GPT

SMALLEST_BUCKET = 32


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen and when to stop.

    Args:
        max_new_tokens: Stop after this many tokens, or where the context is full.
        temperature: 0 is greedy; below 1 sharper, above 1 flatter.
        top_k: Draw from this many most probable tokens; 0 from all.
        top_p: Draw from the most probable tokens that make up this much probability; 1 from all.
        seed: The same seed gives the same text.

    Raises:
        InputError: A value is out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "temperature must be 0 (greedy) or above": 0.0 <= self.temperature < float("inf"),
            "top_k must be 0 (off) or above": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0.0 < self.top_p <= 1.0,
            "seed must be 0 or above": self.seed >= 0,
        }
        for message, holds in checks.items():
            if not holds:
                raise InputError(f"{message}, not {getattr(self, message.split()[0])}")


class Generator:
    """Generates from one model; keeps its compiled functions between calls.

    Args:
        model: Reads and continues token ids.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._signatures: set[tuple[Any, ...]] = set()

    @property
    def num_compilations(self) -> int:
        """How many different shapes have been compiled so far."""
        return len(self._signatures)

    def generate(self, prompts: Sequence[str], options: SamplingOptions = SamplingOptions()) -> list[str]:
        """The continuation of each prompt, without the prompt itself.

        Raises:
            InputError: A prompt leaves no room in the context for a new token.
        """
        rows: list[list[int]] = [[] for _ in prompts]
        for tokens in self.tokens([self._ids(prompt) for prompt in prompts], options):
            for row, token in zip(rows, tokens, strict=True):
                if token is not None:
                    row.append(token)
        return [self.tokenizer.decode(row) for row in rows]

    def stream(self, prompt: str, options: SamplingOptions = SamplingOptions()) -> Iterator[str]:
        """The continuation of `prompt`, in parts as they come; none splits a character."""
        tokens = (step[0] for step in self.tokens([self._ids(prompt)], options))
        return stream_decode(self.tokenizer, (token for token in tokens if token is not None))

    def tokens(self, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> Iterator[list[int | None]]:
        """One step after another, the next token of every row; `None` once a row has ended.

        Args:
            prompts: Token ids of each row, at least one each.
            options: For all rows; row r draws with (seed, r).
        """
        if not prompts:
            return
        context = self.model.config.context_length
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        for row, length in enumerate(lengths):
            if length == 0:
                raise InputError(f"prompt {row} has no token; begin with the begin token")
            if length >= context:
                raise InputError(
                    f"prompt {row} has {length} tokens, which leaves no room in the model's context of {context}: "
                    f"shorten it to {context - 1} tokens or fewer"
                )
        num_rows, batch = len(prompts), _bucket(len(prompts), 1)
        length = min(_bucket(int(lengths.max()), SMALLEST_BUCKET), context)
        slots = min(_bucket(int(lengths.max()) + options.max_new_tokens, SMALLEST_BUCKET), context)
        lengths = np.concatenate([lengths, np.ones(batch - num_rows, np.int32)])
        token_ids = np.full((batch, length), self.tokenizer.padding_id, np.int32)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = prompt
        positions = np.tile(np.arange(length, dtype=np.int32), (batch, 1))

        cache = self.model.make_cache(batch, max(slots, length))
        chosen, cache = self._advance(token_ids, positions, lengths - 1, cache, options, 0)
        ended = np.zeros(num_rows, bool)
        for number in range(1, options.max_new_tokens + 1):
            ended |= chosen[:num_rows] == self.tokenizer.end_id
            if ended.all():
                return
            yield [None if end else int(token) for end, token in zip(ended, chosen, strict=False)]
            ended |= lengths[:num_rows] + number > context - 1
            if number == options.max_new_tokens or ended.all():
                return
            # A row that has ended keeps writing into its last slot, where nobody looks.
            places = np.minimum(lengths + number - 1, slots - 1)[:, None].astype(np.int32)
            chosen, cache = self._advance(chosen[:, None], places, np.zeros(batch, np.int32), cache, options, number)

    def _ids(self, prompt: str) -> list[int]:
        return [self.tokenizer.begin_id, *self.tokenizer.encode(prompt)]

    def _advance(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        select: np.ndarray,
        cache: Any,
        options: SamplingOptions,
        number: int,
    ) -> tuple[np.ndarray, Any]:
        """One step of the model and the token chosen in each row, int32 [batch]."""
        if options.temperature == 0.0:
            name, chances = "greedy", []
        else:
            uniform = sampling.uniforms(options.seed, len(token_ids), number)
            cuts = ((options.temperature, np.float32), (options.top_k, np.int32), (options.top_p, np.float32))
            name, chances = "sample", [uniform, *(np.array(value, dtype) for value, dtype in cuts)]
        self._signatures.add((name, token_ids.shape, tuple(cache[0][0].shape)))
        if name not in self._compiled:
            pick = sampling.greedy if name == "greedy" else sampling.sample

            def function(token_ids: Any, positions: Any, select: Any, cache: Any, *chances: Any) -> Any:
                logits, cache = self.model.step(token_ids, positions, cache=cache, select=select)
                return pick(logits[:, 0], *chances), cache

            self._compiled[name] = compile_for(self.model, function, donate=(3,))
        chosen, cache = self._compiled[name](token_ids, positions, select, cache, *chances)
        return np.asarray(chosen), cache


def _bucket(size: int, smallest: int) -> int:
    """The next power of two, at least `smallest`."""
    return max(smallest, 1 << (size - 1).bit_length())
