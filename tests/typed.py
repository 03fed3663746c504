"""Which commands of the documentation's pages tests type, by what their source says."""

import ast
import functools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests import pages

TYPING = ("types", "reads", "begins", "follows", "printed")
"""What of tests/shell.py takes a page and a command of it."""


@functools.cache
def typed() -> set[tuple[str, str, int]]:
    """{(page, command, which of several of that text)} that the end-to-end and integration tests type."""
    rooms = [pages.ROOT / "tests" / room for room in ("e2e", "integration")]
    files = [path for room in rooms for name in ("test_*.py", "docs_*.py") for path in room.rglob(name)]
    return {one for path in files for one in _typed(path)}


def _typed(path: Path) -> Iterator[tuple[str, str, int]]:
    text = path.read_text()
    if "from tests.shell import" not in text and "from docs_mesh import" not in text:
        return
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    everywhere = dict(_constants(tree.body))
    for function in functions:
        known = {**everywhere, **dict(_constants(function.body))}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and _called(node.func) in TYPING:
                page, command = (_value(one, known) for one in node.args[:2])
                which = next((_value(one.value, known) for one in node.keywords if one.arg == "which"), "0")
                yield page, command, int(which)


def _called(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _constants(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    yield from (
                        (name.id, value)
                        for name, value in zip(target.elts, node.value.elts, strict=True)
                        if isinstance(name, ast.Name)
                    )


def _value(node: ast.expr, known: dict[str, ast.expr]) -> str:
    """What a text is that is written out, or made of such.

    Raises:
        ValueError: it is not.
    """
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name) and node.id in known:
        return _value(known[node.id], known)
    if isinstance(node, ast.JoinedStr):
        return "".join(_value(one, known) for one in node.values)
    if isinstance(node, ast.FormattedValue):
        return _value(node.value, known)
    raise ValueError(f"line {node.lineno}: write the page and the command out, so that one sees which it is")


def says(path: Path, command: str) -> bool:
    """Whether a file has a command's words: as one text, or as texts beside each other, but for blanks."""
    text = path.read_text()
    if " ".join(command.split()) in " ".join(text.split()):
        return True
    plain = re.sub(r"""["']|ARGS=""", "", pages.BLANK.sub("", command))
    words = [
        word
        for word in plain.split()[1:]
        if word != "up" and not word.isupper() and "://" not in word and not word.endswith(".toml")
    ]
    with path.open("rb") as file:
        literals = [
            re.sub(r"""^[a-zA-Z]*["']+|["']+$""", "", token.string)
            for token in tokenize.tokenize(file.readline)
            if token.type == tokenize.STRING
        ]
    return any(set(words) <= set(literals[start : start + len(words) + 3]) for start in range(len(literals)))
