"""What a client refuses of one type of resources, name by name.

A client that answers a response with a NACK has taken the good resources of it. Which are the bad ones stands in a text
for people, in each client's own words, so it is read with care: whom it does not name, nobody knows, and then the bad
one is among all that the response held. What is refused is refused until the client was sent it anew and took it.

Source: https://github.com/grpc/proposal/blob/master/A46-xds-nack-semantics-improvement.md
"""

import re
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from meshwarden.xds.snapshot import Resource

_MAX_PUSHES: Final = 64
_MAX_RESOURCES: Final = 20_000
_MAX_TEXT: Final = 65_536  # characters of an explanation that are read
_INDEX: Final = re.compile(r"resource index (\d{1,9})\b")  # how gRPC's C core counts what a response held
_MARKS: Final = "'\"`[](){}<>,;:."


@dataclass(frozen=True)
class Refusal:
    """A refusal.

    Attributes:
        type_url: of what is refused.
        names: the resource; several if it is one of these and nobody knows which, none if nobody knows at all.
        version: the resource's, or that of the response if it is not known which it is.
        message: the client's explanation.
    """

    type_url: str
    names: tuple[str, ...]
    version: str
    message: str


@dataclass(frozen=True, eq=False)
class _Reason:
    """Told apart by identity: names that share one are those among which the bad one is."""

    version: str
    message: str


class Refused:
    """What a client refuses of one type at present."""

    __slots__ = ("_reasons", "_type_url", "_versions")

    def __init__(self, type_url: str) -> None:
        self._type_url = type_url
        self._reasons: dict[str, _Reason] = {}  # "" is something unknown
        self._versions: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def __contains__(self, name: object) -> bool:
        return name in self._reasons

    def holds(self, item: Resource) -> bool:
        """Whether a resource is refused as it is."""
        return bool(self._reasons) and self._versions.get(item.name) == item.version

    def refuse(self, pushed: Mapping[str, Resource | None], version: str, message: str) -> set[str]:
        """Takes a NACK of a response; returns the names of what is bad or may be.

        Args:
            pushed: what the response held, in its order; None for what was taken before, sent in place of what is
                refused already.
            version: of the response.
            message: the client's explanation.
        """
        found = named(message, list(pushed))
        anew = [name for name, item in pushed.items() if item is not None]
        if not found and len(anew) == 1:
            found = {anew[0]: message}
        self.take(name for name in anew if name not in found)
        shared = _Reason(version, message)
        for name in found or anew:
            if (item := pushed[name]) is not None:
                self._versions[name] = item.version
                self._reasons[name] = _Reason(item.version, found[name]) if found else shared
        if not found and not anew:
            self._reasons[""] = shared
        return set(found or anew)

    def take(self, names: Iterable[str]) -> None:
        """Takes note that the client has taken what it was sent under these names."""
        if self._reasons:
            self._drop(names)
            self._reasons.pop("", None)

    def forget(self, names: Iterable[str]) -> set[str]:
        """These names are nothing to the client any more; returns whom to send again, since they may be well now."""
        if not self._reasons:
            return set()
        names = set(names)
        others = self.among(names) - names
        self._drop(names)
        return others

    def missing(self, names: Container[str]) -> list[str]:
        """What is refused and is none of `names`."""
        return [name for name in self._reasons if name and name not in names]

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._reasons.pop(name, None)
            self._versions.pop(name, None)

    def among(self, names: Iterable[str]) -> set[str]:
        """All among which the bad one is, if one of `names` may be it: sent together, the answer tells of each."""
        if not self._reasons:
            return set()
        found = {id(self._reasons[name]) for name in names if name in self._reasons}
        return {name for name, reason in self._reasons.items() if name and id(reason) in found}

    def all(self) -> list[Refusal]:
        """What is refused."""
        names: dict[_Reason, list[str]] = {}
        for name, reason in self._reasons.items():
            names.setdefault(reason, []).extend([name] if name else [])
        return [Refusal(self._type_url, tuple(some), reason.version, reason.message) for reason, some in names.items()]


class Unanswered:
    """The pushes of one type that wait for their answer. Of a client that never answers the newest are remembered."""

    __slots__ = ("_count", "_pushes")

    def __init__(self) -> None:
        self._pushes: OrderedDict[str, tuple[str, Mapping[str, Resource | None]]] = OrderedDict()
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._pushes)

    def put(self, nonce: str, version: str, held: Mapping[str, Resource | None]) -> None:
        """Takes note of a push and of what it held."""
        while self._pushes and (len(self._pushes) >= _MAX_PUSHES or self._count + len(held) > _MAX_RESOURCES):
            self._drop(next(iter(self._pushes)))
        self._pushes[nonce] = version, held
        self._count += len(held)

    def take(self, nonce: str) -> tuple[str, Mapping[str, Resource | None]] | None:
        """The version of a push and what it held; None if it is none that waits for an answer, which it does once."""
        return self._drop(nonce) if nonce in self._pushes else None

    def clear(self) -> None:
        """Nothing waits any more."""
        self._pushes.clear()
        self._count = 0

    def _drop(self, nonce: str) -> tuple[str, Mapping[str, Resource | None]]:
        found = self._pushes.pop(nonce)
        self._count -= len(found[1])
        return found


def named(message: str, names: Sequence[str]) -> dict[str, str]:
    """Which of `names` an explanation is about, and what it says of each: `{name: text}`.

    Args:
        message: the explanation, in any client's words.
        names: what the response held, in its order.
    """
    text = message[:_MAX_TEXT]
    starts = _counted(text, names) or _mentioned(text, frozenset(names))
    if len(starts) < 2:
        return dict.fromkeys(starts, message)
    ends = [*list(starts.values())[1:], len(text)]
    return {name: text[start:end].strip(" \n,;[]") for (name, start), end in zip(starts.items(), ends, strict=True)}


def _counted(text: str, names: Sequence[str]) -> dict[str, int]:
    """What is meant by its place in the response: `{name: where it is mentioned first}`."""
    found: dict[str, int] = {}
    for match in _INDEX.finditer(text):
        if (place := int(match[1])) < len(names):
            found.setdefault(names[place], match.start())
    return found


def _mentioned(text: str, names: frozenset[str]) -> dict[str, int]:
    """What is mentioned by name; the names in quotes or before a colon alone, if there are such ones."""
    marked: dict[str, int] = {}
    bare: dict[str, int] = {}
    for match in re.finditer(r"\S+", text):
        word = match[0]
        name = word if word in names else word.strip(_MARKS)
        if name in names:
            (bare if name == word else marked).setdefault(name, match.start())
    return marked or bare
