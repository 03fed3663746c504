"""Calls a service at random moments, so many a second, whether it answers or not; told anew by lines of JSON.

    python -m benchmarks.accuracy_caller xds:///orders.platform FILE [bare]

Each line of its input is {"rate": calls a second}; each line of the file the moment of a call, how it ended and how
many milliseconds that took. With "bare" it calls through gRPC alone, which doesn't hold back as the SDK does.
"""

import contextlib
import json
import os
import random
import sys
import threading
import time
from typing import Any

import grpc

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc

MOST = 300
"""Under way at once; past it none is begun, and that is written down."""


class Caller:
    """The calls of one tenant."""

    def __init__(self, stub: Any, path: str) -> None:
        self._stub, self._file = stub, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._under_way = threading.Semaphore(MOST)
        self.rate = 0.0

    def run(self) -> None:
        """Calls until the process ends."""
        rng, due_s = random.Random(os.getpid()), time.monotonic()
        while True:
            rate = self.rate
            if rate <= 0:
                time.sleep(0.05)
                due_s = time.monotonic()
                continue
            due_s += rng.expovariate(rate)
            if (wait_s := due_s - time.monotonic()) > 0:
                time.sleep(wait_s)
            if self._under_way.acquire(blocking=False):
                self._call(due_s)
            else:
                self._note(due_s, "NOT_BEGUN", 0.0)

    def _call(self, begun_s: float) -> None:
        call = self._stub.Get.future(orders_pb2.GetRequest(id="1"), timeout=10)

        def ended(done: grpc.Future) -> None:
            self._under_way.release()
            self._note(begun_s, done.code().name, 1000 * (time.monotonic() - begun_s))

        call.add_done_callback(ended)

    def _note(self, moment_s: float, code: str, took_ms: float) -> None:
        os.write(self._file, f"{moment_s} {code} {took_ms:.3f}\n".encode())


def main() -> None:
    """Calls until its input ends."""
    target, path, *bare = sys.argv[1:]
    with grpc.secure_channel(target, grpc.xds_channel_credentials()) if bare else sdk.channel(target) as channel:
        caller = Caller(orders_pb2_grpc.OrdersStub(channel), path)
        threading.Thread(target=caller.run, daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            for line in sys.stdin:
                caller.rate = float(json.loads(line)["rate"])
                print("{}", flush=True)


if __name__ == "__main__":
    main()
