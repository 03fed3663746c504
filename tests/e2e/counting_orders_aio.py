"""What counting_orders.py is, on grpc.aio."""

import asyncio
import os
import sys
from typing import Any

from counting_orders import Count

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc


class Orders(orders_pb2_grpc.OrdersServicer):
    def __init__(self, count: Count) -> None:
        self._count = count

    async def Get(self, request: orders_pb2.GetRequest, context: Any) -> orders_pb2.Order:  # noqa: N802
        self._count.add(sdk.peer_identity(context).tenant)
        return orders_pb2.Order(id=request.id)


async def serve(orders: orders_pb2_grpc.OrdersServicer) -> None:
    server = sdk.aio_server()
    orders_pb2_grpc.add_OrdersServicer_to_server(orders, server)
    server.add_port(f"127.0.0.1:{os.environ['MESHWARDEN_PORT']}")
    await sdk.aio_run(server)


if __name__ == "__main__":
    asyncio.run(serve(Orders(Count(sys.argv[1]))))
