"""From a model to LiteRT files: templates from the converter, weights around them, and quantization."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.litert import graph, rotation
from gpt_keras.litert.assembly import Template, assemble, prime_sizes, repack
from gpt_keras.litert.sizes import Sizes, row_name, row_sizes
from gpt_keras.model import GPT

Weights = Literal["float32", "int8", "int4"]


def row_file(model: GPT, weights: Weights) -> bytes:
    """A file of `graph.RowForm` for the project's own engine, with all functions of `sizes.row_sizes`."""
    config = model.config
    if config.context_length < 2:
        raise InputError("a LiteRT file needs a context of at least 2 tokens")
    turned, wanted = weights != "float32" and rotation.suits(model), row_sizes(config.context_length)

    def kind(sizes: Sizes) -> str:
        return "one" if sizes.length == 1 else "next" if sizes.slots else "first"

    primes = {
        "first": prime_sizes(config, slots=False),
        "next": prime_sizes(config, rows=False),
        "one": prime_sizes(config, length=False),
    }
    templates = {
        name: Template(graph.convert(model, graph.RowForm, primes[name], True, turned), primes[name])
        for name in {kind(sizes): None for sizes in wanted}
    }
    functions = [(row_name(size), templates[kind(size)], size) for size in wanted]
    return quantize(assemble(functions, _values(model, turned)), weights)


def engine_file(model: GPT, weights: Weights, context_length: int, prefill: Sequence[int]) -> bytes:
    """A file in the contract of LiteRT-LM, with `decode` and `prefill_<length>` for each of the lengths."""
    prompt, one = prime_sizes(model.config, rows=False), prime_sizes(model.config, rows=False, length=False)
    turned = weights != "float32" and rotation.suits(model)

    def template(sizes: Sizes, with_logits: bool) -> Template:
        return Template(graph.convert(model, graph.EngineForm, sizes, with_logits, turned), sizes)

    several = template(prompt, False)
    functions = [
        (f"prefill_{length}", several if length > 1 else template(one, False), Sizes(1, context_length, length))
        for length in prefill
    ]
    functions.append(("decode", template(one, True), Sizes(1, context_length, 1)))
    return quantize(assemble(functions, _values(model, turned)), weights)


def _values(model: GPT, turned: bool) -> dict[str, np.ndarray]:
    values = [np.asarray(variable, np.float32) for variable in model.weights]
    found = {}
    if turned:
        values, before_head = rotation.rotated(model)
        found = {graph.HEAD: before_head.T, graph.BLOCK: rotation.blocks(model.config.intermediate_dim)}
    for index, (variable, value) in enumerate(zip(model.weights, values, strict=True)):
        found[graph.weight_name(index)] = value.T if graph.is_kernel(variable) else value
    return found


def quantize(content: bytes, weights: Weights) -> bytes:
    """Matrices, the embedding's table among them, in fewer bits, each output (each row of the table) with a scale of
    its own; what they are multiplied with is quantized as it comes."""
    if weights == "float32":
        return content
    try:
        from ai_edge_quantizer import qtyping, quantizer
        from ai_edge_quantizer.recipe_manager import RecipeManager
    except ImportError as error:
        raise InputError(f"quantized LiteRT files need {error.name}: pip install 'gpt_keras[litert]'") from error
    recipe = RecipeManager()
    for operation in (qtyping.TFLOperationName.FULLY_CONNECTED, qtyping.TFLOperationName.EMBEDDING_LOOKUP):
        recipe.add_dynamic_config(
            regex=f"^(?!{graph.AS_IS})", operation_name=operation, num_bits=8 if weights == "int8" else 4
        )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), _quiet():
        path = Path(folder) / "float32.tflite"
        path.write_bytes(content)
        done = quantizer.Quantizer(str(path), recipe.get_quantization_recipe()).quantize()
        return repack(bytes(done.quantized_model))


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the quantizer's progress bars and remarks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
