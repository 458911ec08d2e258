"""Small functions of the standard library and of `gpt_keras.data.embedded.exercises`, and assertions about them."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import symtable
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from gpt_keras.data.embedded.arguments import draw_arguments, kinds_of
from gpt_keras.data.embedded.exercises.families import family_sources
from gpt_keras.data.embedded.library import library_functions
from gpt_keras.data.embedded.running import FILE, LimitError, namespace_of, run_limited

_EXERCISES = ("numbers", "texts", "lists")
_MAX_LINES, _MAX_PURPOSE, _MAX_RESULT = 25, 300, 200
_MIN_TESTS, _MAX_TESTS, _MAX_ALIKE, _ATTEMPTS = 3, 5, 3, 60


@dataclass(frozen=True)
class Function:
    """One that was found and can be called.

    Attributes:
        name: Its name.
        signature: Name, parameters and, where it says so, the type that it returns.
        purpose: The first paragraph of its docstring.
        code: Its source without the docstring.
        setup: The imports that it needs, or nothing.
        kinds: What it takes, as in `gpt_keras.data.embedded.arguments`.
    """

    name: str
    signature: str
    purpose: str
    code: str
    setup: str
    kinds: tuple[str, ...]

    def tests(self, draw: Random) -> list[str]:
        """Assertions for drawn arguments, not all about the same result; none where there are too few of them."""
        names = namespace_of(self.setup, self.code)
        results: dict[str, Any] = {}
        for _ in range(_ATTEMPTS):
            call = f"{self.name}({draw_arguments(self.kinds, draw)})"
            try:
                value = run_limited(call, names)
            except (Exception, LimitError):
                continue
            alike = [result for result in results.values() if repr(result) == repr(value)]
            if _is_literal(value) and len(alike) < _MAX_ALIKE:
                results[call] = value
            if len(results) == _MAX_TESTS:
                break
        if len(results) < _MIN_TESTS or len(set(map(repr, results.values()))) == 1:
            return []
        return [_assertion(call, value) for call, value in results.items()]


@lru_cache(maxsize=1)
def all_functions() -> tuple[Function, ...]:
    """Every exercise, and every function of `library` that this Python has in a form that is short and can be run."""
    found: list[Function] = []
    for name in _EXERCISES:
        found += _functions_of((Path(__file__).parent / "exercises" / f"{name}.py").read_text("utf-8"))
    for source in family_sources():
        found += _functions_of(source)
    library = Path(sysconfig.get_paths()["stdlib"])
    for module, kinds in library_functions().items():
        folder = library.joinpath(*module.split("."))
        for path in (folder.with_suffix(".py"), folder / "__init__.py"):
            if path.is_file():
                found += _functions_of(path.read_text("utf-8"), module, kinds)
    by_name = {function.name: function for function in reversed(found)}
    return tuple(by_name[name] for name in sorted(by_name))


def _functions_of(
    source: str, module: str | None = None, kinds: dict[str, tuple[str, ...]] | None = None
) -> Iterator[Function]:
    """The functions of a module that can be run by themselves; of the library's those that `kinds` names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    imports = {
        (alias.asname or alias.name).partition(".")[0]: ast.unparse(type(node)(**{**vars(node), "names": [alias]}))
        for node in tree.body
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
        for alias in node.names
    }
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or not (kinds is None or node.name in kinds):
            continue
        purpose = " ".join(re.split(r"\n\s*\n", (ast.get_docstring(node) or "").strip())[0].split())
        if not purpose or len(purpose) > _MAX_PURPOSE or len(node.body) == 1:
            continue
        code = ast.unparse(type(node)(**{**vars(node), "body": node.body[1:]}))
        setup = _setup(code, node.name, imports, module)
        if setup is None or code.count("\n") >= _MAX_LINES:
            continue
        signature = f"{node.name}({ast.unparse(node.args)})" + (
            f" -> {ast.unparse(node.returns)}" if node.returns else ""
        )
        taken = kinds_of(node) if kinds is None else kinds[node.name]
        function = Function(node.name, signature, purpose, code, setup, taken)
        if function.tests(Random(0)):
            yield function


def _setup(code: str, name: str, imports: dict[str, str], module: str | None) -> str | None:
    """The imports of all names that the code takes from around it; `None` if they cannot be imported."""
    lines, own = [], []
    for used in sorted(_global_names(symtable.symtable(code, FILE, "exec")) - {name}):
        if used in imports:
            lines.append(imports[used])
        elif not hasattr(builtins, used):
            own.append(used)
    if own:
        if module is None or not all(hasattr(importlib.import_module(module), used) for used in own):
            return None
        lines.append(f"from {module} import {', '.join(own)}")
    return "\n".join(dict.fromkeys(lines))


def _global_names(table: symtable.SymbolTable) -> set[str]:
    is_module = table.get_type() == "module"
    names = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (symbol.is_global() or (is_module and not symbol.is_assigned()))
    }
    return names.union(*map(_global_names, table.get_children()))


def _is_literal(value: Any) -> bool:
    """Whether the value can be written into a test."""
    written = repr(value)
    if len(written) > _MAX_RESULT:
        return False
    try:
        read = ast.literal_eval(written)
    except (ValueError, SyntaxError):
        return False
    return type(read) is type(value) and read == value and not isinstance(value, set)


def _assertion(call: str, value: Any) -> str:
    """A line that fails unless `call` returns `value`, or comes close to it where that is a number with a fraction."""
    if isinstance(value, float):
        return f"assert abs({call} - {value!r}) < 1e-06"
    return f"assert {call} is {value}" if value is None or isinstance(value, bool) else f"assert {call} == {value!r}"
