"""What the console takes: in a browser until it shows something and while a thousand services change; in the server.

The mesh has a thousand services that call each other by 3,000 edges, whose nodes tell of new calls all the time. The
browser is Debian's Chromium without a window, which draws on the processor.
"""

import asyncio
import itertools
import os
import random
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psutil
from cryptography import x509
from playwright.async_api import Browser, Page, async_playwright

from benchmarks.control_plane import RPC_S, TRUST_DOMAIN, ControlPlane, control_plane
from benchmarks.process import Broken, say
from benchmarks.result import Case
from meshwarden.agents.channel import open_channel
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import control_plane_dns_name
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.v1 import operator_service_pb2, resources_pb2
from meshwarden.v1.operator_service_pb2_grpc import OperatorServiceStub
from meshwarden.v1.report_pb2 import CallStat, ExportRequest, Histogram
from meshwarden.v1.report_pb2_grpc import ReportServiceStub
from meshwarden.v1.session_service_pb2 import CreateSessionCodeRequest
from meshwarden.v1.session_service_pb2_grpc import SessionServiceStub

SERVICES: Final = 1000
EDGES: Final = 3000
TENANTS: Final = 20
VIEWERS: Final = 200
_CHROMIUM: Final = "/usr/bin/chromium"
_WATCH_S: Final = 5.0
_VIEWERS_PER_OPERATOR: Final = 16
_AT_ONCE: Final = 8
# Time between frames, in ms, for so many seconds.
_FRAMES: Final = """(seconds) => new Promise((done) => {
  const found = [];
  let last = performance.now();
  const end = last + seconds * 1000;
  const frame = (now) => {
    found.push(now - last);
    last = now;
    if (now < end) requestAnimationFrame(frame); else done(found.slice(2));
  };
  requestAnimationFrame(frame);
})"""
_PAINT: Final = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
_BLANK: Final = "data:text/html,<title>blank</title><p>blank"


async def cases(rounds: int) -> AsyncIterator[Case]:
    """Yields the cases."""
    paint = Case("api", "console first paint", "a page of one line from the same browser", "ms")
    frame = Case("api", f"graph {SERVICES} nodes, frame", "the longest frame of a blank page", "ms, the longest of 5 s")
    usual = Case("api", f"graph {SERVICES} nodes, frame p99", "that of a blank page", "ms")
    viewers = Case("api", f"SSE {VIEWERS} viewers", "one viewer", "ms of CPU a second", may_be_nothing=True)
    with tempfile.TemporaryDirectory(prefix="mw-", dir="/tmp") as scratch:
        async with control_plane(Path(scratch) / "cp", rest=True) as server, _calls(server), _chromium() as browser:
            for _ in range(min(rounds, 3)):
                paint.add(await _painted_ms(server, browser), await _blank_ms(browser))
                found, blank = await _frames_ms(server, browser), await _frames_ms(None, browser)
                frame.add(max(found), max(blank))
                usual.add(_p99(found), _p99(blank))
                say(f"  frames: the longest {max(found):.0f}, p99 {_p99(found):.0f} of {len(found)}")
                viewers.add(await _watched(server, VIEWERS), await _watched(server, 1))
                say(f"  CPU: {VIEWERS} viewers {viewers.ours[-1]:.0f}, one {viewers.theirs[-1]:.0f} ms a second")
    for case in (paint, frame, usual, viewers):
        yield case


@asynccontextmanager
async def _chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        yield await playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])


async def _opened(server: ControlPlane, browser: Browser) -> Page:
    """The console in a browser that has nothing but its session."""
    made = await SessionServiceStub(server.channel).CreateSessionCode(CreateSessionCodeRequest(), timeout=RPC_S)
    address = f"https://127.0.0.1:{server.rest_port}"
    signing = await browser.new_context(ignore_https_errors=True)
    asked = await signing.request.post(f"{address}/v1/session", data={"code": made.code}, headers={"origin": address})
    if not asked.ok:
        raise Broken(f"a code was answered {asked.status}")
    context = await browser.new_context(ignore_https_errors=True, viewport={"width": 1440, "height": 900})
    await context.add_cookies(await signing.cookies())  # type: ignore[arg-type]  # the same keys, of another type
    await signing.close()
    page = await context.new_page()
    await page.goto(f"{address}/console/")
    return page


async def _painted_ms(server: ControlPlane, browser: Browser) -> float:
    page = await _opened(server, browser)
    await page.locator("nav a").first.wait_for()
    found = await _first_paint_ms(page)
    await page.context.close()
    return found


async def _blank_ms(browser: Browser) -> float:
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(_BLANK)
    found = await _first_paint_ms(page)
    await context.close()
    return found


async def _first_paint_ms(page: Page) -> float:
    # Not `wait_for_function`, which the page's policy keeps from evaluating anything.
    while not (found := await page.evaluate(_PAINT)):  # noqa: ASYNC110 - a browser tells of none
        await asyncio.sleep(0.01)
    return float(found)


async def _frames_ms(server: ControlPlane | None, browser: Browser) -> Sequence[float]:
    """How long each frame takes while the graph of all services changes; of a blank page without a server."""
    if server is None:
        page = await (await browser.new_context()).new_page()
        await page.goto(_BLANK)
    else:
        page = await _opened(server, browser)
        await page.locator(".stage canvas").wait_for()
        await page.evaluate(f"location.hash = 'graph?most={SERVICES}'")
        await page.locator(".graph-page .push").filter(has_text=f"{SERVICES:,} services").wait_for(timeout=60_000)
        await page.wait_for_timeout(2000)  # laid out, and drawn for the first time
    found: Sequence[float] = await page.evaluate(_FRAMES, _WATCH_S)
    await page.context.close()
    return found


def _p99(found: Sequence[float]) -> float:
    return sorted(found)[int(len(found) * 0.99)]


@asynccontextmanager
async def _calls(server: ControlPlane) -> AsyncIterator[None]:
    """Has a node tell of calls on every edge, once a second, for as long as the context lasts."""
    names = [(f"t{number % TENANTS}", f"s{number}") for number in range(SERVICES)]
    made = resources_pb2
    tenants = (
        made.Resource(tenant=made.Tenant(kind="Tenant", metadata=made.Metadata(name=f"t{number}")))
        for number in range(TENANTS)
    )
    spec = made.ServiceSpec(protocol=made.ServiceSpec.GRPC)
    services = (
        made.Resource(service=made.Service(kind="Service", metadata=made.Metadata(tenant=tenant, name=name), spec=spec))
        for tenant, name in names
    )
    entries = (
        made.Resource(
            workload_entry=made.WorkloadEntry(
                kind="WorkloadEntry",
                metadata=made.Metadata(tenant=tenant, name=name),
                spec=made.WorkloadEntrySpec(service=name, nodes=["n1"], selectors=made.Selectors(uid=uid)),
            )
        )
        for uid, (tenant, name) in enumerate(names, 1)
    )
    await server.apply(*tenants, *services, *entries)
    (node,) = await server.join(["n1"])
    rng = random.Random(7)
    edges = {(rng.choice(names), rng.choice(names)) for _ in range(EDGES)}
    async with open_channel(server.place, server.bundle, node) as channel:
        stub = ReportServiceStub(channel)
        reports = asyncio.ensure_future(_report(stub, sorted(edges), rng))
        try:
            yield
        finally:
            reports.cancel()


async def _report(stub: Any, edges: Sequence[Any], rng: random.Random) -> None:
    for sequence in itertools.count(1):
        stats = []
        minute = utc_now().replace(second=0, microsecond=0)
        for (tenant, service), (owner, called) in edges:
            count = rng.randint(1, 30)
            stat = CallStat(
                source=f"spiffe://{TRUST_DOMAIN}/tenant/{tenant}/service/{service}",
                destination=f"{owner}/{called}",
                method="/bench.Bench/Get",
                status="OK" if rng.random() < 0.99 else "UNAVAILABLE",
                decision=CallStat.ALLOWED,
                reporter=CallStat.SOURCE,
                count=count,
                durations=Histogram(buckets=[rng.randint(50, 250)], counts=[count]),
            )
            stat.minute.FromDatetime(minute)
            stats.append(stat)
        await stub.Export(
            ExportRequest(run_id="bench", first_sequence=sequence, sequence=sequence, calls=stats), timeout=RPC_S
        )
        await asyncio.sleep(1)


async def _watched(server: ControlPlane, number: int) -> float:
    """The CPU of the control plane while so many watch, in ms a second, beyond what it takes without them."""
    operators = [server.operator] if number == 1 else await _operators(server, -(-number // _VIEWERS_PER_OPERATOR))
    streams = [_Stream(server, operators[at // _VIEWERS_PER_OPERATOR]) for at in range(number)]
    alone = await _cpu_ms(server)
    turn = asyncio.Semaphore(_AT_ONCE)
    reading = asyncio.gather(*(stream.read(turn) for stream in streams))
    async with asyncio.timeout(60):
        while not all(stream.pieces for stream in streams):
            if reading.done():
                await reading  # which tells why
            await asyncio.sleep(0.1)
    found = await _cpu_ms(server)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return max(0.0, found - alone)


async def _cpu_ms(server: ControlPlane) -> float:
    process = psutil.Process(server.child.pid)
    begun, begun_s = process.cpu_times(), time.monotonic()
    await asyncio.sleep(_WATCH_S)
    ended = process.cpu_times()
    used_s = ended.user + ended.system - begun.user - begun.system
    return used_s / (time.monotonic() - begun_s) * 1000


async def _operators(server: ControlPlane, number: int) -> list[X509Svid]:
    stub, found = OperatorServiceStub(server.channel), []
    for _ in range(number):
        key, name = new_key(), f"viewer-{os.urandom(4).hex()}"
        asked = operator_service_pb2.CreateOperatorRequest(
            name=name, role=operator_service_pb2.VIEWER, csr=make_csr(key)
        )
        answer = await stub.CreateOperator(asked, timeout=RPC_S)
        found.append(X509Svid.of([x509.load_der_x509_certificate(der) for der in answer.chain], key))
    return found


class _Stream:
    """Somebody who watches."""

    def __init__(self, server: ControlPlane, svid: X509Svid) -> None:
        self.pieces, self._port = 0, server.rest_port
        self._tls = ssl.create_default_context(cadata=server.bundle.pem().decode())
        with tempfile.NamedTemporaryFile() as file:
            file.write(svid.chain_pem() + svid.key_pem())
            file.flush()
            self._tls.load_cert_chain(file.name)

    async def read(self, turn: asyncio.Semaphore) -> None:
        """Reads until it is cancelled; connects in its turn, since few may be who have shown no certificate yet."""
        name = control_plane_dns_name(TRUST_DOMAIN)
        async with turn:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=self._tls, server_hostname=name, limit=1 << 22
            )
            writer.write(f"GET /v1/mesh:watch HTTP/1.1\r\nhost: {name}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Broken(f"no stream: {head.decode()}")
        try:
            while piece := await reader.read(1 << 20):
                self.pieces += len(piece) > 0
        finally:
            writer.close()
