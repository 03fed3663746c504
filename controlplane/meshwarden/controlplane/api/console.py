"""ConsoleService: the mesh as it changes, for those who look at it."""

from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc

from meshwarden.controlplane.api.live.feed import Feed
from meshwarden.controlplane.api.live.scene import Scope
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import console_service_pb2 as v1
from meshwarden.v1.console_service_pb2_grpc import ConsoleServiceServicer

SERVICES: Final = 300
_METHOD: Final = "/meshwarden.v1.ConsoleService/WatchMesh"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ConsoleServicer(ConsoleServiceServicer):
    """Tells operators; an operator of a tenant is told what concerns that tenant."""

    def __init__(self, feed: Feed) -> None:
        """Tells what `feed` does."""
        self._feed = feed

    async def WatchMesh(self, request: v1.WatchMeshRequest, context: Context) -> None:  # type: ignore[override]
        verified = peer.current()
        caller = verified.spiffe_id if verified is not None else None
        authorize(caller, _METHOD, request.tenant or None)
        own = (caller.tenant if caller is not None else None) or ""
        scope = Scope(request.tenant or own, request.service, request.max_services or SERVICES)
        async with aclosing(self._feed.watch(scope, str(caller))) as messages:
            async for message in messages:
                await context.write(message)
