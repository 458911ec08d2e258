"""Export a model for another runtime.

    python -m gpt_keras.export runs/default/model --format saved_model --output saved_models/default
    python -m gpt_keras.export runs/default/model --weights int8 --output saved_models/default
    python -m gpt_keras.export runs/default/model --format gguf --dtype q8_0 --output default.gguf
    python -m gpt_keras.export runs/default/model --format litert --weights int8 --output default.tflite
    python -m gpt_keras.export runs/chat/model --format litertlm --weights int8 --output chat.litertlm
    python -m gpt_keras.export runs/chat/adapter --format folder --output runs/chat/merged

A SavedModel gets the next free version, `saved_models/default/2` say, which TF Serving picks up; its signatures are
serving_default, generate, chat, score, classify, embed, tokenize and detokenize. A .gguf file is what llama.cpp runs. A
.tflite file is for LiteRT, with the functions `decode` and `prefill_<length>` that Google's LiteRT-LM engine calls, and
with the tokenizer in it for `python -m gpt_keras.generate default.tflite`. A .litertlm file is a bundle for the engine
itself: `litert-lm run default.litertlm`. A folder is a model folder; of an adapter, that of its base with the adapter
merged into it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from gpt_keras import command
from gpt_keras.backend import choose_backend, start_backend
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import check_replaceable


@dataclass
class ExportOptions:
    """Options of `python -m gpt_keras.export`.

    Args:
        model: A model folder, an adapter's folder, a .gguf file, hf:ORG/NAME or smollm2.
        output: For a SavedModel the folder inside which versions are made, for GGUF and LiteRT the file, else the
            folder.
        format: What to write: saved_model, gguf, litert, litertlm or folder.
        dtype: How GGUF stores matrices: f32, f16 (the default) or q8_0.
        weights: How a SavedModel stores matrices: float32 (the default), bfloat16 or int8; it computes in float32. Or a
            LiteRT file: float32 (the default), int8 or int4; it computes in 8 bits where it is not float32.
        context_length: Tokens that the cache of a LiteRT file or bundle holds; the model's context by default, but at
            most 1024.
        template: A file with a chat template, for a model without one, or instead of its own.
        max_new_tokens: Tokens that a request to a SavedModel gets unless it asks for another number; by default 128, or
            half of the context if that is less.
        quiet: Print nothing but where the export is.
    """

    POSITIONAL: ClassVar = ("model",)
    model: str
    output: Path
    format: Literal["saved_model", "gguf", "litert", "litertlm", "folder"] = "saved_model"
    dtype: Literal["f32", "f16", "q8_0"] | None = None
    weights: Literal["float32", "bfloat16", "int8", "int4"] | None = None
    context_length: int | None = None
    template: Path | None = None
    max_new_tokens: int | None = None
    quiet: bool = False


def main(options: ExportOptions) -> None:
    if options.format != "gguf" and options.dtype is not None:
        raise InputError("--dtype is for --format gguf; a SavedModel has --weights, and a model folder holds float32")
    if options.format != "saved_model" and options.template is not None:
        raise InputError("--template is for --format saved_model")
    few = ("float32", "int8", "int4")
    weights = {"saved_model": ("float32", "bfloat16", "int8"), "litert": few, "litertlm": few}
    if options.weights is not None and options.weights not in weights.get(options.format, ()):
        known = " and ".join(f"--format {name} ({', '.join(kinds)})" for name, kinds in weights.items())
        raise InputError(f"--weights {options.weights} is not for --format {options.format}; there is {known}")
    if not options.format.startswith("litert") and options.context_length is not None:
        raise InputError("--context-length is for --format litert and litertlm")
    if options.format == "gguf" and options.output.is_dir():
        raise InputError(f"--output {options.output} is a folder; name the .gguf file to write")
    if options.format == "folder":
        check_replaceable(options.output)
    suffix = {"litert": ".tflite", "litertlm": ".litertlm"}.get(options.format)
    if suffix is not None and options.output.suffix != suffix:
        raise InputError(f"--output {options.output}: name the {suffix} file to write")
    start_backend(choose_backend("tensorflow" if options.format in weights else None))
    from gpt_keras.data.conversations import read_template
    from gpt_keras.language_model import load

    lm = load(options.model, dtype="float32")
    if options.format == "gguf":
        from gpt_keras.exporting.gguf import export_gguf

        path, what = options.output, f"GGUF, {options.dtype or 'f16'}"
        export_gguf(lm.model, lm.tokenizer, path, options.dtype or "f16")
    elif options.format == "litert":
        from gpt_keras.exporting.litert import export_litert

        path, what = options.output, f"LiteRT, {options.weights or 'float32'}"
        export_litert(lm.model, lm.tokenizer, path, cast(Any, options.weights or "float32"), options.context_length)
    elif options.format == "litertlm":
        from gpt_keras.exporting.litertlm import export_litertlm

        path, what = options.output, f"LiteRT-LM, {options.weights or 'float32'}"
        chosen = cast(Any, options.weights or "float32")
        export_litertlm(lm.model, lm.text_tokenizer, path, chosen, options.context_length)
    elif options.format == "folder":
        path, what = options.output, "a model folder"
        lm.save(path)
    else:
        from gpt_keras.exporting.saved_model import export_saved_model

        tokenizer, stored = lm.text_tokenizer, cast(Any, options.weights or "float32")
        if options.template is not None:
            tokenizer = tokenizer.with_template(read_template(options.template))
        said: list[str] = []
        path = export_saved_model(lm.model, tokenizer, options.output, options.max_new_tokens, stored, said.append)
        what = ", ".join(["a SavedModel", stored, *said])
    if not options.quiet:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        print(f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB, {what}, written to")
    print(path)


def cli() -> int:
    return command.run(main, ExportOptions, "python -m gpt_keras.export")


if __name__ == "__main__":
    sys.exit(cli())
