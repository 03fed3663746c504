"""What counting_orders.py is, on grpc.aio."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
from counting_orders import Count

from meshwarden import sdk
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import read
from meshwarden.certs.verify import PeerVerifier
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc
from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.tls import server_context


class Orders(orders_pb2_grpc.OrdersServicer):
    def __init__(self, count: Count) -> None:
        self._count = count

    async def Get(self, request: orders_pb2.GetRequest, context: Any) -> orders_pb2.Order:  # noqa: N802
        self._count.add(sdk.peer_identity(context).tenant)
        return orders_pb2.Order(id=request.id)


async def serve(directory: Path, orders: orders_pb2_grpc.OrdersServicer) -> None:
    link = AgentLink.of_process()
    await asyncio.to_thread(link.wait)
    files = Path(os.environ["MESHWARDEN_CREDENTIALS"])
    front = Front(directory / "s")
    peers = PeerInterceptor(front, PeerVerifier(lambda: link.config.bundles, utc_now))
    server = grpc.aio.server(interceptors=[peers, sdk.aio_server_interceptor()])
    orders_pb2_grpc.add_OrdersServicer_to_server(orders, server)
    server.add_insecure_port(front.inner_target)
    await server.start()
    async with front:
        port = int(os.environ["MESHWARDEN_PORT"])
        await front.serve_tls(
            "127.0.0.1",
            port,
            lambda: server_context(*read(files, "tls.crt", "tls.key", "ca.crt"), require_client=True),
        )
        await server.wait_for_termination()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(serve(Path(made), Orders(Count(sys.argv[1]))))
