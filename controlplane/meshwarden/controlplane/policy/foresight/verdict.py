"""What becomes of a call, as a value that can be compared: by the neutral forms that `explain` reads.

A `Judge` works each form out once for each service, so that many calls can be held against a mesh.
"""

import functools
from collections.abc import Mapping
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any, NamedTuple

from meshwarden.certs.spiffe_id import account_of
from meshwarden.controlplane.policy import access, choice, rate, route
from meshwarden.controlplane.policy.choice import Choice
from meshwarden.controlplane.policy.grant import Access, Grant
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Foreign, Limits, Name
from meshwarden.controlplane.policy.traffic import Route, Rule
from meshwarden.controlplane.policy.window import Window
from meshwarden.v1 import resources_pb2

# Of a rule: which calls it is about, and where it stands.
_MATCHED = frozenset({"methods", "headers", "callers", "index", "split"})


class Call(NamedTuple):
    """A call to a service; `headers` are pairs of a name in lower case and a value."""

    path: str
    verb: str
    headers: tuple[tuple[str, str], ...] = ()


class Way(NamedTuple):
    """What becomes of a call on its way.

    Attributes:
        split: which share of such calls goes to which version: `((version, share), …)`, in order.
        treatment: whatever else a route policy says of it, as values that can be compared.
    """

    split: tuple[tuple[str, Fraction], ...]
    treatment: tuple[Any, ...] = ()

    def moved(self, other: "Way") -> Fraction:
        """How probable it is, at least, that a call goes elsewhere by `other`: half of what the shares differ by."""
        mine, theirs = dict(self.split), dict(other.split)
        return (
            sum((abs(mine.get(key, Fraction()) - theirs.get(key, Fraction())) for key in {*mine, *theirs}), Fraction())
            / 2
        )


class Verdict(NamedTuple):
    """What becomes of a call.

    Attributes:
        seen: whether the caller's tenant sees the service.
        allowed: whether the access policies let it through.
        grant: which rule does, as `(policy, field)`; None if none does.
        way: where it goes.
        rule: which rule of the route policy says so, by its index.
        limits: what limits it: values that can be compared.
    """

    seen: bool
    allowed: bool
    grant: tuple[Name, str] | None
    way: Way
    rule: int
    limits: tuple[Any, ...]

    @property
    def passes(self) -> bool:
        """Whether it gets to the service, as far as limits and endpoints let it."""
        return self.seen and self.allowed


class Judge:
    """Says what becomes of calls in a mesh, which must not change meanwhile."""

    def __init__(self, mesh: Mesh, at_s: float | None = None) -> None:
        """Judges for a moment, in seconds since 1970; without one nothing holds that lets in for a time."""
        self.mesh, self.at_s = mesh, at_s
        self._timed: dict[Name, Access] = {}
        self._access: dict[Name, Access] = {}
        self._of_caller: dict[Name, tuple[Name | Foreign, Access]] = {}
        self._routes: dict[Name, Route] = {}
        self._choices: dict[Name, Choice] = {}
        self._limits: dict[Name, tuple[Limits, ...]] = {}

    def access(self, service: Name) -> Access:
        """Who may call a service at that moment."""
        if (known := self._access.get(service)) is None:
            timed = self._timed[service] = access.access(self.mesh, service)
            known = self._access[service] = timed.at(self.at_s)
        return known

    def whole(self, service: Name) -> Access:
        """Who may call a service at whatever moment."""
        self.access(service)
        return self._timed[service]

    def is_of_its_time(self, caller: Name | Foreign, service: Name, call: Call) -> bool:
        """Whether the access policies say something else of a call at another moment."""
        timed = self.whole(service)
        if not timed.is_timed:
            return False
        told = caller, call.path, call.verb, "", dict(call.headers)
        return (timed.at(None).find(*told) is None) != (timed.widest().find(*told) is None)

    def times(self, caller: Name | Foreign, service: Name, call: Call) -> dict[tuple[str, Window], Grant]:
        """What lets a call in, or keeps it out, for a time alone: {("allow" or "deny", when): the rule}."""
        timed = self.whole(service)
        found = (one for one in timed.rules if one.during is not None) if timed.is_timed else ()
        headers = dict(call.headers)
        return {
            (one.field, one.during): one
            for one in found
            if one.during is not None and one.fits(caller, call.path, call.verb, headers)
        }

    def route(self, service: Name) -> Route:
        """What becomes of its calls."""
        if (known := self._routes.get(service)) is None:
            known = self._routes[service] = route.route(self.mesh, service)
        return known

    def choice(self, service: Name) -> Choice:
        """How an endpoint of it is chosen, wherever that stands."""
        if (known := self._choices.get(service)) is None:
            known = self._choices[service] = replace(choice.choice(self.mesh, service), policy=None)
        return known

    def limits(self, service: Name) -> tuple[Limits, ...]:
        """What limits them: whole policies, the narrowest first."""
        if (known := self._limits.get(service)) is None:
            named = (Name(key.tenant, key.name) for key in self.mesh.rate_policies(service))
            found = (rate.of_policy(self.mesh, name) for name in named)
            known = self._limits[service] = tuple(said for said in found if said is not None)
        return known

    def speaks_grpc(self, service: Name) -> bool:
        """Whether a service speaks gRPC, whose calls are each a POST."""
        found = self.mesh.callee(service)
        return found is not None and found.spec.protocol == resources_pb2.ServiceSpec.GRPC

    def verdict(self, caller: Name | Foreign, service: Name, call: Call) -> Verdict:
        """What becomes of a call of a certificate that is not revoked by its number."""
        said, headers = self.mesh.callee(service), dict(call.headers)
        tenant = account_of(caller.trust_domain) if isinstance(caller, Foreign) else caller.tenant
        seen = isinstance(caller, Foreign) and isinstance(said, resources_pb2.Service)
        seen = seen or self.mesh.sees(tenant, service)
        abroad = isinstance(said, resources_pb2.Service) and bool(said.spec.spiffe_id)  # for that trust domain to say
        grant = self._own(caller, service).find(caller, call.path, call.verb, headers=headers)
        place = (grant.policy, f"spec.allow[{grant.rule}]") if grant is not None else None
        way, rule = self._way(caller, service, call, headers)
        limits = tuple(bound(one, tenant, service, call.path) for one in self.limits(service))
        return Verdict(
            seen, abroad or grant is not None, place, way, rule, tuple(one for one in limits if one is not None)
        )

    def _own(self, caller: Name | Foreign, service: Name) -> Access:
        """What of a service's access is about a caller; that of the last is known: calls come caller by caller."""
        known = self._of_caller.get(service)
        if known is None or known[0] != caller:
            said = self.access(service)
            grants, denials = (
                tuple(one for one in rules if one.caller.fits(caller)) for rules in (said.grants, said.denials)
            )
            known = self._of_caller[service] = (caller, replace(said, grants=grants, denials=denials))
        return known[1]

    def _way(self, caller: Name | Foreign, service: Name, call: Call, headers: Mapping[str, str]) -> tuple[Way, int]:
        said = self.route(service)
        rule = said.find(caller, call.path, call.verb, dict(headers))
        way = way_of(said.of_call(rule, call.path, call.verb, dict(headers)))
        return way._replace(treatment=(*way.treatment, self.choice(service))), rule.index


@functools.lru_cache(4096)
def way_of(rule: Rule) -> Way:
    """What a rule says of the calls that it is about."""
    total = sum(weight for _, weight in rule.split)
    shares: dict[str, Fraction] = {}
    for version, weight in rule.split:
        shares[version] = shares.get(version, Fraction()) + Fraction(weight, total)
    rest = tuple(getattr(rule, field.name) for field in fields(rule) if field.name not in _MATCHED)
    return Way(tuple(sorted(shares.items())), rest)


def bound(said: Limits, tenant: str, service: Name, path: str) -> tuple[Any, ...] | None:
    """What of a policy limits a tenant's calls of a method, as a value that can be compared; None if nothing does."""
    limit = said.find(tenant)
    if said.adaptive is not None:
        return (said.adaptive, (limit.weight, limit.rate) if limit is not None else (1, None))
    if limit is None:
        return None
    of_service = next((part for part in limit.services if part.service == service), None)
    parts = of_service.methods if of_service is not None else limit.methods
    of_method = next((part for part in parts if path in part.methods), None)
    return (
        *((one.rate, one.floor, one.weight) for one in (limit, of_service, of_method) if one is not None),
        of_method.criticality if of_method is not None else 0,
        *(said.total, said.fallback, said.away, said.mesh, said.shadow),
        *(said.unit, said.reserve, said.period, said.zone, said.regions),
    )
