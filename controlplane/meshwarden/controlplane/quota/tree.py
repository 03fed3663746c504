"""What a policy lets whom use: a tree of rates, whose buckets are known by their path."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from meshwarden.sdk.quota.unit import REQUESTS, Unit

OTHERS: Final = "*"
"""The part of a level that stands for each name that no other part has, each by itself."""
REST: Final = ""
"""The part of a level for what fits none of its other parts."""


Path: TypeAlias = tuple[str, ...]
"""Where a level is in a tree: the parts from the top down, none for the top itself."""


class Bucket(NamedTuple):
    """What calls are counted against.

    Attributes:
        policy: the RatePolicy's full name, "platform/orders".
        path: the parts, from the policy's own level down: the calling tenant, then the service where its limit has
            parts by service, then the method where that has parts by method; for what fits none, `REST`.
    """

    policy: str
    path: tuple[str, ...]


class Point(NamedTuple):
    """An enforcement point: an SDK server process or an Envoy."""

    node: str
    name: str


@dataclass(frozen=True, slots=True)
class Level:
    """A level of a policy's tree, in its unit each second over the whole mesh.

    Attributes:
        weight: its claim beside its siblings when there is too little, above 0.
        floor: what it gets whenever it is wanted.
        ceiling: what it never exceeds.
        burst_s: how much may come at once: what comes in so many seconds at the rate.
        parts: what it is divided into, by name.
        by_service: whether the parts are services.
        unit: of the policy; said by the level above all others.
        shadow: whether points let in what they should refuse; said there as well.
    """

    weight: float = 1.0
    floor: float = 0.0
    ceiling: float = math.inf
    burst_s: float = 1.0
    parts: Mapping[str, "Level"] = field(default_factory=dict)
    by_service: bool = False
    unit: Unit = REQUESTS
    shadow: bool = False

    def find(self, path: tuple[str, ...]) -> "Level | None":
        """The level of a bucket; None if the path names none, or one that is divided further."""
        try:
            level = list(self.along(path))[-1]
        except KeyError:
            return None
        return level if not level.parts else None

    def part(self, name: str) -> "Level":
        """The level of one part, by its own name or among the others.

        Raises:
            KeyError: there is none.
        """
        return self.parts[name if name in self.parts or name in (OTHERS, REST) else OTHERS]

    def along(self, path: tuple[str, ...]) -> Iterator["Level"]:
        """The levels of a path, from this one down.

        Raises:
            KeyError: it names none.
        """
        level = self
        yield level
        for name in path:
            level = level.part(name)
            yield level

    def least_ceiling(self, path: tuple[str, ...]) -> float:
        """The least of the ceilings along a path."""
        return min(level.ceiling for level in self.along(path))
