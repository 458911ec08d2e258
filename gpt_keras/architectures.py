"""How a `GPTConfig` and its weights are called in Hugging Face's layout, one table per architecture.

A table says which configurations it can express, maps config keys both ways, and names the tensor behind every
weight. Adding an architecture is adding a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError


@dataclass(frozen=True)
class TensorSpec:
    """Where one of our weights lies in the checkpoint.

    Attributes:
        name: Tensor name; `{i}` is the layer's number.
        transposed: Stored as [out, in] where Keras's kernel is [in, out].
        part: Which of `parts` equal column blocks of the tensor this weight is (GPT-2 fuses query, key and value).
    """

    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, given the weight's."""
        shape = shape[::-1] if self.transposed else shape
        return (*shape[:-1], shape[-1] * self.parts)

    def extract(self, value: np.ndarray) -> np.ndarray:
        """The weight in the tensor's value."""
        value = np.split(value, self.parts, axis=-1)[self.part]
        return value.T if self.transposed else value


def _nothing(_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face model type.

    Attributes:
        model_type: The value of `model_type` in config.json.
        class_name: The class in `architectures`.
        prefix: What tensor names begin with, save in checkpoints of the model without its head.
        fields: What every configuration of this type has, as field: value.
        keys: Our field to the config.json key that holds the same value.
        choices: Our field to its key and what that key's values mean; of those with one meaning, the first is written.
        fixed: Further keys, and the only values that are supported; the first is written.
        defaults: What a key means where it is absent, which is `transformers`' own default. Other keys must be there.
        weights: Path of our weight (without layer number: `block/...`) to its tensor.
        read: Fields that need more than this, from config.json.
        write: The same, to config.json.
        whole_heads: `hidden_dim` must be a multiple of `num_heads`.
    """

    model_type: str
    class_name: str
    prefix: str
    fields: dict[str, Any]
    keys: dict[str, str]
    choices: dict[str, tuple[str, dict[Any, Any]]]
    fixed: dict[str, tuple[Any, ...]]
    defaults: dict[str, Any]
    weights: dict[str, TensorSpec]
    read: Callable[[dict[str, Any]], dict[str, Any]] = _nothing
    write: Callable[[GPTConfig], dict[str, Any]] = _nothing
    whole_heads: bool = True

    def mismatch(self, config: GPTConfig) -> str | None:
        """The first field that would not come back from this architecture's config.json, or `None`."""
        if self.whole_heads and config.hidden_dim % config.num_heads:
            return "num_heads"
        for field, (_, meanings) in self.choices.items():
            if getattr(config, field) not in meanings.values():
                return field
        for field, value in self.fields.items():
            if getattr(config, field) != value:
                return field
        back = self.from_keys(self.to_keys(config))
        for field in (*self.fields, *back.to_dict()):
            irrelevant = field.startswith("rope_") and config.position != "rotary"
            if getattr(back, field) != getattr(config, field) and not irrelevant:
                return field
        return None

    def to_keys(self, config: GPTConfig) -> dict[str, Any]:
        """The part of config.json that says what `config` says."""
        return {
            **{key: getattr(config, field) for field, key in self.keys.items()},
            **{
                key: next(name for name, meaning in meanings.items() if meaning == getattr(config, field))
                for field, (key, meanings) in self.choices.items()
            },
            **{key: supported[0] for key, supported in self.fixed.items()},
            **self.write(config),
        }

    def from_keys(self, raw: dict[str, Any]) -> GPTConfig:
        """The configuration in a config.json of this type.

        Raises:
            InputError: A key is missing or has a value that is not supported; the message names it.
        """
        raw = {**self.defaults, **raw}
        for key, supported in self.fixed.items():
            if key in raw and raw[key] not in supported:
                raise InputError(f"config.json: {key}={raw[key]!r} is not supported, only {supported[0]!r}")
        fields = dict(self.fields)
        for field, (key, meanings) in self.choices.items():
            if raw[key] not in list(meanings):
                raise InputError(
                    f"config.json: {key}={raw[key]!r} is not supported, only {', '.join(map(repr, meanings))}"
                )
            fields[field] = meanings[raw[key]]
        fields |= {field: raw[key] for field, key in self.keys.items()}
        try:
            return GPTConfig(**{**fields, **self.read(raw)})
        except ValueError as error:
            # The message names our fields; its reader knows the file's keys.
            keys = {**_ROPE_KEYS, **self.keys}
            names = re.compile(r"\b(" + "|".join(keys) + r")\b")
            raise InputError(f"config.json: {names.sub(lambda match: keys[match[0]], str(error))}") from error


# --- GPT-1 and GPT-2 --------------------------------------------------------------------------------------------------


def _gpt_weights() -> dict[str, TensorSpec]:
    block, weights = "transformer.h.{i}", {}
    for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
        for part, name in enumerate(("query", "key", "value")):
            weights[f"block/attention/{name}/{ours}"] = TensorSpec(f"{block}.attn.c_attn.{theirs}", part=part, parts=3)
        weights[f"block/attention/output/{ours}"] = TensorSpec(f"{block}.attn.c_proj.{theirs}")
        weights[f"block/feed_forward/up/{ours}"] = TensorSpec(f"{block}.mlp.c_fc.{theirs}")
        weights[f"block/feed_forward/down/{ours}"] = TensorSpec(f"{block}.mlp.c_proj.{theirs}")
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        weights[f"block/attention_norm/{ours}"] = TensorSpec(f"{block}.ln_1.{theirs}")
        weights[f"block/feed_forward_norm/{ours}"] = TensorSpec(f"{block}.ln_2.{theirs}")
    return weights


_OPENAI_GPT = Architecture(
    model_type="openai-gpt",
    class_name="OpenAIGPTLMHeadModel",
    prefix="transformer.",
    fields={"position": "learned", "normalization": "layer_norm", "norm_order": "post", "use_bias": True},
    keys={
        "vocabulary_size": "vocab_size",
        "context_length": "n_positions",
        "num_layers": "n_layer",
        "hidden_dim": "n_embd",
        "num_heads": "n_head",
        "norm_epsilon": "layer_norm_epsilon",
        "initializer_range": "initializer_range",
        "tie_embeddings": "tie_word_embeddings",
        "dropout": "resid_pdrop",
    },
    # What this type calls gelu is the tanh form.
    choices={"feed_forward": ("afn", {"gelu": "gelu", "gelu_new": "gelu", "relu": "relu"})},
    fixed={},
    defaults={
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.1,
        "afn": "gelu",
    },
    weights={
        "embedding/token_embedding": TensorSpec("transformer.tokens_embed.weight"),
        "embedding/position_embedding": TensorSpec("transformer.positions_embed.weight"),
        **_gpt_weights(),
        "output_head/output_embedding": TensorSpec("lm_head.weight"),
    },
    write=lambda config: {"embd_pdrop": config.dropout, "attn_pdrop": config.dropout},
)

_GPT2 = replace(
    _OPENAI_GPT,
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    fields={**_OPENAI_GPT.fields, "norm_order": "pre"},
    keys={**_OPENAI_GPT.keys, "intermediate_dim": "n_inner"},
    choices={
        "feed_forward": (
            "activation_function",
            {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu"},
        )
    },
    fixed={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    defaults={**_OPENAI_GPT.defaults, "n_inner": None, "activation_function": "gelu_new"},
    weights={
        **_OPENAI_GPT.weights,
        "embedding/token_embedding": TensorSpec("transformer.wte.weight"),
        "embedding/position_embedding": TensorSpec("transformer.wpe.weight"),
        "final_norm/scale": TensorSpec("transformer.ln_f.weight"),
        "final_norm/bias": TensorSpec("transformer.ln_f.bias"),
    },
)

# --- Llama and those that came after ----------------------------------------------------------------------------------

_ROPE_KEYS = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_context_length": "original_max_position_embeddings",
}
_ROPE_FIELDS = {"default": (), "linear": ("factor",), "llama3": tuple(_ROPE_KEYS)}


def _read_rope(raw: dict[str, Any]) -> dict[str, Any]:
    """Both styles: `rope_parameters`, and the older `rope_theta` and `rope_scaling`, which win where both are there."""
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(key) or {}
    if not isinstance(rope, dict):
        raise InputError(f"config.json: {key} must be an object, not {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in list(_ROPE_FIELDS) or any(isinstance(value, dict) for value in rope.values()):
        raise InputError(f"config.json: {key} of type {kind!r} is not supported, only {', '.join(_ROPE_FIELDS)}")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1)) not in (None, 1):
        raise InputError("config.json: partial_rotary_factor is not supported, only 1")
    rope = {"rope_theta": raw.get("rope_theta", 10000.0), **rope}
    if kind == "llama3":
        outside = raw.get("original_max_position_embeddings")
        if outside is not None or "original_max_position_embeddings" not in rope:
            rope["original_max_position_embeddings"] = outside or raw["max_position_embeddings"]
    for field in _ROPE_FIELDS[kind]:
        if _ROPE_KEYS[field] not in rope:
            raise InputError(f"config.json: {key} of type {kind!r} needs the key {_ROPE_KEYS[field]!r}")
    scaling = {"kind": kind, **{field: rope[_ROPE_KEYS[field]] for field in _ROPE_FIELDS[kind]}}
    return {"rope_theta": rope["rope_theta"], "rope_scaling": None if kind == "default" else scaling}


def _write_rope(config: GPTConfig) -> dict[str, Any]:
    """Both styles, so that older readers understand it too."""
    scaling = config.rope_scaling
    kind = scaling.kind if scaling else "default"
    rope = {"rope_type": kind, **{_ROPE_KEYS[field]: getattr(scaling, field) for field in _ROPE_FIELDS[kind]}}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if scaling else None,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
    }


_LLAMA_BIASES = {  # (attention_bias, mlp_bias)
    (False, False): False,
    (True, False): "attention",
    (False, True): "feed_forward",
    (True, True): True,
}


def _read_llama(raw: dict[str, Any]) -> dict[str, Any]:
    biases = (raw["attention_bias"], raw["mlp_bias"])
    if biases not in list(_LLAMA_BIASES):
        raise InputError(f"config.json: attention_bias and mlp_bias must be true or false, not {biases}")
    return {**_read_rope(raw), "use_bias": _LLAMA_BIASES[biases]}


def _write_llama(config: GPTConfig) -> dict[str, Any]:
    return {
        **_write_rope(config),
        "attention_bias": config.has_bias("attention"),
        "mlp_bias": config.has_bias("feed_forward"),
    }


_LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    prefix="model.",
    fields={"position": "rotary", "normalization": "rms_norm", "norm_order": "pre", "qk_norm": False},
    keys={
        "vocabulary_size": "vocab_size",
        "context_length": "max_position_embeddings",
        "num_layers": "num_hidden_layers",
        "hidden_dim": "hidden_size",
        "num_heads": "num_attention_heads",
        "num_key_value_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "intermediate_dim": "intermediate_size",
        "norm_epsilon": "rms_norm_eps",
        "initializer_range": "initializer_range",
        "tie_embeddings": "tie_word_embeddings",
        "dropout": "attention_dropout",
    },
    choices={"feed_forward": ("hidden_act", {"silu": "swiglu", "swish": "swiglu"})},
    fixed={},
    defaults={
        "num_key_value_heads": None,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    },
    weights={
        "embedding/token_embedding": TensorSpec("model.embed_tokens.weight"),
        **{
            f"block/{part}/{ours}/{kind}": TensorSpec(f"model.layers.{{i}}.{theirs}_proj.{suffix}", transposed=True)
            for part, ours, theirs in (
                ("attention", "query", "self_attn.q"),
                ("attention", "key", "self_attn.k"),
                ("attention", "value", "self_attn.v"),
                ("attention", "output", "self_attn.o"),
                ("feed_forward", "gate", "mlp.gate"),
                ("feed_forward", "up", "mlp.up"),
                ("feed_forward", "down", "mlp.down"),
            )
            for kind, suffix in (("kernel", "weight"), ("bias", "bias"))
        },
        "block/attention_norm/scale": TensorSpec("model.layers.{i}.input_layernorm.weight"),
        "block/feed_forward_norm/scale": TensorSpec("model.layers.{i}.post_attention_layernorm.weight"),
        "final_norm/scale": TensorSpec("model.norm.weight"),
        "output_head/output_embedding": TensorSpec("lm_head.weight"),
    },
    read=_read_llama,
    write=_write_llama,
)


def _refuse_window(raw: dict[str, Any]) -> None:
    """A window that is no shorter than the context hides nothing; others are not supported."""
    window, context = raw["sliding_window"], raw["max_position_embeddings"]
    if window is not None and (type(window) is not int or (type(context) is int and window < context)):
        raise InputError(
            f"config.json: sliding_window={window!r} is not supported, only null or at least max_position_embeddings"
        )


def _read_mistral(raw: dict[str, Any]) -> dict[str, Any]:
    _refuse_window(raw)
    return _read_rope(raw)


_MISTRAL = replace(
    _LLAMA,
    model_type="mistral",
    class_name="MistralForCausalLM",
    fields={**_LLAMA.fields, "use_bias": False},
    defaults={**_LLAMA.defaults, "num_key_value_heads": 8, "sliding_window": 4096},
    read=_read_mistral,
    write=lambda config: {**_write_rope(config), "sliding_window": None},
    whole_heads=False,
)


def _read_qwen3(raw: dict[str, Any]) -> dict[str, Any]:
    kinds = raw.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise InputError(f"config.json: layer_types={kinds!r} is not supported, only 'full_attention' throughout")
    if raw["use_sliding_window"] and kinds is None:
        _refuse_window(raw)
    return _read_rope(raw)


_QWEN3 = replace(
    _LLAMA,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    fields={**_LLAMA.fields, "qk_norm": True},
    choices={**_LLAMA.choices, "use_bias": ("attention_bias", {False: False, True: "attention"})},
    defaults={
        **_LLAMA.defaults,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "use_sliding_window": False,
    },
    weights={
        **_LLAMA.weights,
        "block/attention/query_norm/scale": TensorSpec("model.layers.{i}.self_attn.q_norm.weight"),
        "block/attention/key_norm/scale": TensorSpec("model.layers.{i}.self_attn.k_norm.weight"),
    },
    read=_read_qwen3,
    write=lambda config: {**_write_rope(config), "use_sliding_window": False},
    whole_heads=False,
)

# A configuration that several can express is written as the first of them.
ARCHITECTURES = {
    architecture.model_type: architecture for architecture in (_GPT2, _OPENAI_GPT, _LLAMA, _QWEN3, _MISTRAL)
}


def architecture_for(config: GPTConfig) -> tuple[Architecture | None, str]:
    """The Hugging Face architecture that expresses `config`, or `None` and the field that stands in the way.

    The field named is the one that the architecture with the most fields in common cannot express.
    """
    best, most = "", -1
    for architecture in ARCHITECTURES.values():
        field = architecture.mismatch(config)
        if field is None:
            return architecture, ""
        common = sum(getattr(config, name) == value for name, value in architecture.fields.items())
        if common > most:
            best, most = field, common
    return None, best


def read_config(raw: dict[str, Any]) -> tuple[GPTConfig, Architecture | None]:
    """The configuration in a config.json; the architecture is `None` for this project's own `gpt_keras` type.

    Raises:
        InputError: An unknown model type, a missing key, or a value this model cannot be built with.
    """
    kind = raw.get("model_type")
    if raw.get("quantization_config") is not None:
        raise InputError("config.json: quantization_config: quantized tensors are not supported, only whole ones")
    try:
        if kind == "gpt_keras":
            fields = {key: value for key, value in raw.items() if key in GPTConfig.__dataclass_fields__}
            return GPTConfig(**{"vocabulary_size": raw["vocabulary_size"], **fields}), None
        if kind not in list(ARCHITECTURES):
            known = ", ".join([*ARCHITECTURES, "gpt_keras"])
            raise InputError(f"config.json: model_type {kind!r} is not supported; known are {known}")
        return ARCHITECTURES[kind].from_keys(raw), ARCHITECTURES[kind]
    except KeyError as error:
        raise InputError(f"config.json: the key {error} is missing") from error
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"config.json: {error}") from error


def write_config(config: GPTConfig) -> dict[str, Any]:
    """config.json's content, in the matching Hugging Face architecture where there is one."""
    architecture, _ = architecture_for(config)
    if architecture is None:
        return {"model_type": "gpt_keras", **config.to_dict()}
    return {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        **architecture.to_keys(config),
        "torch_dtype": "float32",
    }


def tensor_for(path: str, architecture: Architecture | None) -> TensorSpec:
    """The tensor behind the weight at `path`, such as `block_3/attention/query/kernel`."""
    if architecture is None:
        return TensorSpec(path.replace("/", "."))
    first, _, rest = path.partition("/")
    if first.startswith("block_"):
        spec = architecture.weights[f"block/{rest}"]
        number = first.removeprefix("block_")
        return TensorSpec(spec.name.replace("{i}", number), spec.transposed, spec.part, spec.parts)
    return architecture.weights[path]
