"""`GPTConfig`, the only source of a model's shapes, and the presets that name whole families of them."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal


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
        normalization: `layer_norm` (Ba et al. 2016) or `rms_norm` (Zhang and Sennrich 2019).
        norm_order: `pre` normalizes each sub-layer's input (GPT-2), `post` normalizes after the addition: the original
            Add & Norm (Vaswani et al. 2017, GPT-1).
        norm_epsilon: Added to the variance before the square root.
        feed_forward: `gelu` (tanh form, as GPT-1 and GPT-2) or `swiglu` (Shazeer 2020,
            https://arxiv.org/abs/2002.05202).
        qk_norm: RMS-normalize every query and key head before the dot product (Henry et al. 2020; Qwen3).
        use_bias: Biases in the linear layers.
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
    normalization: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_order: Literal["pre", "post"] = "pre"
    norm_epsilon: float = 1e-5
    feed_forward: Literal["gelu", "swiglu"] = "gelu"
    qk_norm: bool = False
    use_bias: bool = True
    tie_embeddings: bool = True
    dropout: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_heads)
        if self.head_dim is None:
            if self.num_heads > 0 and self.hidden_dim % self.num_heads:
                raise ValueError(
                    f"hidden_dim={self.hidden_dim} is not divisible by num_heads={self.num_heads}; "
                    "change one of them or set head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_dim // max(1, self.num_heads))
        if self.intermediate_dim is None:
            object.__setattr__(self, "intermediate_dim", 4 * self.hidden_dim)
        for name in (
            "vocabulary_size",
            "context_length",
            "num_layers",
            "hidden_dim",
            "num_heads",
            "num_key_value_heads",
            "head_dim",
            "intermediate_dim",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_key_value_heads={self.num_key_value_heads}"
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of dimensions: head_dim={self.head_dim} must be even")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return dataclasses.asdict(self)

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


_CHOICES = {
    "position": ("learned", "sinusoidal", "rotary"),
    "normalization": ("layer_norm", "rms_norm"),
    "norm_order": ("pre", "post"),
    "feed_forward": ("gelu", "swiglu"),
}

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
        **_LLAMA,
        "vocabulary_size": 49152,
        "context_length": 8192,
        "num_layers": 30,
        "hidden_dim": 576,
        "num_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_dim": 1536,
        "rope_theta": 100000.0,
    },
}
