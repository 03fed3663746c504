"""Orders whose calls take a while, cost something and answer at length, and that writes down what each was."""

import os
import sys
import time

import grpc

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc

COST, TAKES_S, ANSWER = 8, 0.2, "x" * 1000


class Work:
    """A file with a line for each call: when it began and ended, by whom, and the bytes of its messages."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, begun_s: float, tenant: str | None, request: orders_pb2.GetRequest, order: orders_pb2.Order) -> None:
        size_bytes = request.ByteSize() + order.ByteSize()
        os.write(self._file, f"{begun_s} {time.monotonic()} {tenant} {size_bytes}\n".encode())


class Orders(orders_pb2_grpc.OrdersServicer):
    def __init__(self, work: Work) -> None:
        self._work = work

    def Get(self, request: orders_pb2.GetRequest, context: grpc.ServicerContext) -> orders_pb2.Order:  # noqa: N802
        begun_s, order = time.monotonic(), orders_pb2.Order(id=ANSWER)
        sdk.report_cost(COST)
        time.sleep(TAKES_S)
        self._work.add(begun_s, sdk.peer_identity(context).tenant, request, order)
        return order


def main() -> None:
    made = sdk.server(max_workers=24)
    orders_pb2_grpc.add_OrdersServicer_to_server(Orders(Work(sys.argv[1])), made)
    made.add_port(f"127.0.0.1:{os.environ['MESHWARDEN_PORT']}")
    sdk.run(made)


if __name__ == "__main__":
    main()
