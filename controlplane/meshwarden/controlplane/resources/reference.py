"""What resources say of each other: whatever one names must be there, and what is named can't go."""

from collections.abc import Iterable, Iterator, Sequence

from meshwarden.controlplane.resources.access import rules_of
from meshwarden.controlplane.resources.data_plane import Unheld, about, is_envoy, unheld
from meshwarden.controlplane.resources.drain import drain_faults
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.foreign import caller_faults, held_faults, service_faults
from meshwarden.controlplane.resources.ingress import envoy_of, lending_faults, named_faults
from meshwarden.controlplane.resources.model import AnyResource, ref_of, title, unwrap
from meshwarden.controlplane.resources.outside import name_faults, outside_faults
from meshwarden.controlplane.resources.reach import ALL, covers, full
from meshwarden.controlplane.resources.rollout import conflict_faults, holder, reference_faults_of, running
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import (
    SLO,
    AccessPolicy,
    Caller,
    Drain,
    Endpoint,
    ExternalService,
    Ingress,
    RatePolicy,
    Resource,
    Rollout,
    RoutePolicy,
    Service,
    Tenant,
    TrustDomain,
    WorkloadEntry,
)


def reference_faults(batch: Sequence[Resource], before: View) -> list[FieldFault]:
    """Holds a batch against the resources that are there.

    Args:
        batch: the resources to store, each of which keeps the rules for itself.
        before: what is stored.

    Returns:
        Every fault, with paths that start with "resources[i].".
    """
    found = list(_duplicates(batch))
    after = before.with_changes(puts=batch)
    for index, resource in enumerate(batch):
        message = unwrap(resource)
        found += [_at(index, fault) for fault in _all_faults(message, after)]
    found += conflict_faults(batch, before, after)
    return found + list(_broken(batch, before, after)) + list(_displaced(batch, before, after))


def users(refs: Iterable[ResourceRef], before: View) -> list[str]:
    """Says who would miss what is deleted: "AccessPolicy platform/orders needs it: spec.service: …"."""
    refs = list(refs)
    after = before.with_changes(removes=refs)
    # Trust is taken back at once, whoever counts on it: what names it then means nobody.
    if all(ref.kind == "TrustDomain" for ref in refs):
        return []
    titles = ", ".join(map(title, refs))
    found: list[str] = []
    for ref in refs:
        if (rollout := holder(ref, before)) is not None:
            found.append(f"{title(ref_of(rollout))} changes {title(ref)} at present: abort it, or wait")
    for resource in after:
        if isinstance(resource, Endpoint) and resource.spec.node:
            continue  # it goes with its workload
        missed = _new(resource, before, after)
        if missed and not before.sees(ref_of(resource).tenant):
            found.append(f"a resource of another tenant needs {titles}")
        else:
            found += [f"{title(ref_of(resource))} needs it: {fault.field}: {fault.message}" for fault in missed]
    return sorted(set(found))


def _all_faults(resource: AnyResource, view: View) -> Iterator[FieldFault]:
    yield from _names(resource, view)
    yield from _sharers(resource, view)
    yield from lending_faults(resource, view)


def _at(index: int, fault: FieldFault) -> FieldFault:
    return FieldFault(f"resources[{index}].{fault.field}", fault.message)


def _duplicates(batch: Sequence[Resource]) -> Iterator[FieldFault]:
    first: dict[str, int] = {}
    for index, resource in enumerate(batch):
        name = title(ref_of(resource))
        if name in first:
            yield FieldFault(f"resources[{index}].metadata.name", f"{name} stands in resources[{first[name]}] already")
        first.setdefault(name, index)


def _broken(batch: Sequence[Resource], before: View, after: View) -> Iterator[FieldFault]:
    """What others need and the batch takes away: a version, an export, a service of an entry."""
    fields = {"Service": "spec.exportTo", "ExternalService": "spec", "WorkloadEntry": "spec.version"}
    batched = {title(ref_of(resource)) for resource in batch}
    for index, resource in enumerate(batch):
        ref = ref_of(resource)
        old = before.find(ref.kind, ref.tenant, ref.name)
        if ref.kind not in fields or old is None or old.spec == unwrap(resource).spec:
            continue
        service = _service_of(old) or ref.name
        kinds = ("RoutePolicy", "AccessPolicy", "SLO", *(("RatePolicy",) if ref.kind == "ExternalService" else ()))
        for kind in kinds:
            for policy in (*after.of_service(kind, ref.tenant, service), *_mirrors(kind, ref, after)):
                if title(ref_of(policy)) in batched:
                    continue  # its own faults are told
                for fault in _new(policy, before, after):
                    needs = f"{title(ref_of(policy))} needs what was here: {fault.field}: {fault.message}"
                    yield FieldFault(f"resources[{index}].{fields[ref.kind]}", needs)
    for rollout in running(after):
        if title(ref_of(rollout)) in batched:
            continue
        for fault in _new(rollout, before, after):
            text = "with it another tenant's rollout, which is under way, could not be committed"
            if before.sees(ref_of(rollout).tenant):
                why = f"{fault.field}: {fault.message}"
                text = f"with it {title(ref_of(rollout))}, which is under way, could not be committed: {why}"
            yield FieldFault("resources[0].metadata.name", text)


def _mirrors(kind: str, ref: ResourceRef, view: View) -> Iterator[AnyResource]:
    """The route policies that have copies of calls go to a service, if `ref` is one."""
    for policy in view.of("RoutePolicy") if kind == "RoutePolicy" and ref.kind == "Service" else ():
        if not isinstance(policy, RoutePolicy) or policy.metadata.tenant != ref.tenant:
            continue
        if any(rule.mirror.service == ref.name for rule in policy.spec.rules):
            yield policy


def _displaced(batch: Sequence[Resource], before: View, after: View) -> Iterator[FieldFault]:
    """Rate policies that can't be held any more, since one of the batch is held in their place."""
    batched = {title(ref_of(resource)) for resource in batch}  # the faults of those are told
    for index, resource in enumerate(batch):
        policy = unwrap(resource)
        if not isinstance(policy, RatePolicy):
            continue
        others = (
            (what, tenant, service)
            for tenant, service in _reached(policy, after)
            for what in _unheld(tenant, service, after)
            if title(ref_of(what.policy)) not in batched
        )
        for what, tenant, service in others:
            known = {(title(ref_of(old.policy)), old.field) for old in _unheld(tenant, service, before)}
            if (title(ref_of(what.policy)), what.field) not in known:
                text = f"with it {_name(what.policy, after)} can't be held: {what.reason}"
                yield FieldFault(f"resources[{index}].{about(policy)}", text)
                break


def _new(resource: AnyResource, before: View, after: View) -> list[FieldFault]:
    """What a resource names and lacks after a change; what it lacked before is none of the change's."""
    found = list(_names(resource, after))
    known = {fault.field for fault in _names(resource, before)} if found else set()
    return [fault for fault in found if fault.field not in known]


def _service_of(resource: AnyResource) -> str:
    if isinstance(resource, Tenant | Service | ExternalService | TrustDomain | Rollout):
        return ""
    return resource.spec.service


def _names(resource: AnyResource, view: View) -> Iterator[FieldFault]:
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
        yield from reference_faults_of(resource, view, _names)
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
        for what in _unheld(tenant, resource.spec.service, view) if is_envoy(resource) else ():
            field = f"{what.field}: " if view.sees(what.policy.metadata.tenant) else ""
            text = f"{_name(what.policy, view)} can't be held: {field}{what.reason}"
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
    for tenant, service in _reached(policy, view):
        for what in _unheld(tenant, service, view):
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


def _reached(policy: RatePolicy, view: View) -> Iterator[tuple[str, str]]:
    """The services that a rate policy is about."""
    owner, spec = policy.metadata.tenant, policy.spec
    if spec.service:
        yield owner, spec.service
        return
    for one in view.of("Service"):
        named = one.metadata.tenant, one.metadata.name
        if covers(owner, spec, named):
            yield named


def _unheld(tenant: str, service: str, view: View) -> Iterator[Unheld]:
    entries = [one for one in view.of_service("WorkloadEntry", tenant, service) if isinstance(one, WorkloadEntry)]
    return unheld(view.rate_policies(tenant, service), entries, lambda policy: _name(policy, view))


def _name(policy: RatePolicy, view: View) -> str:
    """What a rate policy is called before who may see no other tenant's."""
    return title(ref_of(policy)) if view.sees(policy.metadata.tenant) else "another tenant's RatePolicy"


def _sharers(resource: AnyResource, view: View) -> Iterator[FieldFault]:
    """Two entries of one node with one uid must both say that they know."""
    if not isinstance(resource, WorkloadEntry) or not resource.spec.selectors.HasField("uid"):
        return
    uid, nodes, own = resource.spec.selectors.uid, set(resource.spec.nodes), title(ref_of(resource))
    for other in view.entries_of_uid(uid):
        if title(ref_of(other)) == own:
            continue
        if (envoy := envoy_of(resource)) is not None and envoy == envoy_of(other):
            continue  # one Envoy has both
        shared = sorted(nodes & set(other.spec.nodes))
        if shared and not (resource.spec.insecure_same_user and other.spec.insecure_same_user):
            text = (
                f"uid {uid} is that of {_shown(other, view)} too, on node {shared[0]}, so that each can read the"
                " other's memory: give it a uid of its own, or set insecureSameUser on both"
            )
            yield FieldFault("spec.selectors.uid", text)
            return


def _shown(resource: AnyResource, view: View) -> str:
    ref = ref_of(resource)
    return title(ref) if view.sees(ref.tenant) else "another tenant's entry"


def _tenant(path: str, tenant: str, view: View) -> Iterator[FieldFault]:
    if view.find("Tenant", tenant, tenant) is None:
        yield FieldFault(path, _missing_tenant(tenant, view))


def _missing_of(kind: str, tenant: str, name: str, view: View) -> str:
    close = view.close_name(kind, tenant, name)
    return f"there is no {kind} {tenant}/{name}" + (f"; did you mean {close}?" if close else "")


def _missing_tenant(tenant: str, view: View) -> str:
    close = view.close_tenant(tenant)
    return f"there is no Tenant {tenant}" + (f"; did you mean {close}?" if close else "")
