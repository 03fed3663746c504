"""What policies say that the clients which are there can't do."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from meshwarden.controlplane.policy import access, permissive
from meshwarden.controlplane.policy.gap import Gap, gaps, untested
from meshwarden.controlplane.policy.mention import lets_in
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.variant import Variant
from meshwarden.v1 import admin_service_pb2 as v1
from meshwarden.v1 import node_service_pb2

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
    told = [_message(gap) for gap in sorted(found, key=_order)]
    of_servers = (*_by_tls_alone(mesh, refs, shown), *_without_sdk(mesh, refs, shown))
    return [*told, *_without_envoy(mesh, refs, shown), *of_servers][:_MOST]


def _without_envoy(
    mesh: Mesh, refs: Iterable[node_service_pb2.DataPlaneRef], shown: Callable[[str], bool]
) -> Iterator[v1.PolicyGap]:
    """The callers that may call an external service, and have no Envoy to do so."""
    dialects: dict[tuple[str, str], set[int]] = {}
    for ref in refs:
        if shown(ref.tenant):
            dialects.setdefault((ref.tenant, ref.entry), set()).add(ref.dialect)
    for (tenant, name), found in sorted(dialects.items()):
        entry = mesh.find("WorkloadEntry", tenant, name)
        if entry is None or node_service_pb2.DataPlaneRef.ENVOY in found:
            continue
        caller = Name(tenant, entry.spec.service)
        for external in mesh.externals(tenant):
            if any(grant.caller.fits(caller) for grant in access.access(mesh, external).grants):
                yield v1.PolicyGap(
                    policy=f"ExternalService {external}",
                    client=str(caller),
                    effect=v1.PolicyGap.REFUSED,
                    why=f"it may call it and has no Envoy, which alone leads there: set dataPlane: ENVOY on {name}",
                )


def _by_tls_alone(
    mesh: Mesh, refs: Iterable[node_service_pb2.DataPlaneRef], shown: Callable[[str], bool]
) -> Iterator[v1.PolicyGap]:
    """The services that are to take calls in the clear, of which gRPC's own servers take none."""
    servers = (ref for ref in refs if ref.listen_address and ref.dialect == node_service_pb2.DataPlaneRef.GRPC)
    entries = {(ref.tenant, ref.entry) for ref in servers if shown(ref.tenant)}
    for tenant, name in sorted(entries):
        entry = mesh.find("WorkloadEntry", tenant, name)
        if entry is not None and permissive.find(mesh, Name(tenant, entry.spec.service)) is not None:
            yield v1.PolicyGap(
                policy=f"Service {tenant}/{entry.spec.service}",
                field="spec.permissive",
                client=f"{tenant}/{name}",
                effect=v1.PolicyGap.IGNORED,
                why=f"gRPC's own servers take no calls in the clear: set dataPlane: ENVOY on {name}",
            )


def say_unheld(answer: v1.ExplainResponse, mesh: Mesh, nodes: Iterable[v1.NodeState], callee: str) -> None:
    """Adds to what is explained of limits which servers of a service hold none, for they have no SDK.

    Args:
        answer: what is explained; where it names no resource nothing is added.
        mesh: what there is.
        nodes: with their data planes.
        callee: the service called, "<tenant>/<service>".
    """
    refs = (ref for node in nodes if node.connected for ref in node.data_planes)
    found = [
        f"{tenant}/{name}" for (tenant, name), service in _entries_without_sdk(mesh, refs) if str(service) == callee
    ]
    for step in answer.steps if found else ():
        if step.stage == "limit" and step.resource:
            step.text += f"; not held by {', '.join(found)}, whose servers have no SDK"


def _entries_without_sdk(
    mesh: Mesh, refs: Iterable[node_service_pb2.DataPlaneRef]
) -> Iterator[tuple[tuple[str, str], Name]]:
    """The entries, by tenant and name, of which some server is gRPC's own alone; each with its service, in order."""
    for tenant, name in sorted({(ref.tenant, ref.entry) for ref in refs if ref.without_sdk}):
        if (entry := mesh.find("WorkloadEntry", tenant, name)) is not None:
            yield (tenant, name), Name(tenant, entry.spec.service)


def _without_sdk(
    mesh: Mesh, refs: Iterable[node_service_pb2.DataPlaneRef], shown: Callable[[str], bool]
) -> Iterator[v1.PolicyGap]:
    """What is said of services that gRPC's own servers serve, none of whose programs has the SDK."""
    for (tenant, name), service in _entries_without_sdk(mesh, refs):
        if not shown(tenant):
            continue
        instead = f"serve with the SDK, or set dataPlane: ENVOY on {name}"
        found = [
            (f"RatePolicy {key.tenant}/{key.name}", "", f"gRPC's own servers hold no limits: {instead}")
            for key in mesh.rate_policies(service)
            if shown(key.tenant)
        ]
        policies = mesh.of_service("AccessPolicy", service)
        found += [
            (
                f"AccessPolicy {key.tenant}/{key.name}",
                "spec.dryRun",
                f"gRPC's own servers tell of no dry run: {instead}",
            )
            for key, policy in policies.items()
            if policy.spec.dry_run
        ]
        numbers = {one.serial for one in mesh.denied if one.serial and lets_in(policies.values(), one.caller)}
        if numbers:
            why = "gRPC's own servers know no numbers of certificates, and let in those that are revoked by them"
            found.append((f"Service {service}", "", f"{why}: {instead}"))
        for policy, field, why in found:
            yield v1.PolicyGap(
                policy=policy, field=field, client=f"{tenant}/{name}", effect=v1.PolicyGap.IGNORED, why=why
            )


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
