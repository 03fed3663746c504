"""Orders that writes down when each call was served: a count of what limits let through, by none of the mesh."""

import os
import sys
import time

import grpc

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc


class Count:
    """A file with a line for each call."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, tenant: str | None) -> None:
        os.write(self._file, f"{time.monotonic()} {tenant}\n".encode())


class Orders(orders_pb2_grpc.OrdersServicer):
    def __init__(self, count: Count) -> None:
        self._count = count

    def Get(self, request: orders_pb2.GetRequest, context: grpc.ServicerContext) -> orders_pb2.Order:  # noqa: N802
        self._count.add(sdk.peer_identity(context).tenant)
        return orders_pb2.Order(id=request.id)


def main() -> None:
    made = sdk.server(max_workers=8)
    orders_pb2_grpc.add_OrdersServicer_to_server(Orders(Count(sys.argv[1])), made)
    made.add_port(f"127.0.0.1:{os.environ['MESHWARDEN_PORT']}")
    sdk.run(made)


if __name__ == "__main__":
    main()
