"""What spans and counts of a call cost, beside opentelemetry-instrumentation-grpc.

CPU is that of the whole process on the side that is measured, in a unary call over mTLS; the other side has nothing on
it. What is added is added to something: to a call with an empty interceptor, to a bare one, or, on a server, to one
that checks callers as ours always does. The package checks nothing, so there is one row with that check on both
sides, which compares what the two have in common, and one with all that ours does.
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread

from benchmarks import instrumented
from benchmarks.process import child, say
from benchmarks.result import Case
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import publish
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key

CONTRIB = "opentelemetry-instrumentation-grpc"
SIDES = ("client", "server")
CALLS, BLOCKS, WARM = 200, 8, 200
LEAST_US = 1.0
"""What stands for less: a client of ours may add less than an empty interceptor, which it does without."""
HOUR = timedelta(hours=1)


class Row(NamedTuple):
    """One comparison: what `ours` takes more than `ours_over`, and `theirs` than `theirs_over`."""

    side: str
    name: str
    ours: str
    ours_over: str
    theirs: str
    theirs_over: str


class Suite(NamedTuple):
    """One kind of servers and clients, of `module`."""

    module: str
    prefix: str
    client: Sequence[str]
    server: Sequence[str]
    rows: Sequence[Row]


SUITES = (
    Suite(
        "instrumented",
        "",
        instrumented.CLIENTS,
        instrumented.SERVERS,
        (
            Row("client", "", "ours", "empty", "contrib", "empty"),
            Row("client", ", over a bare call", "ours", "bare", "contrib", "bare"),
            Row("server", "", "ours", "checked", "checked contrib", "checked"),
            Row("server", ", ours with its checks", "ours", "empty", "contrib", "empty"),
        ),
    ),
    Suite(
        "instrumented_aio",
        "aio ",
        ("bare", "empty", "ours", "contrib"),
        ("bare", "empty", "ours", "contrib"),
        (
            Row("client", "", "ours", "empty", "contrib", "empty"),
            Row("client", ", over a bare call", "ours", "bare", "contrib", "bare"),
            Row("server", "", "ours", "empty", "contrib", "empty"),
        ),
    ),
)
SHARE = (
    "the least that can be done: two looks at a clock, a count, a traceparent",
    Row("client", "", "ours", "bare", "floor", "bare"),
    Row("server", "", "ours", "checked", "floor", "empty"),
)
WHOLE_SHARE = (
    "the same, and the caller's certificate read but not checked",
    Row("client", "", "ours", "bare", "floor", "bare"),
    Row("server", "", "ours", "bare", "certified floor", "bare"),
)
PROMISED_SHARE = (
    "the least that keeps what ours promises of a call: who calls proved, its trace handed on, counted by four words",
    Row("client", "", "ours", "bare", "floor", "bare"),
    Row("server", "", "ours", "bare", "promised floor", "bare"),
)


async def cases(directory: Path, rounds: int) -> AsyncIterator[Case]:
    """Yields them."""
    say("gather: instrumentation")
    shares = [
        (Case("gather", f"added CPU share of a call, 1% traces{suffix}", reference, "%"), rows)
        for suffix, (reference, *rows) in (
            ("", SHARE),
            (", ours with its checks", WHOLE_SHARE),
            (", against what is promised", PROMISED_SHARE),
        )
    ]
    for suite in SUITES:
        for ratio, suffix in ((instrumented.ALL, ""), (instrumented.FEW, ", 1% traces")):
            found = [
                Case(
                    "gather",
                    f"instrumentation CPU, {suite.prefix}{row.side}{suffix}{row.name}",
                    f"{CONTRIB}: CPU added",
                    "µs",
                )
                for row in suite.rows
            ]
            async for used in _rounds(suite, directory / f"{suite.module}-{ratio:g}", ratio, rounds):
                for case, row in zip(found, suite.rows, strict=True):
                    case.add(*_added(used, row))
                if not suite.prefix and suffix:
                    for share, rows in shares:
                        ours, least = (sum(us) for us in zip(*(_added(used, row) for row in rows), strict=True))
                        bare = sum(used[side]["bare"] for side in SIDES)
                        share.add(ours / bare * 100, least / bare * 100)
            for case in found:
                yield case
    for share, _ in shares:
        yield share


Used = Mapping[str, Mapping[str, float]]
"""{side: {kind: CPU time of a call in µs}}"""
Side = Callable[[str, int], Awaitable[float]]


def _added(used: Used, row: Row) -> tuple[float, float]:
    us = used[row.side]
    return max(LEAST_US, us[row.ours] - us[row.ours_over]), max(LEAST_US, us[row.theirs] - us[row.theirs_over])


async def _rounds(suite: Suite, place: Path, ratio: float, rounds: int) -> AsyncIterator[Used]:
    certify(place)
    kinds = {"client": suite.client, "server": suite.server}
    async with _sides(suite, place, ratio) as sides:
        for number in range(rounds):
            used = {name: await _least(sides[name], kinds[name]) for name in SIDES}
            for name, us in used.items():
                said = ", ".join(f"{kind} {us[kind]:.1f}" for kind in us)
                say(f"  {number + 1}: {suite.prefix}{name}, {ratio:.0%} of traces: {said} µs")
            yield used


@asynccontextmanager
async def _sides(suite: Suite, place: Path, ratio: float) -> AsyncIterator[Mapping[str, Side]]:
    """Yields, for each side, what makes so many calls of a kind and tells the CPU time of each in µs."""
    async with AsyncExitStack() as stack:
        made = {}
        for name in ("server", "client"):
            command = [sys.executable, "-m", f"benchmarks.{suite.module}", name, str(ratio), str(place)]
            made[name] = await stack.enter_async_context(child(name, command, place, is_asked=True))
            for kind in suite.server:  # the servers' ports
                await made["server"].until_written(place / f"{kind}.port")
        channels = {kind: stack.enter_context(instrumented.dial(place, kind)) for kind in suite.server}
        at_s = dict.fromkeys(made, 0.0)

        async def used_us(name: str, line: str, calls: int) -> float:
            await made[name].ask(line)
            before_s, at_s[name] = at_s[name], float((await made[name].answer())["cpu_s"])
            return (at_s[name] - before_s) / calls * 1e6

        async def of_client(kind: str, calls: int) -> float:
            return await used_us("client", f"{kind} {calls}", calls)

        async def of_server(kind: str, calls: int) -> float:
            await anyio.to_thread.run_sync(instrumented.call_below, channels[kind], calls, ratio)
            return await used_us("server", kind, calls)

        for side, kinds in ((of_client, suite.client), (of_server, suite.server)):
            for kind in kinds:
                await side(kind, WARM)
        yield {"client": of_client, "server": of_server}


async def _least(side: Side, kinds: Sequence[str]) -> dict[str, float]:
    """{kind: CPU time of a call in µs}, the least of some blocks in turns: whatever else runs only adds to it."""
    blocks = [{kind: await side(kind, CALLS) for kind in kinds} for _ in range(BLOCKS)]
    return {kind: min(block[kind] for block in blocks) for kind in kinds}


def certify(place: Path) -> None:
    """Makes the directory of both sides: one certificate serves and calls."""
    place.mkdir(mode=0o700)
    now, key, leaf_key = utc_now(), new_key(), new_key()
    root = self_signed_root(instrumented.DOMAIN, key, now)
    identity = SpiffeId.workload(instrumented.DOMAIN, "platform", "orders")
    template = LeafTemplate(identity, HOUR, (instrumented.SERVER_NAME,))
    svid = X509Svid.of(issue_leaf(template, leaf_key.public_key(), IssuerKey(key, (root,)), now), leaf_key)
    roots = Bundle.of(instrumented.DOMAIN, [root]).pem()
    publish(place, {"tls.crt": svid.chain_pem(), "tls.key": svid.key_pem(), "ca.crt": roots})
