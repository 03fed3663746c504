"""RevisionService: what was changed, by whom and why, and how far it has come."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Any, TypeAlias

import grpc

from meshwarden.certs.spiffe_id import Role, SpiffeId
from meshwarden.controlplane.api.change import ChangeDesk
from meshwarden.controlplane.api.errors import InvalidRequest, NotFound
from meshwarden.controlplane.api.rollback import RollbackDesk
from meshwarden.controlplane.history import read
from meshwarden.controlplane.history.record import kept
from meshwarden.controlplane.identity.authorize import authorize, sees
from meshwarden.controlplane.policy.mesh import Change, Key
from meshwarden.controlplane.publish.progress import Question, progress
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import KINDS, unwrap
from meshwarden.controlplane.store.port import Store
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import revision_service_pb2 as v1
from meshwarden.v1 import revision_service_pb2_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE = "/meshwarden.v1.RevisionService/"
REVISIONS = 100
NOWHERE = "/"
PAUSE_S = 0.05
SHARE = 4.0
"""Looking at all nodes takes a fifth of the time at most, for each that watches."""


class RevisionServicer(revision_service_pb2_grpc.RevisionServiceServicer):
    """Answers operators; an operator of a tenant is shown what was changed of that tenant's alone."""

    def __init__(self, store: Store, desk: ChangeDesk, publisher: Publisher, sessions: Sessions) -> None:
        """Reads what `desk` has changed in `store`, and how far that has come."""
        self._store, self._publisher, self._sessions = store, publisher, sessions
        self._rollback = RollbackDesk(store, desk)

    async def ListRevisions(self, request: v1.ListRevisionsRequest, context: Context) -> v1.ListRevisionsResponse:
        seen = _shown("ListRevisions", request.tenant)
        if request.kind and request.kind not in KINDS:
            raise InvalidRequest([FieldFault("kind", f"there is no kind {request.kind[:60]!r}")])

        def wanted(change: v1.RevisionChange) -> bool:
            if request.HasField("resource") and change.ref != request.resource:
                return False
            return request.kind in ("", change.ref.kind) and seen(change.ref.tenant)

        page = await read.newest(self._store, wanted, request.page_size or REVISIONS, request.before)
        return v1.ListRevisionsResponse(revisions=page.revisions, next_before=page.next_before)

    async def GetRevision(self, request: v1.GetRevisionRequest, context: Context) -> v1.Revision:
        seen = _shown("GetRevision", request.tenant)
        found = await read.find(self._store, request.revision)
        part = kept(found, lambda change: seen(change.ref.tenant)) if found is not None else None
        if part is None:
            raise NotFound(
                f"no change that you may see has made revision {request.revision}: what nodes report has no history,"
                " nor has what is older than is kept"
            )
        return part

    async def Rollback(self, request: v1.RollbackRequest, context: Context) -> v1.RollbackResponse:
        return await self._rollback.roll_back(request, _caller())

    async def GetProgress(self, request: v1.GetProgressRequest, context: Context) -> v1.Progress:
        return progress(self._sessions.everywhere(), await self._question("GetProgress", request))

    async def WatchProgress(  # type: ignore[override]  # it writes by itself, which the stubs don't know
        self, request: v1.GetProgressRequest, context: Context
    ) -> None:
        question = await self._question("WatchProgress", request)
        loop, told = asyncio.get_running_loop(), None
        while True:
            begun_s, news = loop.time(), self._sessions.news
            now = progress(self._sessions.everywhere(), question)
            took_s = loop.time() - begun_s
            if now != told:
                await context.write(now)
                told = now
            await news.wait()
            # Many nodes move at once; and to look at all of them shall not be all that is done here.
            await asyncio.sleep(max(PAUSE_S, SHARE * took_s))

    async def _question(self, method: str, request: v1.GetProgressRequest) -> Question:
        shown = _shown(method, request.tenant)
        revision = await self._known(request.revision)
        change = await read.find(self._store, request.revision) if request.revision else None
        mesh, impact = self._publisher.mesh, None
        if change is not None:
            impact = mesh.impact(_states(change))
        caller = _caller()
        return Question(
            revision=revision,
            time=change.time.ToDatetime(UTC) if change is not None else None,
            impact=impact,
            mesh=mesh,
            shown=shown,
            is_whole=caller is not None and caller.role is Role.OPERATOR and not request.tenant,
        )

    async def _known(self, revision: int) -> int:
        """The revision that nodes acknowledge once they have all up to the one asked for; 0 asks for the newest.

        Raises:
            NotFound: there is none yet.
        """
        _, newest = await self._store.get(NOWHERE)
        if revision > newest:
            raise NotFound(f"there is no revision {revision} yet: the newest is {newest}")
        await self._publisher.wait_revision(revision)
        # What changes no resource is no news to any node.
        return min(revision or self._publisher.revision, self._publisher.revision)


def _states(change: v1.Revision) -> Iterator[Change]:
    for one in change.changes:
        key = Key(one.ref.kind, one.ref.tenant, one.ref.name)
        yield Change(key, unwrap(one.before) if one.HasField("before") else None)
        yield Change(key, unwrap(one.after) if one.HasField("after") else None)


def _shown(method: str, asked: str) -> Callable[[str], bool]:
    """Whose changes to show: what the caller may see, and of that the tenant that it asks for.

    Raises:
        Denied: it may not ask for that tenant.
    """
    caller = _caller()
    authorize(caller, SERVICE + method, asked or None)
    return lambda tenant: sees(caller, tenant) and asked in ("", tenant)


def _caller() -> SpiffeId | None:
    verified = peer.current()
    return verified.spiffe_id if verified is not None else None
