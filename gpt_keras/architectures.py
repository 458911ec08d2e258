"""How a `GPTConfig` and its weights are called in Hugging Face's layout, one table per architecture.

A table says which configurations it can express, maps config keys both ways, and names the tensor behind every
weight. Adding an architecture is adding a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face model type.

    Attributes:
        model_type: The value of `model_type` in config.json.
        class_name: The class in `architectures`.
        requires: What a `GPTConfig` must be for this type, as field: value.
        keys: Our field to the config.json key.
        fixed: Further keys, always written, checked when read.
        weights: Path of our weight (without layer number: `block/...`) to its tensor.
        read_config: Fields that need more than renaming, from config.json.
        write_config: The same, to config.json.
    """

    model_type: str
    class_name: str
    requires: dict[str, Any]
    keys: dict[str, str]
    fixed: dict[str, Any]
    weights: dict[str, TensorSpec]
    read_config: Callable[[dict[str, Any]], dict[str, Any]]
    write_config: Callable[[GPTConfig], dict[str, Any]]

    def mismatch(self, config: GPTConfig) -> str | None:
        """The first field that this architecture cannot express, or `None`."""
        for field, value in self.requires.items():
            if getattr(config, field) != value:
                return field
        if self.model_type in ("gpt2", "openai-gpt"):
            if config.num_key_value_heads != config.num_heads:
                return "num_key_value_heads"
            if config.head_dim * config.num_heads != config.hidden_dim:
                return "head_dim"
        if self.model_type == "openai-gpt" and config.intermediate_dim != 4 * config.hidden_dim:
            return "intermediate_dim"
        return None


def _gpt_weights(block: str, token: str, position: str, final: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    weights = {"embedding/token_embedding": TensorSpec(token), "embedding/position_embedding": TensorSpec(position)}
    for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
        for part, name in enumerate(("query", "key", "value")):
            weights[f"block/attention/{name}/{ours}"] = TensorSpec(f"{block}.attn.c_attn.{theirs}", part=part, parts=3)
        weights[f"block/attention/output/{ours}"] = TensorSpec(f"{block}.attn.c_proj.{theirs}")
        weights[f"block/feed_forward/up/{ours}"] = TensorSpec(f"{block}.mlp.c_fc.{theirs}")
        weights[f"block/feed_forward/down/{ours}"] = TensorSpec(f"{block}.mlp.c_proj.{theirs}")
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        weights[f"block/attention_norm/{ours}"] = TensorSpec(f"{block}.ln_1.{theirs}")
        weights[f"block/feed_forward_norm/{ours}"] = TensorSpec(f"{block}.ln_2.{theirs}")
    return {**weights, **final, "output_head/output_embedding": TensorSpec("lm_head.weight")}


_GPT_KEYS = {
    "vocabulary_size": "vocab_size",
    "context_length": "n_positions",
    "num_layers": "n_layer",
    "hidden_dim": "n_embd",
    "num_heads": "n_head",
    "norm_epsilon": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}
_GPT_REQUIRES = {"position": "learned", "normalization": "layer_norm", "feed_forward": "gelu", "use_bias": True}


def _gpt_dropout(config: GPTConfig) -> dict[str, Any]:
    return {"resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": config.dropout}


def _read_gpt2(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "intermediate_dim": raw.get("n_inner") or 4 * raw["n_embd"],
        "tie_embeddings": raw.get("tie_word_embeddings", True),
        "dropout": raw.get("resid_pdrop", 0.1),
    }


def _write_gpt2(config: GPTConfig) -> dict[str, Any]:
    return {
        "n_inner": config.intermediate_dim,
        "n_ctx": config.context_length,
        "tie_word_embeddings": config.tie_embeddings,
        **_gpt_dropout(config),
    }


_LLAMA_KEYS = {
    "vocabulary_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "num_layers": "num_hidden_layers",
    "hidden_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_dim": "intermediate_size",
    "norm_epsilon": "rms_norm_eps",
    "initializer_range": "initializer_range",
}
_LLAMA_REQUIRES = {
    "position": "rotary",
    "normalization": "rms_norm",
    "norm_order": "pre",
    "feed_forward": "swiglu",
    "use_bias": False,
}
_LLAMA_WEIGHTS = {
    "embedding/token_embedding": TensorSpec("model.embed_tokens.weight"),
    **{
        f"block/attention/{ours}/kernel": TensorSpec(f"model.layers.{{i}}.self_attn.{theirs}_proj.weight", True)
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))
    },
    **{
        f"block/feed_forward/{name}/kernel": TensorSpec(f"model.layers.{{i}}.mlp.{name}_proj.weight", True)
        for name in ("gate", "up", "down")
    },
    "block/attention_norm/scale": TensorSpec("model.layers.{i}.input_layernorm.weight"),
    "block/feed_forward_norm/scale": TensorSpec("model.layers.{i}.post_attention_layernorm.weight"),
    "final_norm/scale": TensorSpec("model.norm.weight"),
    "output_head/output_embedding": TensorSpec("lm_head.weight"),
}


def _read_llama(raw: dict[str, Any]) -> dict[str, Any]:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise InputError(f"config.json: rope type {kind!r} is not supported; only plain rotary positions are")
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    return {
        "rope_theta": float(theta),
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        "num_key_value_heads": raw.get("num_key_value_heads") or raw["num_attention_heads"],
        "tie_embeddings": raw.get("tie_word_embeddings", False),
        "norm_epsilon": raw.get("rms_norm_eps", 1e-6),
    }


def _write_llama(config: GPTConfig) -> dict[str, Any]:
    return {
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "head_dim": config.head_dim,
        "num_key_value_heads": config.num_key_value_heads,
        "tie_word_embeddings": config.tie_embeddings,
    }


ARCHITECTURES = {
    architecture.model_type: architecture
    for architecture in (
        Architecture(
            "gpt2",
            "GPT2LMHeadModel",
            {**_GPT_REQUIRES, "norm_order": "pre", "qk_norm": False},
            _GPT_KEYS,
            {
                "activation_function": "gelu_new",
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
            },
            _gpt_weights(
                "transformer.h.{i}",
                "transformer.wte.weight",
                "transformer.wpe.weight",
                {
                    "final_norm/scale": TensorSpec("transformer.ln_f.weight"),
                    "final_norm/bias": TensorSpec("transformer.ln_f.bias"),
                },
            ),
            _read_gpt2,
            _write_gpt2,
        ),
        Architecture(
            "openai-gpt",
            "OpenAIGPTLMHeadModel",
            {**_GPT_REQUIRES, "norm_order": "post", "qk_norm": False, "tie_embeddings": True},
            _GPT_KEYS,
            {"afn": "gelu"},
            _gpt_weights(
                "transformer.h.{i}", "transformer.tokens_embed.weight", "transformer.positions_embed.weight", {}
            ),
            lambda raw: {"norm_order": "post", "dropout": raw.get("resid_pdrop", 0.1)},
            _gpt_dropout,
        ),
        Architecture(
            "llama",
            "LlamaForCausalLM",
            {**_LLAMA_REQUIRES, "qk_norm": False},
            _LLAMA_KEYS,
            {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
            _LLAMA_WEIGHTS,
            _read_llama,
            _write_llama,
        ),
        Architecture(
            "qwen3",
            "Qwen3ForCausalLM",
            {**_LLAMA_REQUIRES, "qk_norm": True},
            _LLAMA_KEYS,
            {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
            {
                **_LLAMA_WEIGHTS,
                "block/attention/query_norm/scale": TensorSpec("model.layers.{i}.self_attn.q_norm.weight"),
                "block/attention/key_norm/scale": TensorSpec("model.layers.{i}.self_attn.k_norm.weight"),
            },
            _read_llama,
            _write_llama,
        ),
    )
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
        common = sum(getattr(config, name) == value for name, value in architecture.requires.items())
        if common > most:
            best, most = field, common
    return None, best


def read_config(raw: dict[str, Any]) -> tuple[GPTConfig, Architecture | None]:
    """The configuration in a config.json; the architecture is `None` for this project's own `gpt_keras` type.

    Raises:
        InputError: An unknown model type, a missing key, or a value this model cannot be built with.
    """
    kind = raw.get("model_type")
    try:
        if kind == "gpt_keras":
            return GPTConfig(
                **{key: value for key, value in raw.items() if key in GPTConfig.__dataclass_fields__}
            ), None
        if kind not in ARCHITECTURES:
            known = ", ".join([*ARCHITECTURES, "gpt_keras"])
            raise InputError(f"config.json: model_type {kind!r} is not supported; known are {known}")
        architecture = ARCHITECTURES[kind]
        for key, value in architecture.fixed.items():
            if raw.get(key, value) != value and (key, raw[key]) not in _SAME:
                raise InputError(f"config.json: {key}={raw[key]!r} is not supported, only {value!r}")
        fields = {field: raw[key] for field, key in architecture.keys.items() if key in raw or field in _NEEDED}
        fields = {**architecture.requires, **fields, **architecture.read_config(raw)}
        return GPTConfig(**fields), architecture
    except KeyError as error:
        raise InputError(f"config.json: the key {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"config.json: {error}") from error


_NEEDED = {"vocabulary_size", "context_length", "num_layers", "hidden_dim", "num_heads"}
_SAME = {("afn", "gelu_new"), ("activation_function", "gelu_pytorch_tanh")}


def write_config(config: GPTConfig) -> dict[str, Any]:
    """config.json's content, in the matching Hugging Face architecture where there is one."""
    architecture, _ = architecture_for(config)
    if architecture is None:
        return {"model_type": "gpt_keras", **config.to_dict()}
    return {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        **{key: getattr(config, field) for field, key in architecture.keys.items()},
        **architecture.fixed,
        **architecture.write_config(config),
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
