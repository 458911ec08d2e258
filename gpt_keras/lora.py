"""Low-rank adapters: fine-tuning that leaves the model's weights alone and learns a small addition to each kernel.

    y = x @ kernel + (alpha / rank) * (x @ A) @ B        A [in, rank], B [rank, out], which begins at 0

An adapter's folder is one of the library PEFT, which opens ours as we open its:

    adapter_config.json  adapter_model.safetensors

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gpt_keras.architectures import Architecture, TensorSpec, architecture_for, tensor_for
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_folder
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.folder import token_ids
from gpt_keras.model import GPT
from gpt_keras.parts import Projection

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ON_HUB = r"[\w.-]+/[\w.-]+"


def add_lora(model: GPT, rank: int, alpha: float | None = None) -> None:
    """Freeze a model and give each of its projections an adapter, by Keras's own `enable_lora`.

    Args:
        model: Only the adapters are trainable afterwards.
        rank: Of every adapter.
        alpha: The addition is scaled by alpha / rank; twice the rank by default.

    Raises:
        InputError: The rank is not from 1 to the model's width, or the model has adapters already.
    """
    if not 1 <= rank <= model.config.hidden_dim:
        raise InputError(f"the rank must be from 1 to the model's width of {model.config.hidden_dim}, not {rank}")
    projections = list(projections_of(model))
    if any(projection.lora_enabled for projection in projections):
        raise InputError("this model has adapters already: merge them first")
    for variable in model.variables:
        variable.trainable = False
    for projection in projections:
        # As PEFT draws A: evenly between -1 / sqrt(in) and 1 / sqrt(in).
        start = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        projection.enable_lora(rank, 2 * rank if alpha is None else alpha, a_initializer=start)


def hold_frozen(model: GPT, dtype: str) -> None:
    """Hold the kernels of a model with adapters in the dtype of its products, or in int8.

    Args:
        model: From `add_lora`.
        dtype: The model's compute dtype, with which nothing changes but the time of a step, or int8, which rounds each
            kernel by up to half a 127th of the largest value of its column.
    """
    for projection in projections_of(model):
        if projection.base_kernel.dtype != dtype:
            projection.hold_kernel(dtype)


def projections_of(model: GPT) -> Iterator[Projection]:
    """The layers of a model that can have an adapter, block after block."""
    for block in model.blocks:
        yield from (layer for layer in block._flatten_layers() if isinstance(layer, Projection))


@dataclass(frozen=True)
class Adapter:
    """What is added to a model's kernels.

    Attributes:
        parts: By the path of a kernel: A float32 [in, rank] and B float32 [rank, out].
        alpha: The addition is scaled by alpha / rank, rank being that of the part.
        base: The model that it was made for, as `gpt_keras.load` opens it.
    """

    parts: Mapping[str, tuple[np.ndarray, np.ndarray]]
    alpha: Mapping[str, float]
    base: str

    @classmethod
    def of(cls, model: GPT, base: str) -> Adapter:
        """The adapter that a model has from `add_lora` and training.

        Raises:
            InputError: It has none.
        """
        parts, alpha = {}, {}
        for layer in projections_of(model):
            if layer.lora_enabled:
                parts[layer.base_kernel.path] = (np.asarray(layer.lora_kernel_a), np.asarray(layer.lora_kernel_b))
                alpha[layer.base_kernel.path] = float(layer.lora_alpha)
        if not parts:
            raise InputError("this model has no adapter")
        return cls(parts, alpha, base)

    def addition(self, path: str) -> np.ndarray:
        """What is added to the kernel of this path, float32 [in, out]."""
        a, b = self.parts[path]
        return (self.alpha[path] / a.shape[1]) * (a @ b)

    def save(self, folder: str | Path, config: GPTConfig, tokenizer: Tokenizer | None = None) -> None:
        """Write the adapter's folder, whole or not at all.

        Args:
            folder: Where.
            config: The model's.
            tokenizer: To be used with it instead of the base's, for its chat template say.

        Raises:
            InputError: The disk is full, or the folder cannot be written.
        """
        architecture, _ = architecture_for(config)
        tensors: dict[str, np.ndarray] = {}
        ranks: dict[str, int] = {}
        alphas: dict[str, float] = {}
        for name, pieces in _by_tensor(self.parts, architecture).items():
            spec = pieces[0][0]
            tensors[f"{name}.lora_A.weight"] = np.concatenate([self.parts[path][0].T for _, path in pieces])
            tensors[f"{name}.lora_B.weight"] = _block_diagonal([self.parts[path][1].T for _, path in pieces], spec)
            rank = self.parts[pieces[0][1]][0].shape[1]
            leaf = name.rpartition(".")[2]
            ranks[leaf], alphas[leaf] = rank * len(pieces), self.alpha[pieces[0][1]] * len(pieces)
        rank, alpha = (
            max(ranks.values(), key=list(ranks.values()).count),
            max(alphas.values(), key=list(alphas.values()).count),
        )
        on_hub = None if Path(self.base).exists() else re.fullmatch(rf"({_ON_HUB})@([\w./-]+)", self.base)
        said = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": on_hub[1] if on_hub else self.base,
            "revision": on_hub[2] if on_hub else None,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": architecture is not None and architecture.model_type in ("gpt2", "openai-gpt"),
            "inference_mode": True,
            "target_modules": sorted(ranks),
            "rank_pattern": {leaf: value for leaf, value in ranks.items() if value != rank},
            "alpha_pattern": {leaf: value for leaf, value in alphas.items() if value != alpha},
        }
        with whole_folder(Path(folder)) as partial:
            (partial / CONFIG).write_text(json.dumps(said, indent=2) + "\n", "utf-8")
            save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, partial / WEIGHTS)
            if tokenizer is not None:
                tokenizer.write(partial, config.context_length)
                (partial / "generation_config.json").write_text(json.dumps(token_ids(tokenizer)) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: str | Path, config: GPTConfig) -> Adapter:
        """Read an adapter's folder.

        Args:
            folder: Of ours or of PEFT's.
            config: The model's that it is for.

        Raises:
            InputError: There is none, it is damaged, or it is for another model or of another kind.
        """
        folder = Path(folder)
        said = read_adapter_config(folder)
        try:
            tensors = {
                name.replace(".default.", "."): np.asarray(value, np.float32)
                for name, value in load_file(folder / WEIGHTS).items()
            }
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"{folder / WEIGHTS}: cannot be read ({error})") from error
        architecture, _ = architecture_for(config)
        kernels = {path: shape for path, shape in config.weight_shapes() if path.endswith("/kernel")}
        parts, alpha = {}, {}
        for path, shape in kernels.items():
            name, spec = _module(path, architecture)
            a, b = (tensors.pop(f"{name}.lora_{kind}.weight", None) for kind in "AB")
            # The tensors of a fused kernel are looked at once for each of its parts.
            if spec.part + 1 < spec.parts and a is not None and b is not None:
                tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
            if a is None and b is None:
                continue
            expected = (shape[0], shape[1] * spec.parts)
            if a is None or b is None or (a.shape[-1], b.shape[0]) != expected or a.shape[0] != b.shape[-1]:
                raise InputError(f"{folder}: the adapter of {name.removeprefix(_PREFIX)} is for another model")
            rank = a.shape[0]
            b = np.split(b, spec.parts)[spec.part]
            used = b.any(0) if b.any() else np.arange(rank) == 0
            parts[path] = (a[used].T.copy(), b[:, used].T.copy())
            alpha[path] = _scale(said, name, rank) * int(used.sum())
        if tensors:
            raise InputError(f"{folder / WEIGHTS}: unknown tensor {min(tensors)} ({len(tensors)} in all)")
        if not all(np.isfinite(half).all() for pair in parts.values() for half in pair):
            raise InputError(f"{folder / WEIGHTS}: holds values that are not finite (NaN or infinity)")
        base = str(said["base_model_name_or_path"])
        return cls(parts, alpha, base if Path(base).exists() else on_hub(said) or base)


class AdapterSwitch:
    """Several adapters beside one model, of which one at a time is merged into its kernels.

    The kernels are kept as they were, so that any adapter can take another's place, and none, without loss.

    Args:
        model: The model.
    """

    def __init__(self, model: GPT) -> None:
        self._kernels = {layer.base_kernel.path: layer.base_kernel for layer in projections_of(model)}
        self._base: dict[str, np.ndarray] = {}
        self._merged: set[str] = set()

    def use(self, adapter: Adapter | None) -> None:
        """Have the model be itself plus this adapter, or itself.

        Raises:
            InputError: The adapter is for another model.
        """
        wanted = {} if adapter is None else {path: adapter.addition(path) for path in adapter.parts}
        for path, addition in wanted.items():
            if path not in self._kernels or tuple(self._kernels[path].shape) != addition.shape:
                raise InputError(f"the adapter changes {path}, which this model does not have in that shape")
        for path in self._merged - wanted.keys():
            self._kernels[path].assign(self._base[path])
        for path, addition in wanted.items():
            if path not in self._base:
                self._base[path] = np.array(self._kernels[path], np.float32)
            self._kernels[path].assign(self._base[path] + addition)
        self._merged = set(wanted)


def is_adapter(path: str | Path) -> bool:
    """Whether there is an adapter's folder at `path`."""
    return (Path(path) / CONFIG).is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says.

    Raises:
        InputError: It is missing or damaged, or asks for more than LoRA of this kind.
    """
    file = folder / CONFIG
    try:
        said = json.loads(file.read_text("utf-8"))
        kind = said["peft_type"]
        base = said["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: no adapter there, or a damaged one ({error})") from error
    if not isinstance(base, str) or not base:
        raise InputError(f"{file}: does not say which model the adapter is for (base_model_name_or_path)")
    unsupported = [name for name in ("use_dora", "modules_to_save", "trainable_token_indices") if said.get(name)]
    if said.get("bias", "none") != "none":
        unsupported.append("bias")
    if kind != "LORA" or unsupported:
        raise InputError(f"{file}: {unsupported[0] if unsupported else kind} is not supported, only plain LoRA")
    return dict(said)


def on_hub(said: dict[str, Any]) -> str | None:
    """`ORG/NAME` or `ORG/NAME@REVISION` of the base that an adapter_config.json names, if it is one on the hub."""
    base, revision = str(said["base_model_name_or_path"]), said.get("revision")
    if re.fullmatch(_ON_HUB, base) is None:
        return base if re.fullmatch(rf"{_ON_HUB}@[\w./-]+", base) else None
    return f"{base}@{revision}" if revision else base


def _scale(said: dict[str, Any], name: str, rank: int) -> float:
    """alpha / rank of a module, as PEFT reads its configuration."""

    def pattern(key: str, otherwise: float) -> float:
        for expression, value in (said.get(key) or {}).items():
            try:
                fits = re.match(rf"(.*\.)?({expression})$", name.removeprefix(_PREFIX))
            except re.error as error:
                raise InputError(f"{CONFIG}: {key} has {expression!r}, no regular expression: {error}") from error
            if fits:
                return float(value)
        return otherwise

    alpha = pattern("alpha_pattern", float(said.get("lora_alpha", rank)))
    return alpha / (rank**0.5 if said.get("use_rslora") else rank)


def _module(path: str, architecture: Architecture | None) -> tuple[str, TensorSpec]:
    """The name that PEFT gives to the module of a kernel."""
    spec = tensor_for(path, architecture)
    return _PREFIX + spec.name.removesuffix(".weight"), spec


def _by_tensor(paths: Any, architecture: Architecture | None) -> dict[str, list[tuple[TensorSpec, str]]]:
    """The parts of each stored tensor, in their order."""
    found: dict[str, list[tuple[TensorSpec, str]]] = {}
    for path in paths:
        name, spec = _module(path, architecture)
        found.setdefault(name, []).append((spec, path))
    return {name: sorted(pieces, key=lambda piece: piece[0].part) for name, pieces in found.items()}


def _block_diagonal(blocks: list[np.ndarray], spec: TensorSpec) -> np.ndarray:
    """Each block [out, rank] with rows and columns of its own."""
    if spec.parts == 1:
        return blocks[0]
    rows, columns = (sum(block.shape[axis] for block in blocks) for axis in (0, 1))
    whole = np.zeros((rows, columns), np.float32)
    row = column = 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole
