"""Code to write from a description, and code with a bug to mend."""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from collections.abc import Callable
from random import Random

from gpt_keras.data.embedded.bugs import mutants
from gpt_keras.data.embedded.composing import Record, Records
from gpt_keras.data.embedded.functions import Function, all_functions
from gpt_keras.data.embedded.running import LimitError, namespace_of, run_limited

_MUTANTS_TRIED = 6


def code_records(draw: Random, train: int, valid: int) -> tuple[Records, Records]:
    """Descriptions of functions and the functions, as {prompt, code, setup, tests}."""

    def record(function: Function) -> Record | None:
        tests = function.tests(draw)
        prompt = f"Write a Python function `{function.signature}`.\n\n{function.purpose}"
        return {"prompt": prompt, "code": function.code, "setup": function.setup, "tests": tests} if tests else None

    return _split(record, draw, train, valid)


def debugging_records(draw: Random, train: int, valid: int) -> tuple[Records, Records]:
    """Functions with one bug, and without, as {name, buggy, fixed, tests}."""

    def record(function: Function) -> Record | None:
        tests = function.tests(draw)
        candidates = mutants(function.code)
        for buggy in draw.sample(candidates, min(len(candidates), _MUTANTS_TRIED)):
            if tests and _fails(function.setup, buggy, tests):
                parts = [function.setup] if function.setup else []
                versions = ["\n\n\n".join([*parts, code]) for code in (buggy, function.code)]
                return {"name": function.name, "buggy": versions[0], "fixed": versions[1], "tests": tests}
        return None

    return _split(record, draw, train, valid)


def _split(
    record: Callable[[Function], Record | None], draw: Random, train: int, valid: int
) -> tuple[Records, Records]:
    """Records of functions in random order; those that differ in names alone are all on one side."""
    alike: dict[str, list[Function]] = defaultdict(list)
    for function in all_functions():
        alike[_shape(function.code)].append(function)
    groups = list(alike.values())
    draw.shuffle(groups)
    sides: tuple[Records, Records] = ([], [])
    for group in groups:
        side, size = (sides[1], valid) if len(sides[1]) < valid else (sides[0], train)
        for function in group[: size - len(side)]:
            made = record(function)
            if made:
                side.append(made)
    for side in sides:
        draw.shuffle(side)
    return sides


def _shape(code: str) -> str:
    """What is left of a function where its names do not matter."""
    tree = ast.parse(code)
    numbers: dict[str, str] = {}
    for part in ast.walk(tree):
        for field in ("name", "id", "arg"):
            name = getattr(part, field, None)
            if isinstance(name, str) and not hasattr(builtins, name):
                setattr(part, field, numbers.setdefault(name, f"name{len(numbers)}"))
        if isinstance(part, ast.arg | ast.FunctionDef):
            for field in ("annotation", "returns"):
                if hasattr(part, field):
                    setattr(part, field, None)
    return ast.dump(tree)


def _fails(setup: str, buggy: str, tests: list[str]) -> bool:
    """Whether a test fails, and all of them end."""
    failed = False
    try:
        names = namespace_of(setup, buggy)
        for test in tests:
            try:
                run_limited(test, names)
            except Exception:
                failed = True
    except (Exception, LimitError):
        return False
    return failed
