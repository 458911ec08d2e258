"""What a LiteRT file is, how large its parts are, how fast it runs here, and how well it agrees with Keras."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt_keras import __version__, machine
from gpt_keras.data.files import whole_file
from gpt_keras.model import GPT
from gpt_keras.rows import RowDecoder

_ROWS, _LENGTH = 4, 128


@dataclass(frozen=True)
class Figures:
    """What was measured on texts that the file wrote itself, one after the other.

    Attributes:
        tokens: How many it wrote.
        per_second: Tokens a second meanwhile.
        prompt: How many tokens the prompt has that was read.
        prompt_per_second: Tokens of it a second.
        agreement: Of how many tokens Keras in float32 gives the same one as the most probable, 0 to 1.
        perplexity: Of the texts, to the file.
        reference: The same, to Keras in float32.
    """

    tokens: int
    per_second: float
    prompt: int
    prompt_per_second: float
    agreement: float
    perplexity: float
    reference: float


def measure(decoder: RowDecoder, model: GPT) -> Figures:
    """Let the file write, and Keras read it.

    Args:
        decoder: Of the file.
        model: The model that the file was made of.
    """
    random, length = np.random.default_rng(0), min(_LENGTH, decoder.config.context_length)
    size = model.config.vocabulary_size
    same, ours, theirs, seconds = 0, [], [], 0.0
    for _ in range(_ROWS):
        text = [int(random.integers(size))]
        rows = decoder.start([text], length)
        best = []
        while True:
            logits = np.asarray(rows.logits)[0].astype(np.float64)
            logs = _log_softmax(logits)
            best.append(int(logits.argmax()))
            if len(text) == length:
                break
            text.append(int((logs + random.gumbel(size=size)).argmax()))  # drawn from the distribution
            ours.append(logs[text[-1]])
            start = time.perf_counter()
            rows.advance(np.array(text[-1:], np.int32))
            seconds += time.perf_counter() - start
        expected = np.asarray(model(np.array([text], np.int32)))[0].astype(np.float64)
        same += int((expected.argmax(-1) == best).sum())
        theirs += [_log_softmax(row)[token] for row, token in zip(expected, text[1:], strict=False)]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        decoder.start([random.integers(size, size=length).tolist()], 0)
        times.append(time.perf_counter() - start)
    return Figures(
        tokens=_ROWS * length,
        per_second=len(ours) / seconds,
        prompt=length,
        prompt_per_second=length / min(times),
        agreement=same / (_ROWS * length),
        perplexity=float(np.exp(-np.mean(ours))),
        reference=float(np.exp(-np.mean(theirs))),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted: np.ndarray = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def write_card(path: Path, model: GPT, weights: str, context: int, parts: Mapping[str, int], figures: Figures) -> Path:
    """Write the card of a file beside it, under its name and `.md`.

    Args:
        path: The file.
        model: What it was made of.
        weights: How its matrices are stored.
        context: Tokens that its cache holds.
        parts: Bytes of the file by what they are.
        figures: What was measured.
    """
    config = model.config
    rows = [
        ("parameters", f"{model.count_params():,}"),
        ("weights", weights),
        (
            "context",
            f"{context:,} tokens" + f", of the model's {config.context_length:,}" * (context != config.context_length),
        ),
        ("vocabulary", f"{config.vocabulary_size:,} tokens"),
        ("layers", str(config.num_layers)),
        ("width", f"{config.hidden_dim}, feed-forward networks {config.intermediate_dim}"),
        ("heads", f"{config.num_heads} of {config.head_dim}, keys and values of {config.num_key_value_heads}"),
        (
            "positions, norms, activation",
            f"{config.position}, {config.normalization} {config.norm_order}, {config.feed_forward}",
        ),
        ("embedding and output head", "one table" if config.tie_embeddings else "two tables"),
    ]
    total = sum(parts.values())
    change = figures.perplexity / figures.reference - 1
    lines = [
        f"# {path.name}",
        "",
        f"A language model for LiteRT, written by gpt_keras {__version__} on {datetime.date.today()}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "## Size",
        "",
        "| part | bytes | |",
        "|---|---:|---:|",
        *(f"| {name} | {size:,} | {size / total:.1%} |" for name, size in parts.items()),
        f"| all | {total:,} | |",
        "",
        "## Speed",
        "",
        f"On {machine.cores()} cores of {machine.processor()}, one text at a time:",
        f"{figures.per_second:,.0f} tokens/s written, a prompt of {figures.prompt} read at "
        f"{figures.prompt_per_second:,.0f} tokens/s.",
        "",
        "## Agreement with Keras in float32",
        "",
        f"On {figures.tokens:,} tokens of texts that it wrote itself, drawn from all that it holds possible: the same",
        f"most probable token in {figures.agreement:.1%} of the places; perplexity {figures.perplexity:.2f}, to Keras",
        f"{figures.reference:.2f} ({change:+.1%}).",
        "",
    ]
    card = path.with_name(f"{path.name}.md")
    with whole_file(card) as partial:
        partial.write_text("\n".join(lines), "utf-8")
    return card
