"""Which documents are held out for validation: a pure function of the texts, so no run ever trains on them.

By default documents are ordered by a digest of their text and the first ones are held out: about 5 % of the bytes, at
least 500 KB where that is at most a tenth of the corpus, at most 10 MB. Equal texts share a digest and so a side, and a
document that is nearly equal to another one (`gpt_keras.data.duplicates`) is never held out. `tail:F` holds out the
last fraction F of the bytes in order, as is customary for one long text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Split:
    """A decision made once over a whole corpus.

    Attributes:
        rule: What was asked for: a fraction such as `0.05`, `auto` or `tail:0.1`.
        digest_limit: Documents whose digest is at most this are held out (`None` for `tail`).
        tail_document: Number of the document that the held-out tail begins in (`None` otherwise).
        tail_byte: Where in it.
    """

    rule: str
    digest_limit: int | None = None
    tail_document: int | None = None
    tail_byte: int = 0

    def held_out(self, first: int, digests: np.ndarray) -> np.ndarray:
        """Whether the documents from number `first` on, with these digests, are held out by the rule alone."""
        if self.digest_limit is not None:
            return digests <= np.uint64(self.digest_limit)
        assert self.tail_document is not None
        return np.arange(first, first + len(digests)) >= self.tail_document


def plan_split(digests: np.ndarray, sizes: np.ndarray, kept: Any, alone: np.ndarray, rule: str = "auto") -> Split:
    """Decide what is held out.

    Args:
        digests: uint64 [documents], of their texts. The arrays may be memory-mapped; little of them is held at a time.
        sizes: [documents], UTF-8 bytes.
        kept: bool [documents], or what gives slices of such an array; the others take no part.
        alone: bool [documents]; the others are nearly equal to another document and stay in training.
        rule: `auto`, a fraction of the bytes such as `0.1`, or `tail:0.1`. Where all texts are equal it is always
            `tail`, there being no other to hold out.

    Raises:
        InputError: The corpus is empty, too small to split, or the rule makes no sense.
    """
    by_tail, fraction = parse_rule(rule)
    total, count, lowest, highest = 0, 0, 2**64, -1
    # Bytes of the documents that may be held out, by the first 16 bits of the digest.
    histogram = np.zeros(1 << 16, np.int64)
    for chunk in _chunks(len(digests)):
        chosen = digests[chunk][kept[chunk]]
        total, count = total + int(sizes[chunk][kept[chunk]].sum(dtype=np.int64)), count + len(chosen)
        if len(chosen):
            lowest, highest = min(lowest, int(chosen.min())), max(highest, int(chosen.max()))
        able = kept[chunk] & alone[chunk]
        np.add.at(histogram, (digests[chunk][able] >> np.uint64(48)).astype(np.int64), sizes[chunk][able])
    if count == 0:
        raise InputError("the corpus is empty: no document with any text in it")
    if by_tail or lowest == highest:
        share = 0.1 if fraction is None else fraction
        cut = total - max(1, int(total * share))
        if cut <= 0 or total < 2:
            raise InputError(f"the corpus is too small to hold anything out of its {total} bytes")
        return _tail(sizes, kept, cut, f"tail:{share}")
    wanted = total * fraction if fraction is not None else min(max(0.05 * total, min(5e5, 0.1 * total)), 1e7)
    before = np.cumsum(histogram) - histogram
    last_bin = int(np.searchsorted(before, wanted)) - 1  # the bin in which enough is reached
    inside: dict[int, int] = {}
    for chunk in _chunks(len(digests)):
        here = kept[chunk] & alone[chunk] & (digests[chunk] >> np.uint64(48) == np.uint64(last_bin))
        for digest, size in zip(digests[chunk][here].tolist(), sizes[chunk][here].tolist(), strict=True):
            inside[digest] = inside.get(digest, 0) + size
    held_out = int(before[last_bin])
    limit = (last_bin << 48) - 1
    for digest in sorted(inside):
        if held_out >= wanted or digest == highest:
            break
        held_out, limit = held_out + inside[digest], digest
    if held_out == 0:
        raise InputError(
            "there is nothing to hold out for validation: every document is nearly equal to another one; "
            "use --deduplicate near, or --validation tail:0.1"
        )
    return Split(rule, digest_limit=limit)


def _tail(sizes: np.ndarray, kept: Any, cut: int, rule: str) -> Split:
    passed = 0
    for chunk in _chunks(len(sizes)):
        here = np.where(kept[chunk], sizes[chunk], 0).astype(np.int64)
        ends = passed + np.cumsum(here)
        if ends[-1] > cut:
            number = int(np.searchsorted(ends, cut, side="right"))
            return Split(rule, tail_document=chunk.start + number, tail_byte=cut - int(ends[number] - here[number]))
        passed = int(ends[-1])
    raise AssertionError("the tail begins inside the corpus")


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]


def line_before(raw: bytes, cut: int) -> int:
    """The last line's end before `cut`, or the last whole character's where the line is all there is; 0 for neither."""
    line = raw.rfind(b"\n", 0, cut) + 1
    if line:
        return line
    while cut > 0 and raw[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def parse_rule(rule: str) -> tuple[bool, float | None]:
    """Whether the rule is a tail, and its fraction, where it names one.

    Raises:
        InputError: It makes no sense.
    """
    by_tail = rule.startswith("tail:")
    number = rule.removeprefix("tail:")
    if rule == "auto":
        return False, None
    try:
        fraction = float(number)
    except ValueError:
        fraction = -1.0
    if not 0.0 < fraction < 1.0:
        raise InputError(f"validation {rule!r}: expected auto, a fraction such as 0.05, or tail:0.1")
    return by_tail, fraction
