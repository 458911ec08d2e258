"""SentencePiece, set up so that every string comes back exactly as it went in, here and inside a TensorFlow graph.

The library trains, encodes and decodes; this module chooses its settings. Byte fallback covers characters that no
piece has; nothing is normalized, stripped or prefixed. Newlines, with the usual indents behind them, are pieces of
their own, so that a line of code starts with one token. Begin, end, padding and the chat roles are control pieces:
no text encodes to them, so no user can type one.

SentencePiece writes a space as U+2581, so a U+2581 in the text is first escaped as U+2582 'a' (and U+2582 as
U+2582 'b') by the model's own normalization table, and restored by its denormalization table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.data.tokenizer import Tokenizer, TokenizerSettings, check_unicode

UNKNOWN, BEGIN, END, PADDING = "<unk>", "<s>", "</s>", "<pad>"
ROLES = ("system", "user", "assistant")
LAYOUT = tuple("\n" * lines + " " * indent for lines in (1, 2) for indent in (0, 4, 8, 12, 16, 20))
"""Newline and blank line, alone or with the indent of the line that follows: pieces from the start."""

_ESCAPE = "\u2582"
_ESCAPES = {"\u2581": _ESCAPE + "a", _ESCAPE: _ESCAPE + "b"}


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, ours or another one.

    Args:
        model: The serialized model (`tokenizer.model`).
        name: Where it comes from, for messages.
        settings: What the folder around it says.

    Raises:
        InputError: The bytes are not a SentencePiece model.
    """

    def __init__(
        self, model: bytes, name: str = "tokenizer.model", settings: TokenizerSettings = TokenizerSettings({})
    ) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{name}: not a SentencePiece model, or a damaged one") from error
        self.vocabulary_size = self._processor.vocab_size()
        if self.vocabulary_size == 0:
            raise InputError(f"{name}: not a SentencePiece model, or a damaged one")
        self.model, self.settings = model, settings
        self.begin_id = _present(self._processor.bos_id())
        self.end_id = _present(self._processor.eos_id())
        self.end_ids = settings.end_ids | ({self.end_id} if self.end_id is not None else set())
        self.adds_begin = settings.adds_begin is not False
        self.chat_template = settings.chat_template
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.unknown_id = self._processor.unk_id()
        self.special = {self.piece(i): i for i in range(self.vocabulary_size) if self._processor.is_control(i)}
        self.escape = _ESCAPE if _escapes(model) else None

    @property
    def padding_id(self) -> int:
        padding = _present(self._processor.pad_id())
        return padding if padding is not None else super().padding_id

    @property
    def files(self) -> dict[str, bytes]:
        return {**self.settings.files, "tokenizer.model": self.model}

    def check_writable(self, samples: Iterable[str] = ()) -> None:
        from gpt_keras.data.sentencepiece_to_hub import check_hub_tokenizer

        if "tokenizer.json" not in self.settings.files:
            check_hub_tokenizer(self, samples)

    def save(self, path: str | Path) -> None:
        """Write the SentencePiece model."""
        with whole_file(path) as partial:
            partial.write_bytes(self.model)

    def write(self, folder: Path, context_length: int) -> None:
        from gpt_keras.data.sentencepiece_to_hub import write_hub_tokenizer

        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        if "tokenizer.json" not in self.files:
            write_hub_tokenizer(self, folder, context_length)

    def with_special(self, pieces: Sequence[str]) -> SentencePieceTokenizer:
        from sentencepiece import sentencepiece_model_pb2 as protobuf

        parsed = protobuf.ModelProto.FromString(self.model)  # type: ignore[attr-defined]
        for piece in pieces:
            if piece not in self.special:
                parsed.pieces.add(piece=piece, score=0.0, type=protobuf.ModelProto.SentencePiece.CONTROL)  # type: ignore[attr-defined]
        parsed.trainer_spec.vocab_size = len(parsed.pieces)
        # A tokenizer.json beside it lacks them; it is made anew where the folder is written.
        files = {name: content for name, content in self.settings.files.items() if name != "tokenizer.json"}
        settings = dataclasses.replace(self.settings, files=files)
        return SentencePieceTokenizer(parsed.SerializeToString(), settings=settings)

    def role_id(self, role: str) -> int:
        """The token that opens a turn of `role` in a conversation."""
        token = self.special.get(f"<|{role}|>")
        if token is None:
            raise InputError(f"the tokenizer has no token for the role {role!r}; roles are {', '.join(ROLES)}")
        return token

    def token_id(self, piece: str) -> int | None:
        found = self._processor.piece_to_id(piece)
        return found if self.piece(found) == piece else None

    def piece(self, token_id: int) -> str:
        """The piece as SentencePiece writes it, with U+2581 for a space."""
        return self._processor.id_to_piece(token_id)

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        for text in texts:
            _check(text)
        return self._processor.encode(list(texts), num_threads=num_threads)

    def encodes_by_word(self) -> bool:
        """Whether a text's ids are those of its parts, cut before a space that follows neither a space nor a line's
        end, before line ends, and between line ends and what is neither a space nor a line's end.

        True of BPE without a dummy prefix where no piece reaches over such a place.
        """
        from sentencepiece import sentencepiece_model_pb2

        parsed = sentencepiece_model_pb2.ModelProto.FromString(self.model)  # type: ignore[attr-defined]
        trainer, normalizer = parsed.trainer_spec, parsed.normalizer_spec
        return (
            trainer.model_type == trainer.BPE
            and not trainer.treat_whitespace_as_suffix
            and not normalizer.add_dummy_prefix
            and not normalizer.remove_extra_whitespaces
            and normalizer.escape_whitespaces
            and (self.escape is not None or not normalizer.precompiled_charsmap)
            and not any(_REACHES_OVER.search(self.piece(i)) for i in range(self.vocabulary_size))
        )

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocabulary_size:
                raise InputError(f"token id {i} is outside the vocabulary of {self.vocabulary_size}")
        return self._processor.decode(ids)

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocabulary_size or self._processor.is_control(token_id):
            return b""
        if self._processor.is_byte(token_id):
            return bytes([int(self.piece(token_id)[3:5], 16)])
        if self._processor.is_unknown(token_id):
            return self._processor.decode([token_id]).encode()
        return self.piece(token_id).replace("\u2581", " ").encode()

    def restore(self, text: str) -> str:
        if self.escape is None or _ESCAPE not in text:
            return text
        return text.replace(_ESCAPES["\u2581"], "\u2581").replace(_ESCAPES[_ESCAPE], _ESCAPE)


_REACHES_OVER = re.compile("[^\u2581\n]\u2581|[^\n]\n|\n[^\u2581\n]")
"""A piece with a word and the space behind it, or with a line's end and text."""


def _present(token_id: int) -> int | None:
    """SentencePiece writes -1 for a token that a model does not have."""
    return token_id if token_id >= 0 else None


def _escapes(model: bytes) -> bool:
    """Whether this model escapes U+2581 as ours do."""
    from sentencepiece import sentencepiece_model_pb2

    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    return parsed.denormalizer_spec.normalization_rule_tsv == "restore"


def _check(text: str) -> None:
    if "\0" in text:
        raise InputError(f"the text holds a NUL character (at {text.index(chr(0))}), which no token can represent")
    check_unicode(text)


class SmallCorpusError(InputError):
    """The text bears fewer pieces than were asked for.

    Attributes:
        most: How many it bears.
    """

    def __init__(self, vocabulary_size: int, most: int) -> None:
        super().__init__(
            f"the corpus is too small for a vocabulary of {vocabulary_size}: it bears at most {most}; "
            f"set --vocabulary-size {most} or less, or use more text"
        )
        self.most = most


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, model_type: str = "bpe") -> SentencePieceTokenizer:
    """Train SentencePiece on `texts`.

    Runs in a process of its own, so that Ctrl-C ends it at once.

    Args:
        texts: Training documents; held-out ones must not be among them.
        vocabulary_size: Number of pieces, the 256 bytes and the special ones among them.
        model_type: `bpe` or `unigram`.

    Raises:
        SmallCorpusError: The text is too small or too uniform for that many pieces.
        InputError: The number is below what bytes and special pieces need, or there is no text.
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
                used += len(text)
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
            raise _explained(done.stderr, vocabulary_size)
        return SentencePieceTokenizer((Path(folder) / "model").read_bytes())


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


def _explained(message: str, vocabulary_size: int) -> InputError:
    found = re.search(r"<= (\d+)", message)
    if found:
        return SmallCorpusError(vocabulary_size, int(found[1]))
    found = re.search(r"(\d+) > (\d+)|smaller than required_chars\. \d+ vs (\d+)", message)
    if "required_chars" in message or "vocab_size" in message or found:
        return InputError(
            f"a vocabulary of {vocabulary_size} is too small for the bytes and special pieces; use at least 512"
        )
    return InputError(f"SentencePiece could not train: {' '.join(message.split())}")
