"""A model as one .tflite file: graph and weights, and behind them, as a zip archive, what reading its text takes.

LiteRT reads the file up to the archive, and any zip program from there: `unzip -l model.tflite`.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.data.tokenizer import TOKENIZER_FILES, Tokenizer
from gpt_keras.folder import token_ids

_CONFIG = "gpt_config.json"
_TOKENIZER = (*TOKENIZER_FILES, "generation_config.json", "config.json")


def text_files(tokenizer: Tokenizer | None) -> dict[str, bytes]:
    """What `Tokenizer.from_files` makes the same tokenizer of, with all that begins and ends a text."""
    if tokenizer is None:
        return {}
    return {**tokenizer.files, "generation_config.json": json.dumps(token_ids(tokenizer)).encode()}


def write(path: str | Path, content: bytes, config: GPTConfig, tokenizer: Tokenizer | None) -> None:
    """The file, whole or not at all.

    Args:
        path: Where.
        content: The LiteRT file.
        config: The model's, with the context that the file was made for.
        tokenizer: Its tokenizer.

    Raises:
        InputError: It cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content)
        with zipfile.ZipFile(partial, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
            for name, data in sorted(text_files(tokenizer).items()):
                archive.writestr(name, data)


def read(path: str | Path) -> tuple[GPTConfig, Tokenizer | None]:
    """The configuration and the tokenizer in a file.

    Raises:
        InputError: There is no such file, or they are not in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            config = GPTConfig(**json.loads(archive.read(_CONFIG)))
            files = {name: archive.read(name) for name in _TOKENIZER if name in names}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a whole LiteRT file of this project (export --format litert)") from error
    return config, Tokenizer.from_files(files, str(path)) if files else None
