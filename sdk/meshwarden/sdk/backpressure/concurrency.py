"""How many calls a server takes at once, and whose: a limit that it finds by itself, parted among tenants.

Each tenant that calls has a part of the limit, by its weight among those that call. Who wants less leaves the rest to
the others; a tenant gets its part back as calls of those end that have more than theirs, since no place that becomes
free goes to one of them while somebody below its part goes short. Calls that have begun are not broken off.

Within what a tenant may have, calls that matter less are let in only while more of it is free (`criticality`).

Nothing here blocks, reads a clock or does I/O.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from meshwarden.sdk.backpressure.criticality import FREE_OF_CONCURRENCY, Criticality
from meshwarden.sdk.backpressure.gradient import Gradient

ANY_TENANT: Final = "*"
MAX_TENANTS: Final = 16_384
"""How many tenants have a part; further ones share one."""
CROWD: Final = ""
"""Whose part that is."""
MAX_SHED: Final = 4096
"""Of how many tenants and levels it is counted who wasn't let in; of further ones, as of those that share a part."""
REBALANCE_S: Final = 0.1
_FEW_TENANTS: Final = 64
_KEPT: Final = 0.97
"""How much of what a tenant wanted it is still held to want a tenth of a second later."""


class Part(NamedTuple):
    """What a tenant may have of the limit.

    Attributes:
        weight: against those of the others who call.
        ceiling: how many of its calls may be at the server in any case; 0: as many as there is room for.
    """

    weight: float = 1.0
    ceiling: int = 0


class _Tenant:
    """One tenant's calls: how many there are, how many there were lately or would have been, and its part.

    What it wants of its part (`claim`) and hasn't got is kept for it: `reserved` is what there is of claim - in_flight.
    """

    __slots__ = ("ceiling", "claim", "in_flight", "name", "part", "peak", "reserved", "wants", "weight")

    def __init__(self, name: str, part: Part) -> None:
        self.name = name
        self.weight, self.ceiling = part
        self.in_flight = self.peak = self.part = self.claim = self.reserved = 0
        self.wants = 0.0


class Place:
    """A call's place at the server, from `Concurrency.enter` until it is left."""

    __slots__ = ("began_s", "cohort", "is_held", "method", "tenant")

    def __init__(self, tenant: _Tenant, method: str, cohort: int, began_s: float) -> None:
        self.tenant, self.method, self.cohort, self.began_s = tenant, method, cohort, began_s
        self.is_held = True


class Usage(NamedTuple):
    """How things are.

    Attributes:
        limit: how many calls may be at the server.
        in_flight: how many are.
        shed: {(tenant, level): how many were not let in since the beginning}.
    """

    limit: int
    in_flight: int
    shed: Mapping[tuple[str, Criticality], int]


class Concurrency:
    """The places at one server. Safe to share between threads."""

    def __init__(self, least: int, most: int, now_s: float, chance: Callable[[], float]) -> None:
        """Makes places for `least` to `most` calls at once; `chance` is from 0 to 1, see `Gradient`."""
        self._lock = threading.Lock()
        self._gradient = Gradient(least, most, now_s, chance)
        self._parts: Mapping[str, Part] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._shed: Counter[tuple[str, Criticality]] = Counter()
        self._in_flight = self._reserved = 0
        self._weights = 0.0
        self._next_s = now_s + REBALANCE_S
        self._limit = self._gradient.limit

    def update(self, least: int, most: int, parts: Mapping[str, Part], now_s: float) -> None:
        """Puts another range and other parts in force; "*" is the part of each tenant that has none of its own."""
        with self._lock:
            self._gradient.bound(least, most)
            self._parts = dict(parts)
            for tenant in self._tenants.values():
                tenant.weight, tenant.ceiling = self._part(tenant.name)
            self._rebalance(now_s)

    def enter(self, tenant: str, method: str, level: Criticality, now_s: float) -> Place | None:
        """Takes a place for a call; None if there is none for it."""
        with self._lock:
            if now_s >= self._next_s:
                self._rebalance(now_s)
            one = self._tenants.get(tenant) or self._come(tenant, now_s)
            # What others have, and what they may still claim, is not to be had.
            most = self._limit - (self._in_flight - one.in_flight) - (self._reserved - one.reserved)
            if most < one.part:
                most = one.part
            if 0 < one.ceiling < most:
                most = one.ceiling
            if self._in_flight >= self._limit or one.in_flight + int(most * FREE_OF_CONCURRENCY[level]) >= most:
                self._refuse(one, level)
                return None
            one.in_flight += 1
            self._in_flight += 1
            if one.in_flight > one.peak:
                one.peak = one.in_flight
                one.claim = max(one.claim, min(one.peak, one.part))
            if one.reserved:
                one.reserved -= 1
                self._reserved -= 1
            return Place(one, method, self._gradient.begin(method, self._in_flight, now_s), now_s)

    def leave(self, place: Place, now_s: float, is_measured: bool) -> None:
        """Gives a place back; only the first time counts.

        Args:
            place: the call's.
            now_s: the present.
            is_measured: whether how long the call took says how busy the server is: it doesn't of a stream, nor of a
                call that ended in an error.
        """
        with self._lock:
            if not place.is_held:
                return
            place.is_held = False
            tenant = place.tenant
            tenant.in_flight -= 1
            self._in_flight -= 1
            if tenant.in_flight < tenant.claim:
                tenant.reserved += 1
                self._reserved += 1
            if self._gradient.end(place.cohort, place.method, place.began_s, now_s, is_measured):
                self._rebalance(now_s)

    @property
    def usage(self) -> Usage:
        """How things are."""
        with self._lock:
            return Usage(self._limit, self._in_flight, Counter(self._shed))

    def _part(self, tenant: str) -> Part:
        return self._parts.get(tenant) or self._parts.get(ANY_TENANT) or Part()

    def _come(self, name: str, now_s: float) -> _Tenant:
        """A tenant calls that wasn't here."""
        if len(self._tenants) >= MAX_TENANTS:
            name = CROWD
            if name in self._tenants:
                return self._tenants[name]
        one = self._tenants[name] = _Tenant(name, self._part(name))
        if len(self._tenants) <= _FEW_TENANTS:
            self._rebalance(now_s)
        else:  # the parts of the others follow with the next division
            self._weights += one.weight
            one.part = max(1, int(self._limit * one.weight / self._weights))
        return one

    def _refuse(self, one: _Tenant, level: Criticality) -> None:
        """Remembers that a tenant wanted more, and counts the call."""
        self._gradient.refuse()
        allowed = one.part - int(one.part * FREE_OF_CONCURRENCY[level])
        allowed = min(allowed, one.ceiling or allowed)
        if one.in_flight < allowed:
            one.peak = max(one.peak, allowed)
            self._reserve(one)
        known = (one.name, level)
        if len(self._shed) >= MAX_SHED and known not in self._shed:
            known = (CROWD, level)
        self._shed[known] += 1

    def _reserve(self, one: _Tenant) -> None:
        """Keeps what a tenant wants of its part and hasn't got."""
        one.claim = min(one.part, max(one.peak, round(one.wants)))
        reserved = max(0, one.claim - one.in_flight)
        self._reserved += reserved - one.reserved
        one.reserved = reserved

    def _rebalance(self, now_s: float) -> None:
        """Parts the limit among those who call."""
        self._limit = self._gradient.limit
        if now_s >= self._next_s:
            self._forget(_KEPT ** ((now_s - self._next_s) / REBALANCE_S + 1))
            self._next_s = now_s + REBALANCE_S
        self._weights = sum(one.weight for one in self._tenants.values())
        self._reserved = 0
        for one in self._tenants.values():
            one.part = max(1, int(self._limit * one.weight / self._weights))
            one.reserved = 0
            self._reserve(one)

    def _forget(self, kept: float) -> None:
        """Remembers less of what was wanted, and nothing of who wants nothing any more."""
        for one in list(self._tenants.values()):
            one.wants = max(float(one.peak), one.wants * kept)
            one.peak = one.in_flight
            if one.wants < 0.5 and not one.in_flight:
                del self._tenants[one.name]
