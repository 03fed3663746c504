"""What policies of an external service can't say: its callers' Envoys hold them, on the way out."""

from collections.abc import Iterator
from typing import Final

from meshwarden.controlplane.resources.access import rules_of
from meshwarden.controlplane.resources.data_plane import criticality_of
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import AnyResource, ref_of, title
from meshwarden.controlplane.resources.view import View
from meshwarden.sdk.quota.unit import REQUESTS, unit_of
from meshwarden.v1.resources_pb2 import (
    AccessPolicy,
    ExternalService,
    ExternalServiceSpec,
    RatePolicy,
    RoutePolicy,
    Service,
)

MOST: Final = 64
"""External services of a tenant: each of its Envoys has a listener for each."""
_STREAMS: Final = (ExternalServiceSpec.TCP, ExternalServiceSpec.TLS)


def name_faults(resource: Service | ExternalService, view: View) -> Iterator[FieldFault]:
    """A name means a service or an external service; and these are not too many."""
    tenant, name = resource.metadata.tenant, resource.metadata.name
    other = view.external(tenant, name) if isinstance(resource, Service) else view.service(tenant, name)
    if other is not None:
        yield FieldFault(
            "metadata.name", f"{title(ref_of(other))} has this name already, by which both would be called"
        )
    if isinstance(resource, ExternalService) and sum(1 for _ in view.of("ExternalService", tenant)) > MOST:
        yield FieldFault("metadata.name", f"tenant {tenant} has {MOST} external services already")


def outside_faults(resource: AnyResource, external: ExternalService, view: View) -> Iterator[FieldFault]:
    """The faults of what is said of an external service."""
    streams = external.spec.protocol in _STREAMS
    if isinstance(resource, AccessPolicy):
        yield from _access_faults(resource, streams)
    elif isinstance(resource, RatePolicy | RoutePolicy) and streams:
        yield FieldFault("spec.service", f"{title(ref_of(external))} has connections, and no calls that one could tell")
    elif isinstance(resource, RatePolicy):
        yield from _rate_faults(resource, external, view)
    elif isinstance(resource, RoutePolicy):
        yield from _route_faults(resource)
    else:
        yield FieldFault("spec.service", f"{title(ref_of(external))} is outside of the mesh: no workload is one of it")


def _access_faults(policy: AccessPolicy, streams: bool) -> Iterator[FieldFault]:
    if policy.spec.dry_run:
        yield FieldFault("spec.dryRun", "is recorded by who is called, and an external service records nothing")
    for path, rule in rules_of(policy.spec):
        for number, caller in enumerate(getattr(rule, "from")):
            if not caller.service:
                text = "no other trust domain's identity calls through an Envoy of this mesh"
                yield FieldFault(f"{path}.from[{number}]", text)
        for field in ("methods", "headers") if streams else ():
            if getattr(rule, field):
                yield FieldFault(f"{path}.{field}", "of a connection nobody can tell: leave it out")
        if streams and rule.HasField("during"):
            yield FieldFault(f"{path}.during", "connections stay open beyond it: only HTTP and HTTPS can hold it")


def _rate_faults(policy: RatePolicy, external: ExternalService, view: View) -> Iterator[FieldFault]:
    spec, who = policy.spec, "the callers' Envoys hold it, which"
    if spec.HasField("adaptive"):
        yield FieldFault("spec.adaptive", f"{who} know of no tenants there")
    if spec.period:
        yield FieldFault("spec.period", f"{who} hold rates alone, no amounts for a period")
    if (unit := unit_of(spec)) != REQUESTS:
        yield FieldFault(
            f"spec.{'total' if spec.HasField('total') else 'limits[0]'}.{unit}", f"{who} count requests only"
        )
    if (place := criticality_of(policy)) is not None:
        yield FieldFault(place, f"{who} let calls in as they come, whatever they matter")
    for other in view.of_service("RatePolicy", external.metadata.tenant, external.metadata.name):
        if ref_of(other) != ref_of(policy):
            yield FieldFault("spec.service", f"{title(ref_of(other))} is for it already: {who} hold one")


def _route_faults(policy: RoutePolicy) -> Iterator[FieldFault]:
    spec = policy.spec
    for number, rule in enumerate(spec.rules):
        path = f"spec.rules[{number}]"
        if getattr(rule.match, "from"):
            yield FieldFault(f"{path}.match.from", "all callers of an external service share its routes")
        if rule.HasField("mirror"):
            yield FieldFault(f"{path}.mirror", "no copies of calls that leave the mesh are made")
    equal = "the hosts of an external service are one another's equal"
    for field in ("affinity", "locality"):
        if spec.HasField(field):
            yield FieldFault(f"spec.{field}", equal)
    if spec.load_balancing.HasField("ring_hash"):
        yield FieldFault("spec.loadBalancing.ringHash", equal)
