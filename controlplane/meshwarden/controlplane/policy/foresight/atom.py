"""The calls of a service that policies tell apart: one for each class of calls that all policies treat alike.

Policies name callers, methods and headers exactly, or by what they start with. So whatever is named, and beside it one
of those that aren't, stand for all calls there can be. No name, path or value may hold what stands for the others.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, product
from typing import Final

from meshwarden.controlplane.policy.foresight.verdict import Call, Judge
from meshwarden.controlplane.policy.neutral import (
    ANY_METHOD,
    Caller,
    Foreign,
    ForeignCaller,
    Header,
    Method,
    Name,
)

OTHERS: Final = "*"
"""Stands for all names, and in a path for all that goes on from there, that no policy names."""
_NO_VALUE: Final = "\x00"
# Of so many at most `few_headers` takes each, by itself and with the others.
_FEW: Final = 64
# More headers than these are not told apart.
MAX_HEADERS: Final = 256


def callers(judges: Sequence[Judge], service: Name) -> list[Name | Foreign]:
    """The callers that are told apart: whoever is named, `tenant/*` for the others of a tenant, `*/*` for the rest."""
    found: dict[Name | Foreign, None] = {}
    for judge in judges:
        for who in _named(judge, service):
            if isinstance(who, ForeignCaller):
                found[Foreign(who.trust_domain, who.path or "/" + OTHERS)] = None
                found[Foreign(who.trust_domain, "/" + OTHERS)] = None
            else:
                found[Name(who.tenant, who.service or OTHERS)] = None
                found[Name(who.tenant, OTHERS)] = None
        for revoked in judge.whole(service).revoked:
            found[revoked] = None
    found[Name(OTHERS, OTHERS)] = None
    return sorted(found, key=lambda who: (isinstance(who, Foreign), *who))


def _named(judge: Judge, service: Name) -> Iterator[Caller | ForeignCaller]:
    said = judge.mesh.callee(service)
    yield Caller(service.tenant)
    for tenant in said.spec.export_to if said is not None else ():
        if tenant != OTHERS:
            yield Caller(tenant)
    for grant in judge.whole(service).rules:
        yield grant.caller
    for rule in judge.route(service).rules:
        yield from rule.callers
    for limits in judge.limits(service):
        for limit in limits.limits:
            if limit.tenant.startswith("spiffe://"):
                yield ForeignCaller(limit.tenant.removeprefix("spiffe://"))
            elif limit.tenant != OTHERS:
                yield Caller(limit.tenant)


def methods(judges: Sequence[Judge], service: Name, caller: Name | Foreign | None = None) -> list[Call]:
    """The methods that are told apart, of a caller or of any, as calls without headers; gRPC's are each a POST."""
    patterns = {pattern for judge in judges for pattern in _patterns(judge, service, caller)} | {ANY_METHOD}
    paths = sorted({pattern.path + OTHERS * pattern.prefix for pattern in patterns})
    if any(judge.speaks_grpc(service) for judge in judges):
        return [Call(path, "POST") for path in paths]
    verbs = sorted({pattern.verb for pattern in patterns} | {""})
    return [Call(path, verb) for path in paths for verb in verbs]


def _patterns(judge: Judge, service: Name, caller: Name | Foreign | None) -> Iterator[Method]:
    for grant in judge.whole(service).rules:
        if caller is None or grant.caller.fits(caller):
            yield from grant.methods
    yield from judge.route(service).idempotent
    for rule in judge.route(service).rules:
        yield from rule.methods
    for limits in judge.limits(service):
        for limit in limits.limits:
            of_service = (part for one in limit.services if one.service == service for part in one.methods)
            for part in (*limit.methods, *of_service):
                yield from map(Method, part.methods)


def conditions(judges: Iterable[Judge], service: Name) -> list[tuple[Header, ...]]:
    """What rules about a service ask of headers, each once, in order."""
    rules = [rule for judge in judges for rule in judge.route(service).rules]
    found = {rule.headers for rule in rules}
    found |= {(*rule.headers, *rule.fault.headers) for rule in rules if rule.fault is not None}
    found |= {rule.headers for judge in judges for rule in judge.whole(service).rules}
    return sorted(found - {()}, key=str)


def examples(asked: Iterable[tuple[Header, ...]]) -> list[tuple[tuple[str, str], ...]]:
    """Headers that meet what each rule asks, and such that fail it by one that must not be there; first none at all."""
    found: dict[tuple[tuple[str, str], ...], None] = {(): None}
    for headers in asked:
        meeting = {item.name: _meeting(item) for item in headers if item.kind != "absent"}
        found[tuple(sorted(meeting.items()))] = None
        for item in headers:
            if item.kind == "absent":
                found[tuple(sorted({item.name: OTHERS, **meeting}.items()))] = None
    return list(found)


def few_headers(asked: Sequence[tuple[Header, ...]]) -> list[tuple[tuple[str, str], ...]]:
    """Headers of each class, the fewest first; of too many classes what meets each rule, and what fails it."""
    every = every_header(asked)
    return sorted(every, key=len) if every is not None and len(every) <= _FEW else examples(asked)


def shown(value: str) -> str:
    """A header's value for people: "*" for what no rule names."""
    return value.replace(_NO_VALUE, OTHERS)


def _meeting(header: Header) -> str:
    return header.value + (OTHERS if header.kind == "prefix" else "") if header.value else OTHERS


def every_header(asked: Iterable[tuple[Header, ...]]) -> list[tuple[tuple[str, str], ...]] | None:
    """Headers of each class that rules tell apart, first none at all; None if these are too many."""
    values: dict[str, dict[str | None, None]] = {}
    for header in (item for headers in asked for item in headers):
        of_name = values.setdefault(header.name, {None: None, _NO_VALUE: None})
        if header.kind == "exact":
            of_name[header.value] = None
        elif header.kind == "prefix":
            of_name[header.value + _NO_VALUE] = None
    every = product(*([(name, value) for value in found] for name, found in sorted(values.items())))
    made = [
        tuple((name, value) for name, value in pairs if value is not None) for pairs in islice(every, MAX_HEADERS + 1)
    ]
    return made if len(made) <= MAX_HEADERS else None


def label(call: Call, *, grpc: bool) -> str:
    """A method as an AccessRule names it."""
    return f"{call.verb} {call.path}" if call.verb and not grpc else call.path
