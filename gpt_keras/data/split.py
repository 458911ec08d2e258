"""Which documents are held out for validation: a pure function of the corpus, so no run ever trains on them.

By default documents are ordered by a digest of their text and the first ones are held out: about 5 % of the bytes, at
least 500 KB where that is at most a tenth of the corpus, at most 10 MB. Equal texts share a digest and so a side, and a
document that is nearly equal to another one (`gpt_keras.data.duplicates`) is never held out. `tail:F` holds out the
last fraction F of the bytes in order, as is customary for one long text; so is a tenth of a few texts, of which whole
ones would be far more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError
from gpt_keras.data.work_files import chunks

_BIN = np.uint64(48)
"""A digest's first 16 bits are its bin."""
_FEW, _TOO_MUCH = 16, 0.15
"""Of so few documents no more than this share of the bytes is held out beyond what was asked for."""


@dataclass(frozen=True)
class Split:
    """A decision made once over a whole corpus.

    Attributes:
        rule: A fraction such as `0.05`, `auto`, or `tail:0.1`, which may have been decided on.
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
        rule: `auto`, a fraction of the bytes such as `0.1`, or `tail:0.1`. It is `tail` where all texts are equal,
            there being no other to hold out, and where they are so few that whole ones would be far too much.

    Raises:
        InputError: The corpus is empty, too small to split, or the rule makes no sense.
    """
    by_tail, fraction = parse_rule(rule)
    tally = Tally()
    for chunk in chunks(len(digests), digests, sizes):
        tally.add(digests[chunk][kept[chunk]], sizes[chunk][kept[chunk]], alone[chunk][kept[chunk]])
    if tally.documents == 0:
        raise InputError("the corpus is empty: no document with any text in it")

    def tail() -> Split:
        share = 0.1 if fraction is None else fraction
        cut = tally.bytes - max(1, int(tally.bytes * share))
        if cut <= 0 or tally.bytes < 2:
            raise InputError(f"the corpus is too small to hold anything out of its {tally.bytes} bytes")
        return _tail(sizes, kept, cut, f"tail:{share}")

    if by_tail or tally.lowest == tally.highest:
        return tail()
    last_bin = tally.last_bin(rule)
    inside: dict[int, int] = {}
    for chunk in chunks(len(digests), digests, sizes):
        here = kept[chunk] & alone[chunk] & (digests[chunk] >> _BIN == np.uint64(last_bin))
        for digest, size in zip(digests[chunk][here].tolist(), sizes[chunk][here].tolist(), strict=True):
            inside[digest] = inside.get(digest, 0) + size
    split = tally.split(rule, inside)
    if tally.documents <= _FEW:
        here = np.flatnonzero(kept[:])
        few, lengths = digests[here], sizes[here]
        unlike = np.all(alone[here]) and len(np.unique(few)) == len(few)
        if unlike and lengths[split.held_out(0, few)].sum() > tally.wanted(rule) + _TOO_MUCH * tally.bytes:
            return tail()
    return split


class Tally:
    """What decides how many documents are held out, added up a few documents at a time, in any order.

    Attributes:
        documents: Of the corpus.
        bytes: Of their text.
        lowest: Their lowest digest.
        highest: Their highest digest.
        histogram: int64 [65536]; bytes of the documents that may be held out, by the first 16 bits of the digest.
    """

    def __init__(self) -> None:
        self.documents, self.bytes, self.lowest, self.highest = 0, 0, 2**64, -1
        self.histogram = np.zeros(1 << 16, np.int64)

    def add(self, digests: np.ndarray, sizes: np.ndarray, alone: np.ndarray) -> None:
        """Count documents in: digests, uint64; bytes; and whether they may be held out."""
        if len(digests):
            self.documents += len(digests)
            self.bytes += int(sizes.sum(dtype=np.int64))
            self.lowest = min(self.lowest, int(digests.min()))
            self.highest = max(self.highest, int(digests.max()))
            np.add.at(self.histogram, (digests[alone] >> _BIN).astype(np.int64), sizes[alone])

    def merge(self, other: Tally) -> None:
        """Count in what `other` has counted."""
        self.documents, self.bytes = self.documents + other.documents, self.bytes + other.bytes
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        self.histogram += other.histogram

    def last_bin(self, rule: str) -> int:
        """The bin of the histogram in which enough is held out."""
        return int(np.searchsorted(self._before(), self.wanted(rule))) - 1

    def split(self, rule: str, inside: dict[int, int]) -> Split:
        """The decision.

        Args:
            rule: A fraction, or `auto`.
            inside: The digests of the last bin, each with the bytes of its documents that may be held out.

        Raises:
            InputError: Nothing may be held out.
        """
        last_bin = self.last_bin(rule)
        held_out = int(self._before()[last_bin])
        limit = (last_bin << int(_BIN)) - 1
        for digest in sorted(inside):
            if held_out >= self.wanted(rule) or digest == self.highest:
                break
            held_out, limit = held_out + inside[digest], digest
        if held_out == 0:
            raise InputError(
                "there is nothing to hold out for validation: every document is nearly equal to another one; "
                "use --deduplicate near, or --validation tail:0.1"
            )
        return Split(rule, digest_limit=limit)

    def _before(self) -> np.ndarray:
        return np.cumsum(self.histogram) - self.histogram

    def wanted(self, rule: str) -> float:
        """How many bytes are to be held out, at least."""
        _, fraction = parse_rule(rule)
        total = self.bytes
        return total * fraction if fraction is not None else min(max(0.05 * total, min(5e5, 0.1 * total)), 1e7)


def _tail(sizes: np.ndarray, kept: Any, cut: int, rule: str) -> Split:
    passed = 0
    for chunk in chunks(len(sizes), sizes):
        here = np.where(kept[chunk], sizes[chunk], 0).astype(np.int64)
        ends = passed + np.cumsum(here)
        if ends[-1] > cut:
            number = int(np.searchsorted(ends, cut, side="right"))
            return Split(rule, tail_document=chunk.start + number, tail_byte=cut - int(ends[number] - here[number]))
        passed = int(ends[-1])
    raise AssertionError("the tail begins inside the corpus")


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
