"""The server of the bare pair in `effect`: orders on gRPC's own xDS server, in the clear.

GRPC_XDS_BOOTSTRAP=… python -m benchmarks.bare_orders 127.0.0.1:7021
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from meshwarden.examples.orders import orders_pb2
from meshwarden.sdk.stop import Stop

SERVICE = orders_pb2.DESCRIPTOR.services_by_name["Orders"].full_name


def get(request: orders_pb2.GetRequest, _: grpc.ServicerContext) -> orders_pb2.Order:
    """Every order is there."""
    return orders_pb2.Order(id=request.id)


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(4), xds=True)
    handler = grpc.unary_unary_rpc_method_handler(
        get, orders_pb2.GetRequest.FromString, orders_pb2.Order.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Get": handler}),))
    server.add_secure_port(sys.argv[1], grpc.xds_server_credentials(grpc.insecure_server_credentials()))
    server.start()
    Stop().wait()
    server.stop(None)


if __name__ == "__main__":
    main()
