"""ResourceService: what operators declare, checked whole and stored whole or not at all."""

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, TypeAlias, TypeVar, cast

import grpc.aio
import structlog

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.errors import InvalidRequest, Moved, NotFound, StillUsed, fitting
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.controlplane.publish.trail import Trails
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import (
    KINDS,
    AnyResource,
    decode,
    encode,
    key_of,
    normalise,
    parse_key,
    prefix_of,
    ref_of,
    title,
    unwrap,
    wrap,
)
from meshwarden.controlplane.resources.rate import foreign_region
from meshwarden.controlplane.resources.reach import Width, width
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.validate import resource_faults, unknown_faults
from meshwarden.controlplane.resources.view import View
from meshwarden.controlplane.secrets.reference import Grants
from meshwarden.controlplane.store.limit import MAX_PAGE_BYTES
from meshwarden.controlplane.store.mirror import Mirror
from meshwarden.controlplane.store.port import ABSENT, Batch, Conflict, Delete, Op, Put, Record, Store, StoreError
from meshwarden.sdk.mtls import peer
from meshwarden.sdk.tracing import own_span
from meshwarden.v1 import resource_service_pb2 as v1
from meshwarden.v1 import resource_service_pb2_grpc
from meshwarden.v1.resources_pb2 import RatePolicy, Resource, Service, TrustDomain, WorkloadEntry

SERVICE = "/meshwarden.v1.ResourceService/"
# Every commit that references hang on moves this record, so that none is judged by what another takes away.
GUARD = "/guard/references"
ATTEMPTS = 8
PAGE = 500
# Of the faults that a dry run tells.
FAULT_BYTES = 1 << 20
# The writer epoch of a region's own records; it grows when another region takes a tenant over.
EPOCH = 1

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
log = structlog.get_logger()
Answer = TypeVar("Answer")


class ResourceServicer(resource_service_pb2_grpc.ResourceServiceServicer):
    """Serves operators; an operator of a tenant sees and touches that tenant alone."""

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
        """Serves what is in `store`; `trails` follow what becomes of changes, `grants` say who may name secrets."""
        self._store, self._clock, self._region, self._audit = store, clock, region, audit
        self._trust_domain, self._grants = trust_domain, grants or Grants({})
        self._trails = trails or Trails()
        self._mirror = Mirror(store)
        # One change at a time in this process; other processes are met by the guard.
        self._changing = asyncio.Lock()

    async def Apply(self, request: v1.ApplyRequest, context: Context) -> v1.ApplyResponse:
        try:
            return await self._checked_apply(request, _caller())
        except InvalidRequest as refused:
            if not request.dry_run:
                raise
            faults = fitting(refused.faults, FAULT_BYTES)
            return v1.ApplyResponse(
                revision=self._mirror.revision,
                faults=[v1.Fault(field=fault.field, message=fault.message) for fault in faults],
            )

    async def check(self, request: v1.ApplyRequest, caller: SpiffeId | None) -> v1.ApplyResponse:
        """Says what would become of each resource of a batch, and stores nothing.

        Raises:
            InvalidRequest: it would be refused.
            Denied: the caller may not apply it.
        """
        return await self._checked_apply(v1.ApplyRequest(resources=request.resources, dry_run=True), caller)

    async def _checked_apply(self, request: v1.ApplyRequest, caller: SpiffeId | None) -> v1.ApplyResponse:
        faults = [
            FieldFault(f"resources[{index}].{fault.field}", fault.message)
            for index, resource in enumerate(request.resources)
            for fault in (*unknown_faults(resource), *resource_faults(resource), *self._faults_here(resource))
        ]
        if faults:
            raise InvalidRequest(faults)
        batch = [normalise(resource) for resource in request.resources]
        for tenant in sorted({ref_of(resource).tenant for resource in batch}):
            authorize(caller, SERVICE + "Apply", tenant)
        _reach_allowed(caller, "Apply", map(unwrap, batch))
        seen = [unwrap(resource).metadata.record.revision for resource in request.resources]
        answer = await self._guarded(lambda guard: self._apply(batch, seen, guard, caller, dry_run=request.dry_run))
        if not request.dry_run:
            log.info("resources applied", revision=answer.revision, changes=len(answer.changes), by=str(caller))
        return answer

    def _faults_here(self, resource: Resource) -> list[FieldFault]:
        """What a resource must hold in this region, as its operator has configured it."""
        own = unwrap(resource)
        if isinstance(own, TrustDomain) and own.spec.trust_domain == self._trust_domain:
            return [FieldFault("spec.trustDomain", "is this mesh's own")]
        if isinstance(own, WorkloadEntry):
            return [
                FieldFault(f"spec.secrets[{index}].from", fault)
                for index, secret in enumerate(own.spec.secrets)
                if (fault := self._grants.fault(own.metadata.tenant, getattr(secret, "from")))
            ]
        faults = foreign_region(own.spec, self._region) if isinstance(own, RatePolicy) else ()
        return [FieldFault(*fault) for fault in faults]

    async def Get(self, request: v1.GetRequest, context: Context) -> Resource:
        authorize(_caller(), SERVICE + "Get", request.ref.tenant)
        record, _ = await self._store.get(key_of(request.ref))
        if record is None:
            raise NotFound(f"there is no {title(request.ref)}")
        return decode(record.value, record.revision)

    async def List(self, request: v1.ListRequest, context: Context) -> v1.ListResponse:
        tenant = _scope("List", request.tenant)
        prefixes = _prefixes([request.kind] if request.kind else [], tenant)
        at, start = _parse_token(request.page_token, prefixes)
        size = request.page_size or PAGE
        found: list[Record] = []
        next_key = ""
        for prefix in prefixes:
            if next_key or (start > prefix and not start.startswith(prefix)):
                continue
            if len(found) >= size or sum(len(record.value) for record in found) >= MAX_PAGE_BYTES:
                next_key = prefix
                break
            here = start if start.startswith(prefix) else ""
            page = await self._store.range(prefix, start=here, limit=size - len(found), at=at)
            found += page.records
            at, next_key = page.revision, page.next_key
        return v1.ListResponse(
            resources=[decode(record.value, record.revision) for record in found],
            next_page_token=_token(at, next_key) if next_key else "",
            revision=at,
        )

    async def Delete(self, request: v1.DeleteRequest, context: Context) -> v1.DeleteResponse:
        caller = _caller()
        for tenant in sorted({ref.tenant for ref in request.refs}):
            authorize(caller, SERVICE + "Delete", tenant)
        refs = {key_of(ref): ref for ref in request.refs}
        revision = await self._guarded(lambda guard: self._delete(refs, guard, caller))
        return v1.DeleteResponse(revision=revision, trace_id=own_span.present_trace_id())

    async def Watch(self, request: v1.WatchRequest, context: Context) -> None:  # type: ignore[override]
        tenant = _scope("Watch", request.tenant)
        wrong = [
            FieldFault(f"kinds[{number}]", f"there is no kind {kind[:60]!r}")
            for number, kind in enumerate(request.kinds)
            if kind not in KINDS
        ]
        if wrong:
            raise InvalidRequest(wrong)
        prefixes = _prefixes(request.kinds, tenant)
        if request.HasField("after"):
            after = request.after.revision
            if request.after.incarnation != self._store.incarnation:
                text = "the cursor is of another store: start afresh, without one"
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, text)
        else:
            after = await self._send_all(prefixes, context)
        common = prefixes[0] if len(prefixes) == 1 else prefix_of()
        async with aclosing(cast("Any", self._store.watch(common, after=after))) as batches:
            async for batch in batches:
                await self._send(batch, prefixes, context)

    async def _send_all(self, prefixes: Sequence[str], context: Context) -> int:
        """Sends all there is; only the last message has a cursor, since before it there is no place to go on from."""
        at = (await self._store.range(prefixes[0], limit=1)).revision
        for prefix in prefixes:
            start = ""
            while True:
                page = await self._store.range(prefix, start=start, limit=PAGE, at=at)
                if page.records:
                    events = [_event(record.key, record.value, record.revision) for record in page.records]
                    await context.write(v1.WatchResponse(events=events))
                start = page.next_key
                if not start:
                    break
        await context.write(v1.WatchResponse(cursor=self._cursor(at)))
        return at

    async def _send(self, batch: Batch, prefixes: Sequence[str], context: Context) -> None:
        events = [
            _event(event.key, event.value, batch.revision)
            for event in batch.events
            if event.key.startswith(tuple(prefixes))
        ]
        if events or not batch.events:
            await context.write(v1.WatchResponse(cursor=self._cursor(batch.revision), events=events))

    def _cursor(self, revision: int) -> v1.Cursor:
        return v1.Cursor(incarnation=self._store.incarnation, revision=revision)

    async def _guarded(self, change: Callable[[int], Awaitable[Answer]]) -> Answer:
        """Runs `change` on a fresh mirror; anew where another process came between.

        `change` gets the revision of the guard as it was before the mirror was brought up to date.
        """
        async with self._changing:
            for attempt in range(ATTEMPTS):
                guard, _ = await self._store.get(GUARD)
                await self._mirror.refresh()
                try:
                    return await change(guard.revision if guard else ABSENT)
                except Conflict:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("the loop ends by return or raise")

    async def _apply(
        self, batch: Sequence[Resource], seen: Sequence[int], guard: int, caller: SpiffeId | None, *, dry_run: bool
    ) -> v1.ApplyResponse:
        view = _view_of(self._mirror.view, caller)
        if faults := reference_faults(batch, view):
            raise InvalidRequest(faults)
        answer = v1.ApplyResponse(revision=self._mirror.revision)
        ops: list[Op] = []
        moved: list[str] = []
        for resource, revision_seen in zip(batch, seen, strict=True):
            ref = ref_of(resource)
            old = view.find(ref.kind, ref.tenant, ref.name)
            revision = old.metadata.record.revision if old is not None else ABSENT
            if revision_seen not in (0, revision):
                where = f"is at revision {revision}" if revision else "was deleted"
                moved.append(f"{title(ref)} {where}, not {revision_seen}: get it anew")
            if old is not None:
                _reach_allowed(caller, "Apply", [old])
            if old is not None and normalise(wrap(old)) == resource:
                answer.changes.add(ref=ref, action=v1.Change.UNCHANGED)
                continue
            answer.changes.add(ref=ref, action=v1.Change.CREATED if old is None else v1.Change.UPDATED)
            ops.append(Put(key_of(ref), encode(self._stamped(resource)), revision))
        if moved:
            raise Moved("; ".join(moved))
        if ops and not dry_run:
            changes = [
                f"{v1.Change.Action.Name(change.action)} {title(change.ref)}"
                for change in answer.changes
                if change.action != v1.Change.UNCHANGED
            ]
            answer.revision = await self._commit("resource.apply", ops, guard, caller, changes)
            answer.trace_id = own_span.present_trace_id()
        return answer

    async def _delete(self, refs: dict[str, v1.ResourceRef], guard: int, caller: SpiffeId | None) -> int:
        view = _view_of(self._mirror.view, caller)
        found = {key: view.find(ref.kind, ref.tenant, ref.name) for key, ref in refs.items()}
        if missing := [title(refs[key]) for key, resource in found.items() if resource is None]:
            raise NotFound(f"there is no {', no '.join(missing)}")
        _reach_allowed(caller, "Delete", [resource for resource in found.values() if resource is not None])
        if using := users(refs.values(), view):
            raise StillUsed(using)
        ops = [
            Delete(key, resource.metadata.record.revision) for key, resource in found.items() if resource is not None
        ]
        changes = [f"DELETED {title(ref)}" for ref in refs.values()]
        return await self._commit("resource.delete", ops, guard, caller, changes)

    async def _commit(
        self, event: str, ops: Sequence[Op], guard: int, caller: SpiffeId | None, changes: Sequence[str]
    ) -> int:
        """Commits what the audit log has taken; a failure follows there as an event of its own."""
        about = {"by": str(caller), "after": self._mirror.revision, "trace_id": own_span.present_trace_id()}
        await self._audit.record(event, **about, changes=changes)
        try:
            revision = await self._store.commit([*ops, Put(GUARD, b"", guard)])
        except StoreError as error:
            self._audit.note(f"{event}.failed", by=str(caller), after=self._mirror.revision, reason=str(error))
            raise
        tenant = (caller.tenant if caller is not None else None) or ""
        self._trails.committed(revision, tenant, str(caller), changes)
        return revision

    def _stamped(self, resource: Resource) -> Resource:
        """The resource with the record that is stored beside it."""
        stamped = normalise(resource)
        record = unwrap(stamped).metadata.record
        record.origin_region, record.epoch = self._region, EPOCH
        record.update_time.FromDatetime(self._clock())
        return stamped


def _caller() -> SpiffeId | None:
    current = peer.current()
    return current.spiffe_id if current is not None else None


def _reach_allowed(caller: SpiffeId | None, method: str, resources: Iterable[AnyResource]) -> None:
    """Only an operator of the mesh makes, changes or deletes what reaches out of a tenant, or says whom all trust.

    Raises:
        Denied: a tenant's operator would.
    """
    for resource in resources:
        wide = isinstance(resource, RatePolicy) and width(resource.metadata.tenant, resource.spec) is Width.MESH
        abroad = isinstance(resource, Service) and resource.spec.spiffe_id
        if wide or abroad or isinstance(resource, TrustDomain):
            authorize(caller, SERVICE + method, None)


def _scope(method: str, tenant: str) -> str:
    """The tenant to show: the one asked for, else the caller's own; empty for all."""
    caller = _caller()
    tenant = tenant or (caller.tenant if caller is not None else None) or ""
    authorize(caller, SERVICE + method, tenant or None)
    return tenant


def _view_of(view: View, caller: SpiffeId | None) -> View:
    """An operator of a tenant is told no names of others in a fault."""
    own = caller.tenant if caller is not None else None
    return view if own is None else view.seen_by(lambda tenant: tenant == own)


def _event(key: str, value: bytes | None, revision: int) -> v1.Event:
    return v1.Event(ref=parse_key(key), resource=decode(value, revision) if value is not None else None)


def _prefixes(kinds: Sequence[str], tenant: str) -> list[str]:
    """The key prefixes of kinds (all if none) and a tenant, in the order of the keys."""
    if not kinds and not tenant:
        return [prefix_of()]
    return [prefix_of(kind, tenant) for kind in sorted(set(kinds or KINDS))]


def _token(at: int, key: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([at, key]).encode()).decode()


def _parse_token(token: str, prefixes: Sequence[str]) -> tuple[int, str]:
    """The revision and the key to go on from; the caller may have made it up."""
    if not token:
        return 0, ""
    try:
        at, key = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        at, key = None, None
    sound = type(at) is int and type(key) is str and 0 < at < 1 << 63 and key.startswith(tuple(prefixes))
    if not sound:
        raise InvalidRequest([FieldFault("pageToken", "is none that List has given for this request")])
    return at, key
