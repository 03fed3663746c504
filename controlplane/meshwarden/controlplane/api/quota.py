"""QuotaService: what nodes use of limits comes in, and their shares go out."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias

import anyio
import grpc
import grpc.aio

from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.quota.division import Division, NotAllocator
from meshwarden.controlplane.quota.node import NodeStream, SayAgain
from meshwarden.sdk.backpressure.allowance import Allowance, Share
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.quota_service_pb2_grpc import QuotaServiceServicer

SHARE: Final = "/meshwarden.v1.QuotaService/Share"
LEAST_S: Final = 0.02
"""A node that says more than one message in that time is heard no sooner."""
_SHARE: Final = Share(part=0.25, burst_s=1.0)
"""Of a processor, for what one node says."""
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class QuotaServicer(QuotaServiceServicer):
    """Hands each node's word to the division, in the name of the node whose certificate the caller holds."""

    def __init__(self, identity: NodeIdentity, division: Division, publisher: Publisher) -> None:
        self._identity, self._division, self._publisher = identity, division, publisher
        self._allowance = Allowance(_SHARE)

    async def Share(  # type: ignore[override]  # it writes by itself, which the stubs don't know
        self, request_iterator: AsyncIterator[pb.ShareRequest], context: Context
    ) -> None:
        node = await self._identity.joined(peer.current(), SHARE)
        await self._publisher.wait_loaded()
        try:
            stream = self._division.open(node)
        except NotAllocator as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        try:
            await _converse(stream, request_iterator, context, self._allowance)
        finally:
            self._division.close(stream)
        if stream.ended:
            await context.abort(grpc.StatusCode.ABORTED, stream.ended)


async def _converse(
    stream: NodeStream, requests: AsyncIterator[pb.ShareRequest], context: Context, allowance: Allowance
) -> None:
    """Listens and tells until either side ends the stream."""
    async with anyio.create_task_group() as group:

        async def tell() -> None:
            try:
                while responses := await stream.next():
                    for response in responses:
                        await context.write(response)
            except grpc.aio.UsageError:  # the stream ended while we wrote
                pass
            group.cancel_scope.cancel()

        group.start_soon(tell)
        async for request in requests:
            await allowance.wait(stream.node)
            try:
                with allowance.spend(stream.node):
                    stream.take(request)
            except SayAgain as error:
                stream.end(str(error))
                break
            await asyncio.sleep(LEAST_S)
        group.cancel_scope.cancel()
