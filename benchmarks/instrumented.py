"""Servers or clients of unary calls over mTLS: bare, with empty interceptors, with ours, or the contrib package's.

    python -m benchmarks.instrumented server RATIO DIRECTORY
    python -m benchmarks.instrumented client RATIO DIRECTORY

The directory has tls.crt, tls.key and ca.crt; the servers write their ports to KIND.port there. They are of one
process, as are the clients, for processes differ more than what is measured. A client reads lines of "KIND CALLS" and
calls the bare server; a server reads lines that say nothing. Both answer with the CPU time of their process so far, all
spans exported and all counts added up. RATIO is how many traces are recorded: by the client's own choice, or as a
server's callers say.

"floor" is the least that can be done: two looks at a clock, a count, a `traceparent` written or found; "certified
floor" reads the caller's certificate besides, of which nothing is checked. "promised floor" is the least that keeps
what is promised of a call that ends well: it proves who calls, has the calls made below go on with the trace, and
counts by caller, method, status and decision; limits, errors, streams and how much a call matters are not in it.
"checked" is what ours does on a server before all that: it proves who calls, reads how much the call matters, and asks
the tenant's limits, of which there are none. "checked contrib" is that with the package around it.

Spans go to a batch processor that exports nothing, for ours and for the package alike. Counts of ours are taken once a
second and thrown away: an agent is not there.
"""

import json
import random
import sys
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.instrumentation import grpc as contrib
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import read
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk import telemetry
from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.backpressure import criticality
from meshwarden.sdk.config import Config
from meshwarden.sdk.counted import CountedChannel
from meshwarden.sdk.denial import Denials
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming, served_call
from meshwarden.sdk.mtls.caller import Callers
from meshwarden.sdk.outgoing import Outgoing
from meshwarden.sdk.quota.limits import Limits
from meshwarden.sdk.red.count import Counter, Known
from meshwarden.sdk.tracing.call_span import Passed
from meshwarden.sdk.tracing.numbered import Number
from meshwarden.sdk.tracing.provider import Provider
from meshwarden.sdk.tracing.trace import PARENT, is_parent
from meshwarden.v1.node_service_pb2 import ServerLimits
from meshwarden.v1.report_pb2 import CallStat

DOMAIN = "bench.test"
SERVER_NAME = "orders.bench.test"
METHOD = "/bench.Orders/Get"
CLIENTS = ("bare", "empty", "floor", "ours", "contrib")
FLOORS = ("floor", "certified floor", "promised floor")
SERVERS = ("bare", "empty", *FLOORS, "checked", "ours", "contrib", "checked contrib")
ALL, FEW = 1.0, 0.01
RPC_S = 10.0
_ONE_IN = 100


class Nowhere(SpanExporter):
    """Takes spans away, as an exporter and as a carrier of ours."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def pack_calls(self, calls: Any, resource: Any, scope: Any) -> bytes:
        return b""

    def pack(self, spans: Any) -> bytes:
        return b""

    def send(self, body: bytes, number: Number) -> None:
        pass

    def close(self) -> None:
        pass

    renew = close


class Link:
    """What the interceptors and the provider need of the process's link to the agent, without the agent."""

    def __init__(self, bundle: Bundle, ratio: float) -> None:
        self.counter = Counter(utc_now)
        self.denials = Denials()
        identity = SpiffeId.workload(DOMAIN, "platform", "orders")
        bundles, names = {DOMAIN: bundle}, {"orders": "platform/orders"}
        self.config = self.last_config = Config(
            identity, bundles, ServerLimits(), 1, Path(), names, ratio, federated=bundles
        )
        AgentLink.made = self  # type: ignore[assignment]  # it stands in for one
        threading.Thread(target=self._take_steadily, daemon=True).start()

    def listen(self, listener: Callable[[Config], None]) -> None:
        listener(self.config)

    def close(self) -> None:
        pass

    def _take_steadily(self) -> None:
        while True:
            time.sleep(1.0)
            self.counter.take()


class Empty(grpc.ServerInterceptor, grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return continuation(handler_call_details)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(client_call_details, request)


class Around(grpc.ServerInterceptor):
    """Serves what `make` makes of the one handler that there is."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self._known: tuple[Any, Any] = (None, None)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        inner = continuation(handler_call_details)
        if self._known[0] is not inner:
            made: Any = grpc.unary_unary_rpc_method_handler(self._make(inner.unary_unary))
            self._known = (inner, made)
        return self._known[1]


class Floor:
    """The least, on a server or around the method of a channel."""

    def __init__(self, inner: Any = None) -> None:
        self._inner = inner
        self._spent_s: Counts[bytes] = Counts()

    def serve(self, inner: Any, is_certified: bool) -> Any:
        def serve(request: bytes, context: Any) -> Any:
            begun_s = time.perf_counter()
            # As ours does: grpc's own makes text of what it finds, of which it takes as long again.
            found = cygrpc.auth_context(context._rpc_event.call)[b"x509_pem_cert"][0] if is_certified else b""
            for name, _ in context.invocation_metadata():
                if name == "traceparent":
                    break
            answer = inner(request, context)
            self._spent_s[found] += time.perf_counter() - begun_s
            return answer

        return serve

    def unary_unary(self, method: str) -> Any:
        return Floor(self._inner.unary_unary(method))._call

    def _call(self, request: bytes, timeout: float) -> Any:
        begun_s = time.perf_counter()
        sent = f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-00"
        answer = self._inner(request, timeout, (("traceparent", sent),))
        self._spent_s[request] += time.perf_counter() - begun_s
        return answer


def checked(link: Any, inner: Any) -> Any:
    """What ours does on a server before it counts and traces."""
    callers, limits = (
        Callers(lambda: link.config.federated, utc_now, link.config.spiffe_id.trust_domain),
        Limits(link, time.monotonic),
    )

    def serve(request: bytes, context: Any) -> Any:
        caller = callers.identify(context)
        metadata = context.invocation_metadata()
        criticality.serve(metadata)
        if not limits.admit(caller.tenant, METHOD, metadata).decision.allowed:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "limited")
        return inner(request, context)

    return serve


def promised(link: Any, inner: Any) -> Any:
    """The least that proves who calls, goes on with the trace, and counts."""
    callers, known = (
        Callers(lambda: link.config.federated, utc_now, link.config.spiffe_id.trust_domain),
        Known(link.counter, served_call),
    )
    allowed = CallStat.ALLOWED

    def serve(request: bytes, context: Any) -> Any:
        begun_s = time.perf_counter()
        caller = callers.identify(context)
        said = ""
        for name, value in context.invocation_metadata():
            if name == PARENT:
                said = value
        if is_parent(said):
            attach(trace.set_span_in_context(Passed(said, "", is_remote=True), Context()))
        answer = inner(request, context)
        if context.code() is None and context.is_active():
            known.add(link.config, (caller.source, METHOD, "OK", allowed), begun_s)
        return answer

    return serve


class Providers:
    """What a program makes for ours and for the package, and what is counted."""

    def __init__(self, ratio: float, link: Any) -> None:
        """Installs what `telemetry.configure` does in a program of the mesh."""
        self._link = link
        self._ours = Provider(Nowhere(), telemetry.ratio, telemetry.revision)
        trace.set_tracer_provider(self._ours)
        self.contribs = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False)
        self.contribs.add_span_processor(BatchSpanProcessor(Nowhere(), schedule_delay_millis=1000))

    def tell_cpu(self) -> None:
        """Does what is left to do, and answers."""
        self._ours.force_flush()
        self.contribs.force_flush()
        self._link.counter.take()
        print(json.dumps({"cpu_s": time.process_time()}), flush=True)


def serve(ratio: float, directory: Path) -> None:
    """Serves until nobody asks."""
    chain, key, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(DOMAIN, roots), ratio)
    providers = Providers(ratio, link)
    made: dict[str, list[Any]] = {
        "bare": [],
        "empty": [Empty()],
        "floor": [Around(lambda inner: Floor().serve(inner, is_certified=False))],
        "certified floor": [Around(lambda inner: Floor().serve(inner, is_certified=True))],
        "promised floor": [Around(lambda inner: promised(link, inner))],
        "checked": [Around(lambda inner: checked(link, inner))],
        "ours": [IncomingInterceptor(Incoming(link, utc_now))],
        "contrib": [contrib.server_interceptor(providers.contribs)],
        # Outside of the check, for it makes a handler for each call, around which the check would be made anew.
        "checked contrib": [contrib.server_interceptor(providers.contribs), Around(lambda inner: checked(link, inner))],
    }
    servers = []
    for kind, interceptors in made.items():
        server = grpc.server(ThreadPoolExecutor(4), interceptors=interceptors)
        handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Orders", {"Get": handler}),))
        takes = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", takes)
        server.start()
        servers.append(server)
        tell(directory, kind, port)
    for _ in sys.stdin:
        providers.tell_cpu()
    for server in servers:
        server.stop(None)


def tell(directory: Path, kind: str, port: int) -> None:
    """Says that a server is ready, and where."""
    scratch = directory / f"{kind}.port.new"
    scratch.write_text(str(port))
    scratch.rename(directory / f"{kind}.port")


def credentials(directory: Path, kind: str) -> tuple[str, grpc.ChannelCredentials, list[tuple[str, str]]]:
    """What a channel to the server of a kind takes: target, credentials, options."""
    chain, key, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    shown = grpc.ssl_channel_credentials(roots, key, chain)
    port = (directory / f"{kind}.port").read_text()
    return f"127.0.0.1:{port}", shown, [("grpc.ssl_target_name_override", SERVER_NAME)]


def dial(directory: Path, kind: str) -> grpc.Channel:
    """A channel to the server of a kind."""
    return grpc.secure_channel(*credentials(directory, kind))


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
        parent = f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-{flags}"
        get(b"order", timeout=RPC_S, metadata=(("traceparent", parent),))


def answer(ratio: float, directory: Path) -> None:
    """Makes calls as it is asked, until nobody asks."""
    *_, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(DOMAIN, roots), ratio)
    providers = Providers(ratio, link)
    made: dict[str, Any] = {
        "bare": dial(directory, "bare"),
        "floor": Floor(dial(directory, "bare")),
        "empty": grpc.intercept_channel(dial(directory, "bare"), Empty()),
        "ours": CountedChannel(dial(directory, "bare"), Outgoing(link, "orders")),
        "contrib": intercept_channel(dial(directory, "bare"), contrib.client_interceptor(providers.contribs)),
    }
    for line in sys.stdin:
        kind, calls = line.split()
        call(made[kind], int(calls))
        providers.tell_cpu()


if __name__ == "__main__":
    run = {"server": serve, "client": answer}[sys.argv[1]]
    run(float(sys.argv[2]), Path(sys.argv[3]))
