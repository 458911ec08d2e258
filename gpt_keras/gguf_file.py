"""A .gguf file, llama.cpp's format, read as if it were a Hugging Face folder: the same configuration, tensor names and
tokenizer files, so that there is one way to make a model of them.

The file is mapped into memory, and a tensor is dequantized when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras import architectures
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.folder import check_tensors, fill_model
from gpt_keras.gguf_header import GGUFFile
from gpt_keras.gguf_tokenizer import tokenizer_files
from gpt_keras.model import GPT
from gpt_keras.parts import zero_weights

_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
NAMES: dict[str, dict[str, str]] = {
    "gpt2": {
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
        "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn",
        "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
        "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
        "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc",
        "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
    },
    "llama": _LLAMA_NAMES,
    "qwen3": {
        **_LLAMA_NAMES,
        "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
        "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    },
}
"""Architecture to the file's tensor names and Hugging Face's, both without `.weight` or `.bias`."""
ROPE_FREQUENCIES = "rope_freqs.weight"

_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
KEYS: dict[str, dict[str, str]] = {
    "gpt2": {
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    "llama": _KEYS,
    "qwen3": _KEYS,
}
"""Architecture to the metadata keys (behind the architecture's name) that every file has, and config.json's."""
_UNSUPPORTED = ("expert_count", "attention.scale", "logit_scale", "attention.clamp_kqv", "attention.max_alibi_bias")
"""Keys that change what the model computes where they are there and not zero."""


def transposed(architecture: str, name: str) -> bool:
    """Whether the file has the tensor [out, in] where Hugging Face has it [in, out], as GPT-2's `Conv1D` does."""
    return architecture == "gpt2" and re.search(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$", name) is not None


def rotary_heads(architecture: str, name: str, config: GPTConfig) -> int:
    """Number of heads in a tensor whose rows llama.cpp pairs up for rotary positions; 0 in others.

    In the `llama` type a pair to turn is rows 2j and 2j + 1 of a head. Here and in Hugging Face's layout it is rows j
    and j + head_dim / 2.
    """
    if architecture != "llama":
        return 0
    found = re.search(r"\.attn_([qk])\.(weight|bias)$", name)
    return 0 if found is None else config.num_heads if found[1] == "q" else config.num_key_value_heads


class GGUFModel:
    """A model in a .gguf file, in Hugging Face's terms.

    Args:
        path: The file.

    Attributes:
        config: The model's shapes.
        architecture: Whose names the tensors have.
        tensors: Hugging Face's name of every tensor to its shape there. What the architecture does not know keeps the
            name it has in the file.
        tokenizer_files: Name to content of the tokenizer's files, as a Hugging Face folder has them.

    Raises:
        InputError: As `GGUFFile`; an architecture that is not supported; a key that is missing or contradicts another.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = file = GGUFFile(path)
        self.path = file.path
        kind = file.metadata.get("general.architecture")
        if kind not in list(NAMES):
            raise self._fail(f"general.architecture {kind!r} is not supported, only {', '.join(NAMES)}")
        self._kind: str = kind
        self._names = {_hugging_face_name(kind, name): name for name in file.shapes}
        if kind == "llama":
            self._names.pop(ROPE_FREQUENCIES, None)
        try:
            self.config, found = architectures.read_config(self._config())
        except InputError as error:
            raise self._fail(str(error).removeprefix("config.json: ")) from error
        assert found is not None
        self.architecture: architectures.Architecture = found
        self.tensors = {
            theirs: file.shapes[name][::-1] if transposed(kind, name) else file.shapes[name]
            for theirs, name in self._names.items()
        }
        self.tokenizer_files = tokenizer_files(file.metadata, self.config.context_length, str(self.path))

    def read(self, name: str) -> np.ndarray:
        """A tensor of `tensors` as float32, in the shape it has there."""
        own = self._names[name]
        value = self._file.read(own)
        heads = rotary_heads(self._kind, own, self.config)
        if heads:
            value = value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        return value.T if transposed(self._kind, own) else value

    def check(self) -> None:
        """See that the tensors are exactly those that the metadata ask for, before anything is built.

        Raises:
            InputError: A tensor is missing, misshapen or unknown; the message names it.
        """
        self._in_own_names(lambda: check_tensors(self.config, self.architecture, self.tensors, str(self.path)))

    def fill(self, model: GPT) -> None:
        """Assign every weight of `model`, which must be of this configuration.

        Raises:
            InputError: As `check`, or a value is not a finite number.
        """
        self._in_own_names(lambda: fill_model(model, self.architecture, self.tensors, self.read, str(self.path)))

    def _fail(self, message: str) -> InputError:
        return InputError(f"{self.path}: {message}")

    def _in_own_names(self, call: Callable[[], None]) -> None:
        """Run `call`; an error about a tensor says what the tensor is called in the file."""
        try:
            call()
        except InputError as error:
            text = str(error).removeprefix(str(self.path))
            words = (self._own_name(word) for word in re.split(r"([\w.]+)", text))
            raise InputError(f"{self.path}{''.join(words)}") from error

    def _own_name(self, name: str) -> str:
        stem, dot, last = name.rpartition(".")
        pattern = re.sub(r"\.\d+\.", ".{i}.", stem, count=1)
        number = re.search(r"\.(\d+)\.", stem)
        for ours, theirs in NAMES[self._kind].items():
            if theirs == pattern:
                return ours.replace("{i}", number[1] if number else "") + dot + last
        return name

    def _get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of the architecture's key: a whole number of at least 1 for `int`, a finite one for `float`."""
        value = self._file.metadata.get(f"{self._kind}.{key}", default)
        if value is None:
            raise self._fail(f"the key {self._kind}.{key} is missing")
        if kind is int and (type(value) is not int or not 1 <= value < 2**31):
            raise self._fail(f"the key {self._kind}.{key} must be one whole number of at least 1, not {value!r}")
        if kind is str and type(value) is not str:
            raise self._fail(f"the key {self._kind}.{key} must be text, not {value!r}")
        if kind is float:
            if type(value) not in (int, float) or not 0 <= value < 1e38:
                raise self._fail(f"the key {self._kind}.{key} must be a number of at least 0, not {value!r}")
            return float(str(np.float32(value)))  # 1e-05, where the float32 widened gives 9.999999747378752e-06
        return value

    def _config(self) -> dict[str, Any]:
        """config.json's content."""
        raw: dict[str, Any] = {"model_type": self._kind, "tie_word_embeddings": "lm_head.weight" not in self._names}
        for key, theirs in KEYS[self._kind].items():
            raw[theirs] = self._get(key, float if "epsilon" in key else int)
        for key in _UNSUPPORTED:
            if self._file.metadata.get(f"{self._kind}.{key}", 0) != 0:
                raise self._fail(f"the key {self._kind}.{key} is not supported")
        window, context = f"{self._kind}.attention.sliding_window", self._get("context_length", int)
        if self._file.metadata.get(window, 0) not in (0, None) and self._get("attention.sliding_window", int) < context:
            raise self._fail(f"the key {window} is below the context's length, which is not supported")
        embedding = self._file.shapes.get("token_embd.weight")
        if embedding is None:
            raise self._fail("the tensor token_embd.weight is missing")
        raw["vocab_size"] = embedding[0]
        if self._kind == "gpt2":
            raw["resid_pdrop"] = 0.0  # a file to run does not say what it was trained with
            return raw
        heads = raw["num_attention_heads"]
        raw["num_key_value_heads"] = self._get("attention.head_count_kv", int, heads)
        head_dim = self._get("attention.key_length", int, raw["hidden_size"] // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._get(key, int, head_dim) != head_dim:
                raise self._fail(f"the key {self._kind}.{key} must be {head_dim}, the width of a head")
        raw["head_dim"] = head_dim
        raw["rope_theta"] = self._get("rope.freq_base", float, 10000.0)
        raw["rope_scaling"] = self._rope_scaling(head_dim, raw["rope_theta"])
        if self._kind == "llama":
            raw["attention_bias"] = any(name.endswith("self_attn.q_proj.bias") for name in self._names)
            raw["mlp_bias"] = any(name.endswith("mlp.up_proj.bias") for name in self._names)
        return raw

    def _rope_scaling(self, head_dim: int, theta: float) -> dict[str, Any] | None:
        old = self._get("rope.scale_linear", float, 1.0)  # what files of 2023 have
        factor = self._get("rope.scaling.factor", float, old) or 1.0
        kind = self._get("rope.scaling.type", str, "linear" if factor != 1.0 else "none")
        if self._kind == "llama" and ROPE_FREQUENCIES in self._file.shapes:
            if kind != "none":
                raise self._fail(f"both {ROPE_FREQUENCIES} and llama.rope.scaling.type {kind!r} are not supported")
            factors = self._file.read(ROPE_FREQUENCIES)
            if factors.shape != (head_dim // 2,):
                raise self._fail(f"{ROPE_FREQUENCIES} has shape {factors.shape}, not {(head_dim // 2,)}")
            if np.all(factors == 1):
                return None
            found = find_llama3_scaling(factors, theta)
            if found is None:
                raise self._fail(f"{ROPE_FREQUENCIES} scales the rotary frequencies in a way that is not Llama 3's")
            return found
        if kind == "none":
            return None
        return {"rope_type": kind, "factor": factor}


def _hugging_face_name(kind: str, name: str) -> str:
    stem, _, last = name.rpartition(".")
    number = re.fullmatch(r"blk\.(0|[1-9]\d{0,8})\.(.+)", stem)
    theirs = NAMES[kind].get(f"blk.{{i}}.{number[2]}" if number else stem)
    if theirs is None or last not in ("weight", "bias"):
        return name
    return f"{theirs.replace('{i}', number[1] if number else '')}.{last}"


def llama3_factors(theta: float, half: int, factor: float, low: float, high: float, original: float) -> np.ndarray:
    """By how much each of `half` rotary frequencies is slowed (Grattafiori et al. 2024), float32 [half]."""
    turns = original * theta ** (-np.arange(half) / half) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / (kept + (1 - kept) / factor)).astype(np.float32)


def find_llama3_scaling(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """The parameters of Llama 3's scaling that give these factors, as config.json has them, or `None`.

    The file has only the outcome. With the low factor set to 1 (what it is in every published model; the three others
    can make up for it) the outcome of a frequency between slow and fast is a line in that frequency, whose two
    coefficients give the high factor and the original context.

    Args:
        factors: float32 [head_dim / 2], at least 1.
        theta: Base of the frequencies.
    """
    if not np.all(np.isfinite(factors)) or factors.min() < 1:
        return None
    half, most = len(factors), float(factors.max())
    frequencies = theta ** (-np.arange(half) / half)
    kept = (1 / factors.astype(np.float64) - 1 / most) / (1 - 1 / most)
    between = (kept > 1e-4) & (kept < 1 - 1e-4)
    candidates = [(4.0, float(1 << power)) for power in range(13, 4, -1)]
    candidates += [(4.0, float(1 << power)) for power in range(14, 21)]
    candidates += [(4.0, 2 * np.pi * (3 * k + 1) / f) for k, f in zip(kept[between], frequencies[between], strict=True)]
    if between.sum() >= 2:
        slope, offset = np.polyfit(frequencies[between], kept[between], 1)
        if slope > 0 > offset:
            high = round(1 - 1 / offset, 3)
            candidates.append((high, 2 * np.pi * slope * (high - 1)))
    for high, original in candidates:
        context = round(original)
        found = llama3_factors(theta, half, most, 1.0, high, context)
        if context >= 1 and high > 1 and np.allclose(found, factors, rtol=2e-5, atol=0):
            return {
                "rope_type": "llama3",
                "factor": float(str(np.float32(most))),
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    return None


def load_gguf(path: str | Path, dtype: str | None = None) -> tuple[GPT, Tokenizer | None]:
    """Build the model in a .gguf file, fill every weight from it and make its tokenizer.

    Args:
        path: The file. Quantized tensors are widened to float32.
        dtype: Dtype or policy of the layers; Keras's global policy by default.

    Raises:
        InputError: Something is missing, damaged, not supported or contradicts something else; the message names it.
    """
    stored = GGUFModel(path)
    stored.check()
    tokenizer = Tokenizer.from_files(stored.tokenizer_files, str(path))
    if tokenizer is not None and tokenizer.vocabulary_size > stored.config.vocabulary_size:
        raise InputError(
            f"{path}: tokenizer.ggml.tokens has {tokenizer.vocabulary_size} tokens, token_embd.weight "
            f"{stored.config.vocabulary_size}"
        )
    with zero_weights():
        model = GPT(stored.config, dtype=dtype)
    stored.fill(model)
    return model, tokenizer
