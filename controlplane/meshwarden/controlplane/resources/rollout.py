"""What a rollout must hold, and what may not be changed beside one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import AnyResource, key_of, normalise, ref_of, title, unwrap, wrap
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import Resource, Rollout, RolloutStatus

MOST_CHANGES: Final = 50
MOST_BYTES: Final = 300_000
"""Of a whole rollout: a commit has what it changes beside it, before and after."""
MOST_RUNNING: Final = 4
"""In a mesh at once: nodes may have any of them or not, and each set of them that occurs is compiled by itself."""
_OVER: Final = (RolloutStatus.COMMITTED, RolloutStatus.ROLLED_BACK, RolloutStatus.ABORTED)
_LISTS: Final = (("access_policies", "accessPolicies"), ("route_policies", "routePolicies"))


def is_running(rollout: Rollout) -> bool:
    """Whether a rollout is not over: it changes policies, or will in a moment."""
    return rollout.status.phase not in _OVER


def policies_of(rollout: Rollout) -> Iterator[tuple[str, Any]]:
    """The policies as they shall be, each with its path."""
    for name, shown in _LISTS:
        for number, policy in enumerate(getattr(rollout.spec, name)):
            yield f"spec.{shown}[{number}]", policy


def changed_by(rollout: Rollout) -> Iterator[tuple[str, ResourceRef]]:
    """What a rollout changes, each with its path."""
    tenant = rollout.metadata.tenant
    for path, policy in policies_of(rollout):
        yield path, ResourceRef(kind=policy.DESCRIPTOR.name, tenant=tenant, name=policy.metadata.name)
    for number, one in enumerate(rollout.spec.deletions):
        yield f"spec.deletions[{number}]", ResourceRef(kind=one.kind, tenant=tenant, name=one.name)


def rollout_faults(rollout: Rollout, own_faults: Callable[[AnyResource], Iterable[FieldFault]]) -> Iterator[FieldFault]:
    """What it must hold by itself; `own_faults` are those of a policy."""
    known: dict[str, str] = {}
    for path, ref in changed_by(rollout):
        if (first := known.setdefault(key_of(ref), path)) != path:
            yield FieldFault(path, f"{title(ref)} stands in {first} already")
    if len(known) > MOST_CHANGES:
        yield FieldFault("spec", f"changes {len(known)} policies; the limit is {MOST_CHANGES}: make several rollouts")
    if rollout.spec.ByteSize() > MOST_BYTES:
        yield FieldFault("spec", f"has {rollout.spec.ByteSize()} bytes; the limit is {MOST_BYTES}")
    for path, policy in policies_of(rollout):
        if policy.metadata.tenant != rollout.metadata.tenant:
            text = f"must be {rollout.metadata.tenant}: a rollout changes policies of its own tenant"
            yield FieldFault(f"{path}.metadata.tenant", text)
            continue
        yield from (FieldFault(f"{path}.{fault.field}", fault.message) for fault in own_faults(policy))
    yield from _stage_faults(rollout)


def _stage_faults(rollout: Rollout) -> Iterator[FieldFault]:
    percent, is_all = 0.0, False
    for number, stage in enumerate(rollout.spec.stages):
        path = f"spec.stages[{number}]"
        if is_all:
            yield FieldFault(path, "all nodes have the change by the stage before")
        elif stage.WhichOneof("part") == "percent":
            if stage.percent <= percent:
                yield FieldFault(f"{path}.percent", f"must be more than the {percent:g} of a stage before")
            percent = max(percent, stage.percent)
        is_all |= stage.all or stage.percent == 100


def reference_faults_of(
    rollout: Rollout, view: View, names: Callable[[AnyResource, View], Iterable[FieldFault]]
) -> Iterator[FieldFault]:
    """What a rollout that isn't over names must be there, with its changes made; `names` says so of a policy."""
    if not is_running(rollout):
        return
    after = overlaid(rollout, view)
    for path, policy in policies_of(rollout):
        yield from (FieldFault(f"{path}.{fault.field}", fault.message) for fault in names(policy, after))
    for path, ref in changed_by(rollout):
        if path.startswith("spec.deletions") and view.find(ref.kind, ref.tenant, ref.name) is None:
            yield FieldFault(path, f"there is no {title(ref)}")


def overlaid(rollout: Rollout, view: View) -> View:
    """The resources as they are for nodes that have a rollout's changes."""
    tenant, spec = rollout.metadata.tenant, rollout.spec
    gone = [ResourceRef(kind=one.kind, tenant=tenant, name=one.name) for one in spec.deletions]
    return view.with_changes(puts=[wrap(policy) for _, policy in policies_of(rollout)], removes=gone)


def running(view: View, tenant: str | None = None) -> Iterator[Rollout]:
    """The rollouts that are not over, of a tenant or of all."""
    for rollout in view.of("Rollout", tenant):
        if isinstance(rollout, Rollout) and is_running(rollout):
            yield rollout


def conflict_faults(batch: Sequence[Resource], before: View, after: View) -> Iterator[FieldFault]:
    """What can't be changed beside rollouts: what they change, what they are, and more of them at once."""
    for index, resource in enumerate(batch):
        message, ref = unwrap(resource), ref_of(resource)
        old = before.find(*_names(ref))
        if old is not None and normalise(wrap(old)) == resource:
            continue  # it stays as it is
        if isinstance(message, Rollout):
            yield from (_at(index, fault) for fault in _beside(message, old, before, after))
        elif (rollout := holder(ref, after)) is not None:
            text = f"{title(ref_of(rollout))} changes {title(ref)} at present: wait until it is over, or abort it"
            yield FieldFault(f"resources[{index}].metadata.name", text)


def holder(ref: ResourceRef, view: View) -> Rollout | None:
    """The rollout that changes a resource at present."""
    for rollout in running(view, ref.tenant):
        if any(ref == one for _, one in changed_by(rollout)):
            return rollout
    return None


def _beside(rollout: Rollout, old: AnyResource | None, before: View, after: View) -> Iterator[FieldFault]:
    if isinstance(old, Rollout) and is_running(old) and is_running(rollout) and old.spec != rollout.spec:
        yield FieldFault("spec", "it is under way: abort it before it is changed")
    if not is_running(rollout) or (isinstance(old, Rollout) and is_running(old)):
        return
    tenant = rollout.metadata.tenant
    others = [one for one in running(after, tenant) if ref_of(one) != ref_of(rollout)]
    if others:
        text = f"{title(ref_of(others[0]))} is under way: a tenant has one at a time, to be judged by itself"
        yield FieldFault("metadata.name", text)
    elif sum(1 for _ in running(after)) > MOST_RUNNING:
        text = f"{MOST_RUNNING} rollouts are under way in the mesh, which is the most at once: wait until one is over"
        yield FieldFault("metadata.name", text)


def proposed(rollout: Rollout, old: AnyResource | None, now: datetime, trace_parent: str) -> Rollout:
    """A rollout that is applied, with the status that it has or begins with; what it says itself of that is ignored.

    Args:
        rollout: as it is applied.
        old: as it is stored, if it is.
        now: the present, aware.
        trace_parent: the W3C traceparent of what applies it, or empty.
    """
    made = Rollout()
    made.CopyFrom(rollout)
    made.ClearField("status")
    if isinstance(old, Rollout) and (is_running(old) or _said(old) == _said(made)):
        made.status.CopyFrom(old.status)
        return made
    made.status.phase, made.status.trace_parent = RolloutStatus.PENDING, trace_parent
    made.status.reason = "it begins in a moment"
    made.status.start_time.FromDatetime(now)
    return made


def _said(rollout: Rollout) -> tuple[Any, ...]:
    return rollout.spec, dict(rollout.metadata.labels)


def _names(ref: ResourceRef) -> tuple[str, str, str]:
    return ref.kind, ref.tenant, ref.name


def _at(index: int, fault: FieldFault) -> FieldFault:
    return FieldFault(f"resources[{index}].{fault.field}", fault.message)
