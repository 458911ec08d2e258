"""What all commands share: flags from a dataclass, one-line errors, exit codes.

Exit code 0 success, 2 bad input (one line on standard error), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
import jsonargparse
import yaml

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import readable

_TEXTS = list[str] | str
"""The type of an option that is one text or several."""


def run(
    main: Callable[[Any], int | None],
    options_type: type,
    program: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line into `options_type`, call `main` with it, return the exit code.

    Args:
        main: The command; its own exit code or `None` for 0.
        options_type: A dataclass whose docstring describes every field under "Args:"; see `positional`.
        program: Module name, as in `python -m gpt_keras.train`.
        argv: Arguments; those of the process by default.
    """
    try:
        options = parse(options_type, program, sys.argv[1:] if argv is None else argv)
        return main(options) or 0
    except InputError as error:
        return failed(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        sys.stdout = None
        return 0
    except OSError as error:
        return failed(readable(error, error.filename or "a file"))


def failed(problem: object) -> int:
    """Say on standard error what is wrong with the input, and give the exit code for it."""
    print(f"error: {problem}", file=sys.stderr)
    return 2


def positional(options_type: type) -> Sequence[str]:
    """Fields that are given without a flag, in order: what the dataclass names in `POSITIONAL`."""
    return getattr(options_type, "POSITIONAL", ())


def verbatim(options_type: type) -> Sequence[str]:
    """Fields that are any text, taken as it stands: what the dataclass names in `TEXTS`."""
    return getattr(options_type, "TEXTS", ())


def parse(options_type: type, program: str, argv: Sequence[str]) -> Any:
    """The options of a command line; a first argument ending in .yaml is read as a recipe of them.

    Raises:
        InputError: Unknown flag (the nearest is named), bad value, missing or damaged recipe.
        SystemExit: After --help.
    """
    parser = _parser(options_type, program)
    argv = [part for argument in argv for part in re.split("(?<=^--config)=", argument)]
    if argv and re.search(r"\.ya?ml$", argv[0]):
        argv[:1] = ["--config", argv[0]]
    for place, argument in enumerate(argv[:-1]):
        if argument == "--config":
            argv[place + 1] = _recipe(argv[place + 1], options_type)
    known = {action for entry in parser._actions for action in entry.option_strings}
    for argument in argv:
        flag = argument.split("=", 1)[0]
        if flag.startswith("--") and len(flag) > 2 and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"see {program} --help"
            raise InputError(f"unknown flag {flag}: {hint}")
    try:
        values = parser.parse_args(argv).as_dict()
    except (jsonargparse.ArgumentError, ValueError, TypeError, OSError) as error:
        raise InputError(_one_line(str(error), program)) from error
    hints = typing.get_type_hints(options_type)
    fields = {field.name for field in dataclasses.fields(options_type)}
    values = {name: value for name, value in values.items() if name in fields}
    return options_type(**{name: _texts(value) if hints[name] == _TEXTS else value for name, value in values.items()})


def _recipe(path: str, options_type: type) -> str:
    """What a recipe says; one value is enough where an option takes several."""
    try:
        recipe = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected options, as in 'steps: 100'")
    hints = typing.get_type_hints(options_type)
    for name, value in recipe.items():
        if hints.get(name) == list[str] and isinstance(value, str):
            recipe[name] = [value]
        elif hints.get(name) == _TEXTS and isinstance(value, list | None):
            value = value or []
            if not all(isinstance(text, str) for text in value):
                raise InputError(f"{path}: {name} must be a text or a list of texts; put quotes around each")
            recipe[name] = json.dumps(value)
    return yaml.safe_dump(recipe)


def _parser(options_type: type, program: str) -> jsonargparse.ArgumentParser:
    documentation = (docstring_parser.parse(kind.__doc__ or "") for kind in reversed(options_type.__mro__))
    help_texts = {param.arg_name: param.description or "" for entry in documentation for param in entry.params}
    parser = jsonargparse.ArgumentParser(
        prog=program, description=sys.modules[options_type.__module__].__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    hints = typing.get_type_hints(options_type)
    own, unflagged, texts = options_type.__annotations__, positional(options_type), verbatim(options_type)
    for field in sorted(dataclasses.fields(options_type), key=lambda field: field.name not in own):  # those first
        flags = [field.name] if field.name in unflagged else [f"--{field.name.replace('_', '-')}"]
        kwargs: dict[str, Any] = {"type": hints[field.name], "help": help_texts[field.name].replace("%", "%%")}
        if hints[field.name] == list[str]:  # several values behind one flag
            kwargs |= {"type": str, "nargs": "+"}
        elif field.name in texts:  # as it stands: no YAML, to which `#1` and `null` are nothing
            kwargs["type"] = str
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if hints[field.name] == _TEXTS:
            default = json.dumps(default)
        if default is not dataclasses.MISSING:
            kwargs["default"] = default
            if field.name in unflagged:
                kwargs["nargs"] = "*" if "nargs" in kwargs else "?"
        elif field.name not in unflagged:
            kwargs["required"] = True
        if hints[field.name] is bool:
            kwargs["action"] = "store_true"
            del kwargs["type"]
        parser.add_argument(*flags, **kwargs)
    return parser


def _texts(value: Any) -> Any:
    """One text, or several as a JSON list."""
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError):
            found = json.loads(value)
            if all(isinstance(text, str) for text in found):
                return found
    return value


def _one_line(message: str, program: str) -> str:
    """jsonargparse's explanation, which spans lines, as one."""
    message = re.sub(r"^Parser key \"(\w+)\":", lambda m: f"--{m[1].replace('_', '-')}:", message.strip())
    words = " ".join(message.split())
    return words if len(words) < 300 else words[:297] + "..."
