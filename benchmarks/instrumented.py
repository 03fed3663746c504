"""A server or a client of unary calls over mTLS: bare, with empty interceptors, with ours, or the contrib package's.

    python -m benchmarks.instrumented server KIND RATIO DIRECTORY
    python -m benchmarks.instrumented client RATIO DIRECTORY

The directory has tls.crt, tls.key and ca.crt; a server writes its port to KIND-RATIO.port there. A client reads lines
of "KIND CALLS", calls the bare server, and answers with the CPU time that a call took of its process. RATIO is how many
traces are recorded: by the client's own choice, or as a server's callers say.

Spans go to a batch processor that exports nothing, for ours and for the package alike. Counts of ours are taken once a
second and thrown away: an agent is not there.
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
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import read
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.agent import Config
from meshwarden.sdk.count import Counter
from meshwarden.sdk.counted import CountedChannel
from meshwarden.sdk.denial import Denials
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming
from meshwarden.sdk.outgoing import Outgoing
from meshwarden.sdk.provider import Provider
from meshwarden.v1.node_service_pb2 import ServerLimits

DOMAIN = "bench.test"
SERVER_NAME = "orders.bench.test"
METHOD = "/bench.Orders/Get"
KINDS = ("bare", "empty", "ours", "contrib")
ALL, FEW = 1.0, 0.01
RPC_S = 10.0
_ONE_IN = 100


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


def ours(ratio: float) -> None:
    """Installs what `telemetry.configure` does in a program of the mesh."""
    trace.set_tracer_provider(Provider(Nowhere(), lambda: ratio, lambda: 1))


def contribs(ratio: float) -> TracerProvider:
    """What a program makes for the package."""
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere(), schedule_delay_millis=1000))
    return provider


def named(kind: str, ratio: float) -> str:
    """What a server is called."""
    return f"{kind}-{ratio:g}"


def serve(kind: str, ratio: float, directory: Path) -> None:
    """Serves until SIGTERM."""
    chain, key, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(DOMAIN, roots))
    ours(ratio)
    made: dict[str, Callable[[], list[Any]]] = {
        "bare": list,
        "empty": lambda: [Empty()],
        "ours": lambda: [IncomingInterceptor(Incoming(link, utc_now))],
        "contrib": lambda: [contrib.server_interceptor(contribs(ratio))],
    }
    server = grpc.server(ThreadPoolExecutor(4), interceptors=made[kind]())
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Orders", {"Get": handler}),))
    takes = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", takes)
    server.start()
    tell(directory, named(kind, ratio), port)
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    over.wait()
    server.stop(None)


def tell(directory: Path, name: str, port: int) -> None:
    """Says that a server is ready, and where."""
    scratch = directory / f"{name}.port.new"
    scratch.write_text(str(port))
    scratch.rename(directory / f"{name}.port")


def credentials(directory: Path, name: str) -> tuple[str, grpc.ChannelCredentials, list[tuple[str, str]]]:
    """What a channel to the server of a name takes: target, credentials, options."""
    chain, key, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    shown = grpc.ssl_channel_credentials(roots, key, chain)
    port = (directory / f"{name}.port").read_text()
    return f"127.0.0.1:{port}", shown, [("grpc.ssl_target_name_override", SERVER_NAME)]


def dial(directory: Path, name: str) -> grpc.Channel:
    """A channel to the server of a name."""
    return grpc.secure_channel(*credentials(directory, name))


def call(channel: grpc.Channel, calls: int) -> None:
    """Makes calls, one after the other."""
    get: Any = channel.unary_unary(METHOD)
    for _ in range(calls):
        get(b"order", timeout=RPC_S)


def call_below(channel: grpc.Channel, calls: int, ratio: float) -> None:
    """Makes calls whose callers record all of their traces, or one in a hundred."""
    get: Any = channel.unary_unary(METHOD)
    for number in range(calls):
        flags = "01" if ratio == ALL or number % _ONE_IN == 0 else "00"
        get(b"order", timeout=RPC_S, metadata=(("traceparent", f"00-{number + 1:032x}-{number + 1:016x}-{flags}"),))


def answer(ratio: float, directory: Path) -> None:
    """Makes calls as it is asked, until nobody asks."""
    *_, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(DOMAIN, roots))
    ours(ratio)
    server = named("bare", ratio)
    made = {
        "bare": dial(directory, server),
        "empty": grpc.intercept_channel(dial(directory, server), Empty()),
        "ours": CountedChannel(dial(directory, server), Outgoing(link, "orders")),
        "contrib": intercept_channel(dial(directory, server), contrib.client_interceptor(contribs(ratio))),
    }
    for line in sys.stdin:
        kind, calls = line.split()
        begun_s = time.process_time()
        call(made[kind], int(calls))
        print(json.dumps({"us": (time.process_time() - begun_s) / int(calls) * 1e6}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
    else:
        answer(float(sys.argv[2]), Path(sys.argv[3]))
