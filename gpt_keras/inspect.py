"""See what a model does with a prompt: where its heads look, and what it expects next.

    python -m gpt_keras.inspect runs/default/model --prompt "def main("
    python -m gpt_keras.inspect runs/default/model --prompt "def main(" --layer 0 --output layer.svg

Prints the most probable next tokens and where each token looks on average, and draws every head's attention. A space is
shown as ·, a newline as ↵.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gpt_keras import command
from gpt_keras.backend import choose_backend, start_backend

if TYPE_CHECKING:
    from gpt_keras.attention_maps import Inspection

ROWS = 24
"""Tokens that the table shows; the picture has them all."""


@dataclass
class InspectOptions:
    """Options of `python -m gpt_keras.inspect`.

    Args:
        model: A model folder, a .gguf file, hf:ORG/NAME or smollm2.
        prompt: The text to read.
        output: Where to draw the attention: a .png, .svg or .pdf file.
        layer: Look at this layer's heads alone, counted from 0; all layers by default.
        top: How many next tokens to name.
        json: Print the numbers as one JSON object.
        backend: tensorflow or jax; the environment's KERAS_BACKEND, else tensorflow.
    """

    POSITIONAL: ClassVar = ("model",)
    model: str
    prompt: str
    output: Path = Path("attention.png")
    layer: int | None = None
    top: int = 10
    json: bool = False
    backend: Literal["tensorflow", "jax"] | None = None


def main(options: InspectOptions) -> None:
    from gpt_keras import attention_maps

    attention_maps.check_request(options.prompt, options.top)
    attention_maps.check_picture(options.output)
    start_backend(choose_backend(options.backend))
    from gpt_keras.language_model import load

    lm = load(options.model, dtype="float32")
    attention_maps.check_layer(options.layer, lm.config.num_layers)
    inspection = attention_maps.look(lm, options.prompt, options.top)
    attention_maps.save_picture(attention_maps.draw(inspection, options.layer), options.output)
    if options.json:
        print(json.dumps(to_json(inspection, options)))
    else:
        show(inspection, options)


def to_json(inspection: Inspection, options: InspectOptions) -> dict[str, Any]:
    """The numbers, without the maps themselves."""
    attended = inspection.attends_to(3, options.layer)
    return {
        "prompt": inspection.prompt,
        "tokens": inspection.tokens,
        "next_tokens": [{"token": token, "probability": share} for token, share in inspection.next_tokens],
        "layer": options.layer,
        "attends_to": [[{"position": place, "share": share} for place, share in row] for row in attended],
        "picture": str(options.output),
    }


def show(inspection: Inspection, options: InspectOptions) -> None:
    """Two tables and where the picture is."""
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gpt_keras.attention_maps import percent

    console = Console()
    largest = inspection.next_tokens[0][1]
    console.print("Next token", style="bold")
    table = Table(show_header=False, box=None)
    table.add_column("token", max_width=24, no_wrap=True)
    table.add_column("probability", justify="right")
    table.add_column("bar")
    for token, share in inspection.next_tokens:
        table.add_row(Text(token), percent(share), Bar(largest, 0, share, width=28, color="blue"))
    console.print(table)

    first = max(0, len(inspection.tokens) - ROWS)
    heads = "all heads" if options.layer is None else f"the heads of layer {options.layer}"
    part = f", the last {ROWS} of {len(inspection.tokens)} tokens" if first else ""
    console.print(
        f"\nWhere each token looks most (mean of {heads}{part})", style="bold", highlight=False, soft_wrap=True
    )
    table = Table(show_header=False, box=None)
    table.add_column("place", justify="right", style="dim")
    table.add_column("token", max_width=24, no_wrap=True)
    table.add_column("looks at", no_wrap=True)
    for place, attended in enumerate(inspection.attends_to(3, options.layer)):
        if place >= first:
            places = "  ".join(f"{inspection.tokens[seen]} {100 * share:.0f} %" for seen, share in attended)
            table.add_row(str(place), Text(inspection.tokens[place]), Text(places))
    console.print(table)
    console.print(f"\nThe picture is in {options.output}", highlight=False, markup=False, soft_wrap=True)


def cli() -> int:
    return command.run(main, InspectOptions, "python -m gpt_keras.inspect")


if __name__ == "__main__":
    sys.exit(cli())
