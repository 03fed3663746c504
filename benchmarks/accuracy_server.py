"""A server that writes down when it served whom: what limits let through, counted by none of the mesh.

    python -m benchmarks.accuracy_server FILE {sdk | envoy}

Of the kind "envoy" it knows nothing of the mesh; the Envoy before it says whose calls they are.
"""

import os
import sys
import time
from concurrent import futures
from typing import Any

import grpc

from meshwarden import sdk
from meshwarden.controlplane.policy.envoy.quota import TENANT_HEADER
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc


class Orders(orders_pb2_grpc.OrdersServicer):
    """Answers at once."""

    def __init__(self, path: str, kind: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._kind = kind

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Writes the call down."""
        if self._kind == "sdk":
            tenant = sdk.peer_identity(context).tenant
        else:
            tenant = str(dict(context.invocation_metadata())[TENANT_HEADER])
        os.write(self._file, f"{time.monotonic()} {tenant}\n".encode())
        return orders_pb2.Order(id=request.id)


def main() -> None:
    """Serves until it is ended."""
    path, kind = sys.argv[1:]
    address = f"127.0.0.1:{os.environ['MESHWARDEN_PORT']}"
    if kind == "sdk":
        served = sdk.server(max_workers=4)
        orders_pb2_grpc.add_OrdersServicer_to_server(Orders(path, kind), served)
        served.add_port(address)
        sdk.run(served)
        return
    plain = grpc.server(futures.ThreadPoolExecutor(4))
    orders_pb2_grpc.add_OrdersServicer_to_server(Orders(path, kind), plain)
    plain.add_insecure_port(address)
    plain.start()
    plain.wait_for_termination()


if __name__ == "__main__":
    main()
