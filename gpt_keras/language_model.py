"""A model with its tokenizer: what a notebook holds in its hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras import kernels
from gpt_keras.config import GPTConfig
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.folder import load_folder, save_folder
from gpt_keras.generation import Generator, SamplingOptions
from gpt_keras.model import GPT


@dataclass
class LanguageModel:
    """Text in, text out.

    Attributes:
        model: The `keras.Model`.
        tokenizer: Its tokenizer.
    """

    model: GPT
    tokenizer: Tokenizer

    @property
    def config(self) -> GPTConfig:
        return self.model.config

    @cached_property
    def generator(self) -> Generator:
        """Holds the compiled generation functions."""
        return Generator(self.model, self.tokenizer)

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Any:
        """Continue one prompt (a string for a string) or several (a list for a list).

        Args:
            prompts: Text to continue.
            **options: Fields of `SamplingOptions`: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`.

        Returns:
            The continuation, without the prompt.

        Raises:
            InputError: A prompt does not fit the context, an option is out of range.
        """
        texts = self.generator.generate([prompts] if isinstance(prompts, str) else prompts, SamplingOptions(**options))
        return texts[0] if isinstance(prompts, str) else texts

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """The continuation of `prompt` in parts as they are made. Options as for `generate`."""
        return self.generator.stream(prompt, SamplingOptions(**options))

    def score(self, texts: str | Sequence[str]) -> Any:
        """Log-probability in nats of each text from its begin token on, in windows of the context's length.

        Returns:
            A float for a string, a list of floats for a list.
        """
        rows = [self._score(text) for text in ([texts] if isinstance(texts, str) else texts)]
        return rows[0] if isinstance(texts, str) else rows

    def _score(self, text: str) -> float:
        ids = np.array([self.tokenizer.begin_id, *self.tokenizer.encode(text)], np.int32)
        total = 0.0
        for start in range(0, len(ids) - 1, self.config.context_length):
            window = ids[start : start + self.config.context_length + 1]
            losses = kernels.cross_entropy(self.model(window[None, :-1]), window[None, 1:])
            total -= float(np.sum(np.asarray(losses)))
        return total

    def save(self, path: str | Path) -> None:
        """Write the model folder (`gpt_keras.folder`)."""
        save_folder(self.model, self.tokenizer, path)


def load(path: str | Path, dtype: str | None = None) -> LanguageModel:
    """Open a model folder: one of ours, or a Hugging Face one with a `tokenizer.model`.

    Raises:
        InputError: There is none, or it is damaged; the message says what.
    """
    return LanguageModel(*load_folder(path, dtype))
