"""Telemetry on its way up, compared: with bare loops in one process, and with a collector over gRPC."""

import random
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import grpc
import rotel

from benchmarks import ingest
from benchmarks.ingest_floor import Floor
from benchmarks.ingest_pieces import Pieces
from benchmarks.process import Broken, child, cpu_s, say
from benchmarks.result import Case
from meshwarden.sdk.heap import settle

ROTEL = "rotel 0.0.1a15, an OTLP collector in Rust, with its blackhole"
FLOOR = "the least that Python takes with the same libraries: read once, ids, packed, on disk, counted, in SQLite"
TAKEN = "a grpc.aio server that takes the same requests and does nothing with them"
UNIT = "spans per CPU-second"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
REST_S, AT_REST = 0.3, 0.02


async def cases(directory: Path, rounds: int) -> AsyncIterator[Case]:
    """Yields what a span costs on its way up, and on disk."""
    say("gather: ingest")
    settle()  # as our processes do, here for both sides
    bare = "read and counted as edges of a dict, nothing checked, kept or stored"
    rows = "read and inserted into SQLite, a row of eleven columns each, indexed by trace"
    on_cpu = Case("gather", "ingest CPU, graph and RED", bare, UNIT, "higher")
    on_floor = Case("gather", "ingest CPU, against the floor", FLOOR, UNIT, "higher")
    on_store = Case("gather", "ingest CPU, stored", rows, UNIT, "higher")
    on_disk = Case("gather", "bytes per span", "the same spans as OTLP", "bytes")
    places = {on_cpu.name: directory / "counted", on_store.name: directory / "stored"}
    for place in places.values():
        place.mkdir(mode=0o700)
    floor, pieces = Floor(directory), Pieces(directory)
    parts: dict[str, Case] = {}
    rng = random.Random(1)
    spans = sent_bytes = stored_bytes = 0
    for number in range(rounds):
        bodies, first = ingest.bodies_of(rng), ingest.bodies_of(rng, 1)
        count = len(bodies) * ingest.SPANS
        spans, sent_bytes = spans + count + ingest.SPANS, sent_bytes + sum(map(len, bodies + first))
        bare_s, edges = ingest.edges_of(bodies)
        floor.take(first, [ingest.calls_of()])
        for part, part_us in pieces.take(bodies).items():
            name = f"ingest CPU, by itself: {part}"
            parts.setdefault(name, Case("gather", name, bare, "µs a span")).add(part_us, bare_s / count * 1e6)
        floor_s = floor.take(bodies, [ingest.calls_of() for _ in bodies])
        if edges.total() * 2 != count or floor.edges.total() * 2 != floor.spans:
            raise Broken("a bare loop has not seen every call")
        for case, their_s in ((on_cpu, bare_s), (on_store, ingest.rows_of(bodies, directory / "rows.sqlite"))):
            # Opened anew, so that no workload has used up its share of the agent's time.
            async with ingest.river(places[case.name], keeps_traces=case is on_store) as river:
                await river.take(first)  # what is made once is not counted: the floor has it from the round before
                case.add(count / await river.take(bodies), count / their_s)
                stored_bytes = await river.size_bytes()
            say(f"  {number + 1}: {case.name}: {case.ours[-1]:,.0f} / {case.theirs[-1]:,.0f} {UNIT}")
        on_floor.add(on_cpu.ours[-1], count / floor_s)
        say(f"  {number + 1}: {on_floor.name}: {on_floor.ours[-1]:,.0f} / {on_floor.theirs[-1]:,.0f} {UNIT}")
    floor.close()
    pieces.close()
    on_disk.add(stored_bytes / spans, sent_bytes / spans)
    yield on_cpu
    yield on_floor
    yield on_store
    for case in parts.values():
        yield case
    for case in await _over_grpc(directory, rounds):
        yield case
    yield on_disk


async def _over_grpc(directory: Path, rounds: int) -> tuple[Case, Case]:
    """All as processes that take OTLP over gRPC from here."""
    case = Case("gather", "ingest CPU, over gRPC", ROTEL, UNIT, "higher")
    taken = Case("gather", "ingest CPU, over gRPC, against taking it alone", TAKEN, UNIT, "higher")
    place = directory / "served"
    place.mkdir(mode=0o700)
    port = _free_port()
    command = [str(Path(rotel.__file__).parent / "rotel-agent"), "start", "--exporter", "blackhole"]
    command += ["--otlp-grpc-endpoint", f"127.0.0.1:{port}", "--otlp-http-endpoint", f"127.0.0.1:{_free_port()}"]
    command += ["--pid-file", str(place / "rotel.pid")]
    async with AsyncExitStack() as stack:
        server = [sys.executable, "-m", "benchmarks.ingest", str(place)]
        ours = await stack.enter_async_context(child("agent and control plane", server, directory, is_asked=True))
        theirs = await stack.enter_async_context(child("rotel", command, directory))
        server = [sys.executable, "-m", "benchmarks.ingest_floor", str(place)]
        least = await stack.enter_async_context(child("a bare server", server, directory, is_asked=True))
        ports = {ours: await ours.until_written(place / "port"), theirs: str(port)}
        ports[least] = await least.until_written(place / "floor.port")
        exports = {}
        for process, at in ports.items():
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{at}"))
            exports[process] = channel.unary_unary(EXPORT)
        rng = random.Random(2)
        for number in range(rounds + 1):
            bodies = ingest.bodies_of(rng)
            count, rate = len(bodies) * ingest.SPANS, {}
            for process, export in exports.items():
                before_s = cpu_s(process.pid)
                for body in bodies:
                    await export(body, wait_for_ready=True)
                if process is ours:
                    await ours.ask("")
                    if (await ours.answer())["spans"] != count * (number + 1):
                        raise Broken("spans were lost")
                rate[process] = count / (await _at_rest(process.pid) - before_s)
            if number:  # the first is to warm up
                case.add(rate[ours], rate[theirs])
                taken.add(rate[ours], rate[least])
                say(
                    f"  {number}: {case.name}: {rate[ours]:,.0f} / {rate[theirs]:,.0f}, alone {rate[least]:,.0f} {UNIT}"
                )
    return case, taken


async def _at_rest(pid: int) -> float:
    """The CPU time of a process once it uses no more."""
    used_s = cpu_s(pid)
    while True:
        await anyio.sleep(REST_S)
        before_s, used_s = used_s, cpu_s(pid)
        if used_s - before_s < REST_S * AT_REST:
            return before_s


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
