"""The server of the bare pair in `effect`: orders on gRPC's own xDS server, in the clear.

GRPC_XDS_BOOTSTRAP=… python -m benchmarks.bare_orders 127.0.0.1:7021
"""

import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc


class Orders(orders_pb2_grpc.OrdersServicer):
    """Knows every order."""

    def Get(self, request: orders_pb2.GetRequest, context: grpc.ServicerContext) -> orders_pb2.Order:  # noqa: N802
        return orders_pb2.Order(id=request.id)


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(4), xds=True)
    orders_pb2_grpc.add_OrdersServicer_to_server(Orders(), server)
    server.add_secure_port(sys.argv[1], grpc.xds_server_credentials(grpc.insecure_server_credentials()))
    server.start()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    over.wait()
    server.stop(None)


if __name__ == "__main__":
    main()
