"""SentencePiece's own ids at several times its speed: words that were met before are looked up, all at once.

In a BPE model no piece reaches over the place between a word and the space (or line's end) before the next one, so a
text's ids are the ids of its words one after another. `FastEncoder` cuts the bytes there with NumPy, hashes each word
to 64 bits, and finds in a table what SentencePiece gave for it; only new words go to SentencePiece. Most words of any
language are old after some megabytes.

Words of more than 32 bytes are never kept. Two of a million words have the same hash once in 30 million corpora.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.data.tokenizer import Tokenizer

_SPACE, _LINE = 32, 10
_LONGEST = 32
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93], np.uint64)
_MASKS = [
    np.array([(1 << 8 * min(8, max(0, length - first))) - 1 for length in range(_LONGEST + 1)], np.uint64)
    for first in range(0, _LONGEST, 8)
]
_COUNT_BITS = np.uint64(20)
_COUNT = np.uint64((1 << 20) - 1)


class FastEncoder:
    """Token ids of many texts as one array.

    Args:
        tokenizer: Any; one whose ids are not made word by word simply encodes.
        slots: Words that the table holds, a power of two.
    """

    def __init__(self, tokenizer: Tokenizer, slots: int = 1 << 19) -> None:
        self.tokenizer = tokenizer
        self._by_word = isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.encodes_by_word()
        self._shift = np.uint64(64 - (slots.bit_length() - 1))
        self._hashes = np.zeros(slots if self._by_word else 0, np.uint64)
        self._entries = np.zeros(len(self._hashes), np.uint64)  # place in the pool << 20 | number of ids
        self._pool = np.zeros(8 * len(self._hashes), np.uint32)
        self._used = 0
        self._rest = 0

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `texts` one behind the other (uint32 [tokens]), and where each text's ids end (int64 [texts]).

        Raises:
            InputError: As `Tokenizer.encode_batch`.
        """
        if not self._by_word or self._rest > 0:
            self._rest -= 1
            return self._encode_directly(texts)
        return self._encode_words([text.encode() for text in texts])

    def _encode_directly(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = self.tokenizer.encode_batch(texts)
        ends = np.cumsum([len(part) for part in ids], dtype=np.int64)
        flat = [token for part in ids for token in part]
        return np.array(flat, np.uint32), ends

    def _encode_words(self, raws: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        raw = b"".join(raws)
        text_ends = np.cumsum([len(part) for part in raws], dtype=np.int64)
        if not raw:
            return np.zeros(0, np.uint32), text_ends
        if self._used > len(self._pool) // 2:  # what is used often is back soon
            self._hashes[:] = 0
            self._used = 0
        starts, lengths = _words(raw, text_ends - np.diff(text_ends, prepend=0))
        hashes = _hash(raw, starts, lengths)
        slots = (hashes >> self._shift).astype(np.int64)
        entries = self._entries[slots]
        new = np.flatnonzero((self._hashes[slots] != hashes) | (lengths > _LONGEST))
        if len(new):
            if len(new) > max(len(starts) // 2, 10_000) and self._used:
                self._rest = 4  # words that do not come again, such as numbers: SentencePiece alone is faster
            first, last = starts[new].tolist(), (starts[new] + lengths[new]).tolist()
            entries[new] = self._learn([raw[a:b].decode() for a, b in zip(first, last, strict=True)])
            kept = new[lengths[new] <= _LONGEST]
            self._hashes[slots[kept]] = hashes[kept]
            self._entries[slots[kept]] = entries[kept]
        counts = (entries & _COUNT).view(np.int64)
        word_ends = np.cumsum(counts)
        places = np.repeat((entries >> _COUNT_BITS).view(np.int64) - (word_ends - counts), counts)
        places += np.arange(len(places))
        return self._pool[places], np.append(0, word_ends)[np.searchsorted(starts, text_ends)]

    def _learn(self, words: list[str]) -> np.ndarray:
        """Append the ids of `words` to the pool; their entries."""
        numbers: dict[str, int] = {}
        which = np.array([numbers.setdefault(word, len(numbers)) for word in words])
        ids, ends = self._encode_directly(list(numbers))
        begin, self._used = self._used, self._used + len(ids)
        if self._used > len(self._pool):
            self._pool = np.append(self._pool, np.zeros(self._used, np.uint32))
        self._pool[begin : self._used] = ids
        counts = np.diff(ends, prepend=0)
        entries = (begin + ends - counts).astype(np.uint64) << _COUNT_BITS | counts.astype(np.uint64)
        return entries[which]


def _words(raw: bytes, text_starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words begin and how many bytes they have: a word comes with the spaces before it, line ends are together
    with the spaces behind them and the word behind those."""
    data = np.frombuffer(raw, np.uint8)
    space, line = data == _SPACE, data == _LINE
    begins = np.empty(len(data), bool)
    begins[1:] = space[1:] & ~(space[:-1] | line[:-1])
    begins[1:] |= (line[1:] ^ line[:-1]) & ~(line[:-1] & space[1:])
    begins[text_starts[text_starts < len(data)]] = True
    starts = np.flatnonzero(begins)
    return starts, np.diff(starts, append=len(data))


def _hash(raw: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """64 bits of each word's first 32 bytes and its length; never 0."""
    padded = np.frombuffer(raw + bytes(_LONGEST), np.uint8)
    eights = np.ndarray(len(raw) + _LONGEST - 7, np.uint64, padded, strides=(1,))  # the 8 bytes from each byte on
    shown = np.minimum(lengths, _LONGEST)
    hashes = eights[starts] & _MASKS[0][shown]
    hashes += lengths.astype(np.uint64) << np.uint64(56)
    hashes *= _MULTIPLIERS[0]
    hashes ^= hashes >> np.uint64(32)
    for i in range(1, _LONGEST // 8):
        longer = np.flatnonzero(shown > 8 * i)
        if not len(longer):
            break
        part = eights[starts[longer] + 8 * i] & _MASKS[i][shown[longer]]
        part += hashes[longer]
        part *= _MULTIPLIERS[i]
        hashes[longer] = part ^ part >> np.uint64(29)
    hashes *= _MULTIPLIERS[1]
    hashes ^= hashes >> np.uint64(32)
    return hashes | np.uint64(1)
