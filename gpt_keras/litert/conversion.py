"""From a model to LiteRT files: templates from the converter, and weights around them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.folder import refuse_adapter
from gpt_keras.litert import graph, rotation, rounding
from gpt_keras.litert.assembly import Template, assemble, prime_sizes
from gpt_keras.litert.rounding import Quantized
from gpt_keras.litert.sizes import Sizes, row_functions
from gpt_keras.model import GPT

Weights = Literal["float32", "int8", "int4"]


def row_file(model: GPT, weights: Weights) -> bytes:
    """A file of `graph.RowForm` for the project's own engine, with the functions of `sizes.row_functions`."""
    refuse_adapter(model)
    config = model.config
    if config.context_length < 2:
        raise InputError("a LiteRT file needs a context of at least 2 tokens")
    primes = {True: prime_sizes(config), False: prime_sizes(config, length=False)}
    templates = {
        several: Template(graph.convert(model, graph.RowForm, sizes, True, weights != "float32"), sizes)
        for several, sizes in primes.items()
    }
    functions = [(name, templates[sizes.length != 1], sizes) for name, sizes in row_functions().items()]
    return assemble(functions, _values(model, weights))


def engine_file(
    model: GPT, weights: Weights, context_length: int, prefill: Sequence[int]
) -> tuple[bytes, dict[str, int]]:
    """A file in the contract of LiteRT-LM, with `decode` and `prefill_<length>` for each of the lengths; and how many
    bytes of it are what."""
    refuse_adapter(model)
    prompt, one = prime_sizes(model.config, rows=False), prime_sizes(model.config, rows=False, length=False)
    quantized = weights != "float32"

    def template(sizes: Sizes, with_logits: bool) -> Template:
        return Template(graph.convert(model, graph.EngineForm, sizes, with_logits, quantized), sizes)

    several = template(prompt, False)
    functions = [
        (f"prefill_{length}", several if length > 1 else template(one, False), Sizes(1, context_length, length))
        for length in prefill
    ]
    functions.append(("decode", template(one, True), Sizes(1, context_length, 1)))
    values = _values(model, weights)
    content = assemble(functions, values)
    parts: dict[str, int] = {}
    seen: set[bytes] = set()
    for name, value in values.items():
        if isinstance(value, np.ndarray):  # equal ones, scales that are all 1 say, are stored once
            if (digest := hashlib.sha256(np.ascontiguousarray(value).data).digest()) in seen:
                continue
            seen.add(digest)
        part = _part(model, name)
        parts[part] = parts.get(part, 0) + value.nbytes
    return content, {**parts, "graphs": len(content) - sum(parts.values())}


def _part(model: GPT, name: str) -> str:
    """What a value of `_values` is."""
    if name == graph.REST:
        return "what the table of embeddings lost"
    if name in (graph.HEAD, graph.BLOCK):
        return "rotations"
    path = next(v.path for i, v in enumerate(model.weights) if graph.weight_name(i) == name)
    if path.endswith("token_embedding"):
        return "token embeddings" + " and output head" * model.config.tie_embeddings
    kinds = {"output_head": "output head", "attention/": "attention", "feed_forward/": "feed-forward networks"}
    return next((kind for start, kind in kinds.items() if start in path), "norms and positions")


def _values(model: GPT, weights: Weights) -> Mapping[str, np.ndarray | Quantized]:
    arrays = [np.asarray(variable, np.float32) for variable in model.weights]
    more = {}
    if weights != "float32" and rotation.suits(model):
        arrays, before_head = rotation.rotated(model)
        more = {graph.HEAD: before_head.T, graph.BLOCK: rotation.blocks(model.config.intermediate_dim)}
    turned = (array.T if graph.is_kernel(v) else array for v, array in zip(model.weights, arrays, strict=True))
    values = {graph.weight_name(i): array for i, array in enumerate(turned)} | more
    return values if weights == "float32" else rounding.quantized(model, values, 8 if weights == "int8" else 4)
