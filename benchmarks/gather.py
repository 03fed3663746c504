"""What telemetry costs: on each call, on its way up, in the graph, in memory and on disk.

`instrumentation CPU` is what is added to a bare unary call over mTLS on the side that is measured; the other has
nothing on it. Ours checks the caller's certificate and its tenant's limit besides, on the server with threads.
"""

import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import anyio.to_thread

from benchmarks import graph_query, instrumented, river, trace_query
from benchmarks.process import child, say
from benchmarks.result import Case
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import publish
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key

CONTRIB = "opentelemetry-instrumentation-grpc"
FLOOR = "two looks at a clock, a count, a traceparent, the caller's certificate read and not checked"
AIO = [kind for kind in instrumented.KINDS if kind != "floor"]
CALLS, BLOCKS, WARM = 200, 6, 200
SERIES = 100_000
HOUR = timedelta(hours=1)


async def run(_: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases; memory is the same in every round, so it has one."""
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        directory = Path(name)
        async for case in _instrumentation(directory, rounds):
            yield case
        async for case in river.cases(directory, rounds):
            yield case
        for case in graph_query.cases(rounds):
            yield case
        async for case in trace_query.cases(directory, rounds):
            yield case
        yield await _memory(directory)


# -- on each call


async def _instrumentation(directory: Path, rounds: int) -> AsyncIterator[Case]:
    say("gather: instrumentation")
    share = Case("gather", "added CPU share of a call, 1% traces", FLOOR, "%")
    for module, prefix, kinds in (("instrumented", "", instrumented.KINDS), ("instrumented_aio", "aio ", AIO)):
        for ratio, suffix in ((instrumented.ALL, ""), (instrumented.FEW, ", 1% traces")):
            cases = [
                Case(
                    "gather",
                    f"instrumentation CPU, {prefix}{side}{suffix}",
                    f"{CONTRIB}: CPU added to a bare call",
                    "µs",
                )
                for side in ("client", "server")
            ]
            place = directory / f"{module}-{ratio:g}"
            _certify(place)
            async with _sides(module, kinds, place, ratio) as sides:
                for number in range(rounds):
                    us = [await _least(side, kinds) for side in sides]
                    for case, of in zip(cases, us, strict=True):
                        case.add(of["ours"] - of["bare"], of["contrib"] - of["bare"])
                        said = ", ".join(f"{kind} {of[kind]:.1f}" for kind in of)
                        say(f"  {number + 1}: {case.name}: {said} µs")
                    if not prefix and suffix:
                        whole = {kind: sum(of[kind] for of in us) for kind in kinds}
                        share.add(*((whole[kind] / whole["bare"] - 1) * 100 for kind in ("ours", "floor")))
            for case in cases:
                yield case
    yield share


Side = Callable[[str, int], Awaitable[float]]


@asynccontextmanager
async def _sides(module: str, kinds: Sequence[str], place: Path, ratio: float) -> AsyncIterator[tuple[Side, Side]]:
    """Yields what makes so many calls of a kind and tells the CPU time of each in µs: of the client, and the server."""
    async with AsyncExitStack() as stack:
        sides = {}
        for name in ("server", "client"):
            command = [sys.executable, "-m", f"benchmarks.{module}", name, str(ratio), str(place)]
            sides[name] = await stack.enter_async_context(child(name, command, place, is_asked=True))
            for kind in kinds:  # the servers' ports
                await sides["server"].until_written(place / f"{kind}.port")
        channels = {kind: stack.enter_context(instrumented.dial(place, kind)) for kind in kinds}
        at_s = dict.fromkeys(sides, 0.0)

        async def used_us(name: str, line: str, calls: int) -> float:
            await sides[name].ask(line)
            before_s, at_s[name] = at_s[name], float((await sides[name].answer())["cpu_s"])
            return (at_s[name] - before_s) / calls * 1e6

        async def of_client(kind: str, calls: int) -> float:
            return await used_us("client", f"{kind} {calls}", calls)

        async def of_server(kind: str, calls: int) -> float:
            await anyio.to_thread.run_sync(instrumented.call_below, channels[kind], calls, ratio)
            return await used_us("server", kind, calls)

        for side in (of_client, of_server):
            for kind in kinds:
                await side(kind, WARM)
        yield of_client, of_server


async def _least(side: Side, kinds: Sequence[str]) -> dict[str, float]:
    """{kind: CPU time of a call in µs}, the least of some blocks in turns: whatever else runs only adds to it."""
    blocks = [{kind: await side(kind, CALLS) for kind in kinds} for _ in range(BLOCKS)]
    return {kind: min(block[kind] for block in blocks) for kind in kinds}


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
