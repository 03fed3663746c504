"""JSON as a tree of values, read strictly: a key stands once, numbers are finite, text is Unicode, all of it bounded.

Source: RFC 8259; I-JSON (RFC 7493) §2.1 and §2.3 for text and for keys.
"""

import json
import math
from typing import Any, Final, NoReturn

from meshwarden.controlplane.resources.tree import MAX_DEPTH, Node

MAX_BYTES: Final = 2 << 20
MAX_NODES: Final = 100_000
# Python's own bound on the digits of a number is far beyond 64 bits.
_MAX_DIGITS: Final = 400


class NoJson(ValueError):
    """It is none, or none that is taken; the message says why."""


def read(text: bytes) -> Node:
    """Reads a value.

    Raises:
        NoJson: it can't be read.
    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_int=_integer,
        )
    except NoJson:
        raise
    except UnicodeDecodeError as error:
        raise NoJson(f"it is not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise NoJson(f"it is nested more than {MAX_DEPTH} deep") from None
    except json.JSONDecodeError as error:
        raise NoJson(f"it is no JSON: {error.msg}: line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise NoJson(f"it is no JSON: {str(error)[:200]}") from None
    return _Tree().node(value, 0)


class _Tree:
    """Makes nodes, so many at most."""

    def __init__(self) -> None:
        self._count = 0

    def node(self, value: Any, depth: int) -> Node:
        """The node of a value."""
        self._count += 1
        if self._count > MAX_NODES:
            raise NoJson(f"it has more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            raise NoJson(f"it is nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return Node({_text(key): self.node(item, depth + 1) for key, item in value.items()}, 0)
        if isinstance(value, list):
            return Node([self.node(item, depth + 1) for item in value], 0)
        if isinstance(value, str):
            return Node(_text(value), 0)
        if isinstance(value, float) and not math.isfinite(value):
            raise NoJson("a number is out of all bounds")
        return Node(value, 0)


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NoJson("a text has half of a surrogate pair") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise NoJson(f"the key {twice[:60]!r} stands twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise NoJson("a number is out of all bounds")
    return int(digits)


def _refuse_constant(word: str) -> NoReturn:
    raise NoJson(f"it is no JSON: {word} is no number of it")
