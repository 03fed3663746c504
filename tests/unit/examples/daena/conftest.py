"""Servicers behind a real gRPC server without the mesh: who calls is what the test says."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from meshwarden.certs.spiffe_id import SpiffeId

CALLER = SpiffeId.workload("mesh.test", "daena", "council")


class Callers:
    """Who calls next."""

    def __init__(self) -> None:
        self.now = CALLER

    def identify(self, context: Any) -> SpiffeId:
        return self.now

    def become(self, tenant: str, service: str) -> None:
        self.now = SpiffeId.workload("mesh.test", tenant, service)


@pytest.fixture
def callers() -> Callers:
    return Callers()


@pytest.fixture
def dial() -> Iterator[Callable[[Callable[[grpc.Server], None]], grpc.Channel]]:
    """Serves what `add` puts into a server, on loopback, and returns a channel to it."""
    with contextlib.ExitStack() as stack:

        def dialling(add: Callable[[grpc.Server], None]) -> grpc.Channel:
            pool = stack.enter_context(ThreadPoolExecutor(8))
            server = grpc.server(pool)
            add(server)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            stack.callback(lambda: server.stop(0).wait())
            channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])
            return stack.enter_context(channel)

        yield dialling


@pytest.fixture
def refused() -> Callable[..., str]:
    """Calls, and returns why the call was refused with the code that is expected."""

    def refusing(code: grpc.StatusCode, call: Callable[..., Any], request: Any) -> str:
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=60)
        assert caught.value.code() is code, caught.value.details()
        return str(caught.value.details())

    return refusing
