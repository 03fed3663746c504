"""Runs the orders service on 127.0.0.1:$MESHWARDEN_PORT until SIGTERM."""

import argparse
import logging
import os

from grpc_health.v1 import health, health_pb2_grpc

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2_grpc
from meshwarden.examples.orders.council import Council
from meshwarden.examples.orders.service import Orders
from meshwarden.sdk import telemetry


def main() -> None:
    parser = argparse.ArgumentParser(prog="orders", description=__doc__)
    parser.add_argument("--version", default="v1", help="what it says its version is (default %(default)s)")
    parser.add_argument("--instance", default=f"orders-{os.getpid()}", help="what it says its name is")
    parser.add_argument(
        "--council", default="xds:///council.daena", metavar="TARGET", help="decides on a Review (default %(default)s)"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    port = os.environ.get("MESHWARDEN_PORT")
    if not port:
        parser.error("MESHWARDEN_PORT is not set: give the entry a port, or `meshwarden-agent exec --port`")
    telemetry.configure()

    council = Council(arguments.council)
    orders, checks = Orders(arguments.version, arguments.instance, council), health.HealthServicer()
    server = sdk.server(max_workers=16)
    orders_pb2_grpc.add_OrdersServicer_to_server(orders, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.add_port(f"127.0.0.1:{port}")

    def stop() -> None:
        checks.enter_graceful_shutdown()
        orders.stop()

    logging.info("orders %s, %s, on 127.0.0.1:%s", arguments.version, arguments.instance, port)
    sdk.run(server, grace_s=5.0, on_stop=stop)
    council.close()
    logging.info("orders stopped")


if __name__ == "__main__":
    main()
