"""Pictures of what a decoder does with a prompt: where every head of every layer looks, and what may come next.

    lm = gpt_keras.load("runs/default/model")
    draw_attention(lm, "def main(", "attention.png")        all heads
    draw_attention(lm, "def main(", layer=0)                one layer's, large, as a figure for a notebook
    look(lm, "def main(").next_tokens                       the numbers alone

A row of a map is a token, a column is a token that it may look at: itself or an earlier one. Each row adds up to 1.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt_keras.language_model import LanguageModel

MAX_TOKENS = 256
"""Longer prompts make maps that no picture shows."""
MAX_TOP = 30
PICTURES = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 150

_VISIBLE = {" ": "·", "\n": "↵", "\t": "→"}
_INK, _FAINT, _EDGE, _UNSEEN, _BAR = "#222222", "#666666", "#bbbbbb", "#eeeeee", "#2f6fae"
_COLOR_MAP = "Blues"


@dataclass(frozen=True)
class Inspection:
    """What a model makes of a prompt.

    Attributes:
        prompt: The text.
        tokens: Each token that the model sees, in visible characters (`display_text`).
        attention: For each layer float32 [num_heads, length, length] (`GPT.attention_maps`).
        next_tokens: The most probable next tokens, in visible characters, with their probabilities, in falling order.
    """

    prompt: str
    tokens: list[str]
    attention: list[np.ndarray]
    next_tokens: list[tuple[str, float]]

    def attends_to(self, count: int, layer: int | None = None) -> list[list[tuple[int, float]]]:
        """The `count` places that each token looks at most, with their shares, in falling order.

        Shares are means over the heads of `layer`, or over all heads of all layers.
        """
        chosen = self.attention if layer is None else [self.attention[layer]]
        mean = np.mean([maps.mean(axis=0) for maps in chosen], axis=0)
        return [[(int(p), float(row[p])) for p in np.argsort(-row[: q + 1])[:count]] for q, row in enumerate(mean)]


def look(lm: LanguageModel, prompt: str, top: int = 10) -> Inspection:
    """Run the model on `prompt`.

    Args:
        lm: A model with its tokenizer.
        prompt: At least one character, at most `MAX_TOKENS` tokens.
        top: How many next tokens to name, at most `MAX_TOP`.

    Raises:
        InputError: The prompt or `top` is out of range, or the model has no tokenizer.
    """
    check_request(prompt, top)
    tokenizer = lm.tokenizer
    if tokenizer is None:
        raise InputError("this model has no tokenizer: there is no text that it could be shown to read")
    ids = tokenizer.encode_prompt(prompt)
    longest = min(lm.config.context_length, MAX_TOKENS)
    if len(ids) > longest:
        why = "the model's context" if longest < MAX_TOKENS else "what a picture shows"
        raise InputError(f"the prompt has {len(ids)} tokens, more than {why}: shorten it to {longest} tokens or fewer")
    token_ids = np.array([ids], np.int32)
    attention = [np.asarray(maps)[0] for maps in lm.model.attention_maps(token_ids)]
    logits, _ = lm.model.step(token_ids, select=np.array([len(ids) - 1], np.int32))
    scores = np.asarray(logits)[0, 0].astype(np.float64)
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    best = np.argsort(-probabilities, kind="stable")[:top]
    return Inspection(
        prompt=prompt,
        tokens=[display_text(tokenizer, i) for i in ids],
        attention=attention,
        next_tokens=[(display_text(tokenizer, int(i)), float(probabilities[i])) for i in best],
    )


def check_request(prompt: str, top: int) -> None:
    """Raise an `InputError` for what `look` cannot take, whatever the model."""
    if not prompt:
        raise InputError("the prompt is empty: give at least one character")
    if not 1 <= top <= MAX_TOP:
        raise InputError(f"top must be from 1 to {MAX_TOP}, not {top}")


def check_layer(layer: int | None, num_layers: int) -> None:
    """Raise an `InputError` for a layer that the model does not have."""
    if layer is not None and not 0 <= layer < num_layers:
        raise InputError(f"layer {layer} is out of range: the model's {num_layers} layers are 0 to {num_layers - 1}")


def check_picture(path: str | Path) -> None:
    """Raise an `InputError` for a path that no picture can be written to."""
    if Path(path).suffix.lower() not in PICTURES:
        raise InputError(f"{path}: pictures are written as {', '.join(PICTURES)}; give the file one of these endings")
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")


def display_text(tokenizer: Tokenizer, token_id: int) -> str:
    """What a token adds to a text, in visible characters; a special token by its name.

    A space is shown as `·`, a newline as `↵`, a tab as `→`, a byte that is part of a character as `\\xe4`.
    """
    raw = tokenizer.token_bytes(token_id)
    if raw:
        return visible(tokenizer.restore(raw.decode("utf-8", "backslashreplace")))
    return tokenizer.piece(token_id) if token_id < tokenizer.vocabulary_size else f"<{token_id}>"


def visible(text: str) -> str:
    """`text` with spaces, newlines and other characters that leave no ink made visible."""
    return "".join(_VISIBLE.get(c) or (c if c.isprintable() else _escape(c)) for c in text)


def draw_attention(
    lm: LanguageModel, prompt: str, path: str | Path | None = None, layer: int | None = None, top: int = 10
) -> Figure:
    """Draw where each head looks when the model reads `prompt`, and its most probable next tokens.

    Args:
        lm: A model with its tokenizer.
        prompt: See `look`.
        path: Where to write the picture, .png, .svg or .pdf.
        layer: One layer's heads, large; `None` for all layers as rows and heads as columns.
        top: How many next tokens.

    Returns:
        A figure of its own, which `pyplot` does not know of; a notebook shows it as a cell's last value.

    Raises:
        InputError: A prompt, layer, `top` or path that cannot be used.
    """
    if path is not None:
        check_picture(path)
    check_layer(layer, lm.config.num_layers)
    figure = draw(look(lm, prompt, top), layer)
    if path is not None:
        save_picture(figure, path)
    return figure


def save_picture(figure: Figure, path: str | Path) -> None:
    """Write the figure whole or not at all.

    Raises:
        InputError: The path has no picture's ending, or cannot be written.
    """
    check_picture(path)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=DOTS_PER_INCH, format=Path(path).suffix[1:].lower())


def draw(inspection: Inspection, layer: int | None = None) -> Figure:
    """The picture of an `Inspection`; see `draw_attention`."""
    from matplotlib.figure import Figure

    length = len(inspection.tokens)
    num_layers, num_heads = len(inspection.attention), len(inspection.attention[0])
    check_layer(layer, num_layers)
    if layer is None:
        maps = [head for heads in inspection.attention for head in heads]
        columns, rows = num_heads, num_layers
        cell = min(2.8, max(0.6, 12.6 / max(rows, columns)))
        what = f"{_count(num_layers, 'layer')} of {_count(num_heads, 'head')}"
    else:
        maps = list(inspection.attention[layer])
        columns = math.ceil(math.sqrt(num_heads))
        rows = math.ceil(num_heads / columns)
        cell = min(5.2, max(2.8, 0.16 * length))
        what = f"layer {layer} (of 0 to {num_layers - 1}), {_count(num_heads, 'head')}"
    labels = _TokenLabels(inspection.tokens, cell)
    bars = [(_cut(_drawable(text), 16), probability) for text, probability in inspection.next_tokens]
    bar_label = max(_width(text, 8) for text, _ in bars)

    # Everything is placed in inches from the top left corner.
    each = layer is not None  # every panel has labels of its own, else those at the left and the bottom edge do
    gap = (labels.space + 0.28, labels.space + 0.36) if each else (0.05 * cell + 0.03, 0.05 * cell + 0.03)
    left = labels.space + (0.2 if each else 0.34)
    top = 1.36
    across, down = columns * cell + (columns - 1) * gap[0], rows * cell + (rows - 1) * gap[1]
    bar_left, bar_width, bar_height = left + across + 0.5 + bar_label, 2.0, 0.24 * len(bars) + 0.1
    width = max(bar_left + bar_width + 0.6, 8.0)
    height = top + max(down + labels.space + 0.25, bar_height + 1.5)
    figure = Figure(figsize=(width, height), facecolor="white")

    def axes(from_left: float, from_top: float, wide: float, high: float) -> Axes:
        return figure.add_axes((from_left / width, 1 - (from_top + high) / height, wide / width, high / height))

    def write(from_left: float, from_top: float, text: str, size: float, **style: Any) -> None:
        style = {"color": _INK, "va": "baseline", "parse_math": False, **style}
        figure.text(from_left / width, 1 - from_top / height, text, fontsize=size, **style)

    fits = int((width - 0.8) * 11.5)
    write(0.2, 0.34, "Where each token looks", 14, weight="bold")
    write(0.2, 0.58, _cut(f"{what}, {_count(length, 'token')}:  {_drawable(visible(inspection.prompt))}", fits), 9)
    note = "Each row is a token, each column a token it may gather from: itself or an earlier one. Rows add up to 1."
    note += "" if labels.fit else " Numbers are places in the text."
    write(0.2, 0.8, note, 8, color=_FAINT)

    for number, probabilities in enumerate(maps):
        row, column = divmod(number, columns)
        x, y = left + column * (cell + gap[0]), top + row * (cell + gap[1])
        panel = axes(x, y, cell, cell)
        image = _draw_map(panel, probabilities)
        last = each or row == rows - 1
        labels.put(panel, beside=each or column == 0, below=last)
        if each or row == 0:
            write(x + cell / 2, y - 0.07, f"head {column + (row * columns if each else 0)}", 9, ha="center")
        if not each and column == 0:
            write(0.24, y + cell / 2, f"layer {row}", 9, rotation=90, ha="center", va="center")

    write(bar_left, top - 0.07, "next token", 9)
    _draw_next(axes(bar_left, top, bar_width, bar_height), bars)
    scale = axes(bar_left, top + bar_height + 0.57, bar_width, 0.13)
    write(bar_left, top + bar_height + 0.5, "attention", 9)
    _draw_scale(figure, scale, image)
    return figure


class _TokenLabels:
    """The tokens along the axes of a map, or counts of them where they do not fit.

    Args:
        tokens: In visible characters.
        cell: Inches of a map's side.

    Attributes:
        space: Inches that the labels need beside or below a map.
    """

    def __init__(self, tokens: Sequence[str], cell: float) -> None:
        self.length = len(tokens)
        self.size = min(8.0, 0.88 * 72 * cell / self.length)
        self.fit = self.size >= 4.8
        self.texts = [_cut(_drawable(token), 14) for token in tokens]
        self.space = max(_width(text, self.size) for text in self.texts) + 0.06 if self.fit else 0.25

    def put(self, panel: Axes, beside: bool, below: bool) -> None:
        """Label the left and the lower edge of `panel`, as asked."""
        panel.tick_params(length=0, pad=2, labelsize=self.size if self.fit else 6, labelcolor=_INK)
        if self.fit:
            places, texts = list(range(self.length)), self.texts
        else:
            step = next(s for s in (5, 10, 20, 50, 100) if self.length / s <= 5 or s == 100)
            places = list(range(0, self.length, step))
            texts = [str(place) for place in places]
        panel.set_xticks(places if below else [])
        panel.set_yticks(places if beside else [])
        if below:
            panel.set_xticklabels(texts, rotation=90 if self.fit else 0, parse_math=False)
        if beside:
            panel.set_yticklabels(texts, parse_math=False)


def _draw_map(panel: Axes, probabilities: np.ndarray) -> Any:
    """One head's map; what the mask hides is left out, which is not the same as a probability of 0."""
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    hidden = np.triu(np.ones(probabilities.shape, bool), 1)
    # The square root of the probability: most attention is thinly spread, and would not be seen.
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
    image = panel.imshow(np.ma.array(probabilities, mask=hidden), cmap=colormaps[_COLOR_MAP], norm=norm, aspect="auto")
    panel.set_facecolor(_UNSEEN)
    for spine in panel.spines.values():
        spine.set(color=_EDGE, linewidth=0.6)
    return image


def _draw_next(panel: Axes, bars: Sequence[tuple[str, float]]) -> None:
    """The next token's candidates, the most probable on top."""
    places = range(len(bars))
    shares = [probability for _, probability in bars]
    panel.barh(places, shares, height=0.68, color=_BAR)
    panel.set_ylim(len(bars) - 0.5, -0.5)
    panel.set_xlim(0, max(shares))
    panel.set_xticks([])
    panel.set_yticks(places, [text for text, _ in bars], parse_math=False)
    panel.tick_params(length=0, labelsize=8, labelcolor=_INK)
    panel.set_facecolor("none")
    for spine in panel.spines.values():
        spine.set_visible(False)
    for place, share in zip(places, shares, strict=True):
        panel.annotate(
            percent(share), (share, place), (4, 0), textcoords="offset points", va="center", fontsize=8, color=_FAINT
        )


def _draw_scale(figure: Figure, panel: Axes, image: Any) -> None:
    """The colour bar."""
    bar = figure.colorbar(image, cax=panel, orientation="horizontal", ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_xticklabels(["0", "5 %", "20 %", "50 %", "100 %"])
    bar.ax.tick_params(length=2, labelsize=7, color=_EDGE, labelcolor=_INK)
    bar.outline.set(edgecolor=_EDGE, linewidth=0.6)


def percent(share: float) -> str:
    """`0.1234` as `12.3 %`."""
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0.0 else "< 0.1 %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _drawable(text: str) -> str:
    """`text` with the characters that the font lacks, and those that need a letter before them, as escapes."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_char_index
    return "".join(c if known(ord(c)) and not unicodedata.combining(c) else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _width(text: str, size: float) -> float:
    """Inches that `text` takes in the default font at `size` points."""
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    return float(TextPath((0, 0), text.replace("$", "S"), size=size).get_extents().x1) / 72
