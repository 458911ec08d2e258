"""What every tokenizer can do: text to token ids, ids back to text, and the bytes that one token adds to a text.

Two kinds share this interface: SentencePiece (`tokenizer.model`, the kind this project trains) and Hugging Face's
`tokenizer.json` (byte-level BPE of GPT-2, Llama 3, Qwen). `Tokenizer.load` finds out which one a folder holds.
"""

from __future__ import annotations

import abc
import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_keras.data.errors import InputError

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""What a folder may hold of a tokenizer."""


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Attributes:
        vocabulary_size: Number of token ids.
        begin_id: The token that texts begin with, or `None`.
        end_id: The token that ends a text, or `None`.
        end_ids: All tokens that end a text or a turn; generation stops at any of them.
        adds_begin: Whether a prompt begins with the begin token.
        special: Text of each token that stands for no text (begin, end, roles, ...) to its id.
        chat_template: Jinja source that turns a conversation into a prompt, or `None`.
        fingerprint: SHA-256: two tokenizers with the same one give the same ids.
        escape: A character that begins an escape sequence, which `restore` undoes, or `None`.
    """

    vocabulary_size: int
    begin_id: int | None
    end_id: int | None
    end_ids: frozenset[int]
    adds_begin: bool
    special: dict[str, int]
    chat_template: str | None
    fingerprint: str
    escape: str | None = None

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Token ids of each text, without begin or end; special pieces in it are plain text.

        Raises:
            InputError: A text that this tokenizer cannot represent, such as one with a lone surrogate.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids. Special tokens vanish; bytes that are not UTF-8 become U+FFFD.

        Raises:
            InputError: An id is outside the vocabulary.
        """

    @abc.abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of UTF-8 that this token adds to a text; none for special tokens and ids beyond the vocabulary."""

    @abc.abstractmethod
    def piece(self, token_id: int) -> str:
        """How the vocabulary writes this token."""

    @abc.abstractmethod
    def token_id(self, piece: str) -> int | None:
        """The token that the vocabulary writes as `piece`."""

    @abc.abstractmethod
    def write(self, folder: Path, context_length: int) -> None:
        """Write the tokenizer's files for us and for `transformers` into `folder`.

        Args:
            folder: Where.
            context_length: Recorded as `model_max_length`.

        Raises:
            InputError: This tokenizer cannot be written so that `transformers` gives the same ids.
        """

    @property
    @abc.abstractmethod
    def files(self) -> dict[str, bytes]:
        """Name to content of the files that `from_files` makes this tokenizer from."""

    @abc.abstractmethod
    def with_special(self, pieces: Sequence[str]) -> Tokenizer:
        """The same tokenizer with special tokens of these texts behind all others; those that it has stay."""

    def with_template(self, template: str) -> Tokenizer:
        """The same tokenizer with this chat template, which its files then have."""
        ids = {"bos_token_id": self.begin_id, "eos_token_id": sorted(self.end_ids)}
        more = {"chat_template.jinja": template.encode(), "generation_config.json": json.dumps(ids).encode()}
        found = Tokenizer.from_files({**self.files, **more}, "the tokenizer")
        assert found is not None
        return found

    def check_writable(self, samples: Iterable[str] = ()) -> None:
        """See that `write` will succeed and that `transformers` will give the same ids for `samples`.

        Raises:
            InputError: It would not.
        """
        return None

    @property
    def padding_id(self) -> int:
        """A token to fill up rows with; nobody looks at it."""
        padding = self.special.get("<pad>", self.end_id)
        return padding if padding is not None else 0

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`, without begin or end.

        Args:
            text: Any text.
            special: Whether the text of a special token, `<|user|>` say, stands for that token. Leave it off for text
                that is not your own.
        """
        if not special or not self.special:
            return self.encode_batch([text])[0]
        ids: list[int] = []
        for part in self._split_at_special(text):
            ids += [self.special[part]] if part in self.special else self.encode_batch([part])[0]
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to continue: with the begin token, where this tokenizer's texts have one."""
        ids = self.encode(text)
        if (self.adds_begin or not ids) and self.begin_id is not None:
            return [self.begin_id, *ids]
        return ids or [self.padding_id]

    def continuation(self, ids: Iterable[int]) -> str:
        """The text that `ids` add to a text before them."""
        stream = TextStream(self)
        return "".join([*map(stream.push, ids), stream.flush()])

    def restore(self, text: str) -> str:
        """Undo what encoding did to characters; most tokenizers do nothing."""
        return text

    def _split_at_special(self, text: str) -> list[str]:
        """`text` in parts, each a special token's text or free of them."""
        pattern = "|".join(re.escape(piece) for piece in sorted(self.special, key=len, reverse=True))
        return [part for part in re.split(f"({pattern})", text) if part]

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """The tokenizer in a file (`tokenizer.model`, `tokenizer.json`) or a folder.

        A folder's `tokenizer.model` is used, unless its `tokenizer.json` has tokens beyond it.

        Raises:
            InputError: There is none, or it is damaged.
        """
        tokenizer = Tokenizer.find(path)
        if tokenizer is None:
            raise InputError(f"{path}: no tokenizer there (no tokenizer.model or tokenizer.json)")
        return tokenizer

    @staticmethod
    def find(path: str | Path) -> Tokenizer | None:
        """As `load`; `None` for a folder without a tokenizer."""
        path = Path(path)
        if not path.is_dir():
            name = "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
            return Tokenizer.from_files({name: _read(path)}, str(path))
        names = (*TOKENIZER_FILES, "config.json", "generation_config.json")
        return Tokenizer.from_files({n: _read(path / n) for n in names if (path / n).exists()}, str(path))

    @staticmethod
    def from_files(files: Mapping[str, bytes], where: str) -> Tokenizer | None:
        """The tokenizer in the files of a Hugging Face folder, given as name to content.

        Args:
            files: Those of `TOKENIZER_FILES` that there are; `config.json` and `generation_config.json` add to what
                they say about begin and end.
            where: For messages.
        """
        from gpt_keras.data.hub_tokenizer import HubTokenizer
        from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer

        settings = TokenizerSettings.read(files, where)

        def at(name: str) -> str:
            return where if Path(where).suffix == Path(name).suffix else f"{where}/{name}"

        has_json = "tokenizer.json" in files
        if "tokenizer.model" in files:
            try:
                tokenizer = SentencePieceTokenizer(files["tokenizer.model"], at("tokenizer.model"), settings)
            except InputError:
                if not has_json:
                    raise
            else:
                if not has_json:
                    return tokenizer
                hub = HubTokenizer(files["tokenizer.json"], at("tokenizer.json"), settings)
                return tokenizer if hub.vocabulary_size <= tokenizer.vocabulary_size else hub
        if has_json:
            return HubTokenizer(files["tokenizer.json"], at("tokenizer.json"), settings)
        if "vocab.json" in files and "merges.txt" in files:
            return HubTokenizer.from_vocabulary(files["vocab.json"], files["merges.txt"], where, settings)
        return None


@dataclass(frozen=True)
class TokenizerSettings:
    """What a Hugging Face folder says about its tokenizer outside of the vocabulary.

    Attributes:
        files: The folder's own files, written back as they were.
        begin, end, padding: Text of those tokens, where named.
        begin_id, end_ids: Their ids, where config.json or generation_config.json names them.
        adds_begin: Whether prompts begin with the begin token; `None` if it does not say.
        chat_template: Jinja source.
    """

    files: Mapping[str, bytes]
    begin: str | None = None
    end: str | None = None
    padding: str | None = None
    begin_id: int | None = None
    end_ids: frozenset[int] = frozenset()
    adds_begin: bool | None = None
    chat_template: str | None = None

    @classmethod
    def read(cls, files: Mapping[str, bytes], where: str) -> TokenizerSettings:
        names = ("special_tokens_map.json", "tokenizer_config.json", "config.json", "generation_config.json")
        parsed = {name: _json_object(files[name], f"{where}/{name}") for name in names if name in files}
        tokens = {**parsed.get(names[0], {}), **{k: v for k, v in parsed.get(names[1], {}).items() if v is not None}}
        end_ids: set[int] = set()
        for name in names[2:]:
            value = parsed.get(name, {}).get("eos_token_id")
            end_ids.update(i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int))
        begin_id = parsed.get(names[3], {}).get("bos_token_id", parsed.get(names[2], {}).get("bos_token_id"))
        template = tokens.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if "chat_template.jinja" in files:
            template = files["chat_template.jinja"].decode("utf-8", "replace")
        adds_begin = tokens.get("add_bos_token")
        return cls(
            files={name: content for name, content in files.items() if name in TOKENIZER_FILES},
            begin=_text(tokens.get("bos_token")),
            end=_text(tokens.get("eos_token")),
            padding=_text(tokens.get("pad_token")),
            begin_id=begin_id if isinstance(begin_id, int) else None,
            end_ids=frozenset(end_ids),
            adds_begin=adds_begin if isinstance(adds_begin, bool) else None,
            chat_template=template if isinstance(template, str) else None,
        )


class TextStream:
    """The text of tokens as they come; no part splits a character.

    A character whose bytes are spread over several tokens appears with the last of them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace_each_byte")
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that is certain once this token is there."""
        return self._emit(self._decoder.decode(self._tokenizer.token_bytes(int(token_id))), self._tokenizer.escape)

    def flush(self) -> str:
        """What was held back; bytes of an unfinished character become U+FFFD."""
        return self._emit(self._decoder.decode(b"", final=True), None)

    def _emit(self, text: str, hold: str | None) -> str:
        text = self._held + text
        self._held = hold if hold is not None and text.endswith(hold) else ""
        return self._tokenizer.restore(text[: len(text) - len(self._held)])


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for every byte that is not UTF-8, as SentencePiece writes them."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("replace_each_byte", _each_byte)


def check_unicode(text: str) -> None:
    """Raise an `InputError` for a lone surrogate, which no encoding of Unicode has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text holds a lone surrogate (at {error.start}): it is not valid Unicode") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: no tokenizer there ({error.strerror})") from error


def _json_object(content: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise InputError(f"{name}: damaged ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


def _text(token: Any) -> str | None:
    """A token's text, given plain or as an object with `content`."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None
