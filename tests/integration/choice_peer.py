"""Servers and a client of the Orders service that know nothing of the mesh; run by test_choice.py.

    serve ADDRESS…   serves each address; what it answers has the port as version
    call             reads lines of JSON and answers each with one as tests/e2e/node/client.js does, and with cookies

A server does as the metadata of a call says: `x-fail: PORT` has the call fail there, `x-hold: SECONDS` takes so long.
Both stop at the end of their standard input.
"""

import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc

from meshwarden.examples.orders.orders_pb2 import GetRequest, Order

METHOD = "/meshwarden.examples.v1.Orders/Get"


class Orders(grpc.GenericRpcHandler):
    """The one method, at one port."""

    def __init__(self, port: str) -> None:
        self._port = port

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._get, GetRequest.FromString, Order.SerializeToString)

    def _get(self, request: GetRequest, context: grpc.ServicerContext) -> Order:
        said = dict(context.invocation_metadata())
        time.sleep(float(said.get("x-hold", 0)))
        if said.get("x-fail") == self._port:
            # Not `abort`: in a handler of an xDS server it ends the whole process (grpcio 1.85.1, pipe.h).
            context.set_code(grpc.StatusCode.UNAVAILABLE)
            context.set_details("as it was told")
            return Order()
        return Order(id=request.id, version=self._port)


def serve(*addresses: str) -> None:
    """Serves until the end of the input."""
    servers = []
    for address in addresses:
        server = grpc.server(ThreadPoolExecutor(16), xds=True)
        server.add_generic_rpc_handlers((Orders(address.rpartition(":")[2]),))
        server.add_secure_port(address, grpc.xds_server_credentials(grpc.insecure_server_credentials()))
        server.start()
        servers.append(server)
    sys.stdin.read()
    for server in servers:
        server.stop(0)


class Caller:
    """Calls as it is told; a channel for each target."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], Any] = {}

    def answer(self, said: dict[str, Any]) -> dict[str, Any]:
        """What became of so many calls."""
        found = {"codes": Counter[str](), "versions": Counter[str](), "cookies": []}
        call, lock, left = self._call(said["target"], said.get("authority", "")), threading.Lock(), said.get("count", 1)
        with ThreadPoolExecutor(said.get("concurrency", 1)) as pool:
            list(pool.map(partial(self._once, call, said, found, lock), range(left)))
        return found

    def _once(self, call: Any, said: dict[str, Any], found: dict[str, Any], lock: threading.Lock, _: int) -> None:
        metadata = tuple(said.get("metadata", {}).items())
        pending = call.future(GetRequest(id="1"), metadata=metadata, timeout=said.get("timeout_s", 10))
        code, version, cookies = "OK", "", []
        try:
            version = pending.result().version
            cookies = [value for name, value in pending.initial_metadata() if name == "set-cookie"]
        except grpc.RpcError as error:
            code = error.code().name
        with lock:
            found["codes"][code] += 1
            found["cookies"] += cookies
            if version:
                found["versions"][version] += 1

    def _call(self, target: str, authority: str) -> Any:
        if (target, authority) not in self._calls:
            if authority:  # a sidecar's socket
                channel = grpc.insecure_channel(target, [("grpc.default_authority", authority)])
            else:
                credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
                channel = grpc.secure_channel(target, credentials)
            self._calls[target, authority] = channel.unary_unary(METHOD, GetRequest.SerializeToString, Order.FromString)
        return self._calls[target, authority]


def call() -> None:
    """Answers each line."""
    caller = Caller()
    for line in sys.stdin:
        print(json.dumps(caller.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    import grpc.experimental

    call() if sys.argv[1] == "call" else serve(*sys.argv[2:])
