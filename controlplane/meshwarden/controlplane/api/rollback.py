"""Takes changes of resources back: as a change of its own, held against the rules like any other."""

from collections.abc import Sequence

import structlog

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.change import ChangeDesk, reach_allowed, view_of
from meshwarden.controlplane.api.errors import Forgotten, InvalidRequest, Moved, StillUsed, fitting
from meshwarden.controlplane.history.record import Changed
from meshwarden.controlplane.history.rollback import Unknown, Was, as_of
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import key_of, normalise, title, unwrap, wrap
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.view import View
from meshwarden.controlplane.store.port import Store
from meshwarden.sdk.tracing import own_span
from meshwarden.v1 import revision_service_pb2 as v1
from meshwarden.v1.resource_service_pb2 import Fault

METHOD = "/meshwarden.v1.RevisionService/Rollback"
MAX_CHANGES = 100
MAX_BYTES = 3 << 20
"""Of what is there and what was: an answer has both."""
FAULT_BYTES = 1 << 20

log = structlog.get_logger()


class RollbackDesk:
    """Rolls back for operators; an operator of a tenant takes back what was changed of that tenant's."""

    def __init__(self, store: Store, desk: ChangeDesk) -> None:
        """Reads the history of `store`, and changes at `desk`."""
        self._store, self._desk = store, desk

    async def roll_back(self, request: v1.RollbackRequest, caller: SpiffeId | None) -> v1.RollbackResponse:
        """Answers a request.

        Raises:
            Denied: the caller may not.
            Forgotten: the history does not go back so far.
            Moved: something was changed meanwhile.
            InvalidRequest: what would be is against the rules.
            StillUsed: something would miss what is taken away.
        """
        tenant = request.tenant or (caller.tenant if caller is not None else None) or ""
        for named in {tenant, *(ref.tenant for ref in request.resources)}:
            authorize(caller, METHOD, named or None)
        answer = await self._desk.guarded(lambda guard: self._roll_back(request, tenant, guard, caller))
        if answer.changes and not request.dry_run:
            log.info("rolled back", revision=answer.revision, to=request.revision, by=str(caller))
        return answer

    async def _roll_back(
        self, request: v1.RollbackRequest, tenant: str, guard: int, caller: SpiffeId | None
    ) -> v1.RollbackResponse:
        view = view_of(self._desk.mirror.view, caller)
        changes = _changes(await self._was(request, tenant, guard), view)
        states = [state for one in changes for state in (one.before, one.after) if state is not None]
        reach_allowed(caller, METHOD, map(unwrap, states))
        _check_size(changes, sum(state.ByteSize() for state in states))
        answer = v1.RollbackResponse(revision=self._desk.mirror.revision)
        for changed in changes:
            after = normalise(changed.after) if changed.after is not None else None
            before = normalise(changed.before) if changed.before is not None else None
            answer.changes.add(ref=changed.ref, action=changed.action, before=before, after=after)
        if changes:
            try:
                self._check(changes, view)
            except (InvalidRequest, StillUsed) as refused:
                if not request.dry_run:
                    raise
                answer.faults.extend(_told(refused))
        if changes and not request.dry_run:
            reason = f"rollback to {request.revision}" + (f": {request.reason}" if request.reason else "")
            answer.revision = await self._desk.commit("resource.rollback", changes, guard, caller, reason)
            answer.trace_id = own_span.present_trace_id()
        return answer

    async def _was(self, request: v1.RollbackRequest, tenant: str, newest: int) -> list[Was]:
        only = {key_of(ref) for ref in request.resources}
        if request.revision > self._desk.mirror.revision:
            raise Forgotten(f"there is no revision {request.revision} yet: the newest is {self._desk.mirror.revision}")
        try:
            found = await as_of(
                self._store,
                request.revision,
                newest,
                # What a rollout has done to policies is taken back; the rollout itself has been as it was.
                lambda ref: tenant in ("", ref.tenant) and (not only or key_of(ref) in only) and ref.kind != "Rollout",
            )
        except Unknown as error:
            raise Forgotten(str(error)) from None
        moved = [one for one in found if request.as_of and one.changed > request.as_of]
        if moved:
            names = "; ".join(f"{title(one.ref)} by revision {one.changed}" for one in moved[:3])
            raise Moved(f"{len(moved)} of the resources were changed after {request.as_of}: {names}: look at it anew")
        return found

    def _check(self, changes: Sequence[Changed], view: View) -> None:
        """Holds what would be against the rules.

        Raises:
            InvalidRequest: it is against them.
            StillUsed: something would miss what is taken away.
        """
        puts = [(one.ref, normalise(one.after)) for one in changes if one.after is not None]
        gone = [one.ref for one in changes if one.after is None]
        batch = [resource for _, resource in puts]
        faults = [
            FieldFault(f"{title(ref)} {fault.field}", fault.message)
            for ref, resource in puts
            for fault in self._desk.faults(resource)
        ]
        for fault in reference_faults(batch, view.with_changes(removes=gone)) if not faults else ():
            number, _, field = fault.field.removeprefix("resources[").partition("].")
            faults.append(FieldFault(f"{title(puts[int(number)][0])} {field}", fault.message))
        if faults:
            raise InvalidRequest(faults)
        if gone and (using := users(gone, view.with_changes(puts=batch))):
            raise StillUsed(using)


def _changes(found: Sequence[Was], view: View) -> list[Changed]:
    """What is to be changed: those that are not as they were."""
    changes = []
    for was in found:
        present = view.find(was.ref.kind, was.ref.tenant, was.ref.name)
        now = wrap(present) if present is not None else None
        if (None if now is None else normalise(now)) != was.state:
            changes.append(Changed(was.ref, now, was.state))
    return changes


def _check_size(changes: Sequence[Changed], size_bytes: int) -> None:
    """Sees that it fits into one change, and into an answer.

    Raises:
        InvalidRequest: it doesn't.
    """
    text = ""
    if len(changes) > MAX_CHANGES:
        text = f"{len(changes)} resources would change; the limit is {MAX_CHANGES}"
    elif size_bytes > MAX_BYTES:
        text = f"{size_bytes} bytes would change; the limit is {MAX_BYTES}"
    if text:
        raise InvalidRequest([FieldFault("", f"{text}: name a tenant, or resources, and bring them back in parts")])


def _told(refused: InvalidRequest | StillUsed) -> list[Fault]:
    faults = refused.faults if isinstance(refused, InvalidRequest) else [FieldFault("", one) for one in refused.users]
    return [Fault(field=fault.field, message=fault.message) for fault in fitting(faults, FAULT_BYTES)]
