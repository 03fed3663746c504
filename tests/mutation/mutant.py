"""Mutants of a module: its source with one thing changed, as a mistake would.

Source: DeMillo, Lipton and Sayward, "Hints on Test Data Selection" (1978).
"""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
}
_NAMES = {"min": "max", "max": "min", "all": "any", "any": "all"}


@dataclass(frozen=True)
class Mutant:
    """A changed source, and in one line what was changed: the original line, and what stands there now."""

    line: int
    what: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Yields each mutant of a source once; docstrings, annotations and texts stay as they are."""
    tree = ast.parse(source)
    places = [node for node in ast.walk(tree) if isinstance(node, ast.expr | ast.stmt)]
    lines = source.splitlines()
    skipped = _annotations(tree)
    seen: set[str] = set()
    for number, node in enumerate(places):
        if id(node) in skipped:
            continue
        for change in _changes(node):
            copied = copy.deepcopy(tree)
            target = [each for each in ast.walk(copied) if isinstance(each, ast.expr | ast.stmt)][number]
            before = ast.unparse(target)
            changed = _Replace(target, change(target)).visit(copied)
            text = ast.unparse(ast.fix_missing_locations(changed))
            if text not in seen and text != ast.unparse(tree):
                seen.add(text)
                after = ast.unparse(ast.fix_missing_locations(change(copy.deepcopy(node))))
                yield Mutant(
                    node.lineno, f"{lines[node.lineno - 1].strip()}  [{_short(before)} -> {_short(after)}]", text
                )


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, by: ast.AST) -> None:
        self._target, self._by = target, by

    def visit(self, node: ast.AST) -> ast.AST:
        return self._by if node is self._target else super().generic_visit(node)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


def _annotations(tree: ast.AST) -> set[int]:
    """What is never run, or means nothing when it is: annotations, texts on their own, and those of errors."""
    found: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [node.returns, *(a.annotation for a in (*node.args.args, *node.args.kwonlyargs))]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts = [node]
        elif isinstance(node, ast.Raise):
            parts = [text for text in ast.walk(node) if isinstance(text, ast.JoinedStr)]
        for part in parts:
            if part is not None:
                found.update(id(inner) for inner in ast.walk(part))
    return found


Change = Callable[[ast.AST], ast.AST]


def _changes(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for index, comparison in enumerate(node.ops):
            if type(comparison) in _COMPARISONS:
                yield lambda n, i=index: _with(n, ops=[*n.ops[:i], _COMPARISONS[type(n.ops[i])](), *n.ops[i + 1 :]])
    elif isinstance(node, ast.BoolOp):
        yield lambda n: _with(n, op=ast.Or() if isinstance(n.op, ast.And) else ast.And())
        for index in range(len(node.values)):
            yield lambda n, i=index: _without(n, i)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield lambda n: n.operand
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield lambda n: ast.Constant(n.value + 1)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield lambda n: ast.Constant(not n.value)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield lambda n: _with(n, op=_OPERATORS[type(n.op)]())
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        for value in (True, False):
            yield lambda n, v=value: _with(n, test=ast.Constant(v))
    elif isinstance(node, ast.Raise):
        yield lambda n: ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None:
        yield lambda n: ast.Return(ast.Constant(None))
    elif (
        (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        or isinstance(node, ast.Delete)
        or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript))
    ):
        yield lambda n: ast.Pass()
    elif isinstance(node, ast.Name) and node.id in _NAMES:
        yield lambda n: ast.Name(_NAMES[n.id], n.ctx)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
        yield lambda n: n.func.value  # one step less of a chain of calls
    if isinstance(node, ast.Tuple | ast.Set) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        for index in range(len(node.elts)) if len(node.elts) > 1 else ():
            yield lambda n, i=index: _with(n, elts=[*n.elts[:i], *n.elts[i + 1 :]])


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _without(node: ast.BoolOp, index: int) -> ast.AST:
    values = [*node.values[:index], *node.values[index + 1 :]]
    return values[0] if len(values) == 1 else _with(node, values=values)
