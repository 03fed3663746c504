"""The calls that were seen, counted against limits as they are and as they would be.

The ledger knows the minute of a call. So many calls of a minute may be refused however they were spread within it; so
many more may be, if they came at once: these are undecidable. Bytes, costs, calls at once, limits at each enforcement
point and amounts for a period depend on what the ledger does not record at all.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from meshwarden.controlplane.policy.bucket import Bucket, is_never_refused, least_refused
from meshwarden.controlplane.policy.explain import rate_text
from meshwarden.controlplane.policy.foresight.replay import Decided, Seen, name_of
from meshwarden.controlplane.policy.foresight.verdict import Judge
from meshwarden.controlplane.policy.mesh import Impact
from meshwarden.controlplane.policy.neutral import Limits, Name, Rate
from meshwarden.controlplane.resources.reach import covers
from meshwarden.sdk.quota.unit import CONCURRENT, REQUESTS
from meshwarden.v1.preview_service_pb2 import Decider, ReplayedCalls
from meshwarden.v1.report_pb2 import CallStat

# So many different minutes of buckets are counted at most.
MAX_COUNTS: Final = 500_000


class Minute(NamedTuple):
    """Calls of a minute, as each side has told; `region` is that of whoever took them, as far as that is known."""

    minute_s: int
    region: str
    source: str
    destination: str
    method: str
    by_source: int
    by_destination: int
    limited: int


class Place(NamedTuple):
    """What a bucket is of: a policy's limit on a tenant, or on all ("*"), of one service and method or of all ("")."""

    policy: Name
    region: str
    tenant: str
    service: str
    method: str


@dataclass
class _Both:
    """The same calls against a limit as it is, and as it would be."""

    before: Bucket = field(default_factory=Bucket)
    after: Bucket = field(default_factory=Bucket)
    limited: int = 0
    services: set[str] = field(default_factory=set)
    calls: set[tuple[str, str, str]] = field(default_factory=set)
    """Their kinds: who calls what by which method."""


def policies_of(judges: Iterable[Judge], impact: Impact) -> frozenset[Name]:
    """The rate policies that may refuse other calls by a change: those that change, and those whose calls may."""
    of_services = (one.policy for judge in judges for service in impact.servers for one in judge.limits(service))
    return frozenset({*impact.rates, *of_services})


def counted(judges: Iterable[Judge], policies: Iterable[Name]) -> frozenset[Name]:
    """The services whose calls count against any of these policies."""
    found: set[Name] = set()
    for judge in judges:
        said = [(name, judge.mesh.find("RatePolicy", *name)) for name in policies]
        specs = [(name.tenant, message.spec) for name, message in said if message is not None]
        found.update(one for one in judge.mesh.services() if any(covers(owner, spec, one) for owner, spec in specs))
    return frozenset(found)


class LimitReplay:
    """Counts calls against the limits of policies.

    Attributes:
        is_full: whether there were too many to count: nothing is said then.
    """

    def __init__(
        self,
        before: Judge,
        after: Judge,
        policies: frozenset[Name],
        passed: Mapping[tuple[str, str, str], tuple[Seen, Decided]],
    ) -> None:
        """Takes what is known of the rows, by source, destination and method."""
        self._judges, self._policies, self._passed = (before, after), policies, passed
        self._buckets: dict[Place, _Both] = {}
        self._counts = 0
        self.is_full = False

    def add(self, rows: Iterable[Minute]) -> None:
        """Takes rows."""
        for row in rows:
            known = self._passed.get((row.source, row.destination, row.method))
            if known is not None and not self.is_full:
                self._count(row, *known)

    def _count(self, row: Minute, seen: Seen, decided: Decided) -> None:
        calls = row.by_source if seen.side == CallStat.SOURCE else row.by_destination
        service, path = name_of(row.destination), row.method.rpartition(" ")[2]
        tenant = name_of(row.source).tenant  # another trust domain's callers are one account, by its name
        passes, counts = (decided.passes_before, decided.passes_after), dict[Place, _Both]()
        for number, judge in enumerate(self._judges):
            if passes[number] is False:
                continue
            for said in judge.limits(service):
                if said.policy not in self._policies:
                    continue
                for place in _places(said, row.region, tenant, service, path):
                    both = counts[place] = self._buckets.setdefault(place, _Both())
                    bucket = both.after if number else both.before
                    bucket.add(row.minute_s, calls, is_sure=passes[number] is True)
                    self._counts += 1
        for both in counts.values():
            both.limited += row.limited  # whichever limit of now it was
            both.services.add(row.destination)
            both.calls.add((row.source, row.destination, row.method))
        self.is_full = self._counts > MAX_COUNTS

    def found(self) -> Iterator[ReplayedCalls]:
        """What limits would refuse that they don't refuse now, and what they may.

        A call may count against several limits: what one refuses comes to no other. So each is among those of one
        limit, which is that of the most.
        """
        told = list(self._each())
        refused = set[tuple[str, str, str]]()
        for both, one in sorted(told, key=lambda item: -item[1].calls):
            if one.outcome != ReplayedCalls.LIMITED:
                continue
            if refused & both.calls:
                one.outcome, one.needs = ReplayedCalls.UNDECIDABLE, "which of their limits refuses them"
            else:
                refused |= both.calls
        for _, one in told:
            yield one

    def _each(self) -> Iterator[tuple[_Both, ReplayedCalls]]:
        for place, both in sorted(self._buckets.items()):
            old, new = (self._limit(judge, place) for judge in self._judges)
            if new is None or new[0].shadow or self._is_no_tighter(old, new, both):
                continue
            if (told := _told(place, both, old, new)) is not None:
                yield both, told

    def _limit(self, judge: Judge, place: Place) -> tuple[Limits, Rate] | None:
        service = name_of(place.service) if place.service else None
        for of_service in {name_of(one) for one in self._buckets[place].services}:
            for said in judge.limits(service or of_service):
                if said.policy == place.policy:
                    rate = _rates(said, place.tenant, service or of_service, place.method).get(place[2:])
                    return (said, rate) if rate is not None else None
        return None

    @staticmethod
    def _is_no_tighter(old: tuple[Limits, Rate] | None, new: tuple[Limits, Rate], both: _Both) -> bool:
        """Whether the limit lets through at least as much as now, and no more calls come."""
        if old is None or both.before != both.after or old[0].shadow:
            return False
        kinds = [(one.unit, one.mesh, one.period, one.zone, one.regions, one.adaptive) for one, _ in (old, new)]
        loosened = new[1].amount / new[1].per_s >= old[1].amount / old[1].per_s and new[1].burst >= old[1].burst
        return kinds[0] == kinds[1] and loosened


def _places(said: Limits, region: str, tenant: str, service: Name, path: str) -> Iterator[Place]:
    for key in _rates(said, tenant, service, path):
        yield Place(said.policy, region, *key)


def _rates(said: Limits, tenant: str, service: Name, path: str) -> dict[tuple[str, str, str], Rate]:
    """What a call counts against: {(tenant, service, method): rate}."""
    found: dict[tuple[str, str, str], Rate] = {}
    if said.total is not None:
        found["*", "", ""] = said.total
    limit = said.find(tenant)
    if limit is None:
        return found
    found[tenant, "", ""] = limit.rate
    of_service = next((part for part in limit.services if part.service == service), None)
    if of_service is not None:
        found[tenant, str(service), ""] = of_service.rate
    name = str(service) if of_service is not None else ""
    for part in of_service.methods if of_service is not None else limit.methods:
        if path in part.methods or path == part.method:
            found[tenant, name, part.method] = part.rate
    return found


def _told(place: Place, both: _Both, old: tuple[Limits, Rate] | None, new: tuple[Limits, Rate]) -> ReplayedCalls | None:
    said, rate = new
    whole = {**both.after.sure}
    for minute_s, calls in both.after.maybe.items():
        whole[minute_s] = whole.get(minute_s, 0) + calls
    never = rate.burst > 0 and is_never_refused(whole, rate)
    why = _unrecorded(said)
    if never and said.unit == REQUESTS and said.period is None and said.adaptive is None:
        return None
    refused = 0
    if not why:
        now = least_refused(both.before.sure, old[1]) if old is not None and not _unrecorded(old[0]) else 0
        refused = max(0, least_refused(both.after.sure, rate) - max(now, both.limited))
        why = "" if refused else "when within their minutes the calls came"
    told = ReplayedCalls(
        to=place.service or (next(iter(both.services)) if len(both.services) == 1 else "*"),
        method=place.method,
        outcome=ReplayedCalls.LIMITED if refused else ReplayedCalls.UNDECIDABLE,
        calls=refused or sum(whole.values()),
        needs=why,
        before=_decider(place, old),
        after=_decider(place, new),
    )
    setattr(told, "from", "*" if place.tenant == "*" else f"{place.tenant}/*")
    return told


def _unrecorded(said: Limits) -> str:
    """What a limit looks at that the ledger does not record; empty if it counts calls."""
    if said.adaptive is not None or said.unit == CONCURRENT:
        return "how many calls ran at once"
    if said.unit != REQUESTS:
        return f"the {said.unit} of each call"
    if said.period is not None:
        return "what was used of the period before"
    if not said.mesh:
        return "which enforcement point each call came to"
    return "which region's part each call came out of" if said.regions else ""


def _decider(place: Place, known: tuple[Limits, Rate] | None) -> Decider:
    if known is None:
        return Decider(text="not limited")
    said, rate = known
    return Decider(text=rate_text(rate, said), resource=f"RatePolicy {place.policy}", field="spec.limits")
