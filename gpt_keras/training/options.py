"""What a training run can be told. Imports no keras, so that the backend can still be chosen."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.training.scaling import scaled


@dataclass(kw_only=True)
class LoopOptions:
    """What `train` and `finetune` can both be told.

    Args:
        steps: Train for this many optimizer steps.
        minutes: Train for this many minutes.
        batch_size: Rows of context_length tokens in a step.
        optimizer: muon (for matrices, Adam for the rest) or adamw.
        learning_rate: Peak learning rate; for muon, that of the matrices.
        adam_ratio: With muon, Adam's learning rate as a share of learning_rate.
        weight_decay: Decoupled weight decay, on matrices only.
        schedule: Learning rate over the run: wsd, cosine or linear.
        warmup_steps: Steps over which the learning rate rises.
        decay: For wsd, the share of the run over which the rate falls to 0.
        clip_norm: Global norm that gradients are clipped to; 0 for none.
        accumulate: Go through each batch in so many parts and add up their gradients, for less memory.
        rematerialize: Compute the inside of each block again for the gradient instead of keeping it, for less memory.
        ema: Momentum of a moving average of the weights, 0.999 say, which is what is evaluated and saved; 0 for none.
        z_loss: Factor of the squared log of the softmax's normalizer in the loss, 1e-4 say; 0 for none.
        label_smoothing: Share of each target's probability that is spread over the vocabulary.
        seed: Of initial weights, data order and dropout, and of which records `finetune` holds out.
        precision: float32, mixed_bfloat16, or auto for the fastest here.
        deterministic: The same bits from the same steps on a GPU, too, which makes it slower; a CPU gives them anyway.
        backend: tensorflow or jax; the environment's KERAS_BACKEND, else tensorflow.
        checkpoint_minutes: Time between checkpoints.
        checkpoint_steps: Steps between checkpoints, instead.
        keep_checkpoints: How many of the newest stay, beside the best one on held-out data.
        evaluations: How many times held-out data is measured, the end included; `train` takes a sample along the way.
        evaluation_steps: Steps between two such measurements, instead.
        profile: Steps to profile for TensorBoard, as 20-25.
        wandb: Project of Weights & Biases to log to as well; needs the package wandb.
        spike_size: How far above its lowest smoothed value, in nats, the loss counts as a spike.
        spike_steps: How many steps in a row a spike may last before the run stops; 0 for ever.
        run_dir: Where everything of this run goes.
        restart: Put an existing run of that name aside and start from nothing.
        json: Print one JSON object as the last line.

    Raises:
        InputError: A value is out of range.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = None  # type: ignore[assignment]  # these three follow from others where they are not given
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = None  # type: ignore[assignment]
    adam_ratio: float = None  # type: ignore[assignment]
    weight_decay: float = 0.01
    schedule: Literal["wsd", "cosine", "linear"] = "wsd"
    warmup_steps: int = 20
    decay: float = 0.6
    clip_norm: float = 1.0
    accumulate: int = 1
    rematerialize: bool = False
    ema: float = 0.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    seed: int = 0
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    deterministic: bool = False
    backend: Literal["tensorflow", "jax"] | None = None
    checkpoint_minutes: float = 1.0
    checkpoint_steps: int | None = None
    keep_checkpoints: int = 2
    evaluations: int = 5
    evaluation_steps: int | None = None
    profile: str | None = None
    wandb: str | None = None
    spike_size: float = 1.0
    spike_steps: int = 200
    run_dir: Path = Path("runs/default")
    restart: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise InputError("give --steps or --minutes, not both")
        positive = ("batch_size", "accumulate", "learning_rate", "adam_ratio", "checkpoint_minutes", "keep_checkpoints")
        for name in (*positive, "steps", "minutes", "checkpoint_steps", "evaluation_steps", "spike_size"):
            self._check(name, above=True)
        for name in ("weight_decay", "warmup_steps", "clip_norm", "evaluations", "seed", "z_loss", "spike_steps"):
            self._check(name)
        if self.profile is not None and not _is_range(self.profile):
            raise InputError(f"--profile must be two steps, as 20-25, not {self.profile}")
        if self.wandb is not None and importlib.util.find_spec("wandb") is None:
            raise InputError("--wandb needs the package wandb: pip install wandb")
        if self.seed >= 2**32:
            raise InputError(f"--seed must be below {2**32}, not {self.seed}")
        if self.batch_size % self.accumulate:
            raise InputError(f"--accumulate {self.accumulate} does not divide --batch-size {self.batch_size}")
        for name in ("ema", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{flag(name)} must be at least 0 and below 1, not {getattr(self, name)}")
        if not 0.0 <= self.decay <= 1.0:
            raise InputError(f"--decay must be from 0 to 1, not {self.decay}")

    def _check(self, name: str, above: bool = False) -> None:
        """A number that is given is at least 0, or above it, and finite."""
        value = getattr(self, name)
        if value is not None and not ((value > 0 if above else value >= 0) and value < float("inf")):
            raise InputError(f"{flag(name)} must be {'above 0' if above else '0 or above'}, not {value}")


@dataclass(kw_only=True)
class TrainOptions(LoopOptions):
    """Options of `python -m gpt_keras.train`.

    Args:
        minutes: Train for this many minutes; 5.5 where no steps are given.
        batch_size: Windows of context_length tokens in a step; 8 without depth.
        learning_rate: Peak learning rate; for muon, that of the matrices; 0.02 without depth.
        adam_ratio: With muon, Adam's learning rate as a share of learning_rate; 0.3 without depth.
        data: What to learn from, one or several: paths, globs, python-stdlib, tfds:NAME or hf:ORG/NAME; or folders of
            prepared corpora. Each also as DATA=WEIGHT, to be drawn from in that proportion.
        text_key: Field of JSON records that holds the text.
        validation: What to hold out: auto, a fraction of the bytes such as 0.05, or tail:0.1.
        tokenizer: A tokenizer.model to use instead of training one on the data.
        vocabulary_size: Pieces of the tokenizer; the preset's number by default, or as many as the text bears.
        depth: One dial instead of a shape and a budget: so many layers, and width, heads, context, batch, learning
            rate and steps by published rules (gpt_keras.training.scaling), each unless it is given.
        preset: The model's shape, by name (gpt_keras.config.PRESETS).
        context_length: Tokens of context; the preset's number by default.
        num_layers: Decoder blocks; the preset's number by default.
        hidden_dim: Width; the preset's number by default.
        num_heads: Attention heads; the preset's number by default.
        intermediate_dim: Inner width of the feed-forward network; the preset's number by default.
        dropout: Dropout rate; the preset's rate by default.
        mask_documents: No token sees another document of its window, and positions restart with every document.
        distribution: Over several devices: data (each has rows of the batch), model (weights and the optimizer's state
            are divided, too; JAX), or auto, which divides them where they have no room. One device by default, and
            auto with several processes.
        mesh: Devices along the batch, and along the model, as 2x4; all along the batch by default.
        coordinator: HOST:PORT of the first of several processes, on one host or many; the same for all (JAX). SLURM and
            Cloud TPU tell it by themselves.
        processes: How many processes there are.
        process: The number of this one, from 0.
        sample_steps: Steps between samples, which go to samples.md; 0 for samples at the end only.
        export_dir: TF Serving's base path, where the trained model is exported under the run's name; null to skip.
        dry_run: Only show what the run would take: parameters, memory, arithmetic, tokens, time.

    Raises:
        InputError: A value is out of range.
    """

    data: list[str] = field(default_factory=lambda: ["python-stdlib"])
    text_key: str = "text"
    validation: str = "auto"
    tokenizer: Path | None = None
    vocabulary_size: int | None = None
    depth: int | None = None
    preset: str = "micro"
    context_length: int | None = None
    num_layers: int | None = None
    hidden_dim: int | None = None
    num_heads: int | None = None
    intermediate_dim: int | None = None
    dropout: float | None = None
    mask_documents: bool = False
    distribution: Literal["auto", "data", "model"] | None = None
    mesh: str | None = None
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    sample_steps: int = 0
    export_dir: Path | None = Path("saved_models")
    dry_run: bool = False

    def __post_init__(self) -> None:

        if isinstance(self.data, str):  # in Python, or in a recipe
            self.data = [self.data]
        if self.depth is not None:
            self._scale(self.depth)
        for name, value in (("batch_size", 8), ("learning_rate", 0.02), ("adam_ratio", 0.3)):
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.steps is None and self.minutes is None:
            self.minutes = 5.5
        super().__post_init__()
        self._check("sample_steps")
        if self.mesh is not None and self.distribution is None:
            raise InputError(f"--mesh {self.mesh} needs --distribution data, model or auto")
        _ = self.mesh_shape
        if self.context_length is not None and self.context_length < 8:
            raise InputError(f"--context-length must be at least 8, not {self.context_length}")

    @property
    def mesh_shape(self) -> tuple[int, int] | None:
        """`mesh` as devices along the batch and along the model."""
        if self.mesh is None:
            return None
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", self.mesh):
            raise InputError(f"--mesh must be two numbers of devices, as 2x4, not {self.mesh}")
        rows, _, columns = self.mesh.partition("x")
        return int(rows), int(columns or 1)

    def _scale(self, depth: int) -> None:
        """Fill what was not given by the rules for a depth."""
        if not 1 <= depth <= 200:
            raise InputError(f"--depth must be from 1 to 200, not {depth}")
        rules = scaled(depth)
        shape = {"num_layers": depth, "context_length": rules.context_length, "hidden_dim": rules.hidden_dim}
        shape |= {"num_heads": rules.num_heads, "intermediate_dim": rules.intermediate_dim}
        training = {"learning_rate": rules.learning_rate, "adam_ratio": 1.0}
        for name, value in (shape | training).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        assert self.context_length is not None
        if self.batch_size is None:
            self.batch_size = max(1, round(rules.batch_tokens / self.context_length))
        if self.steps is None and self.minutes is None:
            self.steps = max(1, round(rules.tokens / (self.batch_size * self.context_length)))

    def model_config(self, vocabulary_size: int | None = None) -> GPTConfig:
        """The preset with the shape fields that were given laid over it, and the tokenizer's vocabulary.

        Raises:
            InputError: Unknown preset, or a shape that contradicts itself.
        """
        fields = [name for name in SHAPE if name not in ("preset", "vocabulary_size")]
        overrides: dict[str, Any] = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        if vocabulary_size or self.vocabulary_size:
            overrides["vocabulary_size"] = vocabulary_size or self.vocabulary_size
        if "hidden_dim" in overrides or "num_heads" in overrides:
            overrides |= {"head_dim": None, "num_key_value_heads": None}
        try:
            return GPTConfig.from_preset(self.preset, **overrides)
        except ValueError as error:
            raise InputError(str(error)) from error


def flag(name: str) -> str:
    """How a field is given on the command line."""
    return "--" + name.replace("_", "-")


def _is_range(text: str) -> bool:
    parts = text.split("-")
    return len(parts) == 2 and all(part.isdecimal() for part in parts) and 0 < int(parts[0]) <= int(parts[1])


SHAPE = (
    "preset",
    "vocabulary_size",
    "context_length",
    "num_layers",
    "hidden_dim",
    "num_heads",
    "intermediate_dim",
    "dropout",
)
"""Options that make up the model's configuration."""

FIXED = ("data", "text_key", "validation", "tokenizer", "optimizer")
"""Options of a run that cannot change when it goes on; nor can the model's shape."""

UNTOLD = ("dry_run", "restart", "json", "run_dir", "export_dir", "coordinator", "processes", "process")
"""Options that change nothing in training."""
