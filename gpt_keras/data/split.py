"""Which documents are held out for validation: a pure function of the text, so no run ever trains on them.

By default documents are ordered by a hash of their text and the first ones are held out: about 5 % of the bytes, at
least 500 KB where that is at most a tenth of the corpus, at most 10 MB. Equal texts share a hash and so a side.
`tail:F` holds out the last fraction F of the bytes in order, as is customary for one long text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpt_keras.data.errors import InputError
from gpt_keras.data.sources import Document


@dataclass(frozen=True)
class Split:
    """A decision made once over a whole corpus; `divide` applies it to a document.

    Attributes:
        rule: What was asked for: a fraction such as `0.05`, `auto` or `tail:0.1`.
        hash_limit: Documents whose text hash is at most this are held out (`None` for `tail`).
        tail_start: Byte of the corpus at which the held-out tail begins (`None` otherwise).
        total_bytes: UTF-8 bytes of all documents.
    """

    rule: str
    hash_limit: int | None
    tail_start: int | None
    total_bytes: int

    def divide(self, documents: Iterable[Document]) -> Iterator[tuple[bool, Document]]:
        """Every document with whether it is held out; the one that the tail begins in comes in two parts."""
        start = 0
        for document in documents:
            if self.hash_limit is not None:
                yield text_hash(document.text) <= self.hash_limit, document
                continue
            assert self.tail_start is not None
            size = len(document.text.encode())
            if start < self.tail_start < start + size:
                raw = document.text.encode()
                cut = _line_before(raw, self.tail_start - start)
                if cut > 0:
                    yield False, Document(document.name, raw[:cut].decode())
                yield True, Document(document.name + "#tail", raw[cut:].decode())
            else:
                yield start >= self.tail_start, document
            start += size


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b of the UTF-8 text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def plan_split(documents: Iterable[Document], rule: str = "auto") -> Split:
    """Read the corpus once and decide what is held out.

    Args:
        documents: The whole corpus, in order.
        rule: `auto`, a fraction of the bytes such as `0.1`, or `tail:0.1`. One single document is always split as
            `tail`, there being no other to hold out.

    Raises:
        InputError: The corpus is empty, too small to split, or the rule makes no sense.
    """
    by_tail, fraction = _parse(rule)
    sizes: dict[int, int] = {}
    total = count = 0
    for document in documents:
        size = len(document.text.encode())
        sizes[text_hash(document.text)] = sizes.get(text_hash(document.text), 0) + size
        total, count = total + size, count + 1
    if count == 0:
        raise InputError("the corpus is empty: no document with any text in it")
    if by_tail or len(sizes) == 1:
        if fraction is None:
            fraction = 0.1
        cut = total - max(1, int(total * fraction))
        if cut <= 0 or (count == 1 and total < 2):
            raise InputError(f"the corpus is too small to hold anything out of its {total} bytes")
        return Split(f"tail:{fraction}", None, cut, total)
    wanted = total * fraction if fraction is not None else min(max(0.05 * total, min(5e5, 0.1 * total)), 1e7)
    held_out, limit = 0, -1
    for digest in sorted(sizes)[: len(sizes) - 1]:
        if held_out >= wanted:
            break
        held_out, limit = held_out + sizes[digest], digest
    return Split(rule, limit, None, total)


def _line_before(raw: bytes, cut: int) -> int:
    """The last line's end before `cut`, or the last whole character's where the line is all there is; 0 for neither."""
    line = raw.rfind(b"\n", 0, cut) + 1
    if line:
        return line
    while cut > 0 and raw[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _parse(rule: str) -> tuple[bool, float | None]:
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
