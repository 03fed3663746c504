"""The calls that were seen, held against the mesh as it is and as it would be.

What the ledger records of a call decides about most of them. Where it does not record what policies look at, all that
it could have been is held against both meshes: if the same comes of each, that is decided as well; if not, the calls
are undecidable, and what would have to be known is told.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Final, NamedTuple

from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.foresight import atom
from meshwarden.controlplane.policy.foresight.atom import OTHERS
from meshwarden.controlplane.policy.foresight.verdict import Call, Judge, Verdict, Way
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Foreign, Name
from meshwarden.v1.admin_service_pb2 import ExplainRequest
from meshwarden.v1.preview_service_pb2 import Decider, ReplayedCalls
from meshwarden.v1.report_pb2 import CallStat

UNKNOWN: Final = "unknown"
OVERFLOW: Final = "overflow"
OTHER: Final = "_OTHER"
"""What stands in the ledger for a name that it has no room for, or that nobody has told."""
# A longer method was cut off there.
MAX_METHOD: Final = 512
# So many calls are held against both meshes for one row, if it does not record what they look at.
MAX_CASES: Final = 4096
MAX_FOUND: Final = 1000
_FOREIGN: Final = "spiffe://"
_OTHER_STAGES: Final = frozenset({"visibility", "access", "limit", "endpoints"})
_STAGES: Final = {ReplayedCalls.DENIED: ("visibility", "access"), ReplayedCalls.ALLOWED: ("visibility", "access")}


Headers = tuple[tuple[str, str], ...]


class Seen(NamedTuple):
    """Calls of one source, destination ("<tenant>/<service>" each) and method, as each side has told."""

    source: str
    destination: str
    method: str
    by_source: int
    by_destination: int

    @property
    def calls(self) -> int:
        """How many there were: as the side says that saw more."""
        return max(self.by_source, self.by_destination)

    @property
    def side(self) -> "CallStat.Reporter.ValueType":
        """The side that saw more."""
        return CallStat.SOURCE if self.by_source > self.by_destination else CallStat.DESTINATION

    @property
    def told_by(self) -> "list[CallStat.Reporter.ValueType]":
        """The sides that have told of them."""
        told = ((CallStat.SOURCE, self.by_source), (CallStat.DESTINATION, self.by_destination))
        return [side for side, calls in told if calls]


class Outcome(NamedTuple):
    """What would become of a call, beside what becomes of it now; `kind` is UNSPECIFIED where that is the same."""

    kind: "ReplayedCalls.Outcome.ValueType"
    before: Way | None = None
    after: Way | None = None


SAME: Final = Outcome(ReplayedCalls.OUTCOME_UNSPECIFIED)


class Case(NamedTuple):
    """What a call may have been."""

    caller: Name | Foreign
    method: Call
    headers: Headers

    @property
    def call(self) -> Call:
        """The call."""
        return self.method._replace(headers=self.headers)


@dataclass(frozen=True)
class Decided:
    """What is known of a row.

    Attributes:
        outcome: what would become of it; None if that depends on what isn't recorded.
        case: one that it may have been.
        needs: what it depends on; empty if it is decided.
        passes_before: whether it gets through to limits now; None if that isn't known.
        passes_after: whether it would.
    """

    outcome: Outcome | None
    case: Case | None
    needs: str = ""
    passes_before: bool | None = True
    passes_after: bool | None = True

    @property
    def kind(self) -> "ReplayedCalls.Outcome.ValueType":
        """What would become of it, in a word."""
        return self.outcome.kind if self.outcome is not None else ReplayedCalls.UNDECIDABLE


@dataclass
class Replay:
    """Holds rows against two meshes, which must not change meanwhile.

    Attributes:
        before: what becomes of calls now.
        after: what would become of them.
        touched: the services for which that may be another thing.
        counted: the services whose calls are counted against limits.
        shown: whose resources may be named; see `explain`.
        totals: how many calls would come to what, `{outcome: calls}`; UNSPECIFIED is to the same.
        passed: of the counted services `{(source, destination, method): (row, what is known of it)}`.
        omitted: of those that would come to something else, how many rows are not in `found`, and the calls in them.
    """

    before: Judge
    after: Judge
    touched: frozenset[Name]
    counted: frozenset[Name] = frozenset()
    shown: Callable[[str], bool] = lambda tenant: True
    totals: Counter[int] = field(default_factory=Counter)
    passed: dict[tuple[str, str, str], tuple[Seen, Decided]] = field(default_factory=dict)
    omitted: Counter[str] = field(default_factory=Counter)
    _found: list[tuple[Seen, Decided]] = field(default_factory=list)
    _headers: dict[Name, list[Headers] | None] = field(default_factory=dict)

    def add(self, rows: Iterable[Seen]) -> None:
        """Takes rows."""
        for row in rows:
            service = name_of(row.destination)
            if service.name != OVERFLOW and service not in self.touched and service not in self.counted:
                self.totals[SAME.kind] += row.calls
                continue
            decided = self.decide(row)
            if service in self.counted:
                self.passed[row[:3]] = (row, decided)
            self.totals[decided.kind] += row.calls
            if decided.kind != SAME.kind:
                self._found.append((row, decided))
            if len(self._found) > 2 * MAX_FOUND:
                self._keep()

    def found(self) -> list[ReplayedCalls]:
        """Those that would come to something else, what matters most first."""
        self._keep()
        return [self._told(row, decided) for row, decided in self._found]

    def _keep(self) -> None:
        self._found.sort(key=lambda one: (one[1].kind, -one[0].calls, one[0]))
        for row, _ in self._found[MAX_FOUND:]:
            self.omitted["rows"] += 1
            self.omitted["calls"] += row.calls
        del self._found[MAX_FOUND:]

    def decide(self, row: Seen) -> Decided:
        """What would become of a row."""
        service, judges = name_of(row.destination), (self.before, self.after)
        if service.name == OVERFLOW:
            # What it was may be among what is touched.
            needs = "which service it was: the ledger had no room for its name"
            return Decided(None, None, needs, None, None) if self.touched else Decided(SAME, None)
        cases = self._cases(row, service)
        if cases is None:
            return Decided(None, None, "the headers: policies look at too many", None, None)
        if any(judge.is_of_its_time(case.caller, service, case.call) for case in cases for judge in judges):
            return Decided(None, cases[0], "when it was: a rule of access holds for a time", None, None)
        pairs = {case: tuple(judge.verdict(case.caller, service, case.call) for judge in judges) for case in cases}
        outcomes = {case: outcome(before, after) for case, (before, after) in pairs.items()}
        passing = ({pair[side].passes for pair in pairs.values()} for side in (0, 1))
        passes = [found.pop() if len(found) == 1 else None for found in passing]
        changed = next((case for case in cases if outcomes[case] != SAME), None)
        if changed is None:
            return Decided(SAME, cases[0], "", *passes)
        if needs := _needs(outcomes) or _number(judges, changed.caller, service):
            return Decided(None, changed, needs, *passes)
        return Decided(outcomes[changed], changed, "", *passes)

    def _cases(self, row: Seen, service: Name) -> list[Case] | None:
        """All that the calls of a row may have been, as far as policies tell them apart; None if that is too much."""
        judges = (self.before, self.after)
        if service not in self._headers:
            self._headers[service] = atom.every_header(atom.conditions(judges, service))
        headers = self._headers[service]
        if headers is None:
            return None
        cases = product(_callers(row.source, judges, service), _methods(row.method, judges, service), headers)
        found = list(islice((Case(*case) for case in cases), MAX_CASES + 1))
        return found if len(found) <= MAX_CASES else None

    def _told(self, row: Seen, decided: Decided) -> ReplayedCalls:
        told = ReplayedCalls(
            to=row.destination, method=row.method, calls=row.calls, needs=decided.needs, told_by=row.told_by
        )
        setattr(told, "from", row.source)
        found = decided.outcome
        told.outcome = decided.kind
        if found is not None and found.before is not None and found.after is not None:
            told.moved = float(found.before.moved(found.after))
        if decided.case is not None:
            service = name_of(row.destination)
            told.before.CopyFrom(self._decider(self.before.mesh, decided.case, service, told.outcome))
            told.after.CopyFrom(self._decider(self.after.mesh, decided.case, service, told.outcome))
        return told

    def _decider(self, mesh: Mesh, case: Case, service: Name, kind: "ReplayedCalls.Outcome.ValueType") -> Decider:
        """What `explain` says of a call, in the stages that an outcome is about."""
        method = f"{case.method.verb} {case.method.path}".strip()
        request = ExplainRequest(to=str(service), method=method, headers=dict(case.headers))
        setattr(request, "from", str(case.caller))
        wanted = _STAGES.get(kind)
        steps = explain(mesh, request, self.shown, self.before.at_s).steps
        found = [step for step in steps if (step.stage in wanted if wanted else step.stage not in _OTHER_STAGES)]
        if wanted:  # what stops it, else what lets it through
            found = [step for step in found if not step.ok][:1] or found[-1:]
        resource, place = next(((step.resource, step.field) for step in found if step.resource), ("", ""))
        return Decider(text="; ".join(step.text for step in found), resource=resource, field=place)


def name_of(text: str) -> Name:
    """`<tenant>/<service>` as a name."""
    tenant, _, name = text.rpartition("/")
    return Name(tenant, name)


def outcome(before: Verdict, after: Verdict) -> Outcome:
    """What changes from one verdict to the other, limits left aside."""
    if before.passes != after.passes:
        return Outcome(ReplayedCalls.ALLOWED if after.passes else ReplayedCalls.DENIED)
    if after.passes and before.way != after.way:
        return Outcome(ReplayedCalls.REROUTED, before.way, after.way)
    return SAME


def _callers(source: str, judges: Sequence[Judge], service: Name) -> list[Name | Foreign]:
    """Who a source may have been."""
    who = name_of(source)
    if source.startswith(_FOREIGN):
        domain = source.removeprefix(_FOREIGN).partition("/")[0]
        named = [
            one for one in atom.callers(judges, service) if isinstance(one, Foreign) and one.trust_domain == domain
        ]
        return [Foreign(domain, "/" + OTHERS), *(one for one in named if one.path != "/" + OTHERS)]
    # Who showed no certificate is nobody, whatever tenants are called.
    return [Name("", "") if who == (UNKNOWN, UNKNOWN) else who]


def _methods(method: str, judges: Sequence[Judge], service: Name) -> list[Call]:
    """Which method it may have been."""
    verb, _, path = method.rpartition(" ")
    if path.startswith("/") and len(method) < MAX_METHOD:
        return [Call(path, verb or "POST")]  # what every gRPC call is
    return atom.methods(judges, service)


def _needs(outcomes: dict[Case, Outcome]) -> str:
    """What a row's outcome depends on; empty if on nothing."""
    names = ("which caller it was", "which method it was", _headers(outcomes))
    found = []
    for number, name in enumerate(names):
        of_rest: dict[tuple[object, ...], Outcome] = {}
        for case, came in outcomes.items():
            rest = (*case[:number], *case[number + 1 :])
            if of_rest.setdefault(rest, came) != came:
                found.append(name)
                break
    return " and ".join(found)


def _number(judges: Sequence[Judge], caller: Name | Foreign, service: Name) -> str:
    """Whether the outcome depends on the certificate that was shown, too."""
    serials = (who for judge in judges for _, who in judge.access(service).serials)
    return "the number of its certificate: some are revoked" if any(who in (None, caller) for who in serials) else ""


def _headers(outcomes: dict[Case, Outcome]) -> str:
    names = sorted({name for case in outcomes for name, _ in case.headers})
    return f"the header{'s' if len(names) > 1 else ''} {', '.join(names)}"
