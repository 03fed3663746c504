"""A server or a client of unary calls over mTLS, whose interceptors are empty, ours, or the contrib package's.

    python -m benchmarks.instrumented server KIND DIRECTORY
    python -m benchmarks.instrumented client DIRECTORY

The directory has tls.crt, tls.key and ca.crt; a server writes its port to KIND.port there. A client reads lines of
"KIND CALLS", calls the server "empty", and answers with the CPU time that a call took of its process.

Spans go to a batch processor that exports nothing, all of them, for ours and for the package alike. Counts of ours are
taken once a second and thrown away: an agent is not there.
"""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation import grpc as contrib
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import read
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.agent import Config
from meshwarden.sdk.count import Counter
from meshwarden.sdk.denial import Denials
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming
from meshwarden.sdk.interceptors import CallInterceptor
from meshwarden.sdk.outgoing import Outgoing
from meshwarden.v1.node_service_pb2 import ServerLimits

DOMAIN = "bench.test"
SERVER_NAME = "orders.bench.test"
METHOD = "/bench.Orders/Get"
KINDS = ("empty", "ours", "contrib")
_RPC_S = 10.0


class Nowhere(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class Link:
    """What the interceptors need of the link to the agent, without the agent."""

    def __init__(self, bundle: Bundle) -> None:
        self.counter = Counter(utc_now)
        self.denials = Denials()
        identity = SpiffeId.workload(DOMAIN, "platform", "orders")
        bundles, names = {DOMAIN: bundle}, {"orders": "platform/orders"}
        self.config = Config(identity, bundles, ServerLimits(), 1, Path(), names)
        threading.Thread(target=self._take_steadily, daemon=True).start()

    def find_config(self) -> Config:
        return self.config

    def listen(self, listener: Callable[[Config], None]) -> None:
        listener(self.config)

    def _take_steadily(self) -> None:
        while True:
            time.sleep(1.0)
            self.counter.take()


class Empty(grpc.ServerInterceptor, grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return continuation(handler_call_details)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(client_call_details, request)


def _traced() -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)
    return provider


def serve(kind: str, directory: Path) -> None:
    """Serves until SIGTERM."""
    chain, key, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(DOMAIN, roots))
    provider = _traced()
    made: dict[str, Callable[[], Any]] = {
        "empty": Empty,
        "ours": lambda: IncomingInterceptor(Incoming(link, utc_now)),
        "contrib": lambda: contrib.server_interceptor(provider),
    }
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[made[kind]()])
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Orders", {"Get": handler}),))
    takes = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", takes)
    server.start()
    scratch = directory / f"{kind}.port.new"
    scratch.write_text(str(port))
    scratch.rename(directory / f"{kind}.port")
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    over.wait()
    server.stop(None)


def dial(directory: Path, kind: str) -> grpc.Channel:
    """A channel to the server of a kind."""
    chain, key, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    port = (directory / f"{kind}.port").read_text()
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)


def call(channel: grpc.Channel, calls: int) -> None:
    """Makes calls, one after the other."""
    get: Any = channel.unary_unary(METHOD)
    for _ in range(calls):
        get(b"order", timeout=_RPC_S)


def answer(directory: Path) -> None:
    """Makes calls as it is asked, until nobody asks."""
    *_, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(DOMAIN, roots))
    provider = _traced()
    made = {
        "empty": grpc.intercept_channel(dial(directory, "empty"), Empty()),
        "ours": grpc.intercept_channel(dial(directory, "empty"), CallInterceptor(Outgoing(link, "orders"))),
        "contrib": intercept_channel(dial(directory, "empty"), contrib.client_interceptor(provider)),
    }
    for line in sys.stdin:
        kind, calls = line.split()
        begun_s = time.process_time()
        call(made[kind], int(calls))
        print(json.dumps({"us": (time.process_time() - begun_s) / int(calls) * 1e6}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(sys.argv[2], Path(sys.argv[3]))
    else:
        answer(Path(sys.argv[2]))
