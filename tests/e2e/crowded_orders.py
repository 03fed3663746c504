"""Orders that can do two things at a time, on a server with threads or of grpc.aio: `crowded_orders.py sync|aio LOG`.

Each call writes a line when it begins: how many there are then, and whose it is.
"""

import asyncio
import os
import sys
import threading
import time
from typing import Any

from counting_orders_aio import serve

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc

AT_ONCE, TAKES_S = 2, 0.02


class Crowd:
    """Writes down who comes, and how many there are with them."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock, self._here = threading.Lock(), 0

    def come(self, context: Any) -> None:
        with self._lock:
            self._here += 1
            os.write(self._file, f"{self._here} {sdk.peer_identity(context).tenant}\n".encode())

    def go(self) -> None:
        with self._lock:
            self._here -= 1


class Threaded(orders_pb2_grpc.OrdersServicer):
    def __init__(self, crowd: Crowd) -> None:
        self._crowd, self._room = crowd, threading.Semaphore(AT_ONCE)

    def Get(self, request: orders_pb2.GetRequest, context: Any) -> orders_pb2.Order:  # noqa: N802
        self._crowd.come(context)
        try:
            with self._room:
                time.sleep(TAKES_S)
        finally:
            self._crowd.go()
        return orders_pb2.Order(id=request.id)


class Aio(orders_pb2_grpc.OrdersServicer):
    def __init__(self, crowd: Crowd) -> None:
        self._crowd, self._room = crowd, asyncio.Semaphore(AT_ONCE)

    async def Get(self, request: orders_pb2.GetRequest, context: Any) -> orders_pb2.Order:  # noqa: N802
        self._crowd.come(context)
        try:
            async with self._room:
                await asyncio.sleep(TAKES_S)
        finally:
            self._crowd.go()
        return orders_pb2.Order(id=request.id)


def main(kind: str, path: str) -> None:
    if kind == "aio":
        asyncio.run(serve(Aio(Crowd(path))))
        return
    server = sdk.server(max_workers=32)
    orders_pb2_grpc.add_OrdersServicer_to_server(Threaded(Crowd(path)), server)
    server.add_port(f"127.0.0.1:{os.environ['MESHWARDEN_PORT']}")
    sdk.run(server)


if __name__ == "__main__":
    main(*sys.argv[1:])
