"""What a change does to whoever calls: each class of calls of the services that it touches, held against both meshes.

What is told of a call now and then is what `explain` says of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.foresight import atom
from meshwarden.controlplane.policy.foresight.atom import OTHERS, label
from meshwarden.controlplane.policy.foresight.verdict import Call, Judge, Verdict
from meshwarden.controlplane.policy.grant import Grant
from meshwarden.controlplane.policy.mesh import Impact, Mesh
from meshwarden.controlplane.policy.neutral import Foreign, Name
from meshwarden.controlplane.policy.window import Window
from meshwarden.v1.admin_service_pb2 import ExplainRequest, ExplainResponse, ExplainStep
from meshwarden.v1.preview_service_pb2 import ClientChange, Decider, NameChange, PreviewResponse, Untouched

MAX_CHANGES: Final = 1000
MAX_METHODS: Final = 64
_MAX_UNTOUCHED: Final = 20
_MAX_TENANTS: Final = 1000
# So many rules are held against calls at most, all in all: seconds of work.
MAX_STEPS: Final = 4_000_000

Headers = tuple[tuple[str, str], ...]
_STAGES: Final = {
    ClientChange.DENIED: ("access",),
    ClientChange.ALLOWED: ("access",),
    ClientChange.LIMITED: ("limit",),
    ClientChange.HIDDEN: ("visibility",),
    ClientChange.SEEN: ("visibility",),
}
_OF_CALLABLE: Final = frozenset({ClientChange.ROUTED, ClientChange.LIMITED})
# Of ROUTED it is each other stage.
_OTHER_STAGES: Final = frozenset({"visibility", "access", "limit", "endpoints"})


class _Key(NamedTuple):
    """Calls of which the same is said, for the same reason."""

    kind: "ClientChange.Kind.ValueType"
    headers: Headers
    before: object
    after: object
    at_other_times: bool = False


@dataclass
class Budget:
    """How much work there may be."""

    steps: int = MAX_STEPS

    def spend(self, steps: int) -> bool:
        """Whether so much is left, which then is spent."""
        self.steps -= steps
        return self.steps >= 0


@dataclass
class _Told:
    """A change, as it grows: who calls, and which methods."""

    key: _Key
    methods: tuple[str, ...]
    before: Decider
    after: Decider
    callers: list[str] = field(default_factory=list)


class Effects:
    """The difference between two meshes for those who call."""

    def __init__(
        self,
        before: Mesh,
        after: Mesh,
        shown: Callable[[str], bool] = lambda tenant: True,
        budget: Budget | None = None,
        at_s: float | None = None,
    ) -> None:
        """Takes the mesh as it is, and as it would be; neither may change meanwhile. For the others see `explain`."""
        self.before, self.after, self._shown = Judge(before, at_s), Judge(after, at_s), shown
        self.budget = budget or Budget()

    def of(self, impact: Impact) -> PreviewResponse:
        """What a change does that has this impact. What there is no room or no time for is counted."""
        touched = sorted(impact.services | impact.servers)
        known = {*self.before.mesh.callees(), *self.after.mesh.callees()}
        answer = PreviewResponse(services=len(touched), other_services=len(known.difference(touched)))
        for number, service in enumerate(touched):
            if not self._tell(answer, service):
                answer.omitted_services = len(touched) - number
                break
        answer.names.extend(self._names(touched, impact))
        return answer

    def _tell(self, answer: PreviewResponse, service: Name) -> bool:
        """Tells what changes for the callers of a service; whether there was time for all of them."""
        judges = (self.before, self.after)
        untouched: list[str] = []
        found: dict[object, _Told] = {}
        rules = sum(len(judge.whole(service).rules) + len(judge.route(service).rules) for judge in judges)
        examples = atom.few_headers(atom.conditions(judges, service))
        is_whole = True
        for caller in atom.callers(judges, service):
            methods = atom.methods(judges, service, caller)
            # About how many rules are held against calls.
            is_whole = self.budget.spend(len(methods) * len(examples) * (rules + 4) + rules)
            if not is_whole:
                break
            for told in self._of_caller(caller, service, methods, examples, untouched):
                asked = (told.key.kind, told.key.headers, told.key.at_other_times, told.methods)
                key = (*asked, _place(told.before), _place(told.after))
                found.setdefault(key, told).callers.append(str(caller))
        for told in found.values():
            if len(answer.changes) >= MAX_CHANGES:
                answer.omitted_changes += 1
                continue
            answer.changes.add(
                to=str(service),
                kind=told.key.kind,
                methods=told.methods,
                headers=[f"{name}: {atom.shown(value)}" for name, value in told.key.headers],
                at_other_times=told.key.at_other_times,
                before=told.before,
                after=told.after,
            )
            getattr(answer.changes[-1], "from").extend(told.callers)
        if untouched and len(answer.untouched) < MAX_CHANGES:
            some = Untouched(to=str(service), callers=len(untouched))
            getattr(some, "from").extend(untouched[:_MAX_UNTOUCHED])
            answer.untouched.append(some)
        return is_whole

    def _of_caller(
        self,
        caller: Name | Foreign,
        service: Name,
        methods: Sequence[Call],
        examples: Iterable[Headers],
        untouched: list[str],
    ) -> Iterator[_Told]:
        """What changes for a caller, the methods of each change together."""
        judges = (self.before, self.after)
        found: dict[_Key, list[Call]] = {}
        known: dict[tuple[_Key, Call], list[set[tuple[str, str]]]] = {}
        may_call: dict[Headers, set[Call]] = {}
        for headers in examples:
            for method in methods:
                call = method._replace(headers=headers)
                old, new = (judge.verdict(caller, service, call) for judge in judges)
                if old.passes:
                    may_call.setdefault(headers, set()).add(method)
                was, becomes = (judge.times(caller, service, call) for judge in judges)
                for key in (*_differences(old, new, headers), *_of_times(was, becomes, headers)):
                    # What changes with some headers, or without any, is not told again of calls with more.
                    fewer = known.setdefault((key._replace(headers=()), method), [])
                    if not any(one.issubset(key.headers) for one in fewer):
                        fewer.append(set(key.headers))
                        found.setdefault(key, []).append(method)
        if may_call and not found:
            untouched.append(str(caller))
        for key, calls in found.items():
            first = calls[0]._replace(headers=key.headers)
            before, after = (
                _told_times(side) if key.at_other_times else self._decider(judge, caller, service, first, key.kind)
                for judge, side in zip(judges, (key.before, key.after), strict=True)
            )
            # Of all that it may call at all, or whether it may or not.
            whole = may_call.get(key.headers, set()) if key.kind in _OF_CALLABLE else set(methods)
            labels = self._labels(service, calls, methods) if whole.difference(calls) else ()
            yield _Told(key, labels, before, after)

    def _labels(self, service: Name, calls: Sequence[Call], methods: Sequence[Call]) -> tuple[str, ...]:
        """The methods, as a rule names them."""
        grpc = self.before.speaks_grpc(service) or self.after.speaks_grpc(service)
        # Of a path whose every verb is meant, the path alone.
        verbs = len({method.verb for method in methods})
        of_path: dict[str, list[Call]] = {}
        for call in calls:
            of_path.setdefault(call.path, []).append(call)
        labels: list[str] = []
        for path, group in of_path.items():
            whole = len(group) == verbs
            names = [label(call, grpc=grpc) if call.verb else f"{path} by any other verb" for call in group]
            labels += [path] if whole else names
        return tuple(labels)

    def _decider(
        self,
        judge: Judge,
        caller: Name | Foreign,
        service: Name,
        call: Call,
        kind: "ClientChange.Kind.ValueType",
    ) -> Decider:
        """What `explain` says of a call, in the stages that a kind of change is about."""
        request = ExplainRequest(to=str(service), method=f"{call.verb} {call.path}".strip(), headers=dict(call.headers))
        setattr(request, "from", str(caller))
        steps = _steps(explain(judge.mesh, request, self._shown, judge.at_s), kind)
        resource, place = next(((step.resource, step.field) for step in steps if step.resource), ("", ""))
        return Decider(text="; ".join(step.text for step in steps), resource=resource, field=place)

    def _names(self, touched: Iterable[Name], impact: Impact) -> Iterator[NameChange]:
        """The short names that mean something else, to tenants that have something to call from."""
        before, after = self.before.mesh, self.after.mesh
        shorts = sorted({name.name for name in touched if name in impact.services})
        tenants: set[str] = set(impact.seen_by)
        if OTHERS in tenants:
            tenants = {key.tenant for mesh in (before, after) for key in mesh.all() if key.kind == "WorkloadEntry"}
        for tenant in sorted(filter(self._shown, tenants))[:_MAX_TENANTS]:
            for short in shorts:
                old, new = before.candidates(tenant, short), after.candidates(tenant, short)
                if old != new:
                    yield NameChange(tenant=tenant, name=short, before=map(str, old), after=map(str, new))


def _differences(old: Verdict, new: Verdict, headers: Headers) -> Iterator[_Key]:
    """What changes from one verdict to the other."""
    if old.seen != new.seen:
        yield _Key(ClientChange.SEEN if new.seen else ClientChange.HIDDEN, (), None, None)
    if old.allowed != new.allowed:
        kind = ClientChange.ALLOWED if new.allowed else ClientChange.DENIED
        yield _Key(kind, headers, old.grant, new.grant)
    elif new.allowed and new.seen and old.seen:
        if old.way != new.way:
            yield _Key(ClientChange.ROUTED, headers, old.way, new.way)
        if old.limits != new.limits:
            yield _Key(ClientChange.LIMITED, (), old.limits, new.limits)


Times = Mapping[tuple[str, Window], Grant]


def _of_times(old: Times, new: Times, headers: Headers) -> Iterator[_Key]:
    """What changes of what holds for a time alone, whatever the time is now."""
    gone, come = ({key: side[key] for key in side.keys() - other.keys()} for side, other in ((old, new), (new, old)))
    for kind, lost, won in ((ClientChange.ALLOWED, "deny", "allow"), (ClientChange.DENIED, "allow", "deny")):
        before = tuple(rule for (field, _), rule in gone.items() if field == lost)
        after = tuple(rule for (field, _), rule in come.items() if field == won)
        if before or after:
            yield _Key(kind, headers, before, after, at_other_times=True)


def _told_times(rules: Any) -> Decider:
    """The first of some rules, and when it holds."""
    for rule in rules:
        place = f"spec.{rule.field}[{rule.rule}]"
        return Decider(text=f"{rule.field} {rule.during}", resource=f"AccessPolicy {rule.policy}", field=place)
    return Decider(text="nothing for a time")


def _steps(answer: ExplainResponse, kind: "ClientChange.Kind.ValueType") -> list[ExplainStep]:
    wanted = _STAGES.get(kind)
    return [step for step in answer.steps if (step.stage in wanted if wanted else step.stage not in _OTHER_STAGES)]


def _place(decider: Decider) -> tuple[str, str, str]:
    # What names the caller is the same for the others.
    text = "" if decider.resource.startswith("AccessPolicy") else decider.text
    return (decider.resource, decider.field, text)
