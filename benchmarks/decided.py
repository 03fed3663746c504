"""What a decision adds to a unary call over mTLS: its CPU on both sides, beside that with an empty interceptor.

    python -m benchmarks.decided server RATIO DIRECTORY

serves, in one process, with an empty interceptor, with one that only decides, and as the SDK does with and without a
limit; see `benchmarks.instrumented`, whose directory and questions it has. The limit is one across the mesh, by tenant
and method; a stream in the process gives it its shares once a second, and takes its reports.
"""

import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import grpc
from google.protobuf.duration_pb2 import Duration

from benchmarks import instrumented
from benchmarks.instrumentation import certify
from benchmarks.process import child, cpu_s, say
from benchmarks.result import Case
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import read
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming
from meshwarden.sdk.quota.limits import Limits
from meshwarden.v1 import quota_service_pb2
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.resources_pb2 import MethodLimit, Rate, RateLimit, RatePolicySpec

CALLS, BLOCKS = 200, 8
MOST: Final = 1_000_000
TENANT: Final = "platform"
KINDS: Final = ("empty", "decides", "ours", "ours limited")
CASES: Final = {
    "decision share of a call": ("decides", "empty", "the same call, with an empty interceptor"),
    "decision share of a call, SDK": ("ours limited", "ours", "the same SDK server, without a policy"),
}


class Link(instrumented.Link):
    """An agent's side of a server's shares: each bucket gets what never runs dry."""

    def share(self, requests: Iterator[quota_service_pb2.ShareRequest]) -> Iterator[quota_service_pb2.ShareResponse]:
        for request in requests:
            response = quota_service_pb2.ShareResponse(
                sequence=request.sequence, answers=request.sequence, ttl=Duration(seconds=3)
            )
            for usage in request.points[0].usages:
                response.points.add(point="self").shares.add(bucket=usage.bucket, rate=MOST, burst=MOST)
            yield response


async def cases(directory: Path, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases: CPU of client and server for one call, the least of some blocks in each round."""
    say("quota: what a decision adds to a call")
    certify(directory)
    found = {
        name: Case("quota", name, f"{reference}: client and server", "µs") for name, (*_, reference) in CASES.items()
    }
    command = [sys.executable, "-m", "benchmarks.decided", "server", str(instrumented.FEW), str(directory)]
    async with child("decided", command, directory) as server:
        for kind in KINDS:
            await server.until_written(directory / f"{kind}.port")
        channels = {kind: instrumented.dial(directory, kind) for kind in KINDS}

        async def used_us(kind: str) -> float:
            before_s = time.process_time() + cpu_s(server.pid)
            await anyio.to_thread.run_sync(instrumented.call_below, channels[kind], CALLS, instrumented.FEW)
            return (time.process_time() + cpu_s(server.pid) - before_s) / CALLS * 1e6

        for kind in KINDS:
            await used_us(kind)  # which opens buckets
        for number in range(rounds):
            blocks = [{kind: await used_us(kind) for kind in KINDS} for _ in range(BLOCKS)]
            least = {kind: min(block[kind] for block in blocks) for kind in KINDS}
            for name, (ours, theirs, _) in CASES.items():
                found[name].add(least[ours], least[theirs])
            say(f"  {number + 1}: {', '.join(f'{kind} {us:.1f}' for kind, us in least.items())} µs")
        for channel in channels.values():
            channel.close()
    for case in found.values():
        yield case


def decides(limits: Limits, inner: Any) -> Any:
    """Asks the limits, for a caller of whom it is known who it is."""

    def serve(request: bytes, context: Any) -> Any:
        if not limits.admit(TENANT, instrumented.METHOD).decision.allowed:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "limited")
        return inner(request, context)

    return serve


def serve(ratio: float, directory: Path) -> None:
    """Serves until it is ended."""
    chain, key, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(instrumented.DOMAIN, roots), ratio)
    free, limited = Incoming(link, utc_now), _limited(link)
    limits = Limits(link, time.monotonic)
    limits.update(link.config.limits)
    made: dict[str, Any] = {
        "empty": instrumented.Around(lambda inner: inner),
        "decides": instrumented.Around(lambda inner: decides(limits, inner)),
        "ours": IncomingInterceptor(free),
        "ours limited": IncomingInterceptor(limited),
    }
    servers = []
    for kind, interceptor in made.items():
        server = grpc.server(ThreadPoolExecutor(4), interceptors=[interceptor])
        handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Orders", {"Get": handler}),))
        takes = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", takes)
        server.start()
        servers.append(server)
        instrumented.tell(directory, kind, port)
    for server in servers:
        server.wait_for_termination()


def _limited(link: Any) -> Incoming:
    """What serves under the limit; the link's configuration has it from now on."""
    limit = RateLimit(tenant="*", requests=MOST, methods=[MethodLimit(method=instrumented.METHOD, requests=MOST)])
    spec = RatePolicySpec(total=Rate(requests=MOST), limits=[limit])
    policies = [PolicyLimits(policy="platform/bench", spec=spec)]
    link.config = replace(link.config, limits=ServerLimits(policies=policies))
    return Incoming(link, utc_now)


if __name__ == "__main__":
    serve(float(sys.argv[2]), Path(sys.argv[3]))
