"""The edge of every service of daena: runs it in the mesh, and maps its errors to a gRPC status, once."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from meshwarden import sdk
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.examples.daena.error import Away, Corrupt, DaenaError, Full, Invalid, Replaced, Unknown
from meshwarden.sdk import telemetry

Identify = Callable[[grpc.ServicerContext], SpiffeId]
MAX_MESSAGE_BYTES: Final = 256 << 10
GRACE_S: Final = 5.0
_CODES: Final[dict[type[DaenaError], grpc.StatusCode]] = {
    Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    Unknown: grpc.StatusCode.NOT_FOUND,
    Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Corrupt: grpc.StatusCode.DATA_LOSS,
    Replaced: grpc.StatusCode.ABORTED,
    Away: grpc.StatusCode.UNAVAILABLE,
}


@contextlib.contextmanager
def answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Ends the call with the status of an error of ours."""
    try:
        yield
    except DaenaError as error:
        context.abort(_CODES[type(error)], str(error))


def serve(
    name: str, add: Callable[[grpc.Server], Any], max_workers: int = 16, on_stop: Callable[[], None] = lambda: None
) -> None:
    """Serves on 127.0.0.1:$MESHWARDEN_PORT until SIGTERM.

    Args:
        name: what the log calls it.
        add: puts the servicer into the server.
        max_workers: threads, each of which serves one call at a time.
        on_stop: ends what has no end by itself.

    Raises:
        SystemExit: there is no port.
    """
    port = os.environ.get("MESHWARDEN_PORT")
    if not port:
        raise SystemExit("MESHWARDEN_PORT is not set: give the entry a port, or `meshwarden-agent exec --port`")
    checks = health.HealthServicer()
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    server = sdk.server(max_workers=max_workers, options=options)
    add(server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.add_port(f"127.0.0.1:{port}")

    def stop() -> None:
        checks.enter_graceful_shutdown()
        on_stop()

    logging.info("%s on 127.0.0.1:%s", name, port)
    sdk.run(server, grace_s=GRACE_S, on_stop=stop)
    logging.info("%s stopped", name)


def begin() -> None:
    """Sets up what every program of daena logs and traces."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    telemetry.configure()
