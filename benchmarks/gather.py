"""What telemetry costs: on each call, on its way up, in the graph, in memory and on disk.

`instrumentation CPU` is what interceptors add to a unary call over mTLS that has empty ones, on the side that is
measured; the other has none. Ours check the caller's certificate and its tenant's limit besides, on the server.
"""

import random
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import anyio.to_thread
import grpc

from benchmarks import graph_query, ingest, instrumented
from benchmarks.process import Broken, Child, child, cpu_s, python, say
from benchmarks.result import Case
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import publish
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key

CONTRIB = "opentelemetry-instrumentation-grpc"
CALLS, WARM = 1000, 200
SERIES = 100_000
HOUR = timedelta(hours=1)


async def run(_: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases; memory is the same in every round, so it has one."""
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        directory = Path(name)
        async for case in _instrumentation(directory, rounds):
            yield case
        async for case in _ingest(directory, rounds):
            yield case
        for case in graph_query.cases(rounds):
            yield case
        yield await _memory(directory)


# -- on each call


async def _instrumentation(directory: Path, rounds: int) -> AsyncIterator[Case]:
    say("gather: instrumentation")
    on_client = Case("gather", "instrumentation CPU, client", f"{CONTRIB}: CPU added to a call", "µs")
    on_server = Case("gather", "instrumentation CPU, server", f"{CONTRIB}: CPU added to a call", "µs")
    place = directory / "mtls"
    _certify(place)
    async with AsyncExitStack() as stack:
        servers: dict[str, Child] = {}
        for kind in instrumented.KINDS:
            command = ["-m", "benchmarks.instrumented", "server", kind, str(place)]
            servers[kind] = await stack.enter_async_context(python(f"{kind} server", command, directory))
            await servers[kind].until_written(place / f"{kind}.port")
        channels = {kind: stack.enter_context(instrumented.dial(place, kind)) for kind in instrumented.KINDS}
        command = [sys.executable, "-m", "benchmarks.instrumented", "client", str(place)]
        client = await stack.enter_async_context(child("client", command, directory, is_asked=True))
        for kind in instrumented.KINDS:
            await _of_client(client, kind, WARM)
            await _of_server(servers[kind], channels[kind], WARM)
        for number in range(rounds):
            us = {kind: await _of_client(client, kind, CALLS) for kind in instrumented.KINDS}
            on_client.add(us["ours"] - us["empty"], us["contrib"] - us["empty"])
            us = {kind: await _of_server(servers[kind], channels[kind], CALLS) for kind in instrumented.KINDS}
            on_server.add(us["ours"] - us["empty"], us["contrib"] - us["empty"])
            for case in (on_client, on_server):
                say(f"  {number + 1}: {case.name}: {case.ours[-1]:.1f} / {case.theirs[-1]:.1f} µs")
    yield on_client
    yield on_server


async def _of_client(client: Child, kind: str, calls: int) -> float:
    await client.ask(f"{kind} {calls}")
    return float((await client.answer())["us"])


async def _of_server(server: Child, channel: grpc.Channel, calls: int) -> float:
    before_s = cpu_s(server.pid)
    await anyio.to_thread.run_sync(instrumented.call, channel, calls)
    return (cpu_s(server.pid) - before_s) / calls * 1e6


def _certify(place: Path) -> None:
    """Makes the directory of both sides: one certificate serves and calls."""
    place.mkdir(mode=0o700)
    now, key, leaf_key = utc_now(), new_key(), new_key()
    root = self_signed_root(instrumented.DOMAIN, key, now)
    identity = SpiffeId.workload(instrumented.DOMAIN, "platform", "orders")
    template = LeafTemplate(identity, HOUR, (instrumented.SERVER_NAME,))
    svid = X509Svid.of(issue_leaf(template, leaf_key.public_key(), IssuerKey(key, (root,)), now), leaf_key)
    roots = Bundle.of(instrumented.DOMAIN, [root]).pem()
    publish(place, {"tls.crt": svid.chain_pem(), "tls.key": svid.key_pem(), "ca.crt": roots})


# -- on its way up


async def _ingest(directory: Path, rounds: int) -> AsyncIterator[Case]:
    say("gather: ingest")
    bare = "read and counted as edges of a dict, nothing checked, kept or stored"
    on_cpu = Case("gather", "ingest CPU, graph and RED", bare, "spans per CPU-second", "higher")
    on_disk = Case("gather", "bytes per span", "the same spans as OTLP", "bytes")
    rng = random.Random(1)
    spans = sent_bytes = 0
    place = directory / "river"
    place.mkdir(mode=0o700)
    for number in range(rounds):
        bodies = ingest.bodies_of(rng)
        # Opened anew, so that no workload has used up its share of the agent's time.
        async with ingest.river(place) as river:
            used_s = await river.take(bodies)
            stored = await river.durable.read(lambda db: int(db.pragma("page_count")) * int(db.pragma("page_size")))
        bare_s, edges = ingest.edges_of(bodies)
        count = len(bodies) * ingest.SPANS
        if edges.total() * 2 != count:
            raise Broken("the bare loop has not seen every call")
        spans, sent_bytes = spans + count, sent_bytes + sum(map(len, bodies))
        on_cpu.add(count / used_s, count / bare_s)
        say(f"  {number + 1}: {on_cpu.ours[-1]:,.0f} / {on_cpu.theirs[-1]:,.0f} spans per CPU-second")
    on_disk.add(stored / spans, sent_bytes / spans)
    yield on_cpu
    yield on_disk


# -- in memory


async def _memory(directory: Path) -> Case:
    say("gather: memory")
    case = Case("gather", "memory, 100k series", "prometheus-client's Counter and Histogram, same labels", "MiB")
    mib = []
    for kind in ("ours", "theirs"):
        command = [sys.executable, "-m", "benchmarks.series", kind, str(SERIES)]
        async with child(f"series of {kind}", command, directory, is_asked=True) as started:
            mib.append(float((await started.answer(300.0))["mib"]))
    case.add(*mib)
    return case
