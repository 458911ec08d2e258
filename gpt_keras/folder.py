"""The model folder: a Hugging Face folder, written and read with no conversion step.

config.json  model.safetensors  generation_config.json
tokenizer.model  tokenizer.json  tokenizer_config.json
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gpt_keras import architectures
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_folder
from gpt_keras.data.hub_tokenizer import write_hub_tokenizer
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.model import GPT

_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Tensors that old checkpoints carry and no model needs."""


def save_folder(model: GPT, tokenizer: Tokenizer, path: str | Path) -> None:
    """Write the model folder at `path`; it appears whole or not at all, and an old one is replaced.

    Args:
        model: Weights are stored as float32.
        tokenizer: Its vocabulary must be the model's.
        path: The folder.

    Raises:
        InputError: The tokenizer does not fit the model, or the disk is full.
    """
    if tokenizer.vocabulary_size != model.config.vocabulary_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocabulary_size} pieces, the model {model.config.vocabulary_size}"
        )
    with whole_folder(path) as folder:
        _write_json(folder / "config.json", {**architectures.write_config(model.config), **_ids(tokenizer)})
        save_file(_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "tokenizer.model").write_bytes(tokenizer.model)
        write_hub_tokenizer(tokenizer, folder, model.config.context_length)
        _write_json(folder / "generation_config.json", {**_ids(tokenizer), "max_new_tokens": 128})


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {
        "bos_token_id": tokenizer.begin_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.padding_id,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _tensors(model: GPT) -> dict[str, np.ndarray]:
    architecture, _ = architectures.architecture_for(model.config)
    parts: dict[str, dict[int, np.ndarray]] = {}
    for weight in model.weights:
        spec = architectures.tensor_for(weight.path, architecture)
        value = np.asarray(weight, np.float32)
        parts.setdefault(spec.name, {})[spec.part] = value.T if spec.transposed else value
    whole = {name: [pieces[i] for i in sorted(pieces)] for name, pieces in parts.items()}
    return {
        name: np.ascontiguousarray(np.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0])
        for name, pieces in whole.items()
    }


def read_folder_config(path: str | Path) -> tuple[GPTConfig, architectures.Architecture | None]:
    """The configuration in a model folder.

    Raises:
        InputError: No model folder there, or a config.json that cannot be used.
    """
    file = Path(path) / "config.json"
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no model folder there (config.json is missing)") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    if not isinstance(raw, dict):
        raise InputError(f"{file}: expected a JSON object, found {type(raw).__name__}")
    try:
        return architectures.read_config(raw)
    except InputError as error:
        raise InputError(f"{path}/{error}") from error


def load_folder(path: str | Path, dtype: str | None = None) -> tuple[GPT, Tokenizer]:
    """Build the model in a folder and fill every weight from it.

    Args:
        path: A model folder, ours or one that `transformers` wrote.
        dtype: Dtype or policy of the layers; Keras's global policy by default.

    Raises:
        InputError: Something is missing, damaged or contradicts something else; the message names it.
    """
    path = Path(path)
    config, architecture = read_folder_config(path)
    model = GPT(config, dtype=dtype)
    stored = _open_tensors(path)
    specs = {weight.path: architectures.tensor_for(weight.path, architecture) for weight in model.weights}
    names = {_find(spec.name, stored, path) for spec in specs.values()}
    surplus = [
        name
        for name in stored
        if name not in names
        and not name.endswith(_BUFFERS)
        and not (config.tie_embeddings and name == "lm_head.weight")
    ]
    if surplus:
        raise InputError(f"{path}: unknown tensor {sorted(surplus)[0]} ({len(surplus)} in all) for this config.json")
    for weight in model.weights:
        weight.assign(_read(specs[weight.path], tuple(weight.shape), stored, path))
    return model, Tokenizer.load(path)


def _open_tensors(path: Path) -> dict[str, Path]:
    """Tensor name to the file it lies in."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        try:
            files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{index}: damaged ({error})") from error
    else:
        files = ["model.safetensors"]
    found: dict[str, Path] = {}
    for file in files:
        if Path(file).name != file:
            raise InputError(f"{index}: the file name {file!r} leads out of the folder")
        try:
            with safe_open(path / file, framework="numpy") as tensors:
                found.update(dict.fromkeys(tensors.keys(), path / file))
        except FileNotFoundError as error:
            pickled = any((path / name).exists() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"))
            hint = "; the pytorch_model.bin there is a pickle, which is never opened" if pickled else ""
            raise InputError(f"{path}: {file} is missing{hint}") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path / file}: damaged ({error})") from error
    return found


def _find(name: str, stored: dict[str, Path], path: Path) -> str:
    """The stored name: as it should be, or without the `transformer.` that GPT-2's own checkpoints lack."""
    for candidate in (name, name.removeprefix("transformer.")):
        if candidate in stored:
            return candidate
    raise InputError(f"{path}: the tensor {name} is missing")


def _read(spec: architectures.TensorSpec, shape: tuple[int, ...], stored: dict[str, Path], path: Path) -> np.ndarray:
    name = _find(spec.name, stored, path)
    value = read_tensor(stored[name], name)
    if spec.parts > 1:
        if value.shape[-1] % spec.parts:
            raise InputError(f"{path}: {name} has shape {value.shape}, which does not divide into {spec.parts}")
        value = np.split(value, spec.parts, axis=-1)[spec.part]
    if spec.transposed:
        value = value.T
    if value.shape != shape:
        raise InputError(f"{path}: {name} has shape {value.shape} where config.json asks for {shape}")
    return value


def read_tensor(file: Path, name: str) -> np.ndarray:
    """One tensor of a safetensors file as float32; float16 and bfloat16 are widened.

    Raises:
        InputError: The tensor is not of a float type.
    """
    with safe_open(file, framework="numpy") as tensors:
        dtype = tensors.get_slice(name).get_dtype()
        if dtype in ("F32", "F16"):
            return tensors.get_tensor(name).astype(np.float32)
    if dtype != "BF16":
        raise InputError(f"{file}: {name} is of type {dtype}; expected F32, F16 or BF16")
    # NumPy has no bfloat16: it is the upper half of a float32.
    with open(file, "rb") as stream:
        (header_size,) = struct.unpack("<Q", stream.read(8))
        entry = json.loads(stream.read(header_size))[name]
        start, stop = entry["data_offsets"]
        stream.seek(8 + header_size + start)
        halves = np.frombuffer(stream.read(stop - start), "<u2")
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
