"""`GPTConfig`, the only source of a model's shapes, and the presets that name whole families of them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are slowed down so that a model attends further than it was first trained to.

    Args:
        kind: `linear` slows every frequency (Chen et al. 2023, https://arxiv.org/abs/2306.15595); `llama3` only the
            slow ones, with a smooth passage between (Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783).
        factor: By how much.
        low_frequency_factor: `llama3`: frequencies that turn less often than this in the original context are slow.
        high_frequency_factor: `llama3`: frequencies that turn more often than this in it stay as they are.
        original_context_length: `llama3`: the context, in tokens, before it was extended.

    Raises:
        ValueError: A field is out of range or contradicts another; the message names it.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context_length: int = 8192

    def __post_init__(self) -> None:
        _check_types(self)
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"high_frequency_factor={self.high_frequency_factor} must be above "
                f"low_frequency_factor={self.low_frequency_factor}"
            )


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT: everything needed to build it, nothing about how it is trained.

    Args:
        vocabulary_size: Number of token ids.
        context_length: Longest sequence, in tokens, that the model attends over.
        num_layers: Number of decoder blocks.
        hidden_dim: Width of the residual stream.
        num_heads: Number of query heads.
        num_key_value_heads: Number of key/value heads; fewer than `num_heads` is grouped-query attention
            (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245). `None` means `num_heads`.
        head_dim: Width of one head. `None` means `hidden_dim // num_heads`.
        intermediate_dim: Inner width of the feed-forward network. `None` means `4 * hidden_dim`.
        position: How order enters: `learned` (GPT-1, GPT-2), `sinusoidal` (Vaswani et al. 2017, section 3.5) or
            `rotary` (Su et al. 2021, https://arxiv.org/abs/2104.09864).
        rope_theta: Base of the rotary frequencies.
        rope_scaling: How they are slowed down for long contexts; a `RopeScaling`, or its fields as a dict.
        normalization: `layer_norm` (Ba et al. 2016) or `rms_norm` (Zhang and Sennrich 2019).
        norm_order: `pre` normalizes each sub-layer's input (GPT-2), `post` normalizes after the addition: the original
            Add & Norm (Vaswani et al. 2017, GPT-1).
        norm_epsilon: Added to the variance before the square root.
        feed_forward: `gelu` (tanh form, as GPT-1 and GPT-2), `gelu_exact`, `relu` or `swiglu` (Shazeer 2020,
            https://arxiv.org/abs/2002.05202).
        qk_norm: RMS-normalize every query and key head before the dot product (Henry et al. 2020; Qwen3).
        use_bias: Biases in the linear layers: in all of them, in none, or in those of `attention` or `feed_forward`.
        tie_embeddings: The output head shares the token embedding's table (Press and Wolf 2017).
        dropout: Rate after the embedding, on the attention probabilities and after each sub-layer.
        initializer_range: Standard deviation of the initial weights; projections back into the residual stream are
            further divided by sqrt(2 * num_layers) (GPT-2, section 2.3).

    Raises:
        ValueError: A field is out of range or contradicts another; the message names it.
    """

    vocabulary_size: int
    context_length: int = 1024
    num_layers: int = 12
    hidden_dim: int = 768
    num_heads: int = 12
    # These three follow from others where they are not given, and are whole numbers from then on.
    num_key_value_heads: int = None  # type: ignore[assignment]
    head_dim: int = None  # type: ignore[assignment]
    intermediate_dim: int = None  # type: ignore[assignment]
    position: Literal["learned", "sinusoidal", "rotary"] = "learned"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    normalization: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_order: Literal["pre", "post"] = "pre"
    norm_epsilon: float = 1e-5
    feed_forward: Literal["gelu", "gelu_exact", "relu", "swiglu"] = "gelu"
    qk_norm: bool = False
    use_bias: bool | Literal["attention", "feed_forward"] = True
    tie_embeddings: bool = True
    dropout: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        _check_types(self)
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_heads)
        if self.head_dim is None:
            if self.hidden_dim % self.num_heads:
                raise ValueError(
                    f"hidden_dim={self.hidden_dim} is not divisible by num_heads={self.num_heads}; "
                    "change one of them or set head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_dim // self.num_heads)
        if self.intermediate_dim is None:
            object.__setattr__(self, "intermediate_dim", 4 * self.hidden_dim)
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_key_value_heads={self.num_key_value_heads}"
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of dimensions: head_dim={self.head_dim} must be even")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")

    def has_bias(self, part: str) -> bool:
        """Whether the linear layers of `part`, `attention` or `feed_forward`, have biases."""
        return self.use_bias in (True, part)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return dataclasses.asdict(self)

    def weight_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Path and shape of every weight of a `GPT` of this configuration, in the model's order, none built."""
        width, inner = self.hidden_dim, self.intermediate_dim
        queries, keys = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim

        def dense(path: str, shape: tuple[int, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
            yield f"{path}/kernel", shape
            if self.has_bias(path.split("/")[1]):
                yield f"{path}/bias", shape[1:]

        def norm(path: str) -> Iterator[tuple[str, tuple[int, ...]]]:
            yield f"{path}/scale", (width,)
            if self.normalization == "layer_norm":
                yield f"{path}/bias", (width,)

        yield "embedding/token_embedding", (self.vocabulary_size, width)
        if self.position == "learned":
            yield "embedding/position_embedding", (self.context_length, width)
        for block in (f"block_{i}" for i in range(self.num_layers)):
            for name, units in (("query", queries), ("key", keys), ("value", keys)):
                yield from dense(f"{block}/attention/{name}", (width, units))
            yield from dense(f"{block}/attention/output", (queries, width))
            if self.qk_norm:
                yield f"{block}/attention/query_norm/scale", (self.head_dim,)
                yield f"{block}/attention/key_norm/scale", (self.head_dim,)
            yield from norm(f"{block}/attention_norm")
            if self.feed_forward == "swiglu":
                yield from dense(f"{block}/feed_forward/gate", (width, inner))
            yield from dense(f"{block}/feed_forward/up", (width, inner))
            yield from dense(f"{block}/feed_forward/down", (inner, width))
            yield from norm(f"{block}/feed_forward_norm")
        if self.norm_order == "pre":
            yield from norm("final_norm")
        if not self.tie_embeddings:
            yield "output_head/output_embedding", (self.vocabulary_size, width)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> GPTConfig:
        """A preset's configuration, with single fields replaced.

        Args:
            name: A key of `PRESETS`.
            **overrides: Fields to replace, e.g. `vocabulary_size=8192`.

        Raises:
            ValueError: Unknown preset (the message names the nearest) or invalid fields.
        """
        if name not in PRESETS:
            near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"unknown preset {name!r}: {hint}presets are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})


def _check_types(config: GPTConfig | RopeScaling) -> None:
    """Raise a ValueError that names the first field whose value is not of its type."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if value is None and field.default is None:
            continue
        kinds = [_describe(kind) for kind in (get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,))]
        if not any(fits(value) for _, fits in kinds):
            raise ValueError(f"{field.name} must be {' or '.join(words for words, _ in kinds)}, not {value!r}")
    for name in ("rope_theta", "factor", "low_frequency_factor"):
        if getattr(config, name, 1.0) == 0:
            raise ValueError(f"{name} must be above 0")


def _describe(kind: Any) -> tuple[str, Callable[[Any], bool]]:
    """What a field of this type holds: in words, and as a test of a value."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}", lambda value: value in get_args(kind)
    if kind is int:  # sizes and positions are int32
        return "a whole number of at least 1 and below 2**31", lambda value: type(value) is int and 1 <= value < 2**31
    if kind is float:
        return (
            "a number of at least 0",
            lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e38,
        )
    return "true or false" if kind is bool else kind.__name__, lambda value: isinstance(value, kind)


_GPT2 = {"vocabulary_size": 50257, "context_length": 1024}
_QWEN3 = {
    "position": "rotary",
    "normalization": "rms_norm",
    "norm_epsilon": 1e-6,
    "feed_forward": "swiglu",
    "qk_norm": True,
    "use_bias": False,
}
_LLAMA = {**_QWEN3, "qk_norm": False, "norm_epsilon": 1e-5}
_SMOLLM2 = {**_LLAMA, "vocabulary_size": 49152, "context_length": 8192, "rope_theta": 100000.0}

PRESETS: dict[str, dict[str, Any]] = {
    # The project's own small ones, of the Qwen3 type. nano is for tests and first steps, micro is the default.
    "nano": {
        **_QWEN3,
        "vocabulary_size": 1024,
        "context_length": 128,
        "num_layers": 2,
        "hidden_dim": 64,
        "num_heads": 2,
        "intermediate_dim": 192,
    },
    "micro": {
        **_QWEN3,
        "vocabulary_size": 4096,
        "context_length": 256,
        "num_layers": 4,
        "hidden_dim": 192,
        "num_heads": 3,
        "intermediate_dim": 512,
    },
    "mini": {
        **_QWEN3,
        "vocabulary_size": 16384,
        "context_length": 1024,
        "num_layers": 12,
        "hidden_dim": 512,
        "num_heads": 8,
        "intermediate_dim": 1536,
    },
    # Published shapes.
    "gpt": {
        "vocabulary_size": 40478,
        "context_length": 512,
        "norm_order": "post",
    },
    "gpt2": {**_GPT2},
    "gpt2-medium": {**_GPT2, "num_layers": 24, "hidden_dim": 1024, "num_heads": 16},
    "gpt2-large": {**_GPT2, "num_layers": 36, "hidden_dim": 1280, "num_heads": 20},
    "gpt2-xl": {**_GPT2, "num_layers": 48, "hidden_dim": 1600, "num_heads": 25},
    "smollm2-135m": {
        **_SMOLLM2,
        "num_layers": 30,
        "hidden_dim": 576,
        "num_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_dim": 1536,
    },
    "smollm2-360m": {
        **_SMOLLM2,
        "num_layers": 32,
        "hidden_dim": 960,
        "num_heads": 15,
        "num_key_value_heads": 5,
        "intermediate_dim": 2560,
    },
}
