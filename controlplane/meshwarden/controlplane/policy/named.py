"""The callers that route policies name one by one: what is compiled for these is their own.

All other services of a tenant share what is compiled for it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from meshwarden.controlplane.policy.neutral import Caller, Name, caller_of


def named(policy: Any) -> Iterator[Name]:
    """The services that a `v1.RoutePolicy` names as callers; none of another kind of resource."""
    for rule in policy.spec.rules if policy.DESCRIPTOR.name == "RoutePolicy" else ():
        for said in getattr(rule.match, "from"):
            caller = caller_of(said, policy.metadata.tenant)
            if isinstance(caller, Caller) and not caller.is_whole:
                yield Name(caller.tenant, caller.service)


class NamedCallers(Counter[Name]):
    """How often each is named."""

    def __contains__(self, service: object) -> bool:
        return self.get(service, 0) > 0  # type: ignore[call-overload, no-any-return]
