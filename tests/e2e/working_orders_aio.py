"""What working_orders.py is, on grpc.aio."""

import asyncio
import sys
import time
from typing import Any

from counting_orders_aio import serve
from working_orders import ANSWER, COST, TAKES_S, Work

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc


class Orders(orders_pb2_grpc.OrdersServicer):
    def __init__(self, work: Work) -> None:
        self._work = work

    async def Get(self, request: orders_pb2.GetRequest, context: Any) -> orders_pb2.Order:  # noqa: N802
        begun_s, order = time.monotonic(), orders_pb2.Order(id=ANSWER)
        sdk.report_cost(COST)
        await asyncio.sleep(TAKES_S)
        self._work.add(begun_s, sdk.peer_identity(context).tenant, request, order)
        return order


if __name__ == "__main__":
    asyncio.run(serve(Orders(Work(sys.argv[1]))))
