"""Hugging Face's `tokenizer.json` (byte-level BPE and its relatives), through the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from gpt_keras.data.errors import InputError
from gpt_keras.data.tokenizer import Tokenizer, TokenizerSettings, check_unicode


class HubTokenizer(Tokenizer):
    """A tokenizer.json and what the folder around it says.

    Args:
        content: The file.
        name: Where it comes from, for messages.
        settings: What the other files of the folder say. They are written back as they were, but that
            tokenizer_config.json names begin and end, too, where only config.json or generation_config.json did.

    Raises:
        InputError: The content is not a tokenizer.json, or names tokens that it does not have.
    """

    def __init__(self, content: bytes, name: str = "tokenizer.json", settings: TokenizerSettings | None = None) -> None:
        import tokenizers

        try:
            self._hub = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{name}: not a tokenizer.json, or a damaged one ({_first_line(error)})") from error
        self._hub.no_padding()
        self._hub.no_truncation()
        self._content, self._lock = content, threading.Lock()
        self.settings = settings or TokenizerSettings({})
        self._where = name
        self.fingerprint = hashlib.sha256(content).hexdigest()
        vocabulary = self._hub.get_vocab(with_added_tokens=True)
        self.vocabulary_size = max(vocabulary.values(), default=-1) + 1
        added = self._hub.get_added_tokens_decoder()
        self.special = {token.content: i for i, token in added.items() if token.special}
        self._added = {i: token.content for i, token in added.items() if not token.special}
        self.begin_id = self._named(self.settings.begin, self.settings.begin_id)
        self.end_id = self._named(self.settings.end, min(self.settings.end_ids, default=None))
        self.end_ids = self.settings.end_ids | ({self.end_id} if self.end_id is not None else set())
        for text, token_id in ((self.settings.begin, self.begin_id), (self.settings.end, self.end_id)):
            if text is not None and token_id is not None:
                self.special.setdefault(text, token_id)
        self.chat_template = self.settings.chat_template
        self.adds_begin = self._adds_begin()
        self._piece_bytes = _piece_to_bytes(json.loads(content).get("decoder"))

    @classmethod
    def from_vocabulary(cls, vocabulary: bytes, merges: bytes, name: str, settings: TokenizerSettings) -> HubTokenizer:
        """GPT-2's older form: byte-level BPE as vocab.json and merges.txt."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        try:
            ids = json.loads(vocabulary)
            lines = merges.decode("utf-8").splitlines()
            pairs: list[Any] = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
            hub = tokenizers.Tokenizer(models.BPE(ids, pairs))
        except Exception as error:
            raise InputError(f"{name}: vocab.json and merges.txt are damaged ({_first_line(error)})") from error
        hub.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        hub.decoder = decoders.ByteLevel()
        end = "<|endoftext|>"
        if end in ids:
            hub.add_special_tokens([tokenizers.AddedToken(end, special=True, normalized=False)])
            settings = TokenizerSettings(
                **{**settings.__dict__, "begin": settings.begin or end, "end": settings.end or end}
            )
        return cls(hub.to_str().encode(), name, settings)

    @property
    def files(self) -> dict[str, bytes]:
        kept = {name: content for name, content in self.settings.files.items() if name != "tokenizer.json"}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if "tokenizer_config.json" in kept:
            config = json.loads(kept["tokenizer_config.json"])
        # What config.json or generation_config.json say alone, which are no files of the tokenizer.
        named = {"bos_token": (self.settings.begin, self.begin_id), "eos_token": (self.settings.end, self.end_id)}
        unnamed = {key: self._text(token) for key, (text, token) in named.items() if text is None and token is not None}
        if "tokenizer_config.json" not in kept:
            unnamed = {key: text for key, (_, i) in named.items() if (text := self._text(i)) is not None}
        if unnamed or "tokenizer_config.json" not in kept:
            config |= unnamed
            kept["tokenizer_config.json"] = (json.dumps(config, indent=2) + "\n").encode()
        return {"tokenizer.json": self._content, **kept}

    def write(self, folder: Path, context_length: int) -> None:
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def with_special(self, pieces: Sequence[str]) -> HubTokenizer:
        import tokenizers

        hub = tokenizers.Tokenizer.from_str(self._content.decode("utf-8"))
        new = [piece for piece in pieces if piece not in self.special]
        hub.add_special_tokens([tokenizers.AddedToken(piece, special=True, normalized=False) for piece in new])
        return HubTokenizer(hub.to_str().encode(), self._where, self.settings)

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        for text in texts:
            check_unicode(text)
        with self._lock:
            self._hub.encode_special_tokens = True  # `<|endoftext|>` in a text is text
            return [encoding.ids for encoding in self._hub.encode_batch(list(texts), add_special_tokens=False)]

    def encode(self, text: str, special: bool = False) -> list[int]:
        if not special:
            return self.encode_batch([text])[0]
        check_unicode(text)
        with self._lock:
            self._hub.encode_special_tokens = False
            return self._hub.encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """As Hugging Face does: special tokens may be written out in a prompt."""
        ids = self.encode(text, special=True)
        begins = bool(ids) and ids[0] == self.begin_id
        if self.begin_id is not None and ((self.adds_begin and not begins) or not ids):
            return [self.begin_id, *ids]
        return ids or [self.padding_id]

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocabulary_size:
                raise InputError(f"token id {i} is outside the vocabulary of {self.vocabulary_size}")
        return self._hub.decode(ids, skip_special_tokens=True)

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._hub.id_to_token(token_id) if token_id >= 0 else None
        if piece is None or piece in self.special:
            return b""
        return self._piece_bytes(piece)

    def piece(self, token_id: int) -> str:
        return self._hub.id_to_token(token_id) or ""

    def token_id(self, piece: str) -> int | None:
        return self._hub.token_to_id(piece)

    @property
    def padding_id(self) -> int:
        padding = self._hub.token_to_id(self.settings.padding) if self.settings.padding else None
        return padding if padding is not None else super().padding_id

    def _named(self, text: str | None, otherwise: int | None) -> int | None:
        if text is None:
            return otherwise
        token_id = self._hub.token_to_id(text)
        if token_id is None:
            raise InputError(f"{self._where}: the tokenizer has no token {text!r}, which tokenizer_config.json names")
        return token_id

    def _text(self, token_id: int | None) -> str | None:
        return None if token_id is None else self._hub.id_to_token(token_id)

    def _adds_begin(self) -> bool:
        """What the folder says, else what the tokenizer.json itself puts before a text."""
        if self.begin_id is None:
            return False
        if self.settings.adds_begin is not None:
            return self.settings.adds_begin
        return self._hub.encode("a", add_special_tokens=True).ids[:1] == [self.begin_id]


def _piece_to_bytes(decoder: Any) -> Callable[[str], bytes]:
    """How this tokenizer.json's decoder turns a piece of the vocabulary into bytes in the middle of a text."""
    steps = decoder.get("decoders", []) if (decoder or {}).get("type") == "Sequence" else [decoder or {}]
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        table = byte_level_characters()
        return lambda piece: b"".join(bytes([table[c]]) if c in table else c.encode() for c in piece)
    suffixes = [step["suffix"] for step in steps if step.get("type") == "BPEDecoder"]
    if suffixes:
        return lambda piece: piece.replace(suffixes[0], " ").encode()
    spaces = "Metaspace" in kinds or "Replace" in kinds

    def plain(piece: str) -> bytes:
        if "ByteFallback" in kinds and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return (piece.replace("\u2581", " ") if spaces else piece).encode()

    return plain


def byte_level_characters() -> dict[str, int]:
    """The character by which byte-level BPE writes each byte, to that byte (Radford et al. 2019).

    Bytes that print as themselves in Latin-1 are written so, the others as the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
