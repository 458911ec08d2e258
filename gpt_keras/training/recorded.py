"""The options of a run as its folder has them, in config.yaml, with fingerprints of what it was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import sweep, whole_file
from gpt_keras.training.options import LoopOptions, flag

NAME = "config.yaml"


def plain(options: LoopOptions) -> dict[str, Any]:
    """Options as YAML has them."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def read_recorded(run_dir: Path) -> dict[str, Any] | None:
    """What config.yaml says; `None` where there is none.

    Raises:
        InputError: It is damaged.
    """
    path = run_dir / NAME
    if not path.exists():
        return None
    try:
        recorded = yaml.safe_load(path.read_text("utf-8"))
        return dict(recorded)
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        raise damaged(run_dir, error) from error


def damaged(run_dir: Path, error: Exception) -> InputError:
    """What is wrong with a config.yaml."""
    return InputError(f"{run_dir / NAME}: damaged ({error}); use --restart to begin again")


def write_recorded(options: LoopOptions, fingerprints: Mapping[str, Any]) -> None:
    """Write config.yaml. Do so when nothing is left to go wrong with the options; killed writers' remains go, too."""
    with whole_file(options.run_dir / NAME) as partial:
        values = {**plain(options), **fingerprints}
        values.pop("unsafe", None)  # which no file may say, only a person
        partial.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    sweep(options.run_dir)


def differing(recorded: Mapping[str, Any], given: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """In words, those of `names` in which options differ from what was recorded."""
    return [f"{flag(name)} {recorded[name]}, not {given[name]}" for name in names if recorded[name] != given[name]]


def refuse_differences(run_dir: Path, differences: Sequence[str]) -> None:
    """A run that was begun with other options than those that are given now does not go on.

    Raises:
        InputError: There are differences.
    """
    if differences:
        raise InputError(
            f"{run_dir} was begun with {'; with '.join(differences)}: "
            "give the same to go on, another --run-dir, or --restart to begin again"
        )


def changes(recorded: Mapping[str, Any], given: Mapping[str, Any], leave_out: Collection[str]) -> list[str]:
    """In words, the options that may differ, and do."""
    return [
        f"{flag(name)} {given[name]} (was {recorded[name]})"
        for name in given
        if name not in leave_out and recorded[name] != given[name]
    ]
