"""What resources say of each other: whatever one names must be there, and what is named can't go."""

from collections.abc import Iterable, Iterator, Sequence

from meshwarden.controlplane.resources.data_plane import about
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.ingress import envoy_of, lending_faults
from meshwarden.controlplane.resources.mention import mention_faults, name_of, reached, unheld_at
from meshwarden.controlplane.resources.model import AnyResource, ref_of, title, unwrap
from meshwarden.controlplane.resources.rollout import conflict_faults, holder, running
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import (
    Endpoint,
    ExternalService,
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
    yield from mention_faults(resource, view)
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
            for tenant, service in reached(policy, after)
            for what in unheld_at(tenant, service, after)
            if title(ref_of(what.policy)) not in batched
        )
        for what, tenant, service in others:
            known = {(title(ref_of(old.policy)), old.field) for old in unheld_at(tenant, service, before)}
            if (title(ref_of(what.policy)), what.field) not in known:
                text = f"with it {name_of(what.policy, after)} can't be held: {what.reason}"
                yield FieldFault(f"resources[{index}].{about(policy)}", text)
                break


def _new(resource: AnyResource, before: View, after: View) -> list[FieldFault]:
    """What a resource names and lacks after a change; what it lacked before is none of the change's."""
    found = list(mention_faults(resource, after))
    known = {fault.field for fault in mention_faults(resource, before)} if found else set()
    return [fault for fault in found if fault.field not in known]


def _service_of(resource: AnyResource) -> str:
    if isinstance(resource, Tenant | Service | ExternalService | TrustDomain | Rollout):
        return ""
    return resource.spec.service


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
