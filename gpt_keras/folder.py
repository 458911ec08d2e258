"""The model folder: a Hugging Face folder, written and read with no conversion step.

config.json  model.safetensors  generation_config.json
tokenizer.model  tokenizer.json  tokenizer_config.json
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gpt_keras import architectures
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_folder
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.model import GPT
from gpt_keras.parts import zero_weights

_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Tensors that old checkpoints carry and no model needs."""
_CHECKSUMS = "gpt_keras.crc32"
"""Key of the file's metadata under which we write a checksum of every tensor's bytes; other writers have none."""
_FLOATS = ("F32", "F16", "BF16", "F64")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def save_folder(model: GPT, tokenizer: Tokenizer | None, path: str | Path) -> None:
    """Write the model folder at `path`; it appears whole or not at all, and an old one is replaced.

    Args:
        model: Weights are stored as float32.
        tokenizer: Its vocabulary must fit the model's; `None` for a model of something else than text.
        path: The folder.

    Raises:
        InputError: The tokenizer does not fit the model, or the disk is full.
    """
    _check_vocabulary(tokenizer, model.config, "this model")
    ids = {} if tokenizer is None else token_ids(tokenizer)
    with whole_folder(path) as folder:
        _write_json(folder / "config.json", {**architectures.write_config(model.config), **ids})
        tensors = _tensors(model)
        checksums = json.dumps({name: zlib.crc32(value.data) for name, value in tensors.items()})
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", _CHECKSUMS: checksums})
        _sort_metadata(folder / "model.safetensors")
        if tokenizer is not None:
            tokenizer.write(folder, model.config.context_length)
            _write_json(folder / "generation_config.json", ids)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in one order, for `save_file` writes it in any: equal models are then
    equal files."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ValueError(f"{path}: safetensors wrote a header in a form of its own")
        file.seek(8)
        file.write(text.ljust(length))


def _check_vocabulary(tokenizer: Tokenizer | None, config: GPTConfig, where: str) -> None:
    """A tokenizer may have fewer ids than the model: published tables are padded to round numbers. It may have special
    tokens beyond them, such as padding added later, but none that text is made of."""
    if tokenizer is None or tokenizer.vocabulary_size <= config.vocabulary_size:
        return
    special = set(tokenizer.special.values())
    if any(i not in special for i in range(config.vocabulary_size, tokenizer.vocabulary_size)):
        raise InputError(
            f"{where}: the tokenizer has {tokenizer.vocabulary_size} pieces, the model {config.vocabulary_size}"
        )


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """What generation_config.json says of begin, end and padding."""
    ends = sorted(tokenizer.end_ids)
    ids = {
        "bos_token_id": tokenizer.begin_id,
        "eos_token_id": tokenizer.end_id if len(ends) < 2 else ends,
        "pad_token_id": tokenizer.padding_id,
    }
    return {name: value for name, value in ids.items() if value is not None}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _tensors(model: GPT) -> dict[str, np.ndarray]:
    refuse_adapter(model)
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


def refuse_adapter(model: GPT) -> None:
    """Raise an `InputError` for a model with an adapter beside its weights, which is none of those that are written."""
    if any("/lora_kernel_" in weight.path for weight in model.weights):
        raise InputError(
            "this model has an adapter beside its weights: save that with gpt_keras.lora.Adapter.of(model, base), and "
            "open its folder for a model with the adapter in it"
        )


def read_folder_config(path: str | Path) -> tuple[GPTConfig, architectures.Architecture | None]:
    """The configuration in a model folder.

    Raises:
        InputError: No model folder there, or a config.json that cannot be used.
    """
    raw = _read_json(Path(path) / "config.json")
    try:
        return architectures.read_config(raw)
    except InputError as error:
        raise InputError(f"{path}/{error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; a key that is there twice is an error, since readers differ in which one they take."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise ValueError(f"the key {key!r} is there {count} times")
        return dict(pairs)

    try:
        content = json.loads(file.read_text("utf-8"), object_pairs_hook=unique)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{file.parent}: no model folder there ({file.name} is missing)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def load_folder(path: str | Path, dtype: str | None = None) -> tuple[GPT, Tokenizer | None]:
    """Build the model in a folder and fill every weight from it.

    Args:
        path: A model folder, ours or one that `transformers` wrote.
        dtype: Dtype or policy of the layers; Keras's global policy by default.

    Raises:
        InputError: Something is missing, damaged or contradicts something else; the message names it.
    """
    path = Path(path)
    config, architecture = read_folder_config(path)
    tokenizer = Tokenizer.find(path)
    _check_vocabulary(tokenizer, config, str(path))
    with _Safetensors(path) as stored:
        # Before building, so that a config.json that asks for absurd sizes costs no memory.
        check_tensors(config, architecture, stored.shapes, stored.where)
        with zero_weights():
            model = GPT(config, dtype=dtype)
        fill_model(model, architecture, stored.shapes, stored.read, stored.where)
    return model, tokenizer


def check_tensors(
    config: GPTConfig,
    architecture: architectures.Architecture | None,
    tensors: Mapping[str, tuple[int, ...]],
    where: str,
) -> None:
    """Whether `tensors` are exactly those of a model of this configuration. Needs neither the model nor the values.

    Args:
        config: The configuration.
        architecture: Whose names the tensors have; `None` for this project's own.
        tensors: Name and shape of everything stored.
        where: What an error calls the place they are stored in.

    Raises:
        InputError: A tensor is missing, misshapen or unknown; the message names it.
    """
    known = {_tied_head(config, architecture, tensors)}
    for path, shape in config.weight_shapes():
        spec = architectures.tensor_for(path, architecture)
        name = _stored_name(spec, architecture, tensors, where)
        expected = spec.stored_shape(shape)
        if tuple(tensors[name]) != expected:
            raise InputError(f"{where}: {name} has shape {tensors[name]} where the configuration asks for {expected}")
        known.add(name)
    surplus = sorted(name for name in tensors if name not in known and not name.endswith(_BUFFERS))
    if surplus:
        raise InputError(f"{where}: unknown tensor {surplus[0]} ({len(surplus)} in all) for this configuration")


def fill_model(
    model: GPT,
    architecture: architectures.Architecture | None,
    tensors: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    where: str,
) -> None:
    """Assign every weight of `model` from stored tensors, each read once.

    Args:
        model: The model.
        architecture: Whose names the tensors have; `None` for this project's own.
        tensors: Name and shape of everything stored.
        read: Gives the float32 values of a tensor of `tensors`, in its shape.
        where: What an error calls the place they are stored in.

    Raises:
        InputError: A tensor is missing, misshapen or unknown, has a value that is no finite number, or is a head that
            differs from the embedding it is tied to; the message names it. Some weights may be assigned by then.
    """
    check_tensors(model.config, architecture, tensors, where)

    def finite(name: str) -> np.ndarray:
        value = read(name)
        if not np.isfinite(value).all():
            raise InputError(f"{where}: {name} holds values that are not finite (NaN or infinity)")
        return value

    weights: dict[str, list[tuple[architectures.TensorSpec, Any]]] = {}
    for weight in model.weights:
        spec = architectures.tensor_for(weight.path, architecture)
        weights.setdefault(_stored_name(spec, architecture, tensors, where), []).append((spec, weight))
    head = _tied_head(model.config, architecture, tensors)
    for name, uses in weights.items():
        value = finite(name)
        for spec, weight in uses:
            weight.assign(spec.extract(value))
            if weight is model.embedding.token_embedding and head and not np.array_equal(finite(head), value):
                raise InputError(f"{where}: {head} differs from {name}, to which the configuration ties it")


def _stored_name(
    spec: architectures.TensorSpec,
    architecture: architectures.Architecture | None,
    tensors: Mapping[str, tuple[int, ...]],
    where: str,
) -> str:
    """The tensor's name in `tensors`: the full one, or the one it has in a checkpoint of the model without its head."""
    for name in (spec.name, spec.name.removeprefix(architecture.prefix if architecture else "")):
        if name in tensors:
            return name
    raise InputError(f"{where}: the tensor {spec.name} is missing")


def _tied_head(
    config: GPTConfig, architecture: architectures.Architecture | None, tensors: Mapping[str, tuple[int, ...]]
) -> str | None:
    """The stored head of a model that has none of its own, where there is one: it must be the embedding's table."""
    name = architectures.tensor_for("output_head/output_embedding", architecture).name
    return name if config.tie_embeddings and name in tensors else None


class _Safetensors(contextlib.ExitStack):
    """The tensors in a folder: one safetensors file, or several and an index. Only headers are read on opening.

    Attributes:
        where: The file that says which tensors there are.
        shapes: Name and shape of every tensor.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[str, Any]] = {}
        self._checksums: dict[str, int] = {}
        self._folder = folder
        index = folder / "model.safetensors.index.json"
        # Where both are there, transformers too takes the one file.
        if index.exists() and not (folder / "model.safetensors").exists():
            self.where = str(index)
            self._open_all(index)
        else:
            self.where = str(folder / "model.safetensors")
            self._open("model.safetensors")

    def _open_all(self, index: Path) -> None:
        listed = _read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise InputError(f"{index}: damaged (weight_map must say which file each tensor lies in)")
        for file in sorted(set(listed.values())):
            if Path(file).name != file:
                raise InputError(f"{index}: the file name {file!r} leads out of the folder")
            self._open(file)
        for name in sorted({*listed, *self._places}):
            found = self._places[name][0] if name in self._places else "none of its files"
            if listed.get(name) != found:
                raise InputError(f"{index}: says that {name} lies in {listed.get(name, 'no file')}; it lies in {found}")

    def _open(self, file: str) -> None:
        path = self._folder / file
        if not path.exists():
            pickled = any((self._folder / name).exists() for name in _PICKLES)
            hint = "; the pytorch_model.bin there is a pickle, which is never opened" if pickled else ""
            raise InputError(f"{self._folder}: {file} is missing{hint}")
        try:
            tensors = self.enter_context(safe_open(path, framework="numpy"))
            for name in tensors.keys():  # noqa: SIM118, safe_open is no mapping
                entry = tensors.get_slice(name)
                if name in self._places:
                    raise InputError(f"{path}: {name} lies in {self._places[name][0]} too")
                if entry.get_dtype() not in _FLOATS:
                    raise InputError(f"{path}: {name} is of type {entry.get_dtype()}; expected {', '.join(_FLOATS)}")
                self.shapes[name] = tuple(entry.get_shape())
                self._places[name] = (file, tensors)
            checksums = json.loads((tensors.metadata() or {}).get(_CHECKSUMS, "{}"))
            if checksums and set(checksums) != set(tensors.keys()):
                raise InputError(f"{path}: damaged (its checksums are of other tensors than it holds)")
            self._checksums |= checksums
        except InputError:
            raise
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error})") from error

    def read(self, name: str) -> np.ndarray:
        """The tensor as float32. Keras has taught NumPy what bfloat16 is."""
        file, tensors = self._places[name]
        try:
            value = tensors.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{self._folder / file}: {name} cannot be read ({error})") from error
        if name in self._checksums and zlib.crc32(np.ascontiguousarray(value).data) != self._checksums[name]:
            raise InputError(
                f"{self._folder / file}: {name} is damaged, or was changed since it was written (its checksum in the "
                "file's metadata differs)"
            )
        return value.astype(np.float32, copy=False)
