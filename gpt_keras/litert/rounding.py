"""Matrices in 8 or 4 bits, each output with a scale of its own, rounded so that what they compute changes little.

Rounded to nearest, a matrix's errors add up in its products. Rounded one input after the other, each error can be made
up for by the inputs that are still to come, as far as they go along with it in what the matrix is multiplied with:
which is measured on text that the model writes itself.

Sources: Frantar et al. 2022, "GPTQ", https://arxiv.org/abs/2210.17323; Liu et al. 2023, "LLM-QAT",
https://arxiv.org/abs/2305.17888, for the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from gpt_keras.data.errors import InputError
from gpt_keras.generation import Generator
from gpt_keras.litert import graph
from gpt_keras.model import GPT
from gpt_keras.sampling_options import SamplingOptions

_ROWS, _LENGTH = 16, 256
_DAMPING = 0.01
"""Of the mean second moment, added to all: for what the text does not show."""
_BLOCK = 128
_MOST_BYTES = 2**30
"""Of second moments that are measured at a time."""
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True)
class Quantized:
    """A matrix [out, in] in few bits.

    Attributes:
        values: int8 [out, in], within 4 bits if so asked.
        scales: float32 [out]: what a 1 stands for.
        bits: 8 or 4.
    """

    values: np.ndarray
    scales: np.ndarray
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a file."""
        return -(-self.values.size * self.bits // 8) + self.scales.nbytes

    @property
    def dequantized(self) -> np.ndarray:
        """float32 [out, in]."""
        return self.values * self.scales[:, None]


def nearest(matrix: np.ndarray, bits: int, scales: np.ndarray | None = None) -> Quantized:
    """A matrix float32 [out, in], rounded to nearest; by default the largest of an output is the largest there is."""
    most = 2 ** (bits - 1) - 1
    if scales is None:
        scales = np.maximum(np.abs(matrix).max(1), 1e-30) / most
    values = np.rint(matrix / scales[:, None]).clip(-most, most)
    return Quantized(values.astype(np.int8), scales.astype(np.float32), bits)


def compensated(matrix: np.ndarray, moments: np.ndarray, bits: int) -> Quantized:
    """A matrix float32 [out, in], rounded so that its products with what `moments` is of change least.

    Args:
        matrix: The matrix.
        moments: Sum of x x^T over the vectors x that it is multiplied with, [in, in].
        bits: 8 or 4.
    """
    most = 2 ** (bits - 1) - 1
    scales = _scales(matrix, bits)
    moments = moments.astype(np.float64)
    moments = moments + np.eye(len(moments)) * (_DAMPING * np.diag(moments).mean() + 1e-30)
    order = np.argsort(-np.diag(moments))  # what matters most comes first, and is made up for by all others
    inverse = np.linalg.inv(moments[np.ix_(order, order)])
    factor = np.linalg.cholesky(inverse).T.astype(np.float32)
    left = np.ascontiguousarray(matrix.T[order])  # [in, out], what is still to be rounded
    values = np.empty(left.shape, np.int8)
    for start in range(0, len(left), _BLOCK):
        end = min(start + _BLOCK, len(left))
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for i in range(start, end):
            rounded = np.rint(left[i] / scales).clip(-most, most)
            values[i] = rounded
            errors[i - start] = (left[i] - rounded * scales) / factor[i, i]
            left[i + 1 : end] -= factor[i, i + 1 : end, None] * errors[i - start]
        left[end:] -= factor[start:end, end:].T @ errors
    found = np.empty_like(values)
    found[order] = values
    return Quantized(np.ascontiguousarray(found.T), scales, bits)


def _scales(matrix: np.ndarray, bits: int) -> np.ndarray:
    """Of each output, the one of a few that rounds it best; in 4 bits it pays to cut off the largest."""
    full = nearest(matrix, bits).scales
    if bits == 8:
        return full
    errors = [
        np.square(nearest(matrix, bits, full * shrink).dequantized - matrix, dtype=np.float32).sum(1)
        for shrink in _SHRINKS
    ]
    return full * np.array(_SHRINKS, np.float32)[np.argmin(errors, 0)]


def quantized(model: GPT, values: dict[str, np.ndarray], bits: int) -> dict[str, np.ndarray | Quantized]:
    """The values of a graph's weights, by `graph.weight_name`, all matrices that it multiplies with among them in few
    bits."""
    found: dict[str, np.ndarray | Quantized] = dict(values)
    ids = own_text(model)
    readers = graph.readers(model)
    progress = tqdm(total=len(readers), desc="rounding", unit="matrices", leave=False, disable=None)
    for group in _groups([(names, values[names[0]].shape[1]) for names in readers]):
        moments = graph.second_moments(model, values, ids, {names[0] for names in group})
        if not all(np.isfinite(value).all() for value in moments.values()):
            raise InputError("the model's activations are not finite: its weights are damaged")
        for names in group:
            for name in names:
                found[name] = compensated(values[name], moments[names[0]], bits)
            progress.update()
    progress.close()
    name = graph.table_name(model)
    table = found[name]
    if not isinstance(table, Quantized):  # it is looked up alone
        table = found[name] = nearest(values[name], bits)
    found[graph.REST] = nearest(values[name] - table.dequantized, 4)
    return found


def own_text(model: GPT) -> np.ndarray:
    """Token ids int32 [rows, length]: texts that the model writes, each from a random token on, and as many of random
    tokens alone, for what it would not write."""
    config = model.config
    length = min(_LENGTH, config.context_length)
    random = np.random.default_rng(0).integers(config.vocabulary_size, size=(2 * _ROWS, length), dtype=np.int32)
    if length > 1:
        options = SamplingOptions(max_new_tokens=length - 1, temperature=1.0, seed=0)
        written = Generator(model, None, frozenset()).complete(random[:_ROWS, :1].tolist(), options)
        random[:_ROWS, 1:] = [row[0].token_ids for row in written]
    return random


def _groups(sites: Sequence[tuple[Sequence[str], int]]) -> Iterator[list[Sequence[str]]]:
    """Such sites together as leave their moments, float32 [width, width] each, within bounds."""
    group: list[Sequence[str]] = []
    size = 0
    for names, width in sites:
        if group and size + 4 * width * width > _MOST_BYTES:
            yield group
            group, size = [], 0
        group.append(names)
        size += 4 * width * width
    if group:
        yield group
