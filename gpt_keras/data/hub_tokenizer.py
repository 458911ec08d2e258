"""The same tokenizer for Hugging Face: a tokenizer.json equal to the SentencePiece model, compared id for id."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt_keras.data.errors import InputError
from gpt_keras.data.tokenizer import BEGIN, END, LAYOUT, PADDING, ROLES, UNKNOWN, Tokenizer

SPECIAL = {UNKNOWN, BEGIN, END, PADDING, *(f"<|{role}|>" for role in ROLES)}
_PROBES = [
    "def f(x):\n    return x\n\n\nclass A:\n        pass\n",
    "  two  spaces\t\r\n",
    "\u2581\u2582a\u2581",
    "é 你好 🎉",
]


def check_hub_tokenizer(tokenizer: Tokenizer, samples: Iterable[str] = ()) -> Any:
    """The `tokenizers.Tokenizer` equal to `tokenizer`, compared with it on `samples` and a few texts of our own.

    Texts with a special piece such as `<s>` in them are left out: Hugging Face takes those for the special token, and
    SentencePiece for plain text, each by its convention.

    Raises:
        InputError: The ids differ, naming the text.
    """
    hub = build_hub_tokenizer(tokenizer)
    for text in itertools.chain(_PROBES, samples):
        if any(piece in text for piece in SPECIAL):
            continue
        if hub.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            raise InputError(
                f"this tokenizer.model cannot be written for Hugging Face: tokenizer.json would give other ids for "
                f"{text[:40]!r}; use one that python -m gpt_keras.tokenizer trained"
            )
    return hub


def write_hub_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`.

    Args:
        tokenizer: A SentencePiece BPE model that `train_tokenizer` made, or another one without normalization.
        folder: The model folder.
        context_length: Recorded as `model_max_length`.

    Raises:
        InputError: Hugging Face's tokenizer would give other ids.
    """
    hub = check_hub_tokenizer(tokenizer)
    hub.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PADDING,
        "unk_token": UNKNOWN,
        "extra_special_tokens": [f"<|{role}|>" for role in ROLES],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def build_hub_tokenizer(tokenizer: Tokenizer) -> Any:
    """A `tokenizers.Tokenizer` with the same pieces, ids and merges.

    SentencePiece merges the pair whose result has the best score, so the merges are all splits of every piece into
    two pieces, ordered by the whole piece's score, which falls with its id.
    """
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as HubTokenizer

    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocabulary_size)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    layout = {text.replace(" ", "\u2581"): text for text in LAYOUT}
    merges = []
    for piece in pieces:
        if piece in SPECIAL or piece in layout or len(piece) < 2 or _is_byte(piece):
            continue
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    hub = HubTokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    )
    hub.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("\u2582", "\u2582b"),
            normalizers.Replace("\u2581", "\u2582a"),
            normalizers.Replace(" ", "\u2581"),
        ]
    )
    hub.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace("\u2582a", "\u2581"),
            decoders.Replace("\u2582b", "\u2582"),
        ]
    )
    ordered_special = [piece for piece in pieces if piece in SPECIAL]
    hub.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in ordered_special])
    # tokenizers looks the text of an added token up in the vocabulary, where ours are written with U+2581.
    return _with_layout(hub, {text: vocabulary[piece] for piece, text in layout.items() if piece in vocabulary})


def _with_layout(hub: Any, layout: dict[str, int]) -> Any:
    """`hub` with newlines and indents as added tokens under the ids they have."""
    from tokenizers import Tokenizer as HubTokenizer

    content = json.loads(hub.to_str())
    for text, token_id in sorted(layout.items(), key=lambda item: item[1]):
        content["added_tokens"].append(
            {
                "id": token_id,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": False,
            }
        )
        del content["model"]["vocab"][text.replace(" ", "\u2581")]
        content["model"]["vocab"][text] = token_id
    content["added_tokens"].sort(key=lambda token: token["id"])
    return HubTokenizer.from_str(json.dumps(content))


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
