"""The tokenizer in a .gguf file's metadata, from and to the files that a Hugging Face folder has of it.

llama.cpp knows two kinds that matter here. `llama` is SentencePiece's BPE: tokens with scores, and nothing else of the
model, so that SentencePiece's normalization is not applied there. `gpt2` is byte-level BPE: tokens and merges, and the
name of a way to split text into words before merging (`tokenizer.ggml.pre`), of which the file has no definition.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_keras.data.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens; SentencePiece has the same numbers."""
SPACE = "\u2581"

SENTENCEPIECE = "gpt_keras.sentencepiece"
"""Our own key: `tokenizer.model` without its pieces, so that reading gives back the very model that was written."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


@dataclass(frozen=True)
class Splitting:
    """How text is split into words before merging.

    Attributes:
        names: Values of `tokenizer.ggml.pre`; the first is written.
        patterns: Regular expressions, one after the other; what lies between their matches is a word too.
        ignore_merges: A word that is a token as a whole is not merged from its bytes.
        normal_form_c: Hugging Face's tokenizers of this kind normalize first. llama.cpp does not.
        adds_begin: Whether a text begins with the begin token where the file does not say.
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    normal_form_c: bool = False
    adds_begin: bool = False


SPLITTINGS = (
    Splitting(("gpt-2", "phi-2", "mpt", "olmo", "exaone4"), (GPT2,)),
    Splitting(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", GPT2)),
    Splitting(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), (_LLAMA3,), ignore_merges=True, adds_begin=True
    ),
    Splitting(("smaug-bpe", "dbrx"), (_LLAMA3,)),
    Splitting(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), (_QWEN2,), normal_form_c=True),
    Splitting(("default",), _DEFAULT),
)
"""Those of llama.cpp (src/llama-vocab.cpp) that models of the supported architectures use."""


def tokenizer_files(metadata: dict[str, Any], context_length: int, where: str) -> dict[str, bytes]:
    """The tokenizer's files.

    Args:
        metadata: The .gguf file's keys and values.
        context_length: Recorded as `model_max_length`.
        where: What an error calls the file.

    Returns:
        `tokenizer.model` or `tokenizer.json`, with `tokenizer_config.json` and `generation_config.json`; nothing for a
        file without a tokenizer.

    Raises:
        InputError: A key is missing or damaged, or this kind of tokenizer is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model", "none")
    if kind in ("none", "no_vocab"):
        return {}
    reader = _Reader(metadata, where)
    if kind == "llama":
        name, content, adds_begin = "tokenizer.model", reader.sentencepiece(), True
    elif kind == "gpt2":
        splitting = reader.splitting()
        name, content, adds_begin = "tokenizer.json", reader.byte_level(splitting), splitting.adds_begin
    else:
        raise reader.fail("model", f"{kind!r} is not supported, only llama and gpt2")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": reader.flag("add_bos_token", adds_begin),
        "add_eos_token": reader.flag("add_eos_token", False),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    for key, token_id in reader.named.items():
        if key in _CONFIG_NAMES and token_id is not None:
            settings[_CONFIG_NAMES[key]] = reader.tokens[token_id]
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    begin, padding = reader.named["bos"], reader.named["padding"]
    ends = [end for end in dict.fromkeys(reader.named[key] for key in ("eos", "eot", "eom")) if end is not None]
    ids = {"bos_token_id": begin, "eos_token_id": ends[0] if len(ends) == 1 else ends or None, "pad_token_id": padding}
    ids = {key: value for key, value in ids.items() if value is not None}
    return {name: content, "tokenizer_config.json": _json(settings), "generation_config.json": _json(ids)}


_CONFIG_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_SENTENCEPIECE_DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}
"""What llama.cpp takes where the file does not say."""


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


class _Reader:
    """Checked access to the keys `tokenizer.ggml.*`.

    Attributes:
        tokens: Text of every token, without what pads the vocabulary at its end.
        types: Type of every token.
        named: Id of the begin, end, unknown, ... token, or `None`.
    """

    def __init__(self, metadata: dict[str, Any], where: str) -> None:
        self._metadata, self._where = metadata, where
        tokens = self._array("tokens", list, None)
        types = self._array("token_type", np.ndarray, len(tokens), optional=True)
        self.types: list[int] = [NORMAL] * len(tokens) if types is None else types.tolist()
        if types is not None and types.dtype.kind not in "iu":
            raise self.fail("token_type", "is damaged: not a list of whole numbers")
        if not set(self.types) <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
            raise self.fail("token_type", "is damaged: a type is out of range")
        used = len(tokens)
        while used and self.types[used - 1] == UNUSED and tokens[used - 1] == f"[PAD{used - 1}]":
            used -= 1
        self.tokens: list[str] = tokens[:used]
        if not used:
            raise self.fail("tokens", "is empty")
        defaults = _SENTENCEPIECE_DEFAULTS if metadata["tokenizer.ggml.model"] == "llama" else {}
        self.named = {
            key: self._token_id(f"{key}_token_id", defaults.get(key))
            for key in ("bos", "eos", "eot", "eom", "unknown", "padding")
        }

    def fail(self, key: str, message: str) -> InputError:
        return InputError(f"{self._where}: the key tokenizer.ggml.{key} {message}")

    def _array(self, key: str, kind: Any, length: int | None, optional: bool = False) -> Any:
        value: Any = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None and optional:
            return None
        if value is None:
            raise self.fail(key, "is missing")
        if not isinstance(value, kind) or (length is not None and len(value) != length):
            raise self.fail(key, f"is damaged: not a list of {'tokens' if length is None else length}")
        return value

    def _token_id(self, key: str, default: int | None) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if value is not None and (type(value) is not int or not 0 <= value < len(self.tokens)):
            raise self.fail(key, f"is {value!r}, which is no id of the {len(self.tokens)} tokens")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if type(value) is not bool:
            raise self.fail(key, f"must be true or false, not {value!r}")
        return value

    def sentencepiece(self) -> bytes:
        """tokenizer.model."""
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        protocol: Any = sentencepiece_model_pb2  # its classes are made when it is imported
        scores = self._array("scores", np.ndarray, len(self.types), optional=True)
        if scores is None:
            scores = -np.arange(len(self.types), dtype=np.float32)
        if not np.isfinite(scores).all():
            raise self.fail("scores", "is damaged: a score is not a finite number")
        model = protocol.ModelProto()
        rest = self._metadata.get(SENTENCEPIECE)
        if rest is not None:
            try:
                if not isinstance(rest, np.ndarray) or rest.dtype != np.uint8:
                    raise TypeError("not bytes")
                model.ParseFromString(rest.tobytes())
            except (DecodeError, TypeError) as error:
                raise InputError(f"{self._where}: the key {SENTENCEPIECE} is damaged") from error
        else:
            self._describe(model)
        types = list(self.types)
        for name in ("bos", "eos", "padding"):
            token_id = self.named[name]
            if token_id is not None and types[token_id] in (NORMAL, USER_DEFINED):
                types[token_id] = CONTROL  # SentencePiece knows begin and end by that
        unknown = self.named["unknown"]
        if UNKNOWN not in types and unknown is not None:
            types[unknown] = UNKNOWN
        # In the file, user-defined tokens are as they are in the text; SentencePiece compares behind its escaping.
        texts = [
            text.replace(" ", SPACE) if kind == USER_DEFINED else text
            for text, kind in zip(self.tokens, types, strict=False)
        ]
        # SentencePiece leaves the type out where it is the default, and so the same bytes come back.
        pieces = [
            protocol.ModelProto.SentencePiece(piece=text, score=float(score), type=None if kind == NORMAL else kind)
            for text, score, kind in zip(texts, scores, types, strict=False)
        ]
        whole = protocol.ModelProto(pieces=pieces)
        whole.MergeFrom(model)
        return whole.SerializeToString(deterministic=True)

    def _describe(self, model: Any) -> None:
        """The settings of a SentencePiece model that does as llama.cpp does with these tokens."""
        trainer, normalizer = model.trainer_spec, model.normalizer_spec
        trainer.model_type = trainer.BPE
        trainer.vocab_size = len(self.tokens)
        trainer.byte_fallback = BYTE in self.types
        for field, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            token_id = self.named[key]
            setattr(trainer, f"{field}_id", -1 if token_id is None else token_id)
            if token_id is not None:
                setattr(trainer, f"{field}_piece", self.tokens[token_id])
        normalizer.name = "identity"
        normalizer.add_dummy_prefix = self.flag("add_space_prefix", True)
        normalizer.remove_extra_whitespaces = False
        normalizer.escape_whitespaces = True

    def splitting(self) -> Splitting:
        """How this file's tokenizer splits text into words."""
        name = self._metadata.get("tokenizer.ggml.pre", "default")
        for splitting in SPLITTINGS:
            if name in splitting.names:
                return splitting
        known = ", ".join(name for splitting in SPLITTINGS for name in splitting.names)
        raise self.fail("pre", f"{name!r} is not supported: how it splits text is not known here, only {known}")

    def byte_level(self, splitting: Splitting) -> bytes:
        """tokenizer.json."""
        vocabulary = {token: i for i, token in enumerate(self.tokens)}
        if len(vocabulary) < len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if vocabulary[token] != i)
            raise self.fail("tokens", f"has the token {twice!r} twice")
        merges = []
        for text in self._array("merges", list, None):
            # A part may itself begin with a space, where a vocabulary is not byte-level; llama.cpp too looks behind it.
            cut = text.find(" ", 1)
            first, second = text[:cut], text[cut + 1 :]
            if cut < 0 or not {first, second, first + second} <= vocabulary.keys():
                raise self.fail("merges", f"has {text!r}, whose parts and result are not all tokens")
            merges.append([first, second])
        special = (CONTROL, UNKNOWN)
        added = [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind in special,
            }
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=False))
            if kind in (*special, USER_DEFINED) and token
        ]
        splits = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in splitting.patterns
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"} if splitting.normal_form_c else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": splitting.ignore_merges,
                "vocab": vocabulary,
                "merges": merges,
            },
        }
        return json.dumps(content, ensure_ascii=False).encode()
