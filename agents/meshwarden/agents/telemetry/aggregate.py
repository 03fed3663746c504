"""Counts of calls, added up per minute, request by request.

Whoever reports is known by its socket; which words it uses is its own choice. So words are bounded: a destination must
be a service that the reporter sees, a status one that there is, and of methods and callers there are so many an hour
for each service; what is beyond is counted under `_OTHER` or as unknown, never lost. Nobody's words take the room of
another's: not those of one tenant's programs that of another's, and not methods that were refused or don't exist, which
a caller can make up at will, that of methods that were served.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import grpc

from meshwarden.agents.telemetry import access_log
from meshwarden.agents.telemetry.clear import ClearCallers
from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.sdk.access import is_rule
from meshwarden.sdk.red import histogram
from meshwarden.sdk.red.call_table import Row, Table
from meshwarden.sdk.red.exemplar import Exemplars
from meshwarden.v1 import report_pb2 as pb

OTHER: Final = "_OTHER"
UNKNOWN: Final = "unknown/unknown"
"""The destination of calls to names that lead nowhere."""
TABLE_BYTES: Final = 1 << 20
_MAX_METHODS: Final = 200
_MAX_UNSERVED: Final = 50
_MAX_SOURCES: Final = 2000
_MAX_KINDS: Final = 4096
MAX_COUNT: Final = 1_000_000_000
MAX_DURATION_S: Final = 86_400.0
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

Said = tuple[str, str, str, str, int, int, int, str]
"""What is said of calls: source, destination, method, status, decision, reporter, revision, rule in dry run."""


@dataclass(slots=True)
class _Sum:
    """Calls of one kind within a minute; whose own these durations are."""

    count: int
    duration_s: float
    durations: dict[int, int]
    exemplars: Exemplars | None

    def add(self, other: "_Sum") -> None:
        self.count += other.count
        self.duration_s += other.duration_s
        known = self.durations
        for bucket, count in other.durations.items():
            known[bucket] = known.get(bucket, 0) + count
        if self.exemplars is None:
            self.exemplars = other.exemplars
        elif other.exemplars is not None:
            self.exemplars.merge(other.exemplars)


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
        # {beginning of a minute in seconds since 1970: {kind: calls}}
        self._sums: dict[int, dict[bytes, _Sum]] = {}
        self._words = _Words()
        # Of this hour: what is reported comes again with each report.
        self._kinds: dict[tuple[str | int, ...], bytes] = {}
        self._tenants: dict[Said, str] = {}
        self._malformed = 0
        self.clear: Final = ClearCallers()
        """Who calls in the clear."""

    def add_call(self, call: access_log.Call, revision: int) -> None:
        """Counts one call that has just ended."""
        if call.clear_from:
            self.clear.add(call.destination, call.clear_from, self._clock())
        exemplars = None
        if call.trace is not None:
            exemplars = Exemplars()
            exemplars.add(call.trace, call.duration_s, self._clock().timestamp())
        said = (
            call.source,
            call.destination,
            call.method,
            call.status,
            call.decision,
            call.reporter,
            revision,
            call.dry_run,
        )
        sum_ = _Sum(1, call.duration_s, {histogram.bucket_of(call.duration_s): 1}, exemplars)
        self._add(said, sum_, call.upstream, self.minute())

    def add(self, stats: Iterable[pb.CallStat]) -> None:
        """Adds counts that somebody else has made.

        The reporter's own side in them must be the agent's word by now. The minute is ours: a sender's clock is not
        believed.
        """
        minute = self.minute()
        for stat in stats:
            said = (
                stat.source,
                stat.destination,
                stat.method,
                stat.status,
                stat.decision,
                stat.reporter,
                stat.revision,
                stat.dry_run,
            )
            exemplars = None
            if stat.exemplars:
                exemplars = Exemplars()
                exemplars.update(stat.exemplars)
            try:
                durations = histogram.from_proto(stat.durations)
            except ValueError:
                durations = {}  # none that adds up to the count
            self._add(said, _Sum(stat.count, stat.duration_sum_s, durations, exemplars), "", minute)

    def take(self) -> tuple[list[Table], int]:
        """Removes and returns all counts, and how many calls were in none because what was said of them cannot be.

        The counts are divided into tables of about `TABLE_BYTES`.
        """
        sums, self._sums = self._sums, {}
        malformed, self._malformed = self._malformed, 0
        tables = []
        for minute, of_minute in sums.items():
            table = Table(minute)
            tables.append(table)
            for kind, found in of_minute.items():
                if table.size_bytes >= TABLE_BYTES:
                    table = Table(minute)
                    tables.append(table)
                exemplars = tuple(found.exemplars.to_proto()) if found.exemplars is not None else ()
                table.add(Row(kind, found.count, found.duration_s, found.durations, exemplars))
        return tables, malformed

    def minute(self) -> int:
        """The beginning of this one, in seconds since 1970. With a new hour there is new room for words."""
        now_s = int(self._clock().timestamp())
        if self._words.of_hour(now_s // 3600):
            self._forget()
        return now_s - now_s % 60

    def _add(self, said: Said, more: _Sum, upstream: str, minute: int) -> None:
        tenant = self._tenants.get(said) or tenant_of(said)
        # NaN is nowhere in between.
        is_sound = 0 < more.count <= MAX_COUNT and 0 <= more.duration_s <= more.count * MAX_DURATION_S
        if not tenant or not is_sound or sum(more.durations.values()) != more.count:
            self._malformed += min(max(more.count, 1), MAX_COUNT)
            return
        sums = self._sums.get(minute)
        if sums is None:
            sums = self._sums[minute] = {}
        kind = self.kind(said, tenant, upstream)
        known = sums.get(kind)
        if known is None:
            sums[kind] = more
        else:
            known.add(more)

    def kind(self, said: Said, tenant: str, upstream: str = "") -> bytes:
        """What calls are counted by, serialised: a `CallStat`.

        Args:
            said: what is said of them.
            tenant: of the side that says so; see `tenant_of`.
            upstream: `host:port` of the endpoint that took them, where it is known.
        """
        source, destination, method, status, decision, reporter, revision, dry_run = said
        region = ""
        if reporter == pb.CallStat.SOURCE:
            destination = self._resolve(tenant, destination) or UNKNOWN
            region = self._locate(tenant, destination, upstream)
        found = (source, destination, method, status, decision, reporter, revision, region, dry_run)
        known = self._kinds.get(found)
        if known is not None:
            return known
        if reporter != pb.CallStat.SOURCE and not self._words.has_room(("source", destination), source, _MAX_SOURCES):
            source = ""
        counted = self._method(said, tenant, destination) if destination != UNKNOWN else OTHER
        kind = pb.CallStat(
            source=source,
            destination=destination,
            method=counted,
            status=status if status in _STATUSES else OTHER,
            decision=decision,  # type: ignore[arg-type]
            reporter=reporter,  # type: ignore[arg-type]
            revision=revision,
            destination_region=region,
            dry_run=dry_run if is_rule(dry_run) and reporter == pb.CallStat.DESTINATION else "",
        ).SerializeToString()
        if counted == method:  # others may get room yet
            if len(self._kinds) >= _MAX_KINDS:
                self._forget()
            self._kinds[found] = kind
            self._tenants[said] = tenant
        return kind

    def _forget(self) -> None:
        self._kinds.clear()
        self._tenants.clear()

    def _method(self, said: Said, tenant: str, destination: str) -> str:
        method, status, decision = said[2:5]
        if not method or not method.isprintable() or len(method) > _METHOD_LENGTH:
            return OTHER
        served, unserved = ("served", tenant, destination), ("unserved", tenant, destination)
        if decision != pb.CallStat.DENIED and status not in _MISSING:
            is_known = self._words.has_room(served, method, _MAX_METHODS)
        else:
            is_known = self._words.has(served, method) or self._words.has_room(unserved, method, _MAX_UNSERVED)
        return method if is_known else OTHER


class _Words:
    """The first words of each kind within an hour."""

    def __init__(self) -> None:
        self._hour = 0
        self._known: dict[tuple[str, ...], set[str]] = {}

    def of_hour(self, hour: int) -> bool:
        """Forgets the words of another hour; whether it is another."""
        if hour == self._hour:
            return False
        self._hour = hour
        self._known.clear()
        return True

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
def _tenant_in(spiffe_id: str) -> str | None:
    """The tenant in a SPIFFE ID: empty if it has none, None if the text is none."""
    if len(spiffe_id) > _SOURCE_LENGTH:
        return None
    try:
        return SpiffeId.parse(spiffe_id).tenant or ""
    except InvalidSpiffeId:
        return None


def tenant_of(said: Said) -> str:
    """The tenant of the side that reports; empty if nothing names one, or there can be no such calls."""
    source, destination, _, _, decision, reporter, revision, _ = said
    if revision > _MAX_REVISION or decision not in _DECISIONS:
        return ""
    caller = _tenant_in(source) if source else ""
    if reporter == pb.CallStat.SOURCE:
        return caller or ""
    if reporter != pb.CallStat.DESTINATION or caller is None:
        return ""
    return destination.partition("/")[0]  # who may not have been able to tell who called


def _in_full(_: str, said: str) -> str | None:
    tenant, slash, service = said.partition("/")
    return said if tenant and slash and service and "/" not in service else None
