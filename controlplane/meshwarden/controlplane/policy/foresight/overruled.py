"""Rules that do not decide what they are about: what one policy allows another denies, or an earlier rule takes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from meshwarden.controlplane.policy.foresight import atom
from meshwarden.controlplane.policy.foresight.verdict import Call, Judge
from meshwarden.controlplane.policy.neutral import Foreign, Key, Name
from meshwarden.v1.preview_service_pb2 import OverruledRule

MAX_RULES: Final = 100


class _Class(NamedTuple):
    """Calls that all rules of a service treat alike."""

    caller: Name | Foreign
    call: Call

    def fits(self, rule: Any) -> bool:
        """Whether a `Grant` or a `Rule` is about them."""
        return bool(rule.fits(self.caller, self.call.path, self.call.verb, dict(self.call.headers)))


def overruled(judge: Judge, changed: Iterable[Key], spend: Callable[[int], bool]) -> Iterator[OverruledRule]:
    """The rules of access and route policies that others overrule, policy by policy, in their order.

    Args:
        judge: of the mesh with the policies.
        changed: the policies; what is of another kind, or isn't there, is passed over.
        spend: whether so many rules may be held against calls, all in all; what goes beyond that is left out.
    """
    for key in sorted(set(changed)):
        message = judge.mesh.find(*key) if key.kind in ("AccessPolicy", "RoutePolicy") else None
        if message is None or (key.kind == "AccessPolicy" and message.spec.dry_run):
            continue
        service = Name(key.tenant, message.spec.service)
        classes = _classes(judge, service, spend)
        if classes is None:
            continue
        if key.kind == "AccessPolicy":
            yield from _denied(judge, service, Name(key.tenant, key.name), classes)
        else:
            yield from _late(judge, service, classes)


def _classes(judge: Judge, service: Name, spend: Callable[[int], bool]) -> list[_Class] | None:
    """Every class of the calls of a service; None if they are too many."""
    examples = atom.every_header(atom.conditions((judge,), service))
    if examples is None:
        return None
    rules, found = len(judge.whole(service).rules) + len(judge.route(service).rules) + 1, list[_Class]()
    for caller in atom.callers((judge,), service):
        methods = atom.methods((judge,), service, caller)
        if not spend(len(methods) * len(examples) * rules):
            return None
        found += [_Class(caller, call._replace(headers=headers)) for call in methods for headers in examples]
    return found


def _denied(judge: Judge, service: Name, policy: Name, classes: Sequence[_Class]) -> Iterator[OverruledRule]:
    """What a policy allows and a denial keeps out: some of it, by another policy, or all of it."""
    access = judge.whole(service)
    for index in sorted({grant.rule for grant in access.grants if grant.policy == policy}):
        grants = [grant for grant in access.grants if (grant.policy, grant.rule) == (policy, index)]
        about = [one for one in classes if any(map(one.fits, grants))]
        by: dict[tuple[Name, int], dict[str, None]] = {}
        lost = 0
        for one in about:
            denial = next(filter(one.fits, access.denials), None)
            if denial is not None:
                lost += denial.during is None
                by.setdefault((denial.policy, denial.rule), {})[str(one.caller)] = None
        wholly = bool(about) and lost == len(about)
        for (other, rule), callers in by.items():
            if wholly or other != policy:
                yield _told(policy, f"spec.allow[{index}]", other, f"spec.deny[{rule}]", wholly, callers)


def _late(judge: Judge, service: Name, classes: Sequence[_Class]) -> Iterator[OverruledRule]:
    """The rules of a route policy of whose calls earlier ones decide all."""
    route = judge.route(service)
    for rule in route.rules:
        about = [one for one in classes if one.fits(rule)] if rule.index >= 0 else []
        by: dict[int, dict[str, None]] = {}
        for one in about:
            first = next(filter(one.fits, route.rules))
            by.setdefault(first.index, {})[str(one.caller)] = None
        if about and rule.index not in by and route.policy is not None:
            for index, callers in sorted(by.items()):
                place = f"spec.rules[{rule.index}]"
                yield _told(route.policy, place, route.policy, f"spec.rules[{index}]", True, callers, "RoutePolicy")


def _told(
    policy: Name,
    field: str,
    other: Name,
    by: str,
    wholly: bool,
    callers: Iterable[str],
    kind: str = "AccessPolicy",
) -> OverruledRule:
    told = OverruledRule(
        resource=f"{kind} {policy}", field=field, by_resource=f"{kind} {other}", by_field=by, wholly=wholly
    )
    getattr(told, "from").extend(callers)
    return told
