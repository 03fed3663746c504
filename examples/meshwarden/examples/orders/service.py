"""Orders, and who asked for them."""

import threading
from collections.abc import Iterator

import grpc

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc

MAX_LISTED = 1000


class Orders(orders_pb2_grpc.OrdersServicer):
    """Answers with who answers and who asked; the caller's tenant comes from its certificate, whatever it may say."""

    def __init__(self, version: str, instance: str) -> None:
        self._version = version
        self._instance = instance
        self._stopping = threading.Event()

    def Get(self, request: orders_pb2.GetRequest, context: grpc.ServicerContext) -> orders_pb2.Order:  # noqa: N802
        return self._order(request.id, context)

    def List(  # noqa: N802
        self, request: orders_pb2.ListRequest, context: grpc.ServicerContext
    ) -> orders_pb2.ListResponse:
        count = min(request.limit or 10, MAX_LISTED)
        return orders_pb2.ListResponse(orders=[self._order(str(number), context) for number in range(1, count + 1)])

    def Watch(  # noqa: N802
        self, request: orders_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[orders_pb2.Order]:
        order, sent = self._order(request.id, context), 0
        while context.is_active():
            yield order
            sent += 1
            if sent == request.count or self._stopping.wait((request.interval_ms or 1000) / 1000):
                return

    def stop(self) -> None:
        """Ends the streams."""
        self._stopping.set()

    def _order(self, number: str, context: grpc.ServicerContext) -> orders_pb2.Order:
        caller = sdk.peer_identity(context)
        return orders_pb2.Order(
            id=number,
            version=self._version,
            instance=self._instance,
            tenant=caller.tenant or "",
            spiffe_id=str(caller),
        )
