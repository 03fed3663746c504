"""A reported count of calls, checked: what an agent may say, and of whom."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

from meshwarden.certs.spiffe_id import InvalidSpiffeId, Role, SpiffeId, account_of
from meshwarden.controlplane.gather.outcome import outcome
from meshwarden.sdk.access import is_rule
from meshwarden.sdk.red import histogram
from meshwarden.sdk.red.exemplar import MOST, is_sound
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
ANY = "*"
"""The service of callers of another trust domain."""
_DECISIONS = (CallStat.ALLOWED, CallStat.DENIED, CallStat.LIMITED, CallStat.THROTTLED)
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
    region of a side that nobody has proved is UNKNOWN: a caller's certificate says nothing of it. `dry_run` is the rule
    in dry run by which the access policies would have said the opposite, if there is one.
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
    dry_run: str = ""

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
    if spiffe_id.trust_domain != trust_domain and reporter == CallStat.DESTINATION:
        # As one: who may make up identities over there makes up no series here.
        return account_of(spiffe_id.trust_domain), ANY
    if spiffe_id.trust_domain != trust_domain or spiffe_id.role is not Role.WORKLOAD:
        raise Refused("unidentified")
    return spiffe_id.tenant or "", spiffe_id.service or ""


@lru_cache(_NAMES_KEPT)
def _destination(text: str) -> tuple[str, str]:
    tenant, slash, service = text.partition("/")
    if not slash or not tenant or not service or "/" in service:
        raise Refused("malformed")
    return _text(tenant, "malformed"), _text(service, "malformed")


@dataclass(frozen=True, slots=True)
class Kind:
    """What calls are counted by, read; a minute is all that it leaves out."""

    sides: tuple[str, str, str, str]
    method: str
    status: str
    decision: int
    reporter: int
    revision: int
    regions: tuple[str, str]
    dry_run: str = ""

    @property
    def own(self) -> tuple[str, str]:
        """The side that reports: tenant and service."""
        return self.sides[:2] if self.reporter == CallStat.SOURCE else self.sides[2:]


def read_kind(stat: CallStat, trust_domain: str, region: str) -> Kind:
    """Reads what a count is of.

    Args:
        stat: the count, of which its numbers and its minute are not looked at.
        trust_domain: ours.
        region: of the side that reports.

    Raises:
        Refused: it is malformed, or names a source that is none of our trust domain's workloads.
    """
    decision, reporter, revision = stat.decision, stat.reporter, stat.revision
    if decision not in _DECISIONS:
        raise Refused("malformed")
    if reporter not in (CallStat.SOURCE, CallStat.DESTINATION):
        raise Refused("malformed")
    if revision > MAX_REVISION:
        raise Refused("malformed")
    sides = (*_source(stat.source, reporter, trust_domain), *_destination(stat.destination))
    # Where they are, as far as the side that reports can tell.
    called = _text(stat.destination_region or UNKNOWN, "malformed")
    regions = (region, called) if reporter == CallStat.SOURCE else (UNKNOWN, region)
    method, status = _text(stat.method, "malformed"), _text(stat.status, "malformed")
    # A destination is believed of its own tenant's policies.
    is_own = reporter == CallStat.DESTINATION and stat.dry_run.startswith(f"{sides[2]}/") and is_rule(stat.dry_run)
    return Kind(sides, method, status, decision, reporter, revision, regions, stat.dry_run if is_own else "")


@dataclass(slots=True)
class Sum:
    """How many calls there are of a kind within a minute, and how long they took; its own to add to."""

    count: int
    sum_s: float
    durations: dict[int, int]
    exemplars: tuple[Exemplar, ...]

    def check(self, most: int, *, is_whole: bool = False) -> None:
        """Checks that there can be such calls.

        Args:
            most: how many there may be.
            is_whole: whether the durations, if any are told, must be those of all calls.

        Raises:
            Refused: there can't, or there are more.
        """
        if not 0 < self.count <= most:
            raise Refused("malformed")
        if not 0 <= self.sum_s <= self.count * MAX_DURATION_S:  # NaN is nowhere in between
            raise Refused("malformed")
        spread = sum(self.durations.values())
        if spread > self.count or (is_whole and 0 < spread < self.count):
            raise Refused("malformed")
        if self.exemplars and (len(self.exemplars) > MOST or not all(map(is_sound, self.exemplars))):
            raise Refused("malformed")

    def add(self, other: "Sum") -> None:
        """Takes in others of the same kind and minute."""
        self.count += other.count
        self.sum_s += other.sum_s
        self.exemplars += other.exemplars
        known = self.durations
        for bucket, count in other.durations.items():
            known[bucket] = known.get(bucket, 0) + count

    def call(self, kind: Kind, minute_s: int) -> Call:
        """Puts all together; `minute_s` is within the minute, in seconds since 1970."""
        return Call(
            *kind.sides,
            kind.method,
            kind.status,
            kind.decision,
            kind.reporter,
            kind.revision,
            minute_s - minute_s % 60,
            self.count,
            self.sum_s,
            self.durations,
            *kind.regions,
            self.exemplars,
            kind.dry_run,
        )


def read_sum(stat: CallStat, most: int) -> Sum:
    """Reads the numbers of a count.

    Raises:
        Refused: there can't be such calls, or there are more than `most`.
    """
    try:
        durations = histogram.from_proto(stat.durations)
    except ValueError:
        raise Refused("malformed") from None
    found = Sum(stat.count, stat.duration_sum_s, durations, tuple(stat.exemplars))
    found.check(most)
    return found


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
    return read_sum(stat, most).call(read_kind(stat, trust_domain, region), stat.minute.seconds)
