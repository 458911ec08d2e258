"""A SentencePiece model for Hugging Face: a tokenizer.json equal to it, compared id for id."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_keras.data.errors import InputError

if TYPE_CHECKING:
    from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer

_PROBES = [
    "def f(x):\n    return x\n\n\nclass A:\n        pass\n",
    "  two  spaces\t\r\n",
    "\u2581\u2582a\u2581",
    "é 你好 🎉",
    "Once upon a time, there was 1 little girl. ",
]


def check_hub_tokenizer(tokenizer: SentencePieceTokenizer, samples: Iterable[str] = ()) -> Any:
    """The `tokenizers.Tokenizer` equal to `tokenizer`, compared with it on `samples` and a few texts of our own.

    Texts with a special piece such as `<s>` in them are left out: Hugging Face takes those for the special token, and
    SentencePiece for plain text, each by its convention.

    Raises:
        InputError: The ids differ, naming the text.
    """
    hub = build_hub_tokenizer(tokenizer)
    spelled_out = [tokenizer.piece(tokenizer.unknown_id), *tokenizer.special]
    # A lone U+2581 means a space to SentencePiece models other than ours.
    probes = [text for text in _PROBES if tokenizer.escape is not None or "\u2581" not in text]
    for text in itertools.chain(probes, samples):
        if any(piece in text for piece in spelled_out):
            continue
        if hub.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            raise InputError(
                f"this tokenizer.model cannot be written for Hugging Face: tokenizer.json would give other ids for "
                f"{text[:40]!r}; use one that python -m gpt_keras.tokenizer trained"
            )
    return hub


def write_hub_tokenizer(tokenizer: SentencePieceTokenizer, folder: Path, context_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`.

    Args:
        tokenizer: Any SentencePiece model.
        folder: The model folder.
        context_length: Recorded as `model_max_length`.

    Raises:
        InputError: Hugging Face's tokenizer would give other ids.
    """
    hub = check_hub_tokenizer(tokenizer)
    hub.save(str(folder / "tokenizer.json"))
    if (folder / "tokenizer_config.json").exists():
        return
    named = {"bos_token": tokenizer.begin_id, "eos_token": tokenizer.end_id, "pad_token": tokenizer.padding_id}
    roles = [piece for piece in tokenizer.special if piece.startswith("<|")]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokenizer.piece(token_id) for name, token_id in named.items() if token_id is not None},
        "unk_token": tokenizer.piece(tokenizer.unknown_id),
        **({"extra_special_tokens": roles} if roles else {}),
        **({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def build_hub_tokenizer(tokenizer: SentencePieceTokenizer) -> Any:
    """A `tokenizers.Tokenizer` with the same pieces, ids and merges or scores."""
    from sentencepiece import sentencepiece_model_pb2 as protobuf
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as HubTokenizer

    parsed = protobuf.ModelProto.FromString(tokenizer.model)  # type: ignore[attr-defined]
    kinds = protobuf.ModelProto.SentencePiece  # type: ignore[attr-defined]
    pieces = [entry.piece for entry in parsed.pieces]
    scores = [entry.score for entry in parsed.pieces]
    normal = [i for i, entry in enumerate(parsed.pieces) if entry.type == kinds.NORMAL]
    defined = [i for i, entry in enumerate(parsed.pieces) if entry.type == kinds.USER_DEFINED]
    unknown = pieces[tokenizer.unknown_id]
    if parsed.trainer_spec.model_type == parsed.trainer_spec.BPE:
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        merges = _merges(vocabulary, sorted(normal, key=lambda i: (-scores[i], i)), pieces)
        model: Any = models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=parsed.trainer_spec.byte_fallback,
        )
    elif parsed.trainer_spec.model_type == parsed.trainer_spec.UNIGRAM:
        entries = list(zip(pieces, scores, strict=True))
        model = models.Unigram(entries, tokenizer.unknown_id, parsed.trainer_spec.byte_fallback)
    else:
        raise InputError("only SentencePiece models of type BPE and unigram can be written for Hugging Face")
    hub = HubTokenizer(model)
    hub.normalizer, hub.decoder = _normalizer(parsed, tokenizer.escape), _decoder(parsed, tokenizer.escape)
    special = [unknown, *tokenizer.special]
    hub.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    # tokenizers looks the text of an added token up in the vocabulary, where SentencePiece writes U+2581 for a space.
    return _with_added(hub, {pieces[i].replace("\u2581", " "): i for i in defined}, pieces)


def _merges(vocabulary: dict[str, int], ordered: list[int], pieces: list[str]) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose result has the best score, so the merges are all splits of every piece into
    two pieces, in the order of the whole pieces' scores."""
    merges: list[tuple[str, str]] = []
    for piece in (pieces[i] for i in ordered):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def _normalizer(parsed: Any, escape: str | None) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    spec = parsed.normalizer_spec
    if escape is not None:
        steps += [normalizers.Replace(escape, escape + "b"), normalizers.Replace("\u2581", escape + "a")]
    elif spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("\u2581"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])


def _decoder(parsed: Any, escape: str | None) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if parsed.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    if escape is not None:
        steps += [decoders.Replace(escape + "a", "\u2581"), decoders.Replace(escape + "b", escape)]
    return decoders.Sequence(steps)


def _with_added(hub: Any, texts: dict[str, int], pieces: list[str]) -> Any:
    """`hub` with user-defined pieces as added tokens under the ids they have."""
    from tokenizers import Tokenizer as HubTokenizer

    content = json.loads(hub.to_str())
    vocabulary = content["model"]["vocab"]
    for text, token_id in sorted(texts.items(), key=lambda item: item[1]):
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
        if isinstance(vocabulary, dict):
            del vocabulary[pieces[token_id]]
            vocabulary[text] = token_id
        else:
            vocabulary[token_id][0] = text
    content["added_tokens"].sort(key=lambda token: token["id"])
    return HubTokenizer.from_str(json.dumps(content))
