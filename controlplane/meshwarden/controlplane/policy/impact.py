"""A change of resources, and what of the compiled it touches."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from meshwarden.controlplane.policy.neutral import Key, Name


class Change(NamedTuple):
    """What became of a resource: the message as it is now (`v1.Service` …), None if it was deleted."""

    key: Key
    message: Any


@dataclass
class Impact:
    """What a batch of changes touches.

    Attributes:
        seen_by: tenants whose clients see a changed service, "*" for all.
        servers: services whose callers' permissions or limits changed.
        nodes: nodes whose entries, or whose entries' services, changed.
        services: services whose way for callers (visibility, routes, versions, endpoints) changed.
        ways: services of which more than endpoints changed; part of `services`.
        kept: nodes that keep an endpoint that changed.
        routed: tenants whose clients see a service with other names or routes, "*" for all; part of `seen_by`.
        rates: rate policies that changed.
        trust: whether another trust domain's resource changed.
        near: whether there may be other tenants to which it matters where they call from.
    """

    seen_by: set[str] = field(default_factory=set)
    servers: set[Name] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    services: set[Name] = field(default_factory=set)
    ways: set[Name] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    routed: set[str] = field(default_factory=set)
    rates: set[Name] = field(default_factory=set)
    trust: bool = False
    near: bool = False

    def __bool__(self) -> bool:
        return bool(self.seen_by or self.servers or self.nodes or self.services or self.rates or self.trust)
