"""What resources mention: callers, trust domains, nodes."""

from collections.abc import Iterable
from typing import Any

from meshwarden.controlplane.policy.neutral import Foreign, Key, Name, caller_of
from meshwarden.controlplane.resources.reach import full
from meshwarden.v1.resources_pb2 import ExternalServiceSpec


def prefers_near(policy: Any) -> bool:
    """Whether a route policy has callers call what is near them."""
    return bool(policy.spec.HasField("locality"))


def lets_in(policies: Iterable[Any], caller: Name | Foreign | None) -> bool:
    """Whether some of a service's access policies is about a caller; None is anybody."""
    for policy in policies:
        for rule in policy.spec.allow:
            for who in getattr(rule, "from"):
                if caller is None or caller_of(who, policy.metadata.tenant).fits(caller):
                    return True
    return False


def names_domain(policy: Any, trust_domain: str) -> bool:
    """Whether an access policy names identities of a trust domain."""
    return any(
        who.trust_domain == trust_domain or who.spiffe_id.startswith(f"spiffe://{trust_domain}/")
        for rule in (*policy.spec.allow, *policy.spec.deny)
        for who in getattr(rule, "from")
    )


def led_to(ingress: Any) -> set[str]:
    """The tenants to whose services a `v1.Ingress` leads; none of another kind of resource."""
    routes = ingress.spec.routes if ingress.DESCRIPTOR.name == "Ingress" else ()
    return {full(ingress.metadata.tenant, route.service)[0] for route in routes}


def nodes_named(key: Key, message: Any) -> list[str]:
    """The nodes that a resource names."""
    if key.kind == "WorkloadEntry":
        return list(message.spec.nodes)
    return [message.spec.node] if key.kind == "Endpoint" and message.spec.node else []


def is_stream(external: Any) -> bool:
    """Whether a `v1.ExternalService` takes connections, and no calls that one could tell apart."""
    return external.spec.protocol in (ExternalServiceSpec.TCP, ExternalServiceSpec.TLS)
