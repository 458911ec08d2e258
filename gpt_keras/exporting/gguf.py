"""A .gguf file, which llama.cpp and everything built on it run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np

from gpt_keras import architectures
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.exporting.gguf_tokenizer import tokenizer_metadata
from gpt_keras.folder import refuse_adapter
from gpt_keras.gguf_file import KEYS, NAMES, ROPE_FREQUENCIES, llama3_factors, rotary_heads, transposed
from gpt_keras.model import GPT

GGUFDtype = Literal["f32", "f16", "q8_0"]
_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_KINDS = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama", "qwen3": "qwen3"}
"""Hugging Face's model type to llama.cpp's."""


def export_gguf(model: GPT, tokenizer: Tokenizer | None, path: str | Path, dtype: GGUFDtype = "f16") -> None:
    """Write one file that llama.cpp runs; it appears whole or not at all.

    Norms, biases and learned positions stay float32, as llama.cpp expects them. `q8_0` is 8 bits a weight and one
    scale for each 32; a matrix whose rows are not a multiple of 32 wide is written as f16 then.

    Args:
        model: Of the types gpt2, llama (mistral is the same there) and qwen3.
        tokenizer: Its tokenizer; `tokenizer_metadata` says which kinds, and where llama.cpp
            gives other ids.
        path: The file, by custom named `*.gguf`.
        dtype: How the matrices are stored.

    Raises:
        InputError: llama.cpp cannot run this model (the message names the field of its configuration) or this
            tokenizer, or there is no space on the disk.
    """
    if dtype not in get_args(GGUFDtype):
        raise InputError(f"dtype must be one of {', '.join(get_args(GGUFDtype))}, not {dtype!r}")
    architecture, kind = _architecture(model.config)
    if tokenizer is None:
        raise InputError("a .gguf file needs a tokenizer, and this model has none")
    if tokenizer.vocabulary_size > model.config.vocabulary_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocabulary_size} pieces, the model {model.config.vocabulary_size}"
        )
    metadata = {
        "general.name": Path(path).stem,
        "general.file_type": int(_TYPES[dtype][1]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **_config_metadata(model.config, architecture, kind),
        **tokenizer_metadata(tokenizer, model.config.vocabulary_size),
    }
    tensors = _tensors(model, architecture, kind)
    with whole_file(path) as partial:
        writer = gguf.GGUFWriter(partial, kind)
        try:
            for key, value in metadata.items():
                _add(writer, key, value)
            types = {name: _tensor_type(name, shape, dtype) for name, (shape, _) in tensors.items()}
            for name, (shape, _) in tensors.items():
                block, size = gguf.GGML_QUANT_SIZES[types[name]]
                count = int(np.prod(shape))
                # A shape of another type than uint8 is one of values, not bytes.
                writer.add_tensor_info(name, shape, np.dtype(np.float32), count // block * size, types[name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, (_, value_of) in tensors.items():
                value = np.ascontiguousarray(value_of(), np.float32)
                writer.write_tensor_data(gguf.quantize(value, types[name]))
        finally:
            writer.close()


def _architecture(config: GPTConfig) -> tuple[architectures.Architecture, str]:
    """Hugging Face's architecture and llama.cpp's name for it."""
    architecture, field = architectures.architecture_for(config)
    kind = None if architecture is None else _KINDS.get(architecture.model_type)
    if kind == "gpt2" and config.feed_forward != "gelu":
        field = "feed_forward"
    elif kind == "qwen3" and config.use_bias:
        field = "use_bias"
    elif kind == "qwen3" and config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        field = "rope_scaling"
    elif architecture is not None and kind is not None:
        return architecture, kind
    elif architecture is not None:
        field = "norm_order"
    raise InputError(
        f"llama.cpp has no GPT with {field}={getattr(config, field)!r}; a .gguf file is written for configurations "
        f"of the types {', '.join(_KINDS)} as llama.cpp runs them"
    )


def _config_metadata(config: GPTConfig, architecture: architectures.Architecture, kind: str) -> dict[str, Any]:
    raw = architectures.write_config(config)
    values = {key: raw[theirs] for key, theirs in KEYS[kind].items()}
    values["vocab_size"] = config.vocabulary_size
    values["attention.head_count_kv"] = config.num_key_value_heads
    if kind != "gpt2":
        values |= dict.fromkeys(
            ("attention.key_length", "attention.value_length", "rope.dimension_count"), config.head_dim
        )
        values["rope.freq_base"] = float(config.rope_theta)
        if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
            values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_scaling.factor)}
    for key, value in values.items():
        if "epsilon" in key:
            values[key] = float(value)
    return {f"{kind}.{key}": value for key, value in values.items()}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _tensors(
    model: GPT, architecture: architectures.Architecture, kind: str
) -> dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
    """Name of every tensor to its shape and to what gives its float32 values, so that one is in memory at a time."""
    refuse_adapter(model)
    parts: dict[str, list[tuple[architectures.TensorSpec, Any]]] = {}
    for weight in model.weights:
        spec = architectures.tensor_for(weight.path, architecture)
        parts.setdefault(spec.name, []).append((spec, weight))
    names = {theirs: own for own, theirs in NAMES[kind].items()}
    tensors: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]] = {}
    for theirs, pieces in parts.items():
        name = _own_name(theirs, names)
        spec, weight = pieces[0]
        shape = spec.stored_shape(tuple(weight.shape))
        shape = shape[::-1] if transposed(kind, name) else shape
        tensors[name] = (shape, _value_of(pieces, transposed(kind, name), rotary_heads(kind, name, model.config)))
    scaling = model.config.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        config = model.config
        factors = llama3_factors(
            config.rope_theta,
            config.head_dim // 2,
            scaling.factor,
            scaling.low_frequency_factor,
            scaling.high_frequency_factor,
            scaling.original_context_length,
        )
        tensors[ROPE_FREQUENCIES] = (factors.shape, lambda: factors)
    return tensors


def _own_name(theirs: str, names: dict[str, str]) -> str:
    """llama.cpp's name for a Hugging Face tensor."""
    stem, _, last = theirs.rpartition(".")
    number = next((part for part in stem.split(".") if part.isdigit()), None)
    pattern = stem if number is None else stem.replace(f".{number}.", ".{i}.", 1)
    return f"{names[pattern].replace('{i}', number or '')}.{last}"


def _value_of(pieces: list[tuple[architectures.TensorSpec, Any]], flip: bool, heads: int) -> Callable[[], np.ndarray]:
    def value_of() -> np.ndarray:
        ordered = sorted(pieces, key=lambda piece: piece[0].part)
        arrays = [np.asarray(weight, np.float32) for _, weight in ordered]
        value = np.concatenate(
            [a.T if spec.transposed else a for (spec, _), a in zip(ordered, arrays, strict=True)], -1
        )
        if heads:
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        return value.T if flip else value

    return value_of


def _tensor_type(name: str, shape: tuple[int, ...], dtype: GGUFDtype) -> gguf.GGMLQuantizationType:
    """As llama.cpp's own converter chooses."""
    if len(shape) == 1 or name == "position_embd.weight":
        return gguf.GGMLQuantizationType.F32
    kind = _TYPES[dtype][0]
    if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        return gguf.GGMLQuantizationType.F16
    return kind
