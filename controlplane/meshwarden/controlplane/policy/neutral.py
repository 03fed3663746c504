"""What a mesh means, in no data plane's dialect: callers, methods, headers and limits. Of routes, see `traffic`.

Both dialects and `explain` read these values and nothing else, so that they cannot disagree about a resource's meaning.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from meshwarden.controlplane.resources.reach import Width
from meshwarden.sdk.quota.unit import REQUESTS, Unit


class Key(NamedTuple):
    """The name of a resource of any kind."""

    kind: str
    tenant: str
    name: str


class Name(NamedTuple):
    """A full name, `<tenant>/<name>`."""

    tenant: str
    name: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


@dataclass(frozen=True, order=True)
class Method:
    """A pattern of calls.

    Attributes:
        path: the path, or what it starts with.
        prefix: whether `path` may be followed by anything.
        verb: the HTTP method; empty for any.
    """

    path: str
    prefix: bool = False
    verb: str = ""

    @classmethod
    def parse(cls, text: str) -> "Method":
        """Reads `/path`, `GET /path`, either with a trailing `*`."""
        verb, _, path = text.rpartition(" ")
        return cls(path.removesuffix("*"), path.endswith("*"), verb)

    def fits(self, path: str, verb: str = "") -> bool:
        """Whether a call of `path` (no query) by `verb` is meant; an empty verb fits no pattern that names one."""
        if self.verb and self.verb != verb:
            return False
        return path.startswith(self.path) if self.prefix else path == self.path

    def both(self, other: "Method") -> "Method | None":
        """The pattern of the calls that both mean; None if there are none."""
        longer, shorter = (self, other) if len(self.path) >= len(other.path) else (other, self)
        if self.verb and other.verb and self.verb != other.verb:
            return None
        if not (longer.path.startswith(shorter.path) if shorter.prefix else longer.path == shorter.path):
            return None
        return Method(longer.path, self.prefix and other.prefix, self.verb or other.verb)


ANY_METHOD = Method("/", prefix=True)


class Foreign(NamedTuple):
    """An identity of another trust domain; `path` with its leading slash. Its tenants' names mean nothing here."""

    trust_domain: str
    path: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"


def spiffe_of(who: Name | Foreign, trust_domain: str) -> str:
    """The SPIFFE ID of a service of `trust_domain`, or of another trust domain's identity."""
    return str(who) if isinstance(who, Foreign) else Caller(*who).spiffe(trust_domain)


@dataclass(frozen=True, order=True)
class Caller:
    """A service, or with an empty `service` every service of the tenant: of this mesh's own trust domain."""

    tenant: str
    service: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether more than one identity is meant."""
        return not self.service

    @property
    def all(self) -> "Caller":
        """Every service of the tenant."""
        return Caller(self.tenant)

    def fits(self, who: Name | Foreign) -> bool:
        """Whether the caller `who` is meant."""
        return isinstance(who, Name) and self.tenant == who.tenant and self.service in ("", who.name)

    def spiffe(self, trust_domain: str) -> str:
        """The SPIFFE ID, or for a whole tenant what its services' IDs start with, the last slash included."""
        return f"spiffe://{trust_domain}/tenant/{self.tenant}/service/{self.service}"

    def __str__(self) -> str:
        return f"{self.service or 'every service'} of tenant {self.tenant}"


@dataclass(frozen=True, order=True)
class ForeignCaller:
    """An identity of another trust domain, or with an empty `path` every identity of it."""

    trust_domain: str
    path: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether more than one identity is meant."""
        return not self.path

    @property
    def all(self) -> "ForeignCaller":
        """Every identity of the trust domain."""
        return ForeignCaller(self.trust_domain)

    def fits(self, who: Name | Foreign) -> bool:
        """Whether the caller `who` is meant."""
        return isinstance(who, Foreign) and self.trust_domain == who.trust_domain and self.path in ("", who.path)

    def spiffe(self, _: str) -> str:
        """The SPIFFE ID, or for the whole trust domain what its IDs start with, the slash included."""
        return f"spiffe://{self.trust_domain}{self.path or '/'}"

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}" if self.path else f"every identity of {self.trust_domain}"


AnyCaller: TypeAlias = Caller | ForeignCaller


def caller_of(said: Any, owner: str) -> AnyCaller:
    """Whom a `v1.Caller` means in a policy of the tenant `owner`."""
    if said.trust_domain:
        return ForeignCaller(said.trust_domain)
    if said.spiffe_id:
        trust_domain, _, path = said.spiffe_id.removeprefix("spiffe://").partition("/")
        return ForeignCaller(trust_domain, f"/{path}")
    return Caller(said.tenant or owner, "" if said.service == "*" else said.service)


@dataclass(frozen=True)
class Header:
    """A condition on a header; `value` is meaningless for `present` and `absent`."""

    name: str
    kind: Literal["exact", "prefix", "present", "absent"]
    value: str = ""

    @classmethod
    def of(cls, said: Any) -> "Header":
        """What a `v1.HeaderMatch` means."""
        kind = said.WhichOneof("value")
        if kind == "present":
            return cls(said.name, "present" if said.present else "absent")
        return cls(said.name, kind, getattr(said, kind))

    def fits(self, headers: Mapping[str, str]) -> bool:
        """Whether a call with these headers (names in lower case, several values of one joined by commas) is meant."""
        found = headers.get(self.name)
        if self.kind == "absent":
            return found is None
        if found is None:
            return False
        if self.kind == "exact":
            return found == self.value
        return self.kind == "present" or found.startswith(self.value)

    def __str__(self) -> str:
        if self.kind in ("present", "absent"):
            return f"with{'out' if self.kind == 'absent' else ''} header {self.name}"
        return f"with header {self.name} {'=' if self.kind == 'exact' else 'that starts with'} {self.value!r}"


@dataclass(frozen=True)
class Rate:
    """So much, in its policy's unit, in so many seconds, and how much at once."""

    amount: int
    per_s: float
    burst: int


@dataclass(frozen=True)
class MethodLimit:
    """A limit on a part of a tenant's calls; `floor` is for each `rate.per_s`.

    Attributes:
        method: the method, or the name of a class of methods.
        rate: at most so much.
        floor: so much each `rate.per_s` whenever it is wanted.
        weight: relative to the tenant's other parts.
        criticality: of calls that say none, a number of `MethodLimit.Criticality`; 0 for the default.
        of: the methods, if it is a class.
    """

    method: str
    rate: Rate
    floor: int = 0
    weight: int = 1
    criticality: int = 0
    of: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it is for."""
        return self.of or (self.method,)


@dataclass(frozen=True)
class ServiceLimit:
    """A limit on a tenant's calls of one of several services; `floor` in calls each `rate.per_s`."""

    service: Name
    rate: Rate
    floor: int = 0
    weight: int = 1
    methods: tuple[MethodLimit, ...] = ()


@dataclass(frozen=True)
class Limit:
    """How much one tenant may call; tenant "*" gives every other tenant as much, each for itself.

    Attributes:
        tenant: the calling tenant.
        rate: at most so much.
        floor: so much each `rate.per_s` whenever it is wanted.
        weight: relative to other tenants when the total is short.
        methods: limits on parts of it.
        services: in a policy of several services, limits on parts of it.
    """

    tenant: str
    rate: Rate
    floor: int = 0
    weight: int = 1
    methods: tuple[MethodLimit, ...] = ()
    services: tuple[ServiceLimit, ...] = ()

    def at(self, service: Name) -> "Limit":
        """What of it a server of that service has to know: the limit on its own part."""
        if not self.services:
            return self
        part = next((part for part in self.services if part.service == service), None)
        if part is None:
            return replace(self, services=())
        return Limit(self.tenant, part.rate, part.floor, part.weight, part.methods)


@dataclass(frozen=True)
class Adaptive:
    """A limit on calls at once that each server finds by itself, between two numbers."""

    least: int
    most: int


@dataclass(frozen=True)
class Limits:
    """What one policy lets each tenant call; a tenant without a limit is not limited.

    Attributes:
        policy: where that stands.
        limits: of tenants.
        width: which services' calls count together.
        mesh: whether enforcement points share the limits; otherwise each has them by itself.
        total: of all callers together; then each tenant has a limit.
        away: what becomes of calls while nobody divides the limits.
        fallback: each tenant's at each point meanwhile, if `away` is "fallback".
        shadow: whether nothing is refused.
        unit: what all amounts count.
        reserve: where that is cost: what a call takes that declares nothing.
        adaptive: if the limit is on calls at once and found: the limits are weights, and ceilings if they aren't 0.
        period: what all amounts are for, where they are not rates.
        zone: the time zone whose clocks say when that begins.
        regions: the weights by which regions part all amounts, in one order everywhere; empty if each has the whole.
    """

    policy: Name
    limits: tuple[Limit, ...] = ()
    width: Width = Width.SERVICE
    mesh: bool = False
    total: Rate | None = None
    away: Literal["keep", "fallback", "deny"] = "keep"
    fallback: Rate | None = None
    shadow: bool = False
    unit: Unit = REQUESTS
    reserve: int = 1
    adaptive: Adaptive | None = None
    period: Literal["HOUR", "DAY", "MONTH"] | None = None
    zone: str = "UTC"
    regions: tuple[tuple[str, int], ...] = ()

    def find(self, tenant: str) -> Limit | None:
        """The limit on a tenant: its own before the one for all others."""
        by_tenant = {limit.tenant: limit for limit in self.limits}
        return by_tenant.get(tenant) or by_tenant.get("*")

    def at(self, service: Name) -> "Limits":
        """What of it a server of that service has to know."""
        return replace(self, limits=tuple(limit.at(service) for limit in self.limits))
