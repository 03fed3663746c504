"""ResourceService: what operators declare, checked whole and stored whole or not at all."""

import asyncio
import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias, cast

import grpc.aio
import structlog

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.change import ChangeDesk, reach_allowed, view_of
from meshwarden.controlplane.api.errors import InvalidRequest, Moved, NotFound, StillUsed, fitting
from meshwarden.controlplane.history.record import Changed
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.controlplane.resources import manifest
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import (
    KINDS,
    decode,
    key_of,
    normalise,
    parse_key,
    prefix_of,
    ref_of,
    title,
    unwrap,
    wrap,
)
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.rollout import proposed
from meshwarden.controlplane.resources.view import View
from meshwarden.controlplane.store.limit import MAX_PAGE_BYTES
from meshwarden.controlplane.store.port import ABSENT, ANY, Batch, Record, Store
from meshwarden.sdk.mtls import peer
from meshwarden.sdk.tracing import own_span
from meshwarden.v1 import resource_service_pb2 as v1
from meshwarden.v1 import resource_service_pb2_grpc
from meshwarden.v1.resources_pb2 import Resource

SERVICE = "/meshwarden.v1.ResourceService/"
PAGE = 500
# Of the faults that a dry run tells.
FAULT_BYTES = 1 << 20

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
log = structlog.get_logger()


class ResourceServicer(resource_service_pb2_grpc.ResourceServiceServicer):
    """Serves operators; an operator of a tenant sees and touches that tenant alone."""

    def __init__(self, store: Store, desk: ChangeDesk) -> None:
        """Serves what is in `store`, and changes it at `desk`."""
        self._store, self._desk, self._parsing = store, desk, asyncio.Lock()

    async def Apply(self, request: v1.ApplyRequest, context: Context) -> v1.ApplyResponse:
        try:
            return await self._checked_apply(request, _caller())
        except InvalidRequest as refused:
            if not request.dry_run:
                raise
            return self._would_refuse(refused.faults)

    async def ParseManifest(self, request: v1.ParseManifestRequest, context: Context) -> v1.ParseManifestResponse:
        caller = _caller()
        authorize(caller, SERVICE + "ParseManifest", caller.tenant if caller is not None else None)
        try:
            async with self._parsing:  # one at a time: whoever asks much waits for himself
                located = await asyncio.to_thread(manifest.parse, request.manifest, "manifest")
        except manifest.ManifestFaults as refused:
            faults = [FieldFault(fault.field, f"line {fault.line}: {fault.message}") for fault in refused.faults]
            return v1.ParseManifestResponse(faults=_told(faults))
        return v1.ParseManifestResponse(resources=[one.resource for one in located])

    async def Put(self, request: v1.PutRequest, context: Context) -> v1.ApplyResponse:
        named = ref_of(request.resource)
        batch = v1.ApplyRequest(resources=[request.resource], dry_run=request.dry_run, reason=request.reason)
        seen = [request.if_revision] if request.HasField("if_revision") else None
        try:
            if named != request.ref:
                raise InvalidRequest([FieldFault("resource.metadata.name", f"is of {title(named)}; put it there")])
            return await self._checked_apply(batch, _caller(), seen)
        except InvalidRequest as refused:
            faults = [FieldFault(f.field.replace("resources[0]", "resource", 1), f.message) for f in refused.faults]
            if not request.dry_run:
                raise InvalidRequest(faults) from None
            return self._would_refuse(faults)

    def _would_refuse(self, faults: Sequence[FieldFault]) -> v1.ApplyResponse:
        """What a dry run answers to what has faults."""
        return v1.ApplyResponse(revision=self._desk.mirror.revision, faults=_told(faults))

    async def check(
        self, resources: Sequence[Resource], deletions: Sequence[v1.ResourceRef], caller: SpiffeId | None
    ) -> int:
        """Checks a batch, and what is deleted once it is stored, as if that were done, and changes nothing.

        Args:
            resources: the batch.
            deletions: the names of what is to go.
            caller: who asks.

        Returns:
            The revision that it was held against.

        Raises:
            InvalidRequest: the batch would be refused.
            NotFound: some of what is to be deleted isn't there.
            StillUsed: some of it is needed by what stays.
            Denied: the caller may not do it.
        """
        batch = self._allowed(resources, caller)
        refs = _deletable(deletions, caller)
        stored = {key_of(ref_of(resource)) for resource in batch}
        twice = [
            FieldFault(f"deletions[{number}]", f"{title(ref)} is to be stored, too")
            for number, ref in enumerate(deletions)
            if key_of(ref) in stored
        ]
        if twice:
            raise InvalidRequest(twice)

        async def checked(guard: int) -> int:
            if batch:
                await self._apply(batch, v1.ApplyRequest(dry_run=True), guard, caller, [ANY] * len(batch))
            self._removed(refs, view_of(self._desk.mirror.view, caller).with_changes(puts=batch), caller)
            return self._desk.mirror.revision

        return await self._desk.guarded(checked)

    async def _checked_apply(
        self, request: v1.ApplyRequest, caller: SpiffeId | None, seen: Sequence[int] | None = None
    ) -> v1.ApplyResponse:
        batch = self._allowed(request.resources, caller)
        if seen is None:
            said = [unwrap(resource).metadata.record.revision for resource in request.resources]
            seen = [revision or ANY for revision in said]
        answer = await self._desk.guarded(lambda guard: self._apply(batch, request, guard, caller, seen))
        if not request.dry_run:
            log.info("resources applied", revision=answer.revision, changes=len(answer.changes), by=str(caller))
        return answer

    def _allowed(self, resources: Sequence[Resource], caller: SpiffeId | None) -> list[Resource]:
        """A batch as it is stored: what it must hold by itself, and may be stored by the caller."""
        faults = [
            FieldFault(f"resources[{index}].{fault.field}", fault.message)
            for index, resource in enumerate(resources)
            for fault in self._desk.faults(resource)
        ]
        if faults:
            raise InvalidRequest(faults)
        batch = [normalise(resource) for resource in resources]
        for tenant in sorted({ref_of(resource).tenant for resource in batch}):
            authorize(caller, SERVICE + "Apply", tenant)
        reach_allowed(caller, SERVICE + "Apply", map(unwrap, batch))
        return batch

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
        refs = _deletable(request.refs, caller)
        revision = await self._desk.guarded(lambda guard: self._delete(refs, guard, caller, request.reason))
        return v1.DeleteResponse(revision=revision, trace_id=own_span.present_trace_id())

    async def Remove(self, request: v1.RemoveRequest, context: Context) -> v1.DeleteResponse:
        caller, ref = _caller(), request.ref
        authorize(caller, SERVICE + "Remove", ref.tenant)
        seen = request.if_revision or ANY
        revision = await self._desk.guarded(
            lambda guard: self._delete({key_of(ref): ref}, guard, caller, request.reason, seen)
        )
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

    async def _apply(
        self,
        batch: Sequence[Resource],
        request: v1.ApplyRequest,
        guard: int,
        caller: SpiffeId | None,
        seen: Sequence[int],
    ) -> v1.ApplyResponse:
        view = view_of(self._desk.mirror.view, caller)
        batch = [self._proposed(resource, view) for resource in batch]
        if faults := reference_faults(batch, view):
            raise InvalidRequest(faults)
        answer = v1.ApplyResponse(revision=self._desk.mirror.revision)
        changes: list[Changed] = []
        moved: list[str] = []
        for resource, revision_seen in zip(batch, seen, strict=True):
            ref = ref_of(resource)
            old = view.find(ref.kind, ref.tenant, ref.name)
            revision = old.metadata.record.revision if old is not None else ABSENT
            if revision_seen not in (ANY, revision):
                moved.append(_moved(ref, revision, revision_seen))
            if old is not None:
                reach_allowed(caller, SERVICE + "Apply", [old])
            before = wrap(old) if old is not None else None
            if before is not None and normalise(before) == resource:
                answer.changes.add(ref=ref, action=v1.Change.UNCHANGED)
                continue
            changes.append(Changed(ref, before, resource))
            answer.changes.add(ref=ref, action=changes[-1].action)
        if moved:
            raise Moved("; ".join(moved))
        if changes and not request.dry_run:
            answer.revision = await self._desk.commit("resource.apply", changes, guard, caller, request.reason)
            answer.trace_id = own_span.present_trace_id()
        return answer

    def _proposed(self, resource: Resource, view: View) -> Resource:
        """A resource as it is to be stored: a rollout with its status."""
        if not resource.HasField("rollout"):
            return resource
        ref = ref_of(resource)
        old = view.find(ref.kind, ref.tenant, ref.name)
        return normalise(wrap(proposed(resource.rollout, old, self._desk.now(), own_span.present_parent())))

    async def _delete(
        self, refs: Mapping[str, v1.ResourceRef], guard: int, caller: SpiffeId | None, reason: str, seen: int = ANY
    ) -> int:
        changes = self._removed(refs, view_of(self._desk.mirror.view, caller), caller, seen)
        return await self._desk.commit("resource.delete", changes, guard, caller, reason)

    def _removed(
        self, refs: Mapping[str, v1.ResourceRef], view: View, caller: SpiffeId | None, seen: int = ANY
    ) -> list[Changed]:
        """What becomes of resources that are deleted from a view: {key: ref}."""
        found = {key: view.find(ref.kind, ref.tenant, ref.name) for key, ref in refs.items()}
        if missing := [title(refs[key]) for key, resource in found.items() if resource is None]:
            raise NotFound(f"there is no {', no '.join(missing)}")
        there = {key: resource for key, resource in found.items() if resource is not None}
        reach_allowed(caller, SERVICE + "Delete", there.values())
        moved = [
            _moved(refs[key], at, seen)
            for key, resource in there.items()
            if seen not in (ANY, at := resource.metadata.record.revision)
        ]
        if moved:
            raise Moved("; ".join(moved))
        if refs and (using := users(refs.values(), view)):
            raise StillUsed(using)
        return [Changed(refs[key], wrap(resource), None) for key, resource in there.items()]


def _deletable(refs: Iterable[v1.ResourceRef], caller: SpiffeId | None) -> dict[str, v1.ResourceRef]:
    """What the caller may delete: {key: ref}."""
    refs = list(refs)
    for tenant in sorted({ref.tenant for ref in refs}):
        authorize(caller, SERVICE + "Delete", tenant)
    return {key_of(ref): ref for ref in refs}


def _told(faults: Sequence[FieldFault]) -> list[v1.Fault]:
    """Faults as they are answered, as many as fit."""
    return [v1.Fault(field=fault.field, message=fault.message) for fault in fitting(faults, FAULT_BYTES)]


def _caller() -> SpiffeId | None:
    current = peer.current()
    return current.spiffe_id if current is not None else None


def _moved(ref: v1.ResourceRef, revision: int, seen: int) -> str:
    """Says that a resource isn't at the revision that its caller has seen."""
    if seen == ABSENT:
        return f"{title(ref)} is there already, at revision {revision}"
    where = f"is at revision {revision}" if revision else "was deleted"
    return f"{title(ref)} {where}, not {seen}: get it anew"


def _scope(method: str, tenant: str) -> str:
    """The tenant to show: the one asked for, else the caller's own; empty for all."""
    caller = _caller()
    tenant = tenant or (caller.tenant if caller is not None else None) or ""
    authorize(caller, SERVICE + method, tenant or None)
    return tenant


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
