"""What a resource names: other resources, versions and exports, which must be there."""

from collections.abc import Iterator

from meshwarden.controlplane.resources.access import rules_of
from meshwarden.controlplane.resources.data_plane import Unheld, is_envoy, unheld
from meshwarden.controlplane.resources.drain import drain_faults
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.foreign import caller_faults, held_faults, service_faults
from meshwarden.controlplane.resources.ingress import named_faults
from meshwarden.controlplane.resources.model import AnyResource, ref_of, title
from meshwarden.controlplane.resources.outside import name_faults, outside_faults
from meshwarden.controlplane.resources.reach import ALL, covers, full
from meshwarden.controlplane.resources.rollout import reference_faults_of
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resources_pb2 import (
    SLO,
    AccessPolicy,
    Caller,
    Drain,
    Endpoint,
    ExternalService,
    Ingress,
    RatePolicy,
    Rollout,
    RoutePolicy,
    Service,
    Tenant,
    TrustDomain,
    WorkloadEntry,
)


def mention_faults(resource: AnyResource, view: View) -> Iterator[FieldFault]:
    """The faults of what a resource names."""
    if isinstance(resource, Tenant):
        return
    tenant = resource.metadata.tenant
    if view.find("Tenant", tenant, tenant) is None:
        yield FieldFault("metadata.tenant", _missing_tenant(tenant, view))
    if isinstance(resource, Service | ExternalService):
        for number, seer in enumerate(resource.spec.export_to):
            if seer != "*":
                yield from _tenant(f"spec.exportTo[{number}]", seer, view)
        yield from name_faults(resource, view)
        yield from service_faults(resource, view) if isinstance(resource, Service) else ()
        return
    if isinstance(resource, TrustDomain):
        yield from _only_domain(resource, view)
        return
    if isinstance(resource, Drain):
        yield from drain_faults(resource, view)
        return
    if isinstance(resource, Rollout):
        yield from reference_faults_of(resource, view, mention_faults)
        return
    service = view.service(tenant, resource.spec.service)
    if service is None and (external := view.external(tenant, resource.spec.service)) is not None:
        yield from _names_outside(resource, external, view)
        return
    if service is None and not (isinstance(resource, RatePolicy) and resource.spec.services):
        yield FieldFault("spec.service", _missing_of("Service", tenant, resource.spec.service, view))
    yield from held_faults(ref_of(resource).kind, service)
    if isinstance(resource, AccessPolicy):
        yield from _callers(resource, service, view)
    elif isinstance(resource, RoutePolicy):
        yield from _versions(resource, view)
        yield from _only_one(resource, view)
        for number, rule in enumerate(resource.spec.rules):
            for index, caller in enumerate(getattr(rule.match, "from")):
                yield from _caller(f"spec.rules[{number}].match.from[{index}]", caller, tenant, service, view)
            if rule.mirror.service:
                yield from _mirrored(f"spec.rules[{number}].mirror.service", tenant, rule.mirror.service, service, view)
    elif isinstance(resource, RatePolicy):
        for number, limit in enumerate(resource.spec.limits):
            if limit.tenant != "*":
                yield from _tenant(f"spec.limits[{number}].tenant", limit.tenant, view)
        yield from _limited(resource, view)
    elif isinstance(resource, WorkloadEntry):
        for what in unheld_at(tenant, resource.spec.service, view) if is_envoy(resource) else ():
            field = f"{what.field}: " if view.sees(what.policy.metadata.tenant) else ""
            text = f"{name_of(what.policy, view)} can't be held: {field}{what.reason}"
            yield FieldFault("spec.dataPlane", text)
    elif isinstance(resource, Ingress):
        yield from named_faults(resource, view)
    elif isinstance(resource, SLO):
        if resource.spec.calling_tenant:
            yield from _caller_of(resource, service, view)
    elif isinstance(resource, Endpoint) and resource.spec.entry:
        entry = resource.spec.entry
        if view.find("WorkloadEntry", tenant, entry) is None:
            yield FieldFault("spec.entry", _missing_of("WorkloadEntry", tenant, entry, view))


def _names_outside(resource: AnyResource, external: ExternalService, view: View) -> Iterator[FieldFault]:
    """The faults of what names an external service."""
    yield from outside_faults(resource, external, view)
    if isinstance(resource, AccessPolicy):
        yield from _callers(resource, external, view)
    elif isinstance(resource, RatePolicy):
        for number, limit in enumerate(resource.spec.limits):
            if limit.tenant != "*":
                yield from _tenant(f"spec.limits[{number}].tenant", limit.tenant, view)
    elif isinstance(resource, RoutePolicy):
        yield from _versions(resource, view)
        yield from _only_one(resource, view)


def _only_domain(resource: TrustDomain, view: View) -> Iterator[FieldFault]:
    for other in view.of("TrustDomain"):
        same = isinstance(other, TrustDomain) and other.spec.trust_domain == resource.spec.trust_domain
        if same and ref_of(other) != ref_of(resource):
            yield FieldFault("spec.trustDomain", f"{title(ref_of(other))} is about this trust domain already")


def _callers(policy: AccessPolicy, service: Service | ExternalService | None, view: View) -> Iterator[FieldFault]:
    owner = policy.metadata.tenant
    for place, rule in rules_of(policy.spec):
        for number, caller in enumerate(getattr(rule, "from")):
            path = f"{place}.from[{number}]"
            # Whom a service isn't exported to may be denied it beforehand.
            seen = service if place.startswith("spec.allow") else None
            if caller.service:
                yield from _caller(path, caller, owner, seen, view)
            else:
                yield from caller_faults(path, caller, view)


def _caller(
    path: str, caller: Caller, owner: str, service: Service | ExternalService | None, view: View
) -> Iterator[FieldFault]:
    """A caller of this mesh that a policy of `owner` about `service` names."""
    tenant = caller.tenant or owner
    missing = list(_tenant(f"{path}.tenant", tenant, view))
    if missing:
        yield from missing
        return
    if caller.service != "*" and view.service(tenant, caller.service) is None:
        yield FieldFault(f"{path}.service", _missing_of("Service", tenant, caller.service, view))
    if service is not None and tenant != owner and not {tenant, "*"} & set(service.spec.export_to):
        text = f"{title(ref_of(service))} is not exported to {tenant}: add it to its exportTo"
        yield FieldFault(f"{path}.tenant", text)


def _mirrored(path: str, tenant: str, name: str, service: Service | None, view: View) -> Iterator[FieldFault]:
    """A service that gets copies of the calls of another: those who make the calls must see it, and so must we."""
    copied = view.service(tenant, name)
    if copied is None:
        yield FieldFault(path, _missing_of("Service", tenant, name, view))
        return
    if copied.spec.spiffe_id:
        yield FieldFault(path, "another trust domain serves it: no copies of calls leave the mesh")
    if service is None:
        return
    if copied.spec.protocol != service.spec.protocol:
        yield FieldFault(path, f"Service {tenant}/{name} speaks another protocol")
    seers = set(copied.spec.export_to)
    for seer in service.spec.export_to:
        if not {seer, "*"} & seers:
            text = f"Service {tenant}/{name} is not exported to {seer}, which makes such calls: add it to its exportTo"
            yield FieldFault(path, text)
            return


def _caller_of(slo: SLO, service: Service | None, view: View) -> Iterator[FieldFault]:
    owner, tenant = slo.metadata.tenant, slo.spec.calling_tenant
    missing = list(_tenant("spec.callingTenant", tenant, view))
    yield from missing
    if not missing and service is not None and tenant != owner and not {tenant, "*"} & set(service.spec.export_to):
        text = f"Service {owner}/{service.metadata.name} is not exported to {tenant}: it has no calls of that tenant"
        yield FieldFault("spec.callingTenant", text)


def _versions(policy: RoutePolicy, view: View) -> Iterator[FieldFault]:
    owner, service = policy.metadata.tenant, policy.spec.service
    entries = view.of_service("WorkloadEntry", owner, service)
    known = {entry.spec.version for entry in entries if isinstance(entry, WorkloadEntry)}
    for rule_number, rule in enumerate(policy.spec.rules):
        said = [(f"split[{number}].version", part.version) for number, part in enumerate(rule.split)]
        for place, version in (*said, ("mirror.version", rule.mirror.version)):
            if version and version not in known:
                has = ", ".join(sorted(known - {""})[:8])
                text = f"no workload entry of {owner}/{service} has version {version}" + (
                    f"; it has {has}" if has else ""
                )
                yield FieldFault(f"spec.rules[{rule_number}].{place}", text)


def _only_one(policy: RoutePolicy, view: View) -> Iterator[FieldFault]:
    for other in view.of_service("RoutePolicy", policy.metadata.tenant, policy.spec.service):
        if other.metadata.name != policy.metadata.name:
            text = f"{title(ref_of(other))} is for this service already: a service has at most one RoutePolicy"
            yield FieldFault("spec.service", text)


def _limited(policy: RatePolicy, view: View) -> Iterator[FieldFault]:
    """The services of a rate policy: they are there, and can hold it."""
    owner, spec = policy.metadata.tenant, policy.spec
    for number, name in enumerate(spec.services):
        yield from _service(f"spec.services[{number}]", full(owner, name), view)
    for number, limit in enumerate(spec.limits):
        for index, part in enumerate(limit.services):
            path, named = f"spec.limits[{number}].services[{index}].service", full(owner, part.service)
            yield from _service(path, named, view)
            if not covers(owner, spec, named):
                yield FieldFault(path, f"{'/'.join(named)} is none of this policy's services: add it to spec.services")
    for tenant, service in reached(policy, view):
        for what in unheld_at(tenant, service, view):
            if what.policy is policy:
                yield FieldFault(what.field, what.reason)
                return


def _service(path: str, named: tuple[str, str], view: View) -> Iterator[FieldFault]:
    """A service that a policy names, or all of a tenant's."""
    tenant, service = named
    if tenant == ALL:
        return
    if missing := list(_tenant(path, tenant, view)):
        yield from missing
    elif service != ALL and view.service(tenant, service) is None:
        yield FieldFault(path, _missing_of("Service", tenant, service, view))


def reached(policy: RatePolicy, view: View) -> Iterator[tuple[str, str]]:
    """The services that a rate policy is about."""
    owner, spec = policy.metadata.tenant, policy.spec
    if spec.service:
        yield owner, spec.service
        return
    for one in view.of("Service"):
        named = one.metadata.tenant, one.metadata.name
        if covers(owner, spec, named):
            yield named


def unheld_at(tenant: str, service: str, view: View) -> Iterator[Unheld]:
    """What can't be held of the rate policies that are about a service."""
    entries = [one for one in view.of_service("WorkloadEntry", tenant, service) if isinstance(one, WorkloadEntry)]
    return unheld(view.rate_policies(tenant, service), entries, lambda policy: name_of(policy, view))


def name_of(policy: RatePolicy, view: View) -> str:
    """What a rate policy is called before who may see no other tenant's."""
    return title(ref_of(policy)) if view.sees(policy.metadata.tenant) else "another tenant's RatePolicy"


def _tenant(path: str, tenant: str, view: View) -> Iterator[FieldFault]:
    if view.find("Tenant", tenant, tenant) is None:
        yield FieldFault(path, _missing_tenant(tenant, view))


def _missing_of(kind: str, tenant: str, name: str, view: View) -> str:
    close = view.close_name(kind, tenant, name)
    return f"there is no {kind} {tenant}/{name}" + (f"; did you mean {close}?" if close else "")


def _missing_tenant(tenant: str, view: View) -> str:
    close = view.close_tenant(tenant)
    return f"there is no Tenant {tenant}" + (f"; did you mean {close}?" if close else "")
