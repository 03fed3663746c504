"""What policies say that the clients which are there can't do."""

from collections.abc import Callable, Iterable
from typing import Final

from meshwarden.controlplane.policy.gap import Gap, gaps, untested
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.variant import Variant
from meshwarden.v1 import admin_service_pb2 as v1

_MOST: Final = 256


def policy_gaps(mesh: Mesh, nodes: Iterable[v1.NodeState], shown: Callable[[str], bool]) -> list[v1.PolicyGap]:
    """The gaps of the policies of tenants that may be shown, for every client that is there; 256 at most.

    Args:
        mesh: what there is.
        nodes: with their data planes.
        shown: whether a tenant's policies, and its clients, may be shown.
    """
    refs = [ref for node in nodes if node.connected for ref in node.data_planes]
    found = {gap for ref in refs if shown(ref.tenant) for gap in untested(ref.client)}
    # {variant: the tenants that have such clients}; one of which nothing is known was not there yet.
    tenants: dict[Variant, set[str]] = {}
    for ref in refs:
        if ref.client:
            tenants.setdefault(Variant.of(ref), set()).add(ref.tenant)
    for service in mesh.services_of("RoutePolicy"):
        if shown(service.tenant):
            for variant, callers in tenants.items():
                if any(mesh.sees(caller, service) for caller in callers):
                    found.update(gaps(mesh, service, variant))
    return [_message(gap) for gap in sorted(found, key=_order)[:_MOST]]


def _order(gap: Gap) -> tuple[str, str, str, str]:
    return (str(gap.policy or ""), gap.field, gap.kind, gap.why)


def _message(gap: Gap) -> v1.PolicyGap:
    return v1.PolicyGap(
        policy=f"RoutePolicy {gap.policy}" if gap.policy is not None else "",
        field=gap.field,
        client=gap.kind,
        effect=v1.PolicyGap.Effect.Value(gap.what.upper()),
        why=gap.why,
    )
