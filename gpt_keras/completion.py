"""Completion of `gpt-keras`, its commands and their options, for a shell.

eval "$(gpt-keras completion bash)"        # in ~/.bashrc; for zsh the same with zsh, in ~/.zshrc
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import docstring_parser
import shtab

from gpt_keras import command
from gpt_keras.__main__ import COMMANDS


@dataclass
class CompletionOptions:
    """Print what makes a shell complete `gpt-keras`.

    Args:
        shell: bash, zsh or tcsh.
    """

    POSITIONAL: ClassVar = ("shell",)
    shell: Literal["bash", "zsh", "tcsh"]


def main(options: CompletionOptions) -> None:
    print(shtab.complete(_parser(), options.shell))


def _parser() -> argparse.ArgumentParser:
    """All commands and options, as far as a shell is interested."""
    parser = argparse.ArgumentParser("gpt-keras")
    commands = parser.add_subparsers()
    for name, what in COMMANDS.items():
        one = commands.add_parser(name, help=what)
        kind = getattr(importlib.import_module(f"gpt_keras.{name}"), f"{name.capitalize()}Options")
        hints = typing.get_type_hints(kind)
        parts = (docstring_parser.parse(base.__doc__ or "").params for base in kind.__mro__)
        told = {part.arg_name: part.description for params in parts for part in params}
        option: Any = one.add_argument("--config", help="a recipe, a YAML file of options")
        option.complete = shtab.FILE
        positional = command.positional(kind)
        for field in dataclasses.fields(kind):
            if field.name in positional:
                continue
            flag = f"--{field.name.replace('_', '-')}"
            about = (told.get(field.name) or "").split(".")[0].replace("\n", " ").replace("%", "%%")
            choices = _choices(hints[field.name])
            if hints[field.name] is bool:
                one.add_argument(flag, action="store_true", help=about)
            else:
                several = "+" if typing.get_origin(hints[field.name]) is list else None
                option = one.add_argument(flag, choices=choices, help=about, nargs=several)
                if choices is None:
                    option.complete = shtab.FILE
        for place in positional:
            choices = _choices(hints[place])
            option = one.add_argument(place, choices=choices, nargs="?")
            if choices is None:
                option.complete = shtab.FILE
    return parser


def _choices(hint: Any) -> list[str] | None:
    """The words that an option takes, if it is one of some."""
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is Literal:
            return [str(word) for word in typing.get_args(part)]
    return None


def cli() -> int:
    return command.run(main, CompletionOptions, "python -m gpt_keras.completion")


if __name__ == "__main__":
    sys.exit(cli())
