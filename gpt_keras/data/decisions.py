"""What becomes of each document, decided on disk between the two passes over a corpus: whether it is dropped as a
duplicate, held out, or trained on; and which ones a tokenizer's sample has.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from gpt_keras.data.cleaning import CleaningOptions
from gpt_keras.data.duplicates import BANDS, MARGIN, ROWS, Sorter, pairs_in_groups
from gpt_keras.data.errors import InputError
from gpt_keras.data.split import plan_split
from gpt_keras.data.stages import CUT, DOCUMENT, DROPPED, REASONS, TRAIN, VALIDATION, first_pairs
from gpt_keras.data.work_files import chunks, forget, read_note, table, write_note

BLOCK = np.dtype([("documents", "<u4"), ("source", "<u4")])


def decide(folder: Path, rule: str, cleaning: CleaningOptions, report: Callable[[int], None]) -> None:
    """Find duplicates, hold out, and write each document's fate to `decisions`, and what was decided to `split.json`.

    Args:
        folder: Of the preparation; the first pass over the text has filled it.
        rule: What to hold out.
        cleaning: Says which duplicates are dropped.
        report: Called with the number of documents that are done.

    Raises:
        InputError: There is no document, or nothing can be held out.
    """
    if read_note(folder / "split.json") is not None:
        return
    documents = table(folder / "documents", DOCUMENT)
    count = len(documents)
    if count == 0:
        raise InputError("the corpus is empty: no document with any text in it")
    report(0)
    mode = cleaning.deduplicate
    fate = np.memmap(folder / "decisions.part", np.uint8, "w+", shape=(count,))
    alone = np.memmap(folder / "alone", np.bool_, "w+", shape=(count,))
    for chunk in chunks(count, documents):
        reasons = documents["reason"][chunk]
        fate[chunk] = np.where(reasons > 0, DROPPED + reasons, TRAIN)
        alone[chunk] = True
    shown: dict[str, list[list[int]]] = {}
    # Documents that equal an earlier one are compared with others through that one.
    copies = np.memmap(folder / "copy", np.bool_, "w+", shape=(count,))
    equal = (folder / "equal").open("w+b")
    for pairs in _equal_pairs(folder, documents, fate):
        copies[pairs[:, 0]] = True
        if mode == "none":
            equal.write(pairs.tobytes())
        else:
            fate[pairs[:, 0]] = DROPPED + 1 + REASONS.index("exact_duplicate")
            shown["exact_duplicate"] = first_pairs(shown.get("exact_duplicate", []), pairs)
    for pairs, alike in _near_pairs(folder, documents, copies, cleaning.similarity, report):
        if mode == "near":
            drop = pairs[alike >= cleaning.similarity]
            fate[drop[:, 0]] = DROPPED + 1 + REASONS.index("near_duplicate")
            shown["near_duplicate"] = first_pairs(shown.get("near_duplicate", []), drop)
            pairs = pairs[alike < cleaning.similarity]
        alone[pairs.ravel()] = False
    equal.seek(0)
    while len(pairs := np.fromfile(equal, np.int64, 1 << 20).reshape(-1, 2)):
        alone[pairs[:, 0]] = alone[pairs[:, 1]]
    equal.close()
    digests, sizes = documents["digest"][:, 0], documents["size"]
    split = plan_split(digests, sizes, _Compared(fate, TRAIN), alone, rule)
    totals: Counter[str] = Counter()
    dropped_bytes: Counter[str] = Counter()
    for chunk in chunks(count, documents):
        held = split.held_out(chunk.start, digests[chunk]) & alone[chunk] & (fate[chunk] == TRAIN)
        fate[chunk] = np.where(held, VALIDATION, fate[chunk])
        for number, reason in enumerate(REASONS, DROPPED + 1):
            here = fate[chunk] == number
            if here.any():
                totals[reason] += int(here.sum())
                dropped_bytes[reason] += int(sizes[chunk][here].sum(dtype=np.int64))
    if split.tail_document is not None:
        fate[split.tail_document] = CUT if split.tail_byte > 0 else VALIDATION
    fate.flush()
    os.replace(folder / "decisions.part", folder / "decisions")
    record = {
        "split": dataclasses.asdict(split),
        "dropped": {r: {"documents": totals[r], "bytes": dropped_bytes[r]} for r in REASONS if totals[r]},
        "pairs": shown,
        "bytes": int(sum(int(sizes[chunk].sum(dtype=np.int64)) for chunk in chunks(count, documents))),
    }
    write_note(folder / "split.json", record)
    for name in ("alone", "copy", "equal", "bands", "signatures"):
        (folder / name).unlink(missing_ok=True)


def _equal_pairs(folder: Path, documents: np.ndarray, fate: np.ndarray) -> Iterator[np.ndarray]:
    """(document, the first one with the same text), some at a time."""
    sorter = Sorter(folder, len(documents))
    for chunk in chunks(len(documents), documents):
        numbers = np.arange(chunk.start, chunk.stop)[fate[chunk] == TRAIN]
        sorter.add(documents["digest"][numbers, 0], numbers)
    for _, numbers in sorter.groups():
        digests = documents["digest"][numbers]
        forget(documents)
        order = np.lexsort((numbers, digests[:, 1], digests[:, 0]))
        digests, numbers = digests[order], numbers[order]
        first = np.append(True, (digests[1:] != digests[:-1]).any(axis=1))[: len(numbers)]
        lead = np.maximum.accumulate(np.where(first, np.arange(len(numbers)), 0))
        yield np.stack([numbers[~first], numbers[lead[~first]]], axis=1)


def _near_pairs(
    folder: Path, documents: np.ndarray, copies: np.ndarray, limit: float, report: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(document, an earlier one that it is nearly equal to) and how similar they are, band by band."""
    bands = table(folder / "bands", np.dtype(np.uint64), BANDS)
    signatures = table(folder / "signatures", np.dtype(np.uint8), BANDS * ROWS)
    for band in range(BANDS):
        sorter = Sorter(folder, len(documents))
        for chunk in chunks(len(documents), documents, bands):
            numbers = np.arange(chunk.start, chunk.stop)[(documents["reason"][chunk] == 0) & ~copies[chunk]]
            sorter.add(bands[numbers, band], numbers)
        for keys, numbers in sorter.groups():
            yield from pairs_in_groups(keys, numbers, signatures, limit, limit - MARGIN)
        report(len(documents) * (band + 1) // BANDS)


class _Compared:
    """`array == value`, a slice at a time."""

    def __init__(self, array: np.ndarray, value: int) -> None:
        self._array, self._value = array, value

    def __getitem__(self, where: slice) -> np.ndarray:
        return self._array[where] == self._value


def sample_shares(folder: Path, weights: Sequence[float | None], sample_bytes: int) -> list[int]:
    """Which part of each source's training documents is in a sample: those whose `place_in_sample` is below this.

    Args:
        folder: Of the preparation, with its decisions.
        weights: Of the sources; `None` for all to draw from them as if they were one.
        sample_bytes: About how much text there is to be at most.
    """
    documents, blocks = table(folder / "documents", DOCUMENT), table(folder / "blocks", BLOCK)
    fates = np.memmap(folder / "decisions", np.uint8, "r")
    ends = np.cumsum(np.bincount(blocks["source"], blocks["documents"], len(weights))).astype(int).tolist()
    sizes = []  # by place in the sample
    for start, end in zip([0, *ends], ends, strict=False):
        size = np.zeros(1 << 16, np.int64)
        for chunk in chunks(end - start, documents):
            here = slice(start + chunk.start, start + chunk.stop)
            kept = documents[here][fates[here] == TRAIN]
            np.add.at(size, place_in_sample(kept), kept["size"])
        sizes.append(size)
    if None in weights:
        sizes = [np.sum(sizes, axis=0)] * len(sizes)
        budgets = [sample_bytes] * len(sizes)
    else:
        total = sum(weight for weight in weights if weight is not None)
        budgets = [int(sample_bytes * weight / total) for weight in weights if weight is not None]
    shares = [np.searchsorted(np.cumsum(s), budget, "right") for s, budget in zip(sizes, budgets, strict=True)]
    # Something of each source, however large its documents are.
    return [max(int(share), int(np.argmax(size > 0)) + 1) for share, size in zip(shares, sizes, strict=True)]


def place_in_sample(documents: np.ndarray) -> np.ndarray:
    """When documents are drawn, int64 from 0 to 65535: by the second half of the digest, as the first holds out."""
    return (documents["digest"][:, 1] >> np.uint64(48)).astype(np.int64)
