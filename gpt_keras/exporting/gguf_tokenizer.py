"""A tokenizer as a .gguf file's metadata, which say to llama.cpp how to make the same token ids."""

from __future__ import annotations

import json
import re
from typing import Any

from gpt_keras.data.errors import InputError
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.gguf_tokenizer import (
    BYTE,
    CONTROL,
    GPT2,
    NORMAL,
    SENTENCEPIECE,
    SPACE,
    SPLITTINGS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Splitting,
)

_PADDING_SCORE = -10000.0


def tokenizer_metadata(tokenizer: Tokenizer, vocabulary_size: int) -> dict[str, Any]:
    """The keys that describe `tokenizer` to llama.cpp.

    Where llama.cpp cannot do the same, the ids differ: texts with U+2581 or U+2582 in them for models whose
    normalization escapes those; user-defined pieces that overlap in a text (SentencePiece takes the longest at each
    place from the left, llama.cpp the longest anywhere first); text that Unicode's normal form C changes, for
    tokenizers that normalize.

    Args:
        tokenizer: SentencePiece BPE, or byte-level BPE as tokenizer.json.
        vocabulary_size: The model's, where it is larger than the tokenizer's; the rest is filled up.

    Raises:
        InputError: llama.cpp has nothing like this tokenizer.
    """
    files = tokenizer.files
    if isinstance(tokenizer, SentencePieceTokenizer):  # others may have a tokenizer.model beside their own file
        metadata = _from_sentencepiece(files["tokenizer.model"])
    elif "tokenizer.json" in files:
        metadata = _from_byte_level(files["tokenizer.json"], tokenizer)
    else:
        raise InputError("a .gguf file is written for tokenizer.model and tokenizer.json tokenizers only")
    for i in range(len(metadata["tokenizer.ggml.tokens"]), vocabulary_size):
        metadata["tokenizer.ggml.tokens"].append(f"[PAD{i}]")
        metadata["tokenizer.ggml.token_type"].append(UNUSED)
        if "tokenizer.ggml.scores" in metadata:
            metadata["tokenizer.ggml.scores"].append(_PADDING_SCORE)
    others = sorted(tokenizer.end_ids - {tokenizer.end_id})
    named = {
        "bos": tokenizer.begin_id,
        "eos": tokenizer.end_id,
        "eot": others[0] if others else None,
        "eom": others[1] if len(others) > 1 else None,
        "padding": tokenizer.padding_id,
    }
    metadata |= {f"tokenizer.ggml.{key}_token_id": value for key, value in named.items() if value is not None}
    metadata["tokenizer.ggml.add_bos_token"] = tokenizer.adds_begin
    metadata["tokenizer.ggml.add_eos_token"] = False
    if tokenizer.chat_template:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def _from_sentencepiece(content: bytes) -> dict[str, Any]:
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    model = protocol.ModelProto.FromString(content)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    unsupported = {
        "is of the type " + trainer.ModelType.Name(trainer.model_type).lower(): trainer.model_type != trainer.BPE,
        "has no byte pieces": not any(piece.type == BYTE for piece in model.pieces),
        "removes spaces": normalizer.remove_extra_whitespaces,
        "does not escape spaces": not normalizer.escape_whitespaces,
        "puts a space behind the text": normalizer.add_dummy_prefix and trainer.treat_whitespace_as_suffix,
        f"normalizes text ({normalizer.name})": normalizer.name.startswith(("nfkc", "nmt_nfkc", "nfc")),
    }
    for what, found in unsupported.items():
        if found:
            raise InputError(
                f"llama.cpp would give other token ids than this tokenizer.model, which {what}; a .gguf file needs a "
                "BPE model with byte fallback and without normalization, as python -m gpt_keras.tokenizer trains"
            )
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    unknown = next(i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN)
    del model.pieces[:]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [
            text.replace(SPACE, " ") if kind == USER_DEFINED else text for text, _, kind in pieces
        ],
        "tokenizer.ggml.scores": [float(score) for _, score, _ in pieces],
        "tokenizer.ggml.token_type": [int(kind) for _, _, kind in pieces],
        "tokenizer.ggml.unknown_token_id": unknown,
        "tokenizer.ggml.add_space_prefix": normalizer.add_dummy_prefix,
        SENTENCEPIECE: model.SerializeToString(deterministic=True),
    }


def _from_byte_level(content: bytes, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = json.loads(content)
    model = raw["model"]
    splitting = _recognize(raw)
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in raw.get("added_tokens") or []}}
    tokens = [f"[PAD{i}]" for i in range(tokenizer.vocabulary_size)]
    types = [UNUSED] * len(tokens)
    for text, i in ids.items():
        tokens[i], types[i] = text, NORMAL
    for token in raw.get("added_tokens") or []:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    for i in tokenizer.special.values():
        types[i] = CONTROL
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": splitting.names[0],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }


def _recognize(raw: dict[str, Any]) -> Splitting:
    """llama.cpp's name for how this tokenizer.json splits text."""
    model = raw["model"]
    normalizer = raw.get("normalizer")
    steps = _steps(raw.get("pre_tokenizer"))
    plain = not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"))
    if model.get("type") == "BPE" and model.get("merges") and plain and (normalizer or {}).get("type") in (None, "NFC"):
        for splitting in SPLITTINGS:
            if steps == splitting.patterns and bool(model.get("ignore_merges")) == splitting.ignore_merges:
                return splitting
    raise InputError(
        "llama.cpp has no name for the way this tokenizer.json splits text; a .gguf file needs byte-level BPE that "
        f"splits as {', '.join(splitting.names[0] for splitting in SPLITTINGS)}, or a tokenizer.model"
    )


def _steps(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """A pre-tokenizer as regular expressions, one after the other; `None` if it is not byte-level or does more."""
    given = pre_tokenizer or {}
    parts = given.get("pretokenizers", []) if given.get("type") == "Sequence" else [given]
    if not parts or parts[-1].get("type") != "ByteLevel":
        return None
    patterns = []
    for part in parts:
        kind, pattern = part.get("type"), part.get("pattern") or {}
        isolated = (part.get("behavior"), part.get("invert", False)) in (("Isolated", False), ("Removed", True))
        if kind == "ByteLevel" and not part.get("add_prefix_space"):
            patterns += [GPT2] if part.get("use_regex", True) else []
        elif kind == "Digits" and part.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif kind == "Split" and isolated and "Regex" in pattern:
            patterns.append(pattern["Regex"])
        else:
            return None
    return tuple(re.sub(r"^\\p\{N\}\{1\}$", r"\\p{N}", pattern) for pattern in patterns)
