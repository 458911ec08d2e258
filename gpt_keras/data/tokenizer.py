"""SentencePiece, set up so that every string comes back exactly as it went in, here and inside a TensorFlow graph.

The library trains, encodes and decodes; this module chooses its settings. Byte fallback covers characters that no
piece has; nothing is normalized, stripped or prefixed. Newlines, with the usual indents behind them, are pieces of
their own, so that a line of code starts with one token. Begin, end, padding and the chat roles are control pieces:
no text encodes to them, so no user can type one.

SentencePiece writes a space as U+2581, so a U+2581 in the text is first escaped as U+2582 'a' (and U+2582 as
U+2582 'b') by the model's own normalization table, and restored by its denormalization table.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file

UNKNOWN, BEGIN, END, PADDING = "<unk>", "<s>", "</s>", "<pad>"
ROLES = ("system", "user", "assistant")
LAYOUT = tuple("\n" * lines + " " * indent for lines in (1, 2) for indent in (0, 4, 8, 12, 16, 20))
"""Newline and blank line, alone or with the indent of the line that follows: pieces from the start."""

_ESCAPE = "\u2582"
_ESCAPES = {"\u2581": _ESCAPE + "a", _ESCAPE: _ESCAPE + "b"}
TRAINING_BYTES = 200_000_000
"""Text beyond this adds nothing to a vocabulary but time."""


class Tokenizer:
    """Text to token ids and back.

    Args:
        model: The serialized SentencePiece model (`tokenizer.model`).

    Raises:
        InputError: The bytes are not a SentencePiece model.
    """

    def __init__(self, model: bytes, name: str = "tokenizer.model") -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{name}: not a SentencePiece model, or a damaged one") from error
        if self._processor.vocab_size() == 0:
            raise InputError(f"{name}: not a SentencePiece model, or a damaged one")
        self.model = model

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read `tokenizer.model`, or the one in a model folder."""
        path = Path(path)
        path = path / "tokenizer.model" if path.is_dir() else path
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"{path}: no tokenizer there ({error.strerror})") from error

    def save(self, path: str | Path) -> None:
        """Write the SentencePiece model."""
        with whole_file(path) as partial:
            partial.write_bytes(self.model)

    @property
    def vocabulary_size(self) -> int:
        return self._processor.vocab_size()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model: two tokenizers with the same one give the same ids."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def begin_id(self) -> int:
        return self._processor.bos_id()

    @property
    def end_id(self) -> int:
        return self._processor.eos_id()

    @property
    def padding_id(self) -> int:
        """The padding piece, or the end piece in models without one: what is padded is never looked at."""
        return self._processor.pad_id() if self._processor.pad_id() >= 0 else self.end_id

    def role_id(self, role: str) -> int:
        """The token that opens a turn of `role` in a conversation."""
        token = self.token_id(f"<|{role}|>")
        if token == self._processor.unk_id():
            raise InputError(f"the tokenizer has no token for the role {role!r}; roles are {', '.join(ROLES)}")
        return token

    def token_id(self, piece: str) -> int:
        return self._processor.piece_to_id(piece)

    def piece(self, token_id: int) -> str:
        """The piece as SentencePiece writes it, with U+2581 for a space."""
        return self._processor.id_to_piece(token_id)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without begin or end.

        Raises:
            InputError: The text holds a NUL character or a lone surrogate, which SentencePiece cannot represent.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Token ids of each text."""
        for text in texts:
            _check(text)
        return self._processor.encode(list(texts), num_threads=num_threads)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids. Control tokens vanish; bytes that are not UTF-8 become U+FFFD.

        Raises:
            InputError: An id is outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocabulary_size:
                raise InputError(f"token id {i} is outside the vocabulary of {self.vocabulary_size}")
        return self._processor.decode(ids)

    def ends_inside_a_character(self, ids: Sequence[int]) -> bool:
        """Whether `ids` end with some but not all bytes of a UTF-8 character."""
        raw = bytearray()
        for token_id in reversed(ids):
            if not self._processor.is_byte(token_id):
                break
            raw.append(int(self.piece(token_id)[3:5], 16))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(bytes(reversed(raw)))
        return decoder.getstate()[0] != b""


def _check(text: str) -> None:
    if "\0" in text:
        raise InputError(f"the text holds a NUL character (at {text.index(chr(0))}), which no token can represent")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text holds a lone surrogate (at {error.start}): it is not valid Unicode") from error


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, model_type: str = "bpe") -> Tokenizer:
    """Train SentencePiece on `texts`.

    Runs in a process of its own, so that Ctrl-C ends it at once.

    Args:
        texts: Training documents; held-out ones must not be among them. The first 200 MB are used.
        vocabulary_size: Number of pieces, the 256 bytes and the special ones among them.
        model_type: `bpe` or `unigram`.

    Raises:
        InputError: The text is too small or too uniform for that many pieces (the message says how many it bears), or
            the number is below what bytes and special pieces need.
    """
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "text"
        used = 0
        with open(lines, "wb") as stream:
            for text in texts:
                _check(text)
                # SentencePiece learns line by line; newlines and the indents behind them are pieces already, so what
                # it is given is the text between those.
                for part in _LAYOUT_PATTERN.split(text):
                    if part:
                        stream.write(part.encode() + b"\n")
                used += len(text.encode())
                if used > TRAINING_BYTES:
                    break
        if used == 0:
            raise InputError("there is no text to train a tokenizer on")
        for name, pairs in (("escape", _ESCAPES.items()), ("restore", [(v, k) for k, v in _ESCAPES.items()])):
            table = "".join(f"{_code_points(a)}\t{_code_points(b)}\n" for a, b in pairs)
            (Path(folder) / name).write_text(table, "ascii")
        options = {
            "input": lines.name,
            "vocab_size": vocabulary_size,
            "model_type": model_type,
            "normalization_rule_tsv": "escape",
            "denormalization_rule_tsv": "restore",
            **_OPTIONS,
        }
        # The model records its options, so they name no folder and no machine: equal texts give equal models.
        command = [sys.executable, "-m", "gpt_keras.data.sentencepiece_training", folder, json.dumps(options)]
        # In a session of its own the terminal's Ctrl-C reaches only this process, which then ends that one.
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, start_new_session=True)
        if done.returncode:
            raise InputError(_explain(done.stderr, vocabulary_size))
        return Tokenizer((Path(folder) / "model").read_bytes())


_OPTIONS = {
    "unk_piece": UNKNOWN,
    "bos_piece": BEGIN,
    "eos_piece": END,
    "pad_piece": PADDING,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": 3,
    "unk_surface": "\ufffd",
    "control_symbols": [f"<|{role}|>" for role in ROLES],
    "user_defined_symbols": [text.replace(" ", "\u2581") for text in LAYOUT],
    "byte_fallback": True,
    "character_coverage": 0.9999,
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "max_sentence_length": 1 << 20,
    "num_threads": 4,
    "minloglevel": 2,
}
_LAYOUT_PATTERN = re.compile("|".join(sorted((re.escape(s) for s in LAYOUT), key=len, reverse=True)))


def _code_points(text: str) -> str:
    return " ".join(f"{ord(character):04X}" for character in text)


def _explain(message: str, vocabulary_size: int) -> str:
    found = re.search(r"<= (\d+)", message)
    if found:
        return (
            f"the corpus is too small for a vocabulary of {vocabulary_size}: it bears at most {found[1]}; "
            f"set --vocabulary-size {found[1]} or less, or use more text"
        )
    found = re.search(r"(\d+) > (\d+)|smaller than required_chars\. \d+ vs (\d+)", message)
    if "required_chars" in message or "vocab_size" in message or found:
        return f"a vocabulary of {vocabulary_size} is too small for the bytes and special pieces; use at least 512"
    return f"SentencePiece could not train: {' '.join(message.split())}"


def stream_decode(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids` in parts as they come, together what `decode` gives for all of them.

    No part splits a character: one whose bytes are spread over several tokens appears with the last of them.
    """
    pending: list[int] = []
    for token_id in ids:
        pending.append(int(token_id))
        text = tokenizer.decode(pending)
        if not tokenizer.ends_inside_a_character(pending) and not text.endswith(_ESCAPE):
            yield text
            pending = []
    if pending:
        yield tokenizer.decode(pending)
