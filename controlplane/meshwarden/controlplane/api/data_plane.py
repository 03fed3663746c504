"""DataPlaneService: what each data plane is to have, and what it has."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final, TypeAlias

import grpc

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.errors import NotFound
from meshwarden.controlplane.identity.authorize import authorize, sees
from meshwarden.controlplane.publish.data_plane import DataPlanes
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.question import Unanswered
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import data_plane_service_pb2 as v1
from meshwarden.v1 import data_plane_service_pb2_grpc
from meshwarden.v1.admin_service_pb2 import NodeState
from meshwarden.v1.node_service_pb2 import DataPlaneRef, XdsResource

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE: Final = "/meshwarden.v1.DataPlaneService/"
MAX_LISTED: Final = 2000
PART_BYTES: Final = 256 << 10


class DataPlaneServicer(data_plane_service_pb2_grpc.DataPlaneServiceServicer):
    """Answers operators; an operator of a tenant is shown that tenant's data planes alone."""

    def __init__(self, publisher: Publisher, sessions: Sessions) -> None:
        self._publisher, self._sessions = publisher, sessions
        self._planes = DataPlanes(publisher)

    async def ListDataPlanes(self, request: v1.ListDataPlanesRequest, context: Context) -> v1.ListDataPlanesResponse:
        shown = _shown("ListDataPlanes", request.tenant)
        nodes = [node for node in self._sessions.everywhere() if request.node in ("", node.node)]
        answer = v1.ListDataPlanesResponse(revision=self._publisher.revision)
        answer.data_planes.extend(islice(self._planes.states(nodes, shown), MAX_LISTED))
        total = sum(shown(ref.tenant) for node in nodes for ref in node.data_planes)
        answer.omitted = total - len(answer.data_planes)
        return answer

    async def GetDataPlane(  # type: ignore[override]  # it writes by itself, which the stubs don't know
        self, request: v1.GetDataPlaneRequest, context: Context
    ) -> None:
        node, ref = self._find(request, _shown("GetDataPlane", ""))
        state = self._planes.state(node, ref, {})
        await context.write(v1.DataPlanePart(state=state))
        for part in _parts(() if state.refused else self._planes.resources(node.node, ref).values()):
            await context.write(part)
        if not request.live:
            return
        try:
            live = await self._sessions.ask(node.node, ref.id)
        except Unanswered as error:
            await context.write(v1.DataPlanePart(live_error=str(error)))
            return
        for first in range(0, len(live), PART_BYTES):
            await context.write(v1.DataPlanePart(live=live[first : first + PART_BYTES]))

    def _find(self, request: v1.GetDataPlaneRequest, shown: Callable[[str], bool]) -> tuple[NodeState, DataPlaneRef]:
        for node in self._sessions.everywhere():
            if node.node == request.node:
                for ref in node.data_planes:
                    if ref.id == request.data_plane and shown(ref.tenant):
                        return node, ref
        raise NotFound(f"there is no data plane {request.data_plane} on node {request.node} that you may see")


def _parts(resources: Iterable[XdsResource]) -> Iterable[v1.DataPlanePart]:
    part, size = v1.DataPlanePart(), 0
    for item in resources:
        part.resources.append(item)
        size += len(item.body)
        if size >= PART_BYTES:
            yield part
            part, size = v1.DataPlanePart(), 0
    if part.resources:
        yield part


def _shown(method: str, asked: str) -> Callable[[str], bool]:
    """Whose data planes to show.

    Raises:
        Denied: the caller may not ask for that tenant.
    """
    verified = peer.current()
    caller: SpiffeId | None = verified.spiffe_id if verified is not None else None
    authorize(caller, SERVICE + method, asked or None)
    return lambda tenant: sees(caller, tenant) and asked in ("", tenant)
