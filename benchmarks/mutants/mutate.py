"""Small changes of a source file, one at a time: what a slip of the hand could leave."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARE = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
CALLS = {
    "min": "max", "max": "min", "any": "all", "all": "any", "ceil": "floor", "floor": "ceil",
    "minimum": "maximum", "maximum": "minimum", "zeros": "ones", "ones": "zeros",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "startswith": "endswith",
    "endswith": "startswith", "append": "remove", "exp": "expm1", "log": "log1p",
    "sorted": "list", "reversed": "list",
}  # fmt: skip
QUIET = {"log", "logging", "TYPE_CHECKING"}
"""Names whose lines are not changed: what is only logged, and what only type checkers read."""


@dataclass(frozen=True)
class Mutant:
    """One change: the file, the place of what is changed, and what stands there instead."""

    file: str
    line: int
    what: str
    start: int
    end: int
    new: str

    def source(self, before: bytes) -> bytes:
        """Return the changed source."""
        return before[: self.start] + self.new.encode() + before[self.end :]

    def diff(self, before: bytes) -> str:
        """Return the changed lines, as a diff without context."""
        old, new = before.decode().splitlines(), self.source(before).decode().splitlines()
        lines = list(difflib.unified_diff(old, new, lineterm="", n=0))[3:]
        return "\n".join(f"{line[0]} {line[1:].strip()}" for line in lines)


def mutants(root: Path, file: str) -> list[Mutant]:
    """Return every mutant of a file, in the order of its lines."""
    text = (root / file).read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(text)
    found = []
    for node, what, new in _changes(tree):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        found.append(Mutant(file, node.lineno, what, start, end, new))
    kept = {(one.start, one.end, one.new): one for one in found}
    return sorted(kept.values(), key=lambda one: (one.start, one.end, one.new))


def parses(source: bytes) -> bool:
    """Return whether a changed source is Python at all."""
    try:
        compile(source, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _changes(tree: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """Yield (node, what is done to it, the text that takes its place)."""
    for node in _visited(tree):
        yield from ((node, what, ast.unparse(new)) for what, new in _of(node))


def _visited(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that may be changed: no annotations, docstrings, messages or log lines."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if _is_quiet(child) or (isinstance(child, ast.keyword) and child.arg == "strict"):
                continue  # what zip(strict=True) refuses is a slip of ours and never comes
            yield child
            yield from _visited(child)


def _is_quiet(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
    ):
        return True
    head: ast.AST | None = None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        head = node.value.func
    elif isinstance(node, ast.If):
        head = node.test
    while isinstance(head, ast.Attribute):
        head = head.value
    return isinstance(head, ast.Name) and head.id in QUIET


def _of(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Compare):
        for at, op in enumerate(node.ops):
            for other in COMPARE[type(op)]:
                changed = copy.copy(node)
                changed.ops = [*node.ops[:at], other(), *node.ops[at + 1 :]]
                yield "another comparison", changed
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        if not _is_text(node.left) and not _is_text(node.right):
            other = ARITHMETIC[type(node.op)]()
            yield "another operation", ast.BinOp(node.left, other, node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        if not _is_text(node.value):
            yield (
                "another operation",
                ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value),
            )
        yield "a statement left out", ast.Pass()
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and for or", ast.BoolOp(other, node.values)
        for at in range(len(node.values)):
            rest = [*node.values[:at], *node.values[at + 1 :]]
            yield "a condition left out", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield "a sign or a not left out", node.operand
    elif isinstance(node, ast.Constant):
        yield from (("another constant", ast.Constant(value)) for value in _others(node.value))
    elif isinstance(node, ast.IfExp):
        yield (
            "the other branch",
            ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse),
        )
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.Raise) or _is_call(node):
        yield "a statement left out", ast.Pass()
    elif isinstance(node, ast.Continue):
        yield "break for continue", ast.Break()
    elif isinstance(node, ast.Break):
        yield "continue for break", ast.Continue()


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    func = copy.copy(node.func)
    if isinstance(func, ast.Name) and func.id in CALLS:
        func.id = CALLS[func.id]
    elif isinstance(func, ast.Attribute) and func.attr in CALLS:
        func.attr = CALLS[func.attr]
    else:
        return
    yield "another function", ast.Call(func, node.args, node.keywords)


def _others(value: object) -> list[object]:
    """Return what a constant is changed to."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1] if value >= 0 else [value - 1]
    if isinstance(value, float):
        return [value * 2 if value else 1.0]
    return []


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _is_text(node: ast.AST) -> bool:
    """Return whether an operand is a text, a list or a path: any change would be an error."""
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    if isinstance(node, ast.JoinedStr | ast.List | ast.ListComp | ast.Tuple):
        return True
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
