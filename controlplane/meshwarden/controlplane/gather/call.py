"""A reported count of calls, checked: what an agent may say, and of whom."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache

from meshwarden.certs.spiffe_id import InvalidSpiffeId, Role, SpiffeId
from meshwarden.controlplane.gather.outcome import outcome
from meshwarden.sdk import histogram
from meshwarden.sdk.exemplar import MOST, is_sound
from meshwarden.v1.report_pb2 import CallStat, Exemplar

# An agent that was cut off may catch up; a clock may be ahead a little.
OLDEST = timedelta(hours=24)
NEWEST = timedelta(minutes=5)
# More calls than one node makes in a minute: a count above is a lie or a fault.
MAX_COUNT = 1_000_000_000
MAX_DURATION_S = 86_400.0
# A revision is a row's number in the store, and a column in the ledger: SQLite has no greater integers.
MAX_REVISION = 2**63 - 1
UNKNOWN = "unknown"
# Names come again with each batch; those of the last are known to be sound.
_NAMES_KEPT = 4096

Owns = Callable[[str, str, str], bool]


class Refused(Exception):
    """Counts or spans that are not believed.

    Attributes:
        reason: a short word, for a metric's label.
        count: how many they are.
    """

    def __init__(self, reason: str, count: int = 1) -> None:
        super().__init__(reason)
        self.reason = reason
        self.count = count


@dataclass(frozen=True, slots=True)
class Call:
    """Calls of one source, destination, method and outcome within a minute, as one side saw them.

    `tenant` is the caller's; `owner` is the tenant of the side that reports, whose share of the series it uses. The
    region of a side that nobody has proved is UNKNOWN: a caller's certificate says nothing of it.
    """

    source_tenant: str
    source_service: str
    destination_tenant: str
    destination_service: str
    method: str
    status: str
    decision: int
    reporter: int
    revision: int
    minute: int
    count: int
    sum_s: float
    durations: Mapping[int, int]
    source_region: str = UNKNOWN
    destination_region: str = UNKNOWN
    exemplars: tuple[Exemplar, ...] = ()

    @property
    def tenant(self) -> str:
        """The calling tenant."""
        return self.source_tenant

    @property
    def owner(self) -> str:
        """The tenant of the side that reports."""
        return self.source_tenant if self.reporter == CallStat.SOURCE else self.destination_tenant

    @property
    def outcome(self) -> str:
        """What they came to, one of OUTCOMES."""
        return outcome(self.status, self.decision)

    @property
    def source(self) -> str:
        """The caller, `<tenant>/<service>`."""
        return f"{self.source_tenant}/{self.source_service}"

    @property
    def destination(self) -> str:
        """The service called, `<tenant>/<service>`."""
        return f"{self.destination_tenant}/{self.destination_service}"


def _text(value: str, reason: str) -> str:
    # Labels and rows are read by people and terminals: no control characters.
    if not value or not value.isprintable():
        raise Refused(reason)
    return value


@lru_cache(_NAMES_KEPT)
def _source(text: str, reporter: int, trust_domain: str) -> tuple[str, str]:
    if not text and reporter == CallStat.DESTINATION:
        return UNKNOWN, UNKNOWN
    try:
        spiffe_id = SpiffeId.parse(text)
    except InvalidSpiffeId:
        raise Refused("malformed") from None
    if spiffe_id.trust_domain != trust_domain or spiffe_id.role is not Role.WORKLOAD:
        raise Refused("unidentified")
    return spiffe_id.tenant or "", spiffe_id.service or ""


@lru_cache(_NAMES_KEPT)
def _destination(text: str) -> tuple[str, str]:
    tenant, slash, service = text.partition("/")
    if not slash or not tenant or not service or "/" in service:
        raise Refused("malformed")
    return _text(tenant, "malformed"), _text(service, "malformed")


def _durations(stat: CallStat, most: int) -> Mapping[int, int]:
    if not 0 < stat.count <= most:
        raise Refused("malformed")
    if not 0 <= stat.duration_sum_s <= stat.count * MAX_DURATION_S:  # NaN is nowhere in between
        raise Refused("malformed")
    try:
        durations = histogram.from_proto(stat.durations)
    except ValueError:
        raise Refused("malformed") from None
    if durations.total() > stat.count:
        raise Refused("malformed")
    return durations


def _regions(stat: CallStat, region: str) -> tuple[str, str]:
    """Where the caller and the one called are, as far as the side that reports can tell."""
    if stat.reporter == CallStat.DESTINATION:
        return UNKNOWN, region
    return region, _text(stat.destination_region or UNKNOWN, "malformed")


def _exemplars(stat: CallStat) -> tuple[Exemplar, ...]:
    if len(stat.exemplars) > MOST or not all(map(is_sound, stat.exemplars)):
        raise Refused("malformed")
    return tuple(stat.exemplars)


def parse(stat: CallStat, trust_domain: str, region: str, most: int = MAX_COUNT) -> Call:
    """Reads a count that makes sense; whether it is to be believed is for the caller to say.

    Args:
        stat: the count.
        trust_domain: ours.
        region: of the side that reports.
        most: how many calls it may be of.

    Raises:
        Refused: it is malformed, or names a source that is none of our trust domain's workloads.
    """
    if stat.decision not in (CallStat.ALLOWED, CallStat.DENIED, CallStat.LIMITED, CallStat.THROTTLED):
        raise Refused("malformed")
    if stat.reporter not in (CallStat.SOURCE, CallStat.DESTINATION):
        raise Refused("malformed")
    if stat.revision > MAX_REVISION:
        raise Refused("malformed")
    durations = _durations(stat, most)
    source_region, destination_region = _regions(stat, region)
    return Call(
        *_source(stat.source, stat.reporter, trust_domain),
        *_destination(stat.destination),
        method=_text(stat.method, "malformed"),
        status=_text(stat.status, "malformed"),
        decision=stat.decision,
        reporter=stat.reporter,
        revision=stat.revision,
        minute=stat.minute.seconds - stat.minute.seconds % 60,
        count=stat.count,
        sum_s=stat.duration_sum_s,
        durations=durations,
        source_region=source_region,
        destination_region=destination_region,
        exemplars=_exemplars(stat),
    )


def check(stat: CallStat, node: str, owns: Owns, trust_domain: str, now: datetime, region: str = UNKNOWN) -> Call:
    """Takes a count that `node` reports, if it may say so.

    Args:
        stat: the count.
        node: the node, from its certificate.
        owns: tells whether a node has a workload entry of (node, tenant, service).
        trust_domain: ours.
        now: the time, aware.
        region: the node's, which is ours.

    Raises:
        Refused: it is malformed, too old, or about a side that isn't the node's own.
    """
    call = parse(stat, trust_domain, region)
    if call.durations and sum(call.durations.values()) != call.count:
        raise Refused("malformed")
    is_source = call.reporter == CallStat.SOURCE
    own = (
        (call.source_tenant, call.source_service) if is_source else (call.destination_tenant, call.destination_service)
    )
    if not owns(node, *own):
        raise Refused("not_owned")
    if not -OLDEST.total_seconds() <= call.minute - now.timestamp() <= NEWEST.total_seconds():
        raise Refused("out_of_time")
    return call


def added_up(calls: Iterable[Call]) -> list[Call]:
    """The same calls, each kind of them once: what reads them does so once for all of a batch."""
    kinds: dict[tuple[object, ...], list[Call]] = {}
    for call in calls:
        kinds.setdefault(_kind(call), []).append(call)
    return [same[0] if len(same) == 1 else _sum(same) for same in kinds.values()]


def _kind(call: Call) -> tuple[object, ...]:
    return (
        call.source_tenant,
        call.source_service,
        call.destination_tenant,
        call.destination_service,
        call.method,
        call.status,
        call.decision,
        call.reporter,
        call.revision,
        call.minute,
        call.source_region,
        call.destination_region,
        bool(call.durations),
    )


def _sum(calls: list[Call]) -> Call:
    durations: Counter[int] = Counter()
    for call in calls:
        for bucket, count in call.durations.items():
            durations[bucket] += count
    return replace(
        calls[0],
        count=sum(call.count for call in calls),
        sum_s=sum(call.sum_s for call in calls),
        durations=durations,
        exemplars=tuple(exemplar for call in calls for exemplar in call.exemplars),
    )
