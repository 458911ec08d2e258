"""Export a model folder for another runtime.

    python -m gpt_keras.export runs/default/model --format saved_model --output saved_models/default

writes the next free version, `saved_models/default/2` say, which TF Serving picks up.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt_keras import command
from gpt_keras.backend import choose_backend, start_backend


@dataclass
class ExportOptions:
    """Options of `python -m gpt_keras.export`.

    Args:
        model: A model folder.
        output: The exported model's folder; versions are made inside.
        format: What to write: saved_model.
        max_new_tokens: Most tokens that one request generates.
        quiet: Print nothing but where the export is.
    """

    model: Path
    output: Path
    format: Literal["saved_model"] = "saved_model"
    max_new_tokens: int = 128
    quiet: bool = False


def main(options: ExportOptions) -> None:
    start_backend(choose_backend("tensorflow"))
    from gpt_keras.exporting.saved_model import export_saved_model
    from gpt_keras.language_model import load

    lm = load(options.model, dtype="float32")
    path = export_saved_model(lm.model, lm.tokenizer, options.output, options.max_new_tokens)
    if not options.quiet:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(f"{size / 1e6:.1f} MB, signature serving_default: text -> generated_text, written to")
    print(path)


def cli() -> int:
    return command.run(main, ExportOptions, "python -m gpt_keras.export", positional=["model"])


if __name__ == "__main__":
    sys.exit(cli())
