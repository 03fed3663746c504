"""Orders, and who asked for them."""

import re
import threading
from collections.abc import Iterator
from typing import Final, Protocol

import grpc

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc
from meshwarden.examples.orders.council import Decided, Undecided

MAX_LISTED: Final = 1000
REVIEWED: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Decider(Protocol):
    """Who decides about orders."""

    def decide(self, question: str) -> Decided:
        """Answers a question; raises Undecided if there is no answer."""


class Orders(orders_pb2_grpc.OrdersServicer):
    """Answers with who answers and who asked; the caller's tenant comes from its certificate, whatever it may say."""

    def __init__(self, version: str, instance: str, council: Decider) -> None:
        self._version = version
        self._instance = instance
        self._council = council
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

    def Review(  # noqa: N802
        self, request: orders_pb2.ReviewRequest, context: grpc.ServicerContext
    ) -> orders_pb2.Order:
        # It becomes a part of what the council is asked: nobody is to put words there.
        if REVIEWED.fullmatch(request.id) is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, 'id: give 1 to 64 letters, digits, "-", "_" or "."')
        try:
            decided = self._council.decide(f"Should the caller of order {request.id} retry what has timed out?")
        except Undecided as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        order = self._order(request.id, context)
        order.decision, order.record = decided.text, decided.record
        return order

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
