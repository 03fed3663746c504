"""Servers in the mesh: mTLS or nothing, each call checked, limited and counted.

    orders = server(max_workers=16)
    orders_pb2_grpc.add_OrdersServicer_to_server(Orders(), orders)
    orders.add_port(f"127.0.0.1:{port}")
    run(orders)

The port opens when the agent has sent its Listener.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import grpc

from meshwarden.certs.clock import Clock, utc_now
from meshwarden.certs.files import read
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.channel import Options, require_bootstrap
from meshwarden.sdk.error import NotStarted
from meshwarden.sdk.handler import Handler, IncomingInterceptor
from meshwarden.sdk.incoming import Incoming, current_peer
from meshwarden.sdk.mtls import peer
from meshwarden.sdk.stop import Stop

CREDENTIALS_VARIABLE: Final = "MESHWARDEN_CREDENTIALS"
MAX_CONNECTION_AGE: Final = timedelta(minutes=10)
"""A connection keeps the identity that it was made with; so it is made anew while a certificate of an hour is young."""
CONNECTION_GRACE: Final = timedelta(minutes=5)
DRAIN_GRACE: Final = timedelta(seconds=10)
_SWEEP_S: Final = 0.5
LEAVE_S: Final = 2.0
GOING_S: Final = 0.3
"""How long the agent may take to have callers leave, and they to hear of it and go."""


class Server(grpc.Server):
    """A grpc.Server whose ports and policies come from the node agent.

    A port is closed until the agent has sent its configuration, and with it who may call.
    """

    def __init__(
        self, inner: grpc.Server, link: AgentLink, incoming: Incoming, credentials: grpc.ServerCredentials
    ) -> None:
        self._inner = inner
        self._link = link
        self._incoming = incoming
        self._credentials = credentials
        self._leaving, self._ended = threading.Event(), threading.Event()

    def add_port(self, address: str) -> None:
        """Listens on `address`, "127.0.0.1:7021", which must be the one that the workload was started with.

        Raises:
            ValueError: the port is 0: the mesh couldn't name it.
        """
        if address.rpartition(":")[2] in ("", "0"):
            raise ValueError(f"{address!r}: give a port; a server of the mesh can't take just any")
        self._inner.add_secure_port(address, self._credentials)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Refused: a port with credentials of its own would be outside the mesh's policies. Use `add_port`."""
        raise TypeError(f"{address}: use add_port; the node agent brings the credentials")

    def add_insecure_port(self, address: str) -> int:
        """Refused: there is no plain text in the mesh. Use `add_port`."""
        raise TypeError(f"{address}: use add_port; there is no plain text in the mesh")

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """See grpc.Server."""
        self._inner.add_generic_rpc_handlers(tuple(generic_rpc_handlers))

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """See grpc.Server; generated code calls it."""
        inner: Any = self._inner
        inner.add_registered_method_handlers(service_name, method_handlers)

    def start(self) -> None:
        """Starts to serve, and to end streams whose caller's certificate runs out."""
        self._inner.start()
        threading.Thread(target=self._sweep_steadily, name="meshwarden-sweep", daemon=True).start()

    def stop(self, grace: float | None) -> threading.Event:
        """Has callers leave, then takes no more calls; both have `grace` seconds. The event is set when all have ended.

        Without `grace`, or told once more, it takes no more calls at once: what comes in meanwhile fails.
        """
        if not grace or self._leaving.is_set():
            self._end()
            return self._inner.stop(grace)
        self._leaving.set()
        all_ended = threading.Event()
        threading.Thread(target=self._leave, args=(grace, all_ended), name="meshwarden-stop").start()
        return all_ended

    def _leave(self, grace_s: float, all_ended: threading.Event) -> None:
        # C-core ends what comes in from here to its clients' hearing of it as CANCELLED, so they hear of it before.
        end_s = time.monotonic() + grace_s
        with self._link.leaving(min(grace_s, LEAVE_S)) as is_heard:
            if is_heard:
                self._ended.wait(min(GOING_S, end_s - time.monotonic()))
            self._end()
            self._inner.stop(max(0.0, end_s - time.monotonic())).wait()
        all_ended.set()

    def _end(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._incoming.close()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Waits until the server has stopped; True if it hasn't within `timeout` seconds."""
        return self._inner.wait_for_termination(timeout)

    def _sweep_steadily(self) -> None:
        while not self._ended.is_set():
            self._incoming.wait_to_sweep(_SWEEP_S)
            self._incoming.sweep()


def server(
    max_workers: int | None = None,
    *,
    interceptors: Sequence[grpc.ServerInterceptor] = (),
    options: Options = (),
    max_connection_age: timedelta = MAX_CONNECTION_AGE,
    connection_grace: timedelta = CONNECTION_GRACE,
    clock: Clock = utc_now,
) -> Server:
    """Makes a server of the mesh; open its port by `add_port`.

    Args:
        max_workers: threads, each of which serves one call at a time; by default as many as a ThreadPoolExecutor has.
            Under a rate policy with `adaptive` one of them is left to refuse calls.
        interceptors: the program's own; they come after the checks, and `peer_identity` answers in them.
        options: gRPC channel arguments; they go before ours.
        max_connection_age: after which a client is asked to connect anew (grpc adds up to a tenth either way).
        connection_grace: how long streams may go on after that.
        clock: the present, for checking certificates.

    Raises:
        NotStarted: the program doesn't run under a node agent.
        AgentAway: the agent doesn't say who the program is.
    """
    require_bootstrap()
    link = AgentLink.of_process()
    link.wait()
    workers = max_workers or min(32, (os.cpu_count() or 1) + 4)
    incoming = Incoming(link, clock, most_calls=workers - 1)
    ours: list[tuple[str, Any]] = [
        ("grpc.max_connection_age_ms", round(max_connection_age.total_seconds() * 1000)),
        ("grpc.max_connection_age_grace_ms", round(connection_grace.total_seconds() * 1000)),
        ("grpc.experimental.server_config_change_drain_grace_time_ms", round(DRAIN_GRACE.total_seconds() * 1000)),
        ("grpc.so_reuseport", 0),
    ]
    given = {name for name, _ in options}
    inner = grpc.server(
        ThreadPoolExecutor(workers, thread_name_prefix="meshwarden-serve"),
        interceptors=[IncomingInterceptor(incoming), *interceptors],
        options=[*options, *(pair for pair in ours if pair[0] not in given)],
        xds=True,
    )
    return Server(inner, link, incoming, _credentials())


def peer_identity(context: grpc.ServicerContext | grpc.aio.ServicerContext[Any, Any]) -> SpiffeId:
    """Returns who calls, as its certificate proves; inside a handler, of a server of ours or behind `PeerInterceptor`.

    Raises:
        LookupError: not inside such a handler.
    """
    caller = current_peer() or peer.current()
    if caller is None:
        raise LookupError("no verified caller here: ask inside a handler of a meshwarden server")
    return caller.spiffe_id


def run(running: Server, grace_s: float = 10.0, on_stop: Callable[[], None] = lambda: None) -> None:
    """Starts a server and serves until SIGTERM or SIGINT; to be called in the main thread.

    Args:
        running: the server.
        grace_s: how long calls under way may go on.
        on_stop: called before the server takes no more calls: to end streams that have no end, and to tell health.
    """
    stop = Stop()
    running.start()
    stop.wait()
    on_stop()
    running.stop(grace_s).wait()


def _credentials() -> grpc.ServerCredentials:
    """Credentials that ask the agent for mTLS; a listener that it sent without TLS still gets mTLS, by our own files.

    Raises:
        NotStarted: there are none.
    """
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    if not directory:
        raise NotStarted(
            f"{CREDENTIALS_VARIABLE} is not set: start the program with `meshwarden-agent exec --entry NAME -- PROGRAM`"
        )
    chain, key, roots = read(Path(directory), "tls.crt", "tls.key", "ca.crt")
    fallback = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)
    return grpc.xds_server_credentials(fallback)
