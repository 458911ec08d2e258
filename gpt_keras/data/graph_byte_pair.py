"""Byte-level BPE (GPT-2, SmolLM2, Llama 3, Qwen) as TensorFlow operations, equal id for id to the `tokenizers` library.

A text is cut into words by the tokenizer's regular expressions, and each word's bytes are merged pair by pair in the
order of the merges, all words at once: every round merges, in each word, all places of the pair that comes first among
those it has (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; Radford et al. 2019).
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import tensorflow as tf

from gpt_keras.data.errors import InputError
from gpt_keras.data.graph_tokenizer import find, load_operations, rows_of, split
from gpt_keras.data.hub_tokenizer import HubTokenizer, byte_level_characters

Tensor = Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How ByteLevel cuts words (Radford et al. 2019)."""
_SPACES = r"\s\x0b\x85\p{Z}"
"""Unicode's White_Space inside of a class of RE2, whose own `\\s` is that of ASCII."""
_NONE = 2**62


class BytePairEncoder(tf.Module):
    """Texts to token ids.

    Args:
        tokenizer: Its tokenizer.json says how.

    Raises:
        InputError: It asks for something that is not built here; the message names it.
    """

    def __init__(self, tokenizer: HubTokenizer) -> None:
        super().__init__()
        content = json.loads(tokenizer.files["tokenizer.json"])
        model, vocabulary = content["model"], content["model"].get("vocab", {})
        characters = byte_level_characters()
        if '"ByteLevel"' not in json.dumps(content.get("pre_tokenizer")):
            raise _unsupported(f"the pre-tokenizer {json.dumps(content.get('pre_tokenizer'))}, which is not byte-level")
        self._steps = _word_patterns(content.get("pre_tokenizer"))
        self._composes = _composes(content.get("normalizer"))
        settings = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk")
        if model.get("type") != "BPE" or any(model.get(name) for name in settings):
            raise _unsupported(f"a model of type {model.get('type')} with these settings")
        unknown = vocabulary.get(model.get("unk_token"), -1)
        self._byte_ids = np.full(256, unknown, np.int32)  # -1 is left out
        for character, byte in characters.items():
            self._byte_ids[byte] = vocabulary.get(character, unknown)
        self._merges = _merge_table(model["merges"], vocabulary)
        self._whole: Any = None
        if model.get("ignore_merges"):  # a word that the vocabulary has is one token
            words = {tokenizer.token_bytes(token): token for token in vocabulary.values()}
            words.pop(b"", None)  # special tokens
            self._whole = _table(tf.constant(list(words)), tf.constant(list(words.values()), tf.int32), -1)
        self._added: dict[str, int] = {}
        for token in content.get("added_tokens", []):
            if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
                raise _unsupported(f"the added token {token['content']!r}, which looks at what is around it")
            if not token["special"]:
                self._added[token["content"]] = token["id"]
        self._added_pattern = "|".join(re.escape(text) for text in sorted(self._added, key=len, reverse=True)) or None

    def encode(self, texts: Tensor) -> tf.RaggedTensor:
        """int32 RaggedTensor [batch, (tokens)] of a string tensor [batch], valid UTF-8."""
        batch = tf.shape(texts, tf.int64)[0]
        if self._composes:
            texts = load_operations("normalize_ops").normalize_utf8(texts, normalization_form="NFC")
        words, rows = split(texts, self._added_pattern)
        known = find(words, self._added)
        for cut, pattern in self._steps:
            words, rows, known = _cut(words, rows, known, cut, pattern)
        if self._whole is not None:
            known = tf.where(known < 0, self._whole.lookup(words), known)
        symbols, numbers = self._merged(tf.where(known < 0, words, ""))
        tokens = tf.RaggedTensor.from_value_rowids(symbols, numbers, tf.shape(words, tf.int64)[0], validate=False)
        fixed = tf.RaggedTensor.from_row_lengths(
            tf.boolean_mask(known, known >= 0), tf.cast(known >= 0, tf.int64), validate=False
        )
        tokens = tf.concat([fixed, tokens], axis=1)
        return tf.RaggedTensor.from_value_rowids(tokens.values, tf.gather(rows, rows_of(tokens)), batch, validate=False)

    def _merged(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of words, string [words], one word behind the other: int32 [tokens], and each one's word."""
        count = tf.shape(words, tf.int64)[0]
        raw = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        symbols = tf.gather(self._byte_ids, tf.cast(raw, tf.int32))
        lengths = tf.cast(tf.strings.length(words), tf.int64)
        numbers = rows_of(tf.RaggedTensor.from_row_lengths(symbols, lengths, validate=False))
        symbols, numbers = tf.boolean_mask(symbols, symbols >= 0), tf.boolean_mask(numbers, symbols >= 0)

        def ranked(symbols: Tensor, numbers: Tensor) -> Tensor:
            """The rank of each pair of neighbours in one word with what it becomes, as one number; else `_NONE`."""
            found = self._merges.lookup(_key(tf.cast(symbols[:-1], tf.int64), tf.cast(symbols[1:], tf.int64)))
            return tf.where(numbers[:-1] == numbers[1:], found, _NONE)

        def goes_on(symbols: Tensor, numbers: Tensor, ranks: Tensor) -> Tensor:
            return tf.reduce_any(ranks < _NONE)

        def merge(symbols: Tensor, numbers: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            first = tf.gather(tf.math.unsorted_segment_min(ranks, numbers[:-1], count), numbers[:-1])
            taken = _every_second(tf.logical_and(ranks == first, ranks < _NONE))
            nothing = tf.constant([False])
            become = tf.concat([tf.cast(ranks & 0xFFFFFFFF, tf.int32), [0]], axis=0)
            symbols = tf.where(tf.concat([taken, nothing], axis=0), become, symbols)
            kept = tf.logical_not(tf.concat([nothing, taken], axis=0))
            symbols, numbers = tf.boolean_mask(symbols, kept), tf.boolean_mask(numbers, kept)
            return symbols, numbers, ranked(symbols, numbers)

        start = (symbols, numbers, ranked(symbols, numbers))
        symbols, numbers, _ = tf.while_loop(goes_on, merge, start, (tf.TensorShape([None]),) * 3)
        return symbols, numbers


def _every_second(chosen: Tensor) -> Tensor:
    """Of every run of places chosen, boolean [places], the first, third, fifth ...: pairs that do not overlap."""
    chosen = tf.concat([[False], chosen], axis=0)
    place = tf.range(tf.shape(chosen)[0])
    run = tf.cumsum(tf.cast(tf.logical_not(chosen), tf.int32)) - 1
    start = tf.boolean_mask(place, tf.logical_not(chosen))  # the place before each run
    return tf.logical_and(chosen, (place - tf.gather(start, run)) % 2 == 1)[1:]


def _merge_table(merges: list[Any], vocabulary: dict[str, int]) -> Any:
    """From a pair's `_key` to its rank and, in the lower half, the token that it becomes."""
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    ids = np.array([(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in pairs], np.int64).reshape(-1, 3)
    keys = _key(ids[:, 0], ids[:, 1])
    _, first = np.unique(keys, return_index=True)
    ranks = _key(np.arange(len(ids)), ids[:, 2])
    return _table(tf.constant(keys[first]), tf.constant(ranks[first]), _NONE)


def _key(high: Any, low: Any) -> Any:
    return high * 2**32 + low


def _table(keys: Tensor, values: Tensor, default: int) -> Any:
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)


def _cut(words: Tensor, rows: Tensor, known: Tensor, cut: str | None, pattern: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the words that are not `known` tokens further: before what `cut` matches, then around what `pattern` does."""
    words = tf.where(known < 0, words, "x")  # in place of a known token's text: one part
    if cut is not None:
        parts, origin = split(words, cut)
        begins = tf.logical_or(tf.strings.regex_full_match(parts, cut), origin != tf.concat([[-1], origin[:-1]], 0))
        number = tf.cumsum(tf.cast(begins, tf.int64)) - 1
        words = tf.strings.unsorted_segment_join(parts, number, tf.reduce_sum(tf.cast(begins, tf.int64)))
        origin = tf.boolean_mask(origin, begins)
        rows, known = tf.gather(rows, origin), tf.gather(known, origin)
    parts, origin = split(words, pattern)
    return parts, tf.gather(rows, origin), tf.gather(known, origin)


def _word_patterns(settings: dict[str, Any] | None) -> list[tuple[str | None, str]]:
    """The steps that cut a text into words, each as `_to_re2` has it."""
    kind = (settings or {}).get("type")
    if settings is None:
        return []
    if kind == "Sequence":
        return [step for part in settings["pretokenizers"] for step in _word_patterns(part)]
    if kind == "ByteLevel" and not settings.get("add_prefix_space"):
        return [_to_re2(_GPT2)] if settings.get("use_regex", True) else []
    if kind == "Digits":
        return [(None, r"\p{N}" if settings.get("individual_digits") else r"\p{N}+")]
    if kind == "Split" and settings["behavior"] == "Isolated" and not settings.get("invert"):
        pattern = settings["pattern"]
        return [_to_re2(pattern["Regex"]) if "Regex" in pattern else (None, re.escape(pattern["String"]))]
    raise _unsupported(f"the pre-tokenizer {json.dumps(settings)}")


def _to_re2(pattern: str) -> tuple[str | None, str]:
    r"""A regular expression with Unicode's white space and `\s+(?!\S)` for RE2, which has neither.

    The look-ahead takes of white space all but the last character, which the word behind it may begin with: so the
    text is cut there first.

    Returns:
        Where to cut before the match begins, or `None`, and the expression without the look-ahead.
    """
    cut = None
    if r"\s+(?!\S)" in pattern:
        pattern = pattern.replace(r"|\s+(?!\S)", "")
        ends = r"\r\n" if r"[\r\n]" in pattern else ""  # line ends that an earlier alternative takes
        cut = rf"{_white(ends)}[^{_SPACES}]"
    pattern = re.sub(r"\[[^\]]*\]|\\s", lambda found: _unicode_spaces(found[0]), pattern)
    if re.search(r"\(\?[=!<]|\\[dDwWbB]|[+*?]\+", pattern):
        raise _unsupported(f"the look-around, ASCII classes or possessive repetition of {pattern}")
    return cut, pattern


def _white(without: str) -> str:
    if not without:
        return f"[{_SPACES}]"
    return r"[\t\x0b\f \x85\p{Z}]"


def _unicode_spaces(found: str) -> str:
    return f"[{_SPACES}]" if found == r"\s" else found.replace(r"\s", _SPACES)


def _composes(normalizer: dict[str, Any] | None) -> bool:
    """Whether texts are composed (NFC) first."""
    if normalizer is None or (normalizer.get("type") == "Sequence" and not normalizer["normalizers"]):
        return False
    if normalizer.get("type") == "NFC":
        return True
    raise _unsupported(f"the normalizer {json.dumps(normalizer)}")


def _unsupported(what: str) -> InputError:
    return InputError(f"this tokenizer cannot be part of a TensorFlow graph, which has no operation for {what}")
