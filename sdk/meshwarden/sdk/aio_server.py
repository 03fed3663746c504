"""Servers of grpc.aio in the mesh, protected as those with threads are: mTLS or nothing, each call checked.

    async def main():
        orders = aio_server()
        orders_pb2_grpc.add_OrdersServicer_to_server(Orders(), orders)
        orders.add_port(f"127.0.0.1:{port}")
        await aio_run(orders)

grpcio has no xDS servers there. So a `Front` ends TLS with the certificate of the moment and splices to the server's
private socket, `PeerInterceptor` proves who calls, and a `Gate` says whether that caller may.
"""

import asyncio
import os
import signal
import ssl
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc

from meshwarden.certs import files
from meshwarden.certs.clock import Clock, utc_now
from meshwarden.certs.verify import PeerVerifier
from meshwarden.sdk.agent import START_S, AgentLink
from meshwarden.sdk.aio_gate import Gate
from meshwarden.sdk.aio_handler import ServedInterceptor
from meshwarden.sdk.channel import Options
from meshwarden.sdk.error import AgentAway
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.sdk.server import CONNECTION_GRACE, GOING_S, LEAVE_S, MAX_CONNECTION_AGE

# Its class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_DATA: Final = "..data"


class AioServer(grpc.aio.Server):
    """A grpc.aio.Server whose certificate and policies come from the node agent."""

    def __init__(
        self,
        link: AgentLink,
        clock: Clock = utc_now,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        options: Options = (),
        maximum_concurrent_rpcs: int | None = None,
    ) -> None:
        """Puts a server together; see `aio_server`."""
        self._link = link
        self._ports: dict[str, tuple[str, int]] = {}
        self._gate, self._context = Gate(link), _Contexts(link)
        self._directory = tempfile.TemporaryDirectory(prefix="mw-", ignore_cleanup_errors=True)
        self._front = Front(Path(self._directory.name) / "s")
        verifier = PeerVerifier(
            lambda: link.config.federated, clock, link.denied, home=link.config.spiffe_id.trust_domain
        )
        self._served = ServedInterceptor(link, gate=self._gate)
        self._inner = grpc.aio.server(
            interceptors=[PeerInterceptor(self._front, verifier), self._served, *interceptors],
            options=list(options),
            maximum_concurrent_rpcs=maximum_concurrent_rpcs,
        )
        self._inner.add_insecure_port(self._front.inner_target)
        self._is_open, self._is_over = False, False

    def add_port(self, address: str) -> None:
        """Listens, once started, on `address`, "127.0.0.1:7021": the one that the workload was started with.

        Raises:
            ValueError: the port is 0, or none: the mesh couldn't name it.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{address!r}: give host:port; a server of the mesh can't take just any port")
        self._ports[address] = host.strip("[]"), int(port)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Refused: a port with credentials of its own would be outside the mesh's policies. Use `add_port`."""
        raise TypeError(f"{address}: use add_port; the node agent brings the credentials")

    def add_insecure_port(self, address: str) -> int:
        """Refused: there is no plain text in the mesh. Use `add_port`."""
        raise TypeError(f"{address}: use add_port; there is no plain text in the mesh")

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """See grpc.aio.Server; handlers must be async."""
        self._inner.add_generic_rpc_handlers(tuple(generic_rpc_handlers))

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """See grpc.aio.Server; generated code calls it."""
        inner: Any = self._inner
        inner.add_registered_method_handlers(service_name, method_handlers)

    async def start(self) -> None:
        """Waits until the agent has said who may call, and opens the ports.

        Raises:
            ValueError: there is no port.
            AgentAway: the agent says of nobody whether they may call.
            OSError: a port is taken, or the credentials can't be read.
        """
        if not self._ports:
            raise ValueError('no port: say which by add_port("127.0.0.1:7021"), that of the workload entry')
        self._gate.open()
        try:
            async with asyncio.timeout(START_S):
                await self._gate.told.wait()
        except TimeoutError:
            raise AgentAway(
                f"{self._link.socket}: the node agent has not said within {START_S:g} s who may call this program: "
                "does its workload entry say a port and dataPlane PROXYLESS, has the agent ever reached its control "
                "plane, and is it of this version or later? See `meshwarden-agent status`"
            ) from None
        self._context()  # what can't be read is told now
        await self._inner.start()
        for host, port in self._ports.values():
            await self._front.serve_tls(host, port, self._context)
        self._is_open = True

    async def stop(self, grace: float | None) -> None:
        """Has callers leave, then takes no more calls; both have `grace` seconds.

        Without `grace`, or told once more, it takes no more calls at once.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + (grace or 0.0)
        with ExitStack() as leaving:
            if grace and self._is_open:
                self._is_open = False
                if await asyncio.to_thread(leaving.enter_context, self._link.leaving(min(grace, LEAVE_S))):
                    await asyncio.sleep(min(GOING_S, grace))
            await self._inner.stop(grace and max(0.0, end_s - loop.time()))
        if not self._is_over:
            self._is_over = True
            await self._front.aclose()
            self._gate.close()
            await asyncio.to_thread(self._served.close)
            self._directory.cleanup()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Waits until the server has stopped; True if it has within `timeout` seconds."""
        return await self._inner.wait_for_termination(timeout)


class _Contexts:
    """One TLS context for each generation of the certificate and of the roots, made at the first handshake with it."""

    def __init__(self, link: AgentLink) -> None:
        self._link = link
        self._made: tuple[str, object, ssl.SSLContext] | None = None

    def __call__(self) -> ssl.SSLContext:
        """That of the moment.

        Raises:
            OSError: there is none yet; what was there stands as long as nothing newer can be read.
        """
        config, known = self._link.config, self._made
        try:
            generation = os.readlink(config.credentials / _DATA)
            if known is not None and known[0] == generation and known[1] is config.federated:
                return known[2]
            chain, key = files.read(config.credentials, "tls.crt", "tls.key")
            context = server_context(chain, key, config.roots_pem, require_client=True)
        except OSError:  # an SSLError is one
            if known is None or known[1] is not config.federated:
                raise
            return known[2]
        self._made = generation, config.federated, context
        return context


def aio_server(
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    options: Options = (),
    maximum_concurrent_rpcs: int | None = None,
    max_connection_age: timedelta = MAX_CONNECTION_AGE,
    connection_grace: timedelta = CONNECTION_GRACE,
    clock: Clock = utc_now,
) -> AioServer:
    """Makes a server of the mesh for grpc.aio; open its port by `add_port`. Called inside a coroutine.

    Args:
        interceptors: the program's own; they come after the checks, and `peer_identity` answers in them.
        options: gRPC channel arguments; they go before ours.
        maximum_concurrent_rpcs: as in `grpc.aio.server`.
        max_connection_age: after which a client is asked to connect anew (grpc adds up to a tenth either way).
        connection_grace: how long streams may go on after that.
        clock: the present, for checking certificates.

    Raises:
        NotStarted: the program doesn't run under a node agent.
        AgentAway: the agent doesn't say who the program is.
    """
    link = AgentLink.of_process()
    link.wait()
    ours: list[tuple[str, Any]] = [
        ("grpc.max_connection_age_ms", round(max_connection_age.total_seconds() * 1000)),
        ("grpc.max_connection_age_grace_ms", round(connection_grace.total_seconds() * 1000)),
    ]
    given = {name for name, _ in options}
    chosen = [*options, *(pair for pair in ours if pair[0] not in given)]
    return AioServer(link, clock, interceptors, chosen, maximum_concurrent_rpcs)


async def aio_run(running: AioServer, grace_s: float = 10.0, on_stop: Callable[[], object] = lambda: None) -> None:
    """Starts a server and serves until SIGTERM or SIGINT; to be awaited in the main thread.

    Args:
        running: the server.
        grace_s: how long calls under way may go on.
        on_stop: called before the server takes no more calls: to end streams that have no end, and to tell health.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await running.start()
        await stop.wait()
        on_stop()
    finally:
        await running.stop(grace_s)
