"""Counts of calls, added up per minute, request by request.

Whoever reports is known by its socket; which words it uses is its own choice. So words are bounded: a destination must
be a service that the reporter sees, a status one that there is, and of methods and callers there are so many an hour
for each service; what is beyond is counted under `_OTHER` or as unknown, never lost. Nobody's words take the room of
another's: not those of one tenant's programs that of another's, and not methods that were refused or don't exist, which
a caller can make up at will, that of methods that were served.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import grpc

from meshwarden.agents.telemetry import access_log
from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.sdk import histogram
from meshwarden.sdk.exemplar import Exemplars
from meshwarden.v1 import report_pb2 as pb

OTHER: Final = "_OTHER"
UNKNOWN: Final = "unknown/unknown"
"""The destination of calls to names that lead nowhere."""
_MAX_METHODS: Final = 200
_MAX_UNSERVED: Final = 50
_MAX_SOURCES: Final = 2000
_MAX_COUNT: Final = 1_000_000_000
_MAX_DURATION_S: Final = 86_400.0
_MAX_REVISION: Final = 2**63 - 1
_METHOD_LENGTH: Final = 512
_SOURCE_LENGTH: Final = 2048
_STATUSES: Final = frozenset(status.name for status in grpc.StatusCode) | {str(code) for code in (0, *range(100, 600))}
_MISSING: Final = frozenset({"UNIMPLEMENTED", "404"})
_DECISIONS: Final = (pb.CallStat.ALLOWED, pb.CallStat.DENIED, pb.CallStat.LIMITED, pb.CallStat.THROTTLED)

Resolve = Callable[[str, str], str | None]
"""What a tenant's workload means by a name: `(tenant, name) -> "<tenant>/<service>"`; `Names.find`."""
Locate = Callable[[str, str, str], str]
"""Where a called endpoint is: `(tenant, "<tenant>/<service>", address) -> region`; `Localities.region`."""


@dataclass(frozen=True)
class CallKey:
    """What calls are counted by; `minute` is the beginning of one, in seconds since 1970."""

    source: str
    destination: str
    method: str
    status: str
    decision: int
    reporter: int
    revision: int
    minute: int
    destination_region: str


@dataclass
class _Sum:
    count: int = 0
    duration_s: float = 0.0
    durations: Counter[int] = field(default_factory=Counter)
    exemplars: Exemplars = field(default_factory=Exemplars)


class Aggregator:
    """Adds up calls until they are taken."""

    def __init__(
        self, clock: Callable[[], datetime], resolve: Resolve | None = None, locate: Locate | None = None
    ) -> None:
        """Starts empty.

        Args:
            clock: the present, aware, UTC.
            resolve: tells what a caller's names stand for; without it they must be full and are believed.
            locate: tells the region of who was called; without it none is known.
        """
        self._clock = clock
        self._resolve = resolve or _in_full
        self._locate = locate or (lambda tenant, service, address: "")
        self._sums: dict[CallKey, _Sum] = {}
        self._words = _Words()
        self._malformed = 0

    def add_call(self, call: access_log.Call, revision: int) -> None:
        """Counts one call that has just ended."""
        stat = pb.CallStat(
            source=call.source,
            destination=call.destination,
            method=call.method,
            status=call.status,
            decision=call.decision,  # type: ignore[arg-type]
            reporter=call.reporter,  # type: ignore[arg-type]
            revision=revision,
            count=1,
            duration_sum_s=call.duration_s,
            durations=histogram.to_proto({histogram.bucket_of(call.duration_s): 1}),
        )
        if call.trace is not None:
            exemplar = stat.exemplars.add(trace_id=call.trace[0], span_id=call.trace[1], duration_s=call.duration_s)
            exemplar.time.FromDatetime(self._clock())
        self.add(stat, call.upstream)

    def add(self, stat: pb.CallStat, upstream: str = "") -> None:
        """Adds counts that somebody else has made.

        The reporter's own side in it must be the agent's word by now. The minute is ours: a sender's clock is not
        believed. `upstream` is the address of the endpoint that took the calls, where it is known.
        """
        tenant = _reporter_tenant(stat)
        durations = _durations(stat)
        if not _is_sound(stat, durations) or not tenant:
            self._malformed += min(max(stat.count, 1), _MAX_COUNT)
            return
        key = self._key(stat, tenant, upstream)
        total = self._sums.setdefault(key, _Sum())
        total.count += stat.count
        total.duration_s += stat.duration_sum_s
        total.durations.update(durations)
        total.exemplars.update(stat.exemplars)

    def take(self) -> tuple[list[pb.CallStat], int]:
        """Removes and returns all counts, and how many calls were in none because what was said of them cannot be."""
        sums, self._sums = self._sums, {}
        malformed, self._malformed = self._malformed, 0
        return [_stat(key, total) for key, total in sums.items()], malformed

    def _key(self, stat: pb.CallStat, tenant: str, upstream: str) -> CallKey:
        now = int(self._clock().timestamp())
        self._words.of_hour(now // 3600)
        source, destination, region = stat.source, stat.destination, ""
        if stat.reporter == pb.CallStat.SOURCE:
            destination = self._resolve(tenant, destination) or UNKNOWN
            region = self._locate(tenant, destination, upstream)
        elif not self._words.has_room(("source", destination), source, _MAX_SOURCES):
            source = ""
        method = self._method(stat, tenant, destination) if destination != UNKNOWN else OTHER
        status = stat.status if stat.status in _STATUSES else OTHER
        minute = now - now % 60
        return CallKey(source, destination, method, status, stat.decision, stat.reporter, stat.revision, minute, region)

    def _method(self, stat: pb.CallStat, tenant: str, destination: str) -> str:
        said = stat.method
        if not said or not said.isprintable() or len(said) > _METHOD_LENGTH:
            return OTHER
        served, unserved = ("served", tenant, destination), ("unserved", tenant, destination)
        if stat.decision != pb.CallStat.DENIED and stat.status not in _MISSING:
            is_known = self._words.has_room(served, said, _MAX_METHODS)
        else:
            is_known = self._words.has(served, said) or self._words.has_room(unserved, said, _MAX_UNSERVED)
        return said if is_known else OTHER


class _Words:
    """The first words of each kind within an hour."""

    def __init__(self) -> None:
        self._hour = 0
        self._known: dict[tuple[str, ...], set[str]] = {}

    def of_hour(self, hour: int) -> None:
        """Forgets the words of another hour."""
        if hour != self._hour:
            self._hour = hour
            self._known.clear()

    def has(self, kind: tuple[str, ...], word: str) -> bool:
        """Whether a word is known."""
        return word in self._known.get(kind, ())

    def has_room(self, kind: tuple[str, ...], word: str, most: int) -> bool:
        """Whether a word is one of the first `most` of its kind; then it is known from now on."""
        words = self._known.setdefault(kind, set())
        if word not in words and len(words) < most:
            words.add(word)
        return word in words


@functools.lru_cache(maxsize=4096)
def _tenant_of(spiffe_id: str) -> str | None:
    """The tenant in a SPIFFE ID: empty if it has none, None if the text is none."""
    if len(spiffe_id) > _SOURCE_LENGTH:
        return None
    try:
        return SpiffeId.parse(spiffe_id).tenant or ""
    except InvalidSpiffeId:
        return None


def _reporter_tenant(stat: pb.CallStat) -> str:
    """The tenant of the side that reports; empty if the stat names none."""
    if stat.reporter == pb.CallStat.DESTINATION:
        return stat.destination.partition("/")[0]
    return _tenant_of(stat.source) or ""


def _is_sound(stat: pb.CallStat, durations: Counter[int]) -> bool:
    return (
        0 < stat.count <= _MAX_COUNT
        and durations.total() == stat.count
        and math.isfinite(stat.duration_sum_s)
        and 0 <= stat.duration_sum_s <= stat.count * _MAX_DURATION_S
        and stat.revision <= _MAX_REVISION
        and stat.decision in _DECISIONS
        and stat.reporter in (pb.CallStat.SOURCE, pb.CallStat.DESTINATION)
        # A server may not have been able to tell who called.
        and (_tenant_of(stat.source) is not None or (not stat.source and stat.reporter == pb.CallStat.DESTINATION))
    )


def _durations(stat: pb.CallStat) -> Counter[int]:
    """The spread of a stat's durations; empty if it is none."""
    try:
        return histogram.from_proto(stat.durations)
    except ValueError:
        return Counter()


def _in_full(_: str, said: str) -> str | None:
    tenant, slash, service = said.partition("/")
    return said if tenant and slash and service and "/" not in service else None


def _stat(key: CallKey, total: _Sum) -> pb.CallStat:
    stat = pb.CallStat(
        source=key.source,
        destination=key.destination,
        method=key.method,
        status=key.status,
        decision=key.decision,  # type: ignore[arg-type]
        reporter=key.reporter,  # type: ignore[arg-type]
        revision=key.revision,
        count=total.count,
        duration_sum_s=total.duration_s,
        durations=histogram.to_proto(total.durations),
        destination_region=key.destination_region,
        exemplars=total.exemplars.to_proto(),
    )
    stat.minute.FromSeconds(key.minute)
    return stat
