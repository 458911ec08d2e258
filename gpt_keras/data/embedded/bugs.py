"""Plant a bug: every way to change one thing in a function that a person might have got wrong."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from functools import partial

Change = Callable[[], object]

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt,),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt,),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.FloorDiv,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_METHODS = {
    **{"lower": "upper", "upper": "lower", "isupper": "islower", "islower": "isupper", "isdigit": "isalpha"},
    **{"startswith": "endswith", "endswith": "startswith", "find": "rfind", "rfind": "find", "strip": "lstrip"},
    **{"lstrip": "rstrip", "rstrip": "lstrip", "partition": "rpartition", "rpartition": "partition"},
}


def mutants(code: str) -> list[str]:
    """The function once for every change, in the form that `ast.unparse` gives it."""
    count = len(list(_changes(ast.parse(code))))
    written = []
    for number in range(count):
        tree = ast.parse(code)  # anew, since a change is made in place
        list(_changes(tree))[number]()
        written.append(ast.unparse(ast.fix_missing_locations(tree)))
    return [mutant for mutant in dict.fromkeys(written) if mutant != code]


def _changes(tree: ast.Module) -> Iterator[Change]:
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    variables = _variables(function)
    for part in (node for statement in function.body for node in ast.walk(statement)):
        yield from _of_operators(part)
        yield from _of_calls(part)
        yield from _of_not(part)
        if isinstance(part, ast.Return | ast.Assign | ast.AugAssign) and part.value:
            yield from _of_variables(part, variables)
    for before, last in zip(function.body, function.body[1:], strict=False):
        if isinstance(before, ast.For | ast.While) and isinstance(last, ast.Return):
            yield partial(before.body.append, copy.deepcopy(last))


def _of_operators(part: ast.AST) -> Iterator[Change]:
    """Another comparison, operator, or number."""
    if isinstance(part, ast.Compare) and len(part.ops) == 1:
        for other in _COMPARISONS[type(part.ops[0])]:
            yield partial(setattr, part, "ops", [other()])
    elif isinstance(part, ast.BoolOp):
        yield partial(setattr, part, "op", ast.Or() if isinstance(part.op, ast.And) else ast.And())
    elif isinstance(part, ast.BinOp | ast.AugAssign) and type(part.op) in _OPERATORS:
        yield partial(setattr, part, "op", _OPERATORS[type(part.op)]())
    elif isinstance(part, ast.Constant) and type(part.value) is int and part.value < 1000:
        yield partial(setattr, part, "value", part.value + 1)
        if part.value:
            yield partial(setattr, part, "value", part.value - 1)


def _of_calls(part: ast.AST) -> Iterator[Change]:
    """Another function, a range that ends early or late, a place beside the right one."""
    if isinstance(part, ast.Name) and part.id in _FUNCTIONS:
        yield partial(setattr, part, "id", _FUNCTIONS[part.id])
    elif isinstance(part, ast.Attribute) and part.attr in _METHODS:
        yield partial(setattr, part, "attr", _METHODS[part.attr])
    elif isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "range":
        end = min(len(part.args), 2) - 1
        for operator in (ast.Add(), ast.Sub()):
            yield partial(part.args.__setitem__, end, ast.BinOp(part.args[end], operator, ast.Constant(1)))
    elif isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Name):
        yield partial(setattr, part, "slice", ast.BinOp(part.slice, ast.Sub(), ast.Constant(1)))


def _of_not(part: ast.AST) -> Iterator[Change]:
    """A `not` that is missing."""
    for field, value in ast.iter_fields(part):
        if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not):
            yield partial(setattr, part, field, value.operand)


def _of_variables(statement: ast.Return | ast.Assign | ast.AugAssign, variables: list[str]) -> Iterator[Change]:
    """Another variable; one that the statement does not have yet, lest `x = y + x` become the doubling of x."""
    assert statement.value
    there = {part.id for part in ast.walk(statement) if isinstance(part, ast.Name)}
    for part in ast.walk(statement.value):
        if isinstance(part, ast.Name) and part.id in variables:
            for other in variables:
                if other not in there:
                    yield partial(setattr, part, "id", other)


def _variables(function: ast.FunctionDef) -> list[str]:
    inner = {
        part.id
        for comprehension in ast.walk(function)
        if isinstance(comprehension, ast.comprehension)
        for part in ast.walk(comprehension.target)
        if isinstance(part, ast.Name)
    }
    stored = [p.id for p in ast.walk(function) if isinstance(p, ast.Name) and isinstance(p.ctx, ast.Store)]
    return list(dict.fromkeys([a.arg for a in function.args.args] + [name for name in stored if name not in inner]))
