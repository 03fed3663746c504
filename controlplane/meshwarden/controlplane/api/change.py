"""Changes of the resources: held against the rules, judged on what is there, and stored whole with their history."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.history.record import Changed, Made, encode, key_after
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.controlplane.publish.trail import Trails
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import AnyResource, key_of, normalise, record_of, unwrap
from meshwarden.controlplane.resources.rate import foreign_region
from meshwarden.controlplane.resources.reach import Width, width
from meshwarden.controlplane.resources.validate import resource_faults, unknown_faults
from meshwarden.controlplane.resources.view import View
from meshwarden.controlplane.secrets.reference import Grants
from meshwarden.controlplane.store.mirror import Mirror
from meshwarden.controlplane.store.port import ABSENT, Conflict, Delete, Lease, Op, Put, Store, StoreError
from meshwarden.sdk.tracing import own_span
from meshwarden.v1.resources_pb2 import (
    ExternalService,
    RatePolicy,
    Resource,
    Service,
    TrustDomain,
    WorkloadEntry,
)

# Every commit that references hang on moves this record, so that none is judged by what another takes away.
GUARD = "/guard/references"
ATTEMPTS = 8
# The writer epoch of a region's own records; it grows when another region takes a tenant over.
EPOCH = 1
MAX_PERMISSIVE = timedelta(days=90)
"""How far ahead the end of calls in the clear may be."""

Answer = TypeVar("Answer")


class ChangeDesk:
    """Makes changes of resources, one at a time; what it asks of no caller is for whoever serves one to ask."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], datetime],
        region: str,
        audit: AuditLog,
        trails: Trails | None = None,
        trust_domain: str = "",
        grants: Grants | None = None,
    ) -> None:
        """Changes what is in `store`; `trails` follow what becomes of changes, `grants` say who may name secrets."""
        self._store, self._clock, self._region, self._audit = store, clock, region, audit
        self._trust_domain, self._grants = trust_domain, grants or Grants({})
        self._trails = trails or Trails()
        self.mirror = Mirror(store)
        # One change at a time in this process; other processes are met by the guard.
        self._changing = asyncio.Lock()

    @property
    def view(self) -> View:
        """The resources; within `guarded` as they are."""
        return self.mirror.view

    def now(self) -> datetime:
        """The present, aware."""
        return self._clock()

    def faults(self, resource: Resource) -> list[FieldFault]:
        """What a resource must hold by itself, and in this region as its operator has configured it."""
        return [*unknown_faults(resource), *resource_faults(resource), *self._faults_here(resource)]

    async def guarded(self, change: Callable[[int], Awaitable[Answer]]) -> Answer:
        """Runs `change` on a fresh mirror; anew where another process came between.

        `change` gets the revision of the guard as it was before the mirror was brought up to date.
        """
        async with self._changing:
            for attempt in range(ATTEMPTS):
                guard, _ = await self._store.get(GUARD)
                await self.mirror.refresh()
                try:
                    return await change(guard.revision if guard else ABSENT)
                except Conflict:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("the loop ends by return or raise")

    async def commit(
        self,
        event: str,
        changes: Sequence[Changed],
        guard: int,
        caller: SpiffeId | None,
        reason: str,
        fence: Lease | None = None,
    ) -> int:
        """Commits what the audit log has taken, with its history; a failure follows there as an event of its own.

        Args:
            event: the audit log's name for it, "resource.apply".
            changes: each with the resource as it is stored, if it is, and as it shall be.
            guard: what `guarded` gave.
            caller: who makes it.
            reason: why.
            fence: the lease by which it is made, if it is made by one.

        Raises:
            Conflict: another process came between.
            StoreError: it is not stored, or may not be.
            AuditUnavailable: it is not recorded, and so not stored.
        """
        trace_id, titles = own_span.present_trace_id(), [str(changed) for changed in changes]
        about = {"by": str(caller), "after": self.mirror.revision, "trace_id": trace_id}
        why = {"reason": reason} if reason else {}
        await self._audit.record(event, **about, **why, changes=titles)
        made = Made(str(caller), self._clock(), reason, trace_id)
        history = Put(key_after(guard), encode(changes, made), ABSENT)
        try:
            ops = [*map(self._op, changes), Put(GUARD, b"", guard), history]
            revision = await self._store.commit(ops, fence=fence)
        except StoreError as error:
            self._audit.note(f"{event}.failed", by=str(caller), after=self.mirror.revision, reason=str(error))
            raise
        tenant = (caller.tenant if caller is not None else None) or ""
        self._trails.committed(revision, tenant, str(caller), titles)
        return revision

    def _op(self, changed: Changed) -> Op:
        revision = record_of(changed.before).revision if changed.before is not None else ABSENT
        if changed.after is None:
            return Delete(key_of(changed.ref), revision)
        return Put(key_of(changed.ref), model.encode(self._stamped(changed.after)), revision)

    def _stamped(self, resource: Resource) -> Resource:
        """The resource with the record that is stored beside it."""
        stamped = normalise(resource)
        record = unwrap(stamped).metadata.record
        record.origin_region, record.epoch = self._region, EPOCH
        record.update_time.FromDatetime(self._clock())
        return stamped

    def _faults_here(self, resource: Resource) -> list[FieldFault]:
        own = unwrap(resource)
        if isinstance(own, TrustDomain) and own.spec.trust_domain == self._trust_domain:
            return [FieldFault("spec.trustDomain", "is this mesh's own")]
        if isinstance(own, Service) and own.spec.HasField("permissive"):
            ahead = own.spec.permissive.until.ToNanoseconds() / 1e9 - self._clock().timestamp()
            if ahead > MAX_PERMISSIVE.total_seconds():
                return [FieldFault("spec.permissive.until", f"is more than {MAX_PERMISSIVE.days} days ahead")]
        if isinstance(own, WorkloadEntry):
            return [
                FieldFault(f"spec.secrets[{index}].from", fault)
                for index, secret in enumerate(own.spec.secrets)
                if (fault := self._grants.fault(own.metadata.tenant, getattr(secret, "from")))
            ]
        faults = foreign_region(own.spec, self._region) if isinstance(own, RatePolicy) else ()
        return [FieldFault(*fault) for fault in faults]


def reach_allowed(caller: SpiffeId | None, method: str, resources: Iterable[AnyResource]) -> None:
    """Only an operator of the mesh makes, changes or deletes what reaches out of a tenant, or says whom all trust.

    Raises:
        Denied: a tenant's operator would.
    """
    for resource in resources:
        wide = isinstance(resource, RatePolicy) and width(resource.metadata.tenant, resource.spec) is Width.MESH
        abroad = isinstance(resource, Service) and resource.spec.spiffe_id
        near = isinstance(resource, ExternalService) and resource.spec.internal
        if wide or abroad or near or isinstance(resource, TrustDomain):
            authorize(caller, method, None)


def view_of(view: View, caller: SpiffeId | None) -> View:
    """An operator of a tenant is told no names of others in a fault."""
    own = caller.tenant if caller is not None else None
    return view if own is None else view.seen_by(lambda tenant: tenant == own)
