"""The access policy of least privilege, by the calls that were seen.

What is proposed allows each call that was seen, allowed and answered, and nothing that isn't allowed already: who
reports calls that nobody made can't widen anything. Everything else of a policy, its denials for one, stays as it is.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeVar

from meshwarden.controlplane.policy.access import access
from meshwarden.controlplane.policy.foresight.atom import OTHERS
from meshwarden.controlplane.policy.foresight.effect import Budget
from meshwarden.controlplane.policy.foresight.replay import MAX_METHOD, UNKNOWN, name_of
from meshwarden.controlplane.policy.grant import Grant
from meshwarden.controlplane.policy.mesh import Key, Mesh
from meshwarden.controlplane.policy.neutral import (
    ANY_METHOD,
    Caller,
    Foreign,
    ForeignCaller,
    Method,
    Name,
    caller_of,
)
from meshwarden.v1.preview_service_pb2 import SuggestedAccess, SuggestedRule, UnusedAccess
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resources_pb2 import AccessPolicy, AccessRule

PREFIX_FROM: Final = 16
MAX_RULES: Final = 1024
MAX_METHODS: Final = 256
MAX_CALLERS: Final = 1024
MAX_TOLD: Final = 500
_Any = TypeVar("_Any")
_METHOD: Final = re.compile(r"([A-Z]+ )?/[^*\s]*")


class Use(NamedTuple):
    """Calls of one source and method to a service.

    Attributes:
        source: who called, "<tenant>/<service>"; of another trust domain "spiffe://partner.example/*".
        method: as the ledger has it.
        by_source: how many were allowed and answered within the time asked for, as the caller's side says.
        by_destination: the same, as the service's side says.
        denied: how many were denied.
        last_s: when the last was allowed and answered, at whatever time, in seconds since 1970; 0 for never.
    """

    source: str
    method: str
    by_source: int
    by_destination: int
    denied: int
    last_s: int

    @property
    def calls(self) -> int:
        """How many were allowed and answered: as the side says that saw more."""
        return max(self.by_source, self.by_destination)


@dataclass
class _Kept:
    """What one caller may go on calling, on the same conditions."""

    uses: dict[Method, list[Use]] = field(default_factory=dict)


def suggest(mesh: Mesh, service: Name, uses: Sequence[Use], prefix_from: int = PREFIX_FROM) -> SuggestedAccess:
    """Proposes a policy for a service.

    Args:
        mesh: what there is.
        service: which.
        uses: its calls.
        prefix_from: from how many methods of one gRPC service, or paths below one, a prefix is proposed.
    """
    answer, said = SuggestedAccess(service=str(service)), access(mesh, service)
    policies = {
        key: policy for key, policy in mesh.of_service("AccessPolicy", service).items() if not policy.spec.dry_run
    }
    answer.beside.extend(f"{key.tenant}/{key.name}" for key in list(policies)[1:])
    grants = _Grants(said.grants)
    kept = _kept(grants, policies, [use for use in uses if use.calls], answer.warnings)
    rules = list(_rules(grants, kept, prefix_from))
    if len(rules) > MAX_RULES:
        answer.warnings.append(f"{len(rules) - MAX_RULES} rules are left out: a policy has {MAX_RULES} at most")
        del rules[MAX_RULES:]
    if rules:
        policy = _policy(service, list(policies.values()))
        for rule, told in rules:
            policy.spec.allow.append(rule)
            answer.rules.append(told)
        answer.policy.CopyFrom(policy)
    answer.denied.extend(_denied(uses))
    answer.unused.extend(_unused(policies, uses, answer.warnings))
    _warn(answer, uses)
    return answer


def _policy(service: Name, policies: Sequence[AccessPolicy]) -> AccessPolicy:
    """The first policy of the service without what it allows; one of the service's name if there is none."""
    policy = AccessPolicy(kind="AccessPolicy")
    policy.metadata.tenant, policy.metadata.name = service
    policy.spec.service = service.name
    if policies:
        policy.CopyFrom(policies[0])
        policy.metadata.ClearField("record")
        policy.spec.ClearField("allow")
    return policy


class _Grants:
    """The grants of a service, by whom they are about; how much they are gone through is bounded."""

    def __init__(self, grants: Iterable[Grant]) -> None:
        self.budget = Budget()
        self._by_caller: dict[tuple[str, ...], list[tuple[int, Grant]]] = {}
        for number, grant in enumerate(grants):
            self._by_caller.setdefault(_key(grant.caller), []).append((number, grant))

    def of(self, caller: Caller | ForeignCaller) -> list[Grant]:
        """Those that are about a caller, in order; of another trust domain's callers those about any of them."""
        keys = {_key(caller), (caller.tenant, "")} if isinstance(caller, Caller) else {_key(caller)}
        found = sorted((one for key in keys for one in self._by_caller.get(key, ())), key=lambda one: one[0])
        return [grant for _, grant in found]


def _key(caller: Caller | ForeignCaller) -> tuple[str, ...]:
    return (caller.tenant, caller.service) if isinstance(caller, Caller) else (caller.trust_domain,)


def _caller(source: str) -> Caller | ForeignCaller:
    """Who a source of the ledger was, as far as it says."""
    if source.startswith("spiffe://"):
        return ForeignCaller(source.removeprefix("spiffe://").partition("/")[0])
    return Caller(*name_of(source))


def _kept(
    granted: _Grants, policies: Mapping[Key, AccessPolicy], uses: Iterable[Use], warnings: Any
) -> dict[tuple[Caller | ForeignCaller, bytes], _Kept]:
    """What is used of what is allowed now: {(caller, what else the rule asks): methods}."""
    kept: dict[tuple[Caller | ForeignCaller, bytes], _Kept] = {}
    refused = left_out = 0
    for use in uses:
        own = granted.of(_caller(use.source))
        if not granted.budget.spend(sum(len(grant.methods) for grant in own) + 1):
            left_out += use.calls
            continue
        grants = list(_allowing(own, use))
        if not grants:
            refused += use.calls
        for caller, grant, method in grants:
            of_caller = kept.setdefault((caller, _conditions(policies, grant)), _Kept())
            of_caller.uses.setdefault(method, []).append(use)
    if refused:
        warnings.append(f"{refused} calls were allowed when they were made and are not now: they are left out")
    if left_out:
        warnings.append(
            f"{left_out} calls are left out: there are too many rules and methods to hold against each other"
        )
    return kept


def _allowing(grants: Iterable[Grant], use: Use) -> Iterator[tuple[Caller | ForeignCaller, Grant, Method]]:
    """Who may make such a call now, by which grant, and the narrowest pattern of it that can be written."""
    method = _method(use.method)
    if method is None:
        return
    who = _caller(use.source)
    for grant in grants:
        pattern = next((one for one in grant.methods if _within(method, one)), None)
        if pattern is None:
            continue
        # Which identity of another trust domain it was is not known: all that may make such calls go on.
        known = who if isinstance(who, Caller) else grant.caller
        yield known, grant, replace(method, verb=pattern.verb or method.verb)
        # Nor is which headers it had, or its second: what more rules ask of those goes on beside this one.
        if isinstance(who, Caller) and not _asks_more(grant):
            return


def _asks_more(grant: Grant) -> bool:
    """Whether a rule asks more of calls than their caller and method."""
    return bool(grant.headers) or grant.during is not None


def _conditions(policies: Mapping[Key, AccessPolicy], grant: Grant) -> bytes:
    """What that is, as it stands in the policy: a serialised rule that says nothing else."""
    rule = policies[Key("AccessPolicy", *grant.policy)].spec.allow[grant.rule]
    more = AccessRule(headers=rule.headers, during=rule.during if rule.HasField("during") else None)
    return more.SerializeToString(deterministic=True)


def _method(text: str) -> Method | None:
    """The narrowest pattern for what the ledger has; None if no rule can name it."""
    if len(text) >= MAX_METHOD or (found := _METHOD.match(text)) is None:
        return None
    whole = found[0] == text
    return Method.parse(text) if whole else Method.parse(found[0] + "*")


def _within(method: Method, pattern: Method) -> bool:
    """Whether all that a method means a pattern means, too; a method without a verb is a POST, as gRPC's are."""
    if pattern.verb and pattern.verb != (method.verb or "POST"):
        return False
    return method.path.startswith(pattern.path) if pattern.prefix else not method.prefix and method.path == pattern.path


def _rules(
    granted: _Grants, kept: Mapping[tuple[Caller | ForeignCaller, bytes], _Kept], prefix_from: int
) -> Iterator[tuple[AccessRule, SuggestedRule]]:
    """The rules, callers that may make the same calls together, and what each is for."""
    together: dict[tuple[bytes, tuple[Method, ...]], list[tuple[Caller | ForeignCaller, list[Use]]]] = {}
    for (caller, conditions), of_caller in sorted(kept.items(), key=lambda item: str(item[0])):
        patterns = _patterns(granted, caller, list(of_caller.uses), prefix_from)
        for some in _parts(sorted(patterns), MAX_METHODS):
            uses = [use for pattern in some for method in patterns[pattern] for use in of_caller.uses[method]]
            together.setdefault((conditions, tuple(some)), []).append((caller, uses))
    whole = ((key, some) for key, found in together.items() for some in _parts(found, MAX_CALLERS))
    for (conditions, some), callers in whole:
        rule, told = AccessRule.FromString(conditions), SuggestedRule(methods=map(_text, some))
        rule.methods.extend(told.methods)
        for caller, uses in callers:
            _add(rule, caller)
            getattr(told, "from").append(_title(caller))
            told.calls += sum(use.calls for use in uses)
            told.last.seconds = max([told.last.seconds, *(use.last_s for use in uses)])
        told.seen_methods = (
            len({use.method for _, uses in callers for use in uses}) if any(one.prefix for one in some) else 0
        )
        told.only = _only([use for _, uses in callers for use in uses])
        yield rule, told


def _add(rule: AccessRule, caller: Caller | ForeignCaller) -> None:
    made = getattr(rule, "from").add()
    if isinstance(caller, Caller):
        made.tenant, made.service = caller.tenant, caller.service or "*"
    elif caller.path:
        made.spiffe_id = f"spiffe://{caller.trust_domain}{caller.path}"
    else:
        made.trust_domain = caller.trust_domain


def _title(caller: Caller | ForeignCaller) -> str:
    if isinstance(caller, Caller):
        return f"{caller.tenant}/{caller.service or '*'}"
    return f"spiffe://{caller.trust_domain}{caller.path or '/*'}"


def _only(uses: Iterable[Use]) -> "CallStat.Reporter.ValueType":
    """The side that alone has told of some of these; both sides, or none, are UNSPECIFIED."""
    found = list(uses)
    if any(not use.by_destination for use in found):
        return CallStat.SOURCE
    return CallStat.DESTINATION if any(not use.by_source for use in found) else CallStat.REPORTER_UNSPECIFIED


def _parts(whole: Sequence[_Any], most: int) -> Iterator[Sequence[_Any]]:
    for start in range(0, len(whole), most):
        yield whole[start : start + most]


def _patterns(
    granted: _Grants, caller: Caller | ForeignCaller, methods: Sequence[Method], prefix_from: int
) -> dict[Method, list[Method]]:
    """The methods, or a prefix where many have the same and all of it is allowed now: {pattern: methods}."""
    groups: dict[Method, list[Method]] = {}
    for method in methods:
        head = method.path.rpartition("/")[0] + "/"
        groups.setdefault(Method(head, prefix=True, verb=method.verb), []).append(method)
    found: dict[Method, list[Method]] = {}
    for prefix, group in groups.items():
        whole = len(group) > prefix_from and prefix.path != "/" and _is_allowed(granted, caller, prefix)
        found |= {prefix: group} if whole else {method: [method] for method in group}
    return found


def _is_allowed(granted: _Grants, caller: Caller | ForeignCaller, prefix: Method) -> bool:
    """Whether one grant allows a caller all of a prefix now."""
    who, grants = _someone(caller), granted.of(caller)
    if not granted.budget.spend(sum(len(grant.methods) for grant in grants)):
        return False
    return any(
        grant.caller.fits(who) and not _asks_more(grant) and any(_within(prefix, one) for one in grant.methods)
        for grant in grants
    )


def _someone(caller: Caller | ForeignCaller) -> Name | Foreign:
    if isinstance(caller, Caller):
        return Name(caller.tenant, caller.service or OTHERS)
    return Foreign(caller.trust_domain, caller.path or "/" + OTHERS)


def _text(method: Method) -> str:
    return f"{method.verb} {method.path}{'*' if method.prefix else ''}".strip()


def _denied(uses: Iterable[Use]) -> Iterator[SuggestedRule]:
    """What was denied, the most frequent first."""
    for use in sorted((use for use in uses if use.denied), key=lambda use: -use.denied)[:MAX_TOLD]:
        told = SuggestedRule(methods=[use.method], calls=use.denied)
        getattr(told, "from").append(use.source)
        yield told


def _unused(policies: Mapping[Any, AccessPolicy], uses: Sequence[Use], warnings: Any) -> Iterator[UnusedAccess]:
    """What policies allow and nobody used: each caller and method of each rule by itself."""
    budget, told, seen = Budget(), 0, _by_source(uses)
    for key, policy in policies.items():
        for index, rule in enumerate(policy.spec.allow):
            patterns = [Method.parse(text) for text in rule.methods] or [ANY_METHOD]
            for said in getattr(rule, "from"):
                caller = caller_of(said, key.tenant)
                own = seen.get(_key(caller), [])
                if told >= MAX_TOLD or not budget.spend((len(own) + 1) * len(patterns)):
                    warnings.append("not every permission that was not used is told: there are too many")
                    return
                for pattern in patterns:
                    fitting = [use for use, method in own if _within(method, pattern)]
                    if not any(use.calls for use in fitting):
                        told += 1
                        yield _unused_one(key, index, caller, pattern, fitting)


def _unused_one(
    key: Any, index: int, caller: Caller | ForeignCaller, pattern: Method, fitting: Sequence[Use]
) -> UnusedAccess:
    one = UnusedAccess(policy=f"{key.tenant}/{key.name}", field=f"spec.allow[{index}]")
    setattr(one, "from", _title(caller))
    one.method = "" if pattern == ANY_METHOD else _text(pattern)
    if fitting:
        one.last.seconds = max(use.last_s for use in fitting)
    return one


def _by_source(uses: Iterable[Use]) -> dict[tuple[str, ...], list[tuple[Use, Method]]]:
    """What was called at some time, by each way in which a rule names callers."""
    found: dict[tuple[str, ...], list[tuple[Use, Method]]] = {}
    for use in uses:
        method, caller = _method(use.method), _caller(use.source)
        if method is not None and use.last_s:
            for key in {_key(caller), (caller.tenant, "")} if isinstance(caller, Caller) else {_key(caller)}:
                found.setdefault(key, []).append((use, method))
    return found


def _warn(answer: SuggestedAccess, uses: Sequence[Use]) -> None:
    """What to know of the calls."""
    seen = [use for use in uses if use.calls]
    alone = sum(use.calls for use in seen if not use.by_destination)
    if alone:
        answer.warnings.append(f"{alone} calls were told of by their callers alone: nobody else has seen them")
    alone = sum(use.calls for use in seen if not use.by_source and not use.source.startswith("spiffe://"))
    if alone:
        answer.warnings.append(f"{alone} calls were told of by the service alone")
    foreign = sorted({use.source.rpartition("/")[0] for use in seen if use.source.startswith("spiffe://")})
    if foreign:
        names = ", ".join(foreign)
        answer.warnings.append(f"which identities of {names} called is not recorded: all that may call stay in")
    nobody = sum(use.calls for use in seen if use.source == f"{UNKNOWN}/{UNKNOWN}")
    if nobody:
        answer.warnings.append(f"{nobody} calls came without a certificate: they are left out")
    odd = sum(use.calls for use in seen if _method(use.method) is None)
    if odd:
        answer.warnings.append(f"of {odd} calls the method is not recorded: they are left out")
    if answer.beside:
        others = ", ".join(answer.beside)
        answer.warnings.append(f"policies add up: what {others} allow stays allowed as long as they are there")
