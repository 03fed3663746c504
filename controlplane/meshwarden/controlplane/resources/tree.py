"""YAML as a tree of JSON values with lines, read event by event, so that nothing hostile is ever built.

Only what JSON can say is taken: `on`, `yes`, `010` and dates are text, anchors, aliases and tags are refused, a key
stands once. Depth, size and number of documents are bounded.

Source: YAML 1.2 §10.2 (the JSON schema).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 4 << 20
MAX_DEPTH = 32
MAX_DOCUMENTS = 1000
MAX_NODES = 200_000

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


@dataclass(slots=True)
class Node:
    """A value with the line (from 1) where it stands.

    `value` is a str, int, float, bool, None, {key: Node} or [Node].
    """

    value: Any
    line: int


@dataclass(frozen=True, slots=True)
class TextFault:
    """What is wrong with the text itself."""

    line: int
    message: str


@dataclass(slots=True)
class Documents:
    """The documents of a text, each a Node, and what is wrong with the text."""

    nodes: list[Node] = field(default_factory=list)
    faults: list[TextFault] = field(default_factory=list)


class _Stop(Exception):
    """The text is refused from here on."""

    def __init__(self, line: int, message: str) -> None:
        self.fault = TextFault(line, message)


def read(text: str) -> Documents:
    """Reads a text of one or more documents; empty ones are skipped."""
    documents = Documents()
    try:
        size = len(text.encode())
        if size > MAX_BYTES:
            raise _Stop(1, f"{size} bytes; the limit is {MAX_BYTES}")
        _build(yaml.parse(text, Loader=yaml.CSafeLoader), documents)
    except _Stop as stop:
        documents.faults.append(stop.fault)
    except UnicodeEncodeError:
        documents.faults.append(TextFault(1, "the text is not Unicode: it holds a lone surrogate"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ": ".join(part for part in (error.context, error.problem) if part)
        documents.faults.append(TextFault(mark.line + 1 if mark else 1, f"not YAML: {what}"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 1
        documents.faults.append(TextFault(line, f"not YAML: {error.reason}"))
    except yaml.YAMLError as error:
        documents.faults.append(TextFault(1, f"not YAML: {error}"))
    return documents


def _build(events: Iterator[yaml.Event], documents: Documents) -> None:
    # Each open collection with the key that waits for its value.
    stack: list[tuple[Node, list[Node]]] = []
    root: Node | None = None
    count = 0
    for event in events:
        line = (event.start_mark.line if event.start_mark else 0) + 1
        if isinstance(event, yaml.DocumentStartEvent) and len(documents.nodes) >= MAX_DOCUMENTS:
            raise _Stop(line, f"more than {MAX_DOCUMENTS} documents: apply them in parts")
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
        if isinstance(event, yaml.DocumentEndEvent) and root is not None and root.value is not None:
            # Only now: a document that breaks off would be blamed for what it did not get to say.
            documents.nodes.append(root)
        if not isinstance(event, yaml.NodeEvent):
            continue
        count += 1
        node = _node(event, line)
        if count > MAX_NODES:
            raise _Stop(line, f"more than {MAX_NODES} values")
        if stack:
            _add(node, *stack[-1], documents.faults)
        else:
            root = node
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append((node, []))
            if len(stack) > MAX_DEPTH:
                raise _Stop(line, f"nested deeper than {MAX_DEPTH} levels")


def _node(event: Any, line: int) -> Node:
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise _Stop(line, "anchors and aliases are not taken: write the value out")
    if getattr(event, "tag", None) is not None:
        raise _Stop(line, f"tags are not taken: {event.tag}")
    if isinstance(event, yaml.MappingStartEvent):
        return Node({}, line)
    if isinstance(event, yaml.SequenceStartEvent):
        return Node([], line)
    return Node(scalar(event.value) if event.implicit[0] else event.value, line)


def scalar(text: str) -> Any:
    """A plain scalar by YAML's JSON schema; what it does not know is text."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > 40:
        return text
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    return float(text) if number[2] or number[3] else int(text)


def _add(node: Node, parent: Node, waiting: list[Node], faults: list[TextFault]) -> None:
    if isinstance(parent.value, list):
        parent.value.append(node)
    elif not waiting:
        waiting.append(node)
    else:
        key = waiting.pop()
        if not isinstance(key.value, str):
            faults.append(TextFault(key.line, f"a key must be text: put {_shown(key.value)} in quotes"))
        elif key.value in parent.value:
            first = parent.value[key.value].line
            faults.append(TextFault(key.line, f"{key.value}: given twice, first on line {first}"))
        else:
            node.line = min(node.line, key.line) if isinstance(node.value, dict | list) else node.line
            parent.value[key.value] = node


def _shown(value: Any) -> str:
    return "a collection" if isinstance(value, dict | list) else repr(value)
