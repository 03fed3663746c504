"""A client that calls without a pause until a change shows, and says when that was.

    python -m benchmarks.poll grpc xds:///orders          over the mesh
    python -m benchmarks.poll grpc 127.0.0.1:7021         in the clear
    python -m benchmarks.poll http /run/…/outbound        billing.platform through the Envoy on that socket
    python -m benchmarks.poll http                        …on the one that the environment names
    python -m benchmarks.poll stream xds:///orders        holds a stream instead, a line each
    python -m benchmarks.poll held                        likewise, of held.platform through the Envoy beside it

Each line of standard input is what to wait for, `allowed` or `denied`. Two lines come back: what the first call saw,
after which the change may be made; and, when a call has seen what is waited for,

    {"saw": "denied", "at_ns": 81723645, "calls": 1}

with the time of CLOCK_MONOTONIC, which is the same in all processes of a machine.
"""

import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator

import grpc

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc
from meshwarden.examples.outbound import OUTBOUND_VARIABLE, Outbound

HOST, PATH = "billing.platform", "/invoices/1"
HELD = "held.platform"
PAUSE_S = 0.001
GIVE_UP_S = 30.0
TIMEOUT_S = 5.0
# By policy, and for a certificate that is revoked.
DENIED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
STATUSES = {200: "allowed", 403: "denied"}


def over_grpc(target: str) -> Callable[[], str]:
    """What calls orders on one channel."""
    channel = sdk.channel(target) if target.startswith("xds:") else grpc.insecure_channel(target)
    stub = orders_pb2_grpc.OrdersStub(channel)

    def call() -> str:
        try:
            stub.Get(orders_pb2.GetRequest(id="1"), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            return "denied" if code in DENIED else str(code)
        return "allowed"

    return call


def hold(open_stream: Callable[[], Iterator[object]]) -> None:
    """For each line opens a stream, and says when it has ended."""
    for _ in sys.stdin:
        saw = "open"
        try:
            for number, _ in enumerate(open_stream()):
                if number == 0:
                    print(json.dumps({"saw": "open"}), flush=True)
        except grpc.RpcError as error:
            saw = str(error.code() if isinstance(error, grpc.Call) else None)
        except (OSError, http.client.HTTPException) as error:
            saw = type(error).__name__
        print(json.dumps({"saw": saw, "at_ns": time.monotonic_ns()}), flush=True)


def grpc_stream(target: str) -> Callable[[], Iterator[object]]:
    """What opens a stream of orders."""
    stub = orders_pb2_grpc.OrdersStub(sdk.channel(target))

    def open_stream() -> Iterator[object]:
        stream: Iterator[object] = stub.Watch(orders_pb2.WatchRequest(), wait_for_ready=True)
        return stream

    return open_stream


def http_stream() -> Iterator[object]:
    """Opens an answer that doesn't end, trying until there is one: a line each."""
    give_up_s = time.monotonic() + GIVE_UP_S
    while (answer := _held()) is None:
        if time.monotonic() > give_up_s:
            raise http.client.HTTPException("no answer is held open")
        time.sleep(0.1)
    while line := answer.readline():
        yield line


def _held() -> http.client.HTTPResponse | None:
    """The answer of `HELD`; None if that is no good one now."""
    connection = http.client.HTTPConnection("mesh")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(TIMEOUT_S)
        connection.sock.connect(os.environ[OUTBOUND_VARIABLE])
        connection.request("GET", "/", headers={"Host": HELD})
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException):
        connection.close()
        return None
    if answer.status != http.client.OK:
        connection.close()
        return None
    return answer


def over_http(path: str | None) -> Callable[[], str]:
    """What calls billing on one connection."""
    outbound = Outbound(path, TIMEOUT_S)

    def call() -> str:
        try:
            status = outbound.get(HOST, PATH).status
        except OSError as error:  # an Envoy that starts
            return type(error).__name__
        return STATUSES.get(status, str(status))

    return call


def watch(call: Callable[[], str], wanted: str) -> None:
    """Calls until `wanted` is seen, or for half a minute."""
    give_up_s = time.monotonic() + GIVE_UP_S
    calls, saw = 0, ""
    while saw != wanted and time.monotonic() < give_up_s:
        if calls:
            time.sleep(PAUSE_S)
        saw, calls = call(), calls + 1
        if calls == 1:
            print(json.dumps({"saw": saw}), flush=True)
    print(json.dumps({"saw": saw, "at_ns": time.monotonic_ns(), "calls": calls}), flush=True)


def main() -> None:
    kind, *rest = sys.argv[1:]
    if kind in ("stream", "held"):
        hold(grpc_stream(rest[0]) if kind == "stream" else http_stream)
        return
    call = over_grpc(rest[0]) if kind == "grpc" else over_http(rest[0] if rest else None)
    for line in sys.stdin:
        watch(call, line.strip())


if __name__ == "__main__":
    main()
