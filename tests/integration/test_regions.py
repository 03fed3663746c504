"""Two regions with real TLS between them: who is told, who is believed, and what a link that is cut costs."""

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.jwt_svid import InvalidJwtSvid, validate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane.api.region import RegionServicer
from meshwarden.controlplane.api.validation import ValidationInterceptor
from meshwarden.controlplane.audit.count import CountedAuditLog
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.graph.remote import Remote
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.tail.policy import TailPolicy
from meshwarden.controlplane.identity.authorize import admit
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.rotation import NodeTrust, RootRotation
from meshwarden.controlplane.identity.serving import ServingIdentity
from meshwarden.controlplane.regions import puller as puller_module
from meshwarden.controlplane.regions.inbox import Inbox
from meshwarden.controlplane.regions.link import Link as RegionLink
from meshwarden.controlplane.regions.link import Own, Peer
from meshwarden.controlplane.regions.puller import MAX_ROWS, Puller, Untrue
from meshwarden.controlplane.regions.regions import Regions
from meshwarden.controlplane.regions.trust import RegionTrust
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.red.histogram import bucket_of
from meshwarden.v1.region_service_pb2 import GetDeniesRequest, GetTrustRequest, PullRequest, PullResponse
from meshwarden.v1.region_service_pb2_grpc import (
    RegionServiceServicer,
    RegionServiceStub,
    add_RegionServiceServicer_to_server,
)
from meshwarden.v1.report_pb2 import CallStat

TRUST_DOMAIN = "mesh.test"
MINUTE = int(utc_now().timestamp()) // 60 * 60
WEB = "spiffe://mesh.test/tenant/acme/service/web"


def call(number: int = 0, count: int = 1) -> Call:
    return Call(
        *("acme", "web", "platform", "orders"),
        method=f"/a.B/{number}",
        status="OK",
        decision=CallStat.ALLOWED,
        reporter=CallStat.SOURCE,
        revision=1,
        minute=MINUTE,
        count=count,
        sum_s=0.25 * count,
        durations={bucket_of(0.25): count},
    )


class Link:
    """The way to a region, which can be cut: bytes go nowhere and nobody is told."""

    def __init__(self) -> None:
        self.is_cut = False
        self.target = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        onward_reader, onward = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers.append(onward)
        async with anyio.create_task_group() as group:
            group.start_soon(self._pass, reader, onward)
            group.start_soon(self._pass, onward_reader, writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if not self.is_cut:
                    writer.write(data)
                    await writer.drain()
            writer.close()
        except OSError:
            pass

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()  # what it holds back may never be read


class Region:
    """The parts of a control plane that regions have to do with, on a real file and real TLS."""

    def __init__(self, name: str, other: str, directory: Path, authority: MemoryAuthority) -> None:
        self.name, self.other = name, other
        self.directory = directory / name
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.authority = authority
        self.refused: list[str] = []
        self.servicer: RegionServiceServicer | None = None
        self.tail: TailPolicy | None = TailPolicy(ratio=0.0)

    async def start(self, stack: AsyncExitStack, port: int = 0) -> None:
        rng = random.Random(1)
        self.durable = Durable(self.directory / "gather.sqlite")
        stack.callback(self.durable.close)
        self.ledger = Ledger(self.durable, TRUST_DOMAIN, utc_now, region=self.name)
        owns: Callable[..., bool] = lambda *_: True  # noqa: E731
        mesh: dict[str, Any] = {"owns": owns, "trust_domain": TRUST_DOMAIN, "region": self.name}
        self.gather = Gather(self.durable, self.ledger, Metrics(), [], utc_now, rng, **mesh, tail=self.tail)
        self.remote = Remote([self.other], utc_now)
        self.remote.recall(self.ledger.totals_told())
        self.inbox = Inbox(self.ledger, self.remote)
        self.durable.add(self.inbox)
        audit = CountedAuditLog(await stack.enter_async_context(FileAuditLog.open(self.directory / "audit", utc_now)))
        self.serving = ServingIdentity(self.authority, TRUST_DOMAIN, self.name, audit=audit, clock=utc_now, rng=rng)
        await self.serving.issue()
        group = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(group.cancel_scope.cancel)
        group.start_soon(self.gather.run)
        front = await stack.enter_async_context(Front(self.directory / "s"))
        peers = PeerInterceptor(
            front,
            PeerVerifier(self.serving.bundles, utc_now),
            admit,
            lambda caller, method, reason: self.refused.append(reason),
        )
        self.server = grpc.aio.server(interceptors=[peers, ValidationInterceptor(audit)])
        store = await stack.enter_async_context(open_store(self.directory / "store.sqlite"))
        self.nodes: list[NodeTrust] = []
        self.rotation = RootRotation(
            self.authority, store, lambda: self.nodes, lambda *_: None, audit, utc_now, owner=self.name
        )
        await self.rotation.follow()
        own = TRUST_DOMAIN, self.name
        self.jwt = JwtAuthority(store, audit, utc_now, trust_domain=TRUST_DOMAIN)
        await self.jwt.open()
        self.deny_watch = DenyWatch(store, utc_now)
        servicer = self.servicer or RegionServicer(
            self.ledger, self.gather.tail, self.authority, self.rotation, self.deny_watch, self.jwt, own
        )
        add_RegionServiceServicer_to_server(servicer, self.server)
        self.server.add_insecure_port(front.inner_target)
        await self.server.start()
        stack.push_async_callback(self.server.stop, 0)
        self.port = await front.serve_tls("127.0.0.1", port, self.serving.context)

    def puller(self, port: int, region: str = "") -> Puller:
        peer = Peer(region or self.other, f"127.0.0.1:{port}")
        own = Own(TRUST_DOMAIN, self.serving.svid, self.serving.bundles)
        gather = self.gather
        return Puller(
            peer, own, self.inbox, self.ledger, gather.tail, gather.tally, gather.settle, utc_now, random.Random(2)
        )

    async def count(self, *calls: Call) -> None:
        self.ledger.add(calls)
        await self.gather.settle()

    async def rows(self, region: str) -> list[CallStat]:
        now = utc_now()
        rows = await self.ledger.list(now - timedelta(hours=1), now + timedelta(hours=1), limit=100_000)
        return [row for row in rows if row.region == region]


@pytest.fixture
def authority() -> MemoryAuthority:
    return MemoryAuthority(TRUST_DOMAIN)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def eu(tmp_path: Path, authority: MemoryAuthority, stack: AsyncExitStack) -> Region:
    region = Region("eu", "us", tmp_path, authority)
    await region.start(stack)
    return region


@pytest.fixture
async def us(tmp_path: Path, authority: MemoryAuthority, stack: AsyncExitStack) -> Region:
    region = Region("us", "eu", tmp_path, authority)
    await region.start(stack)
    return region


async def run(stack: AsyncExitStack, work: Callable[[], Any]) -> None:
    group = await stack.enter_async_context(anyio.create_task_group())
    stack.callback(group.cancel_scope.cancel)
    group.start_soon(work)


async def until(condition: Callable[[], Any], deadline_s: float = 60.0) -> None:
    async with asyncio.timeout(deadline_s):
        while True:
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.05)


async def test_each_tells_the_other_page_by_page(eu: Region, us: Region) -> None:
    await us.count(*(call(number) for number in range(1_700)))
    await eu.count(call(count=5))
    there, back = eu.puller(us.port), us.puller(eu.port)
    await there.pull()
    await back.pull()
    assert await eu.rows("us") == await us.rows("us")
    assert await us.rows("eu") == await eu.rows("eu")
    assert len(await eu.rows("us")) == 1_700
    assert eu.inbox.cursor("us").sequence == us.ledger.sequence == 1_700
    # What was told of eu does not come back to it.
    await there.pull()
    assert await eu.rows("us") == await us.rows("us")
    assert sum(row.count for row in await eu.rows("eu")) == 5


async def test_what_one_region_keeps_the_other_keeps_too(eu: Region, us: Region) -> None:
    there, back = eu.puller(us.port), us.puller(eu.port)
    for number in range(1, 4):
        us.gather.tail.keep(number.to_bytes(16, "big"), "error")
    us.gather.tail.keep(bytes(15) + b"\x09", "mesh")
    await there.pull()
    heard = eu.gather.tail.word
    assert [heard.has_heard(number.to_bytes(16, "big")) for number in (1, 2, 3, 4, 9)] == [True] * 3 + [False] * 2
    # It is told once, and does not come back to where it is from.
    await there.pull()
    await back.pull()
    assert not us.gather.tail.word.has_heard((1).to_bytes(16, "big"))
    us.gather.tail.keep((4).to_bytes(16, "big"), "denied")
    await there.pull()
    assert heard.has_heard((4).to_bytes(16, "big"))


@pytest.mark.parametrize("off", ["eu", "us"])
async def test_a_region_that_keeps_all_neither_asks_nor_tells(
    off: str, tmp_path: Path, authority: MemoryAuthority, stack: AsyncExitStack
) -> None:
    eu, us = Region("eu", "us", tmp_path, authority), Region("us", "eu", tmp_path, authority)
    for region in (eu, us):
        region.tail = None if region.name == off else region.tail
        await region.start(stack)
    us.gather.tail.keep(b"t" * 16, "error")
    await eu.puller(us.port).pull()
    assert not eu.gather.tail.word.has_heard(b"t" * 16)


async def test_a_link_that_is_cut_costs_nothing_but_time(
    eu: Region, us: Region, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puller_module, "PULL_S", 3.0)  # what is waited for while it is cut
    link = Link()
    port = await link.start()
    stack.push_async_callback(link.close)
    link.target = us.port
    puller = eu.puller(port)
    regions = Regions("eu", [puller], eu.inbox, utc_now)
    await run(stack, regions.run)
    await us.count(call())
    await until(lambda: eu.inbox.cursor("us").sequence == 1 and regions.states(whole=True)[1].answers)
    link.is_cut = True
    await until(lambda: puller.error)
    for number in range(200):
        await us.count(call(number % 7), call(number))
    own, there = regions.states(whole=True)
    assert (own.region, own.answers, own.age.seconds) == ("eu", True, 0)
    assert (there.region, there.answers, there.HasField("age"), bool(there.error)) == ("us", False, True, True)
    assert regions.warnings()
    assert not any(state.error or state.address for state in regions.states(whole=False))
    link.is_cut = False
    await until(lambda: eu.inbox.cursor("us").sequence == us.ledger.sequence)
    assert await eu.rows("us") == await us.rows("us")
    assert sum(row.count for row in await eu.rows("us")) == 401
    await until(lambda: puller.error == "")
    assert regions.states(whole=True)[1].answers


async def test_a_new_certificate_is_shown_and_lasting_ones_are_not(eu: Region, us: Region) -> None:
    puller = eu.puller(us.port)
    await puller.pull()
    before = puller._link._channel
    await puller.pull()
    assert puller._link._channel is before
    await eu.serving.issue()
    await us.count(call())
    await puller.pull()
    assert puller._link._channel is not before
    assert await eu.rows("us") == await us.rows("us")


async def test_a_peer_that_is_another_region_is_not_believed(eu: Region, us: Region) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await eu.puller(us.port, "asia").pull()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_peer_of_another_root_is_not_believed(eu: Region, tmp_path: Path, stack: AsyncExitStack) -> None:
    false = Region("us", "eu", tmp_path, MemoryAuthority(TRUST_DOMAIN))
    await false.start(stack)
    with pytest.raises(grpc.aio.AioRpcError):
        await eu.puller(false.port).pull()
    with pytest.raises(grpc.aio.AioRpcError):
        await false.puller(eu.port).pull()


@pytest.mark.parametrize(
    "caller",
    [
        SpiffeId.for_node(TRUST_DOMAIN, "us", "node-a"),
        SpiffeId.for_operator(TRUST_DOMAIN, "ann"),
        SpiffeId.workload(TRUST_DOMAIN, "acme", "web"),
        SpiffeId.control_plane(TRUST_DOMAIN, "eu"),
    ],
    ids=["a node", "an operator", "a workload", "itself"],
)
async def test_who_is_no_other_region_is_told_nothing(eu: Region, authority: MemoryAuthority, caller: SpiffeId) -> None:
    key = new_key()
    chain = await authority.sign(LeafTemplate(caller, timedelta(hours=1)), key.public_key(), utc_now())
    svid = X509Svid.of(chain, key)
    roots = (await authority.bundle()).pem()
    credentials = grpc.ssl_channel_credentials(roots, svid.key_pem(), svid.chain_pem())
    options = [("grpc.ssl_target_name_override", f"controlplane.{TRUST_DOMAIN}")]
    async with grpc.aio.secure_channel(f"127.0.0.1:{eu.port}", credentials, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in RegionServiceStub(channel).Pull(PullRequest()):
                pass
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await RegionServiceStub(channel).GetTrust(GetTrustRequest())
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await RegionServiceStub(channel).GetDenies(GetDeniesRequest())
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_region_tells_its_roots_and_which_its_nodes_trust(eu: Region, us: Region, tmp_path: Path) -> None:
    async with open_store(tmp_path / "roots.sqlite") as store:
        roots = await RegionTrust.open(store, ["us"], utc_now)
        link = RegionLink(Peer("us", f"127.0.0.1:{us.port}"), Own(TRUST_DOMAIN, eu.serving.svid, eu.serving.bundles))
        try:
            await us.rotation.prepare("a test")
            old, new = (root.fingerprint for root in us.rotation.known)
            us.nodes.append(NodeTrust("us-1", True, utc_now(), frozenset({old}), frozenset({old})))
            await roots.ask(link)
            assert [(root.state.fingerprint, root.state.state.value) for root in roots.roots] == [
                (old, "ACTIVE"),
                (new, "PREPARED"),
            ]
            assert roots.missing(old) == {}
            assert "not all acknowledged" in roots.missing(new)["region us"]
            us.nodes[0] = NodeTrust("us-1", True, utc_now(), frozenset({old, new}), frozenset({old}))
            await roots.ask(link)
            assert roots.missing(new) == {}
            (key,) = roots.keys
            assert (key.kid, key.tainted) == (us.jwt.records()[0].kid, False)
            # A key of ours signs once the nodes of the other region know it, too.
            eu.jwt.missing = roots.missing_jwt
            await eu.jwt.prepare("a test")
            mine, next_ = (record.kid for record in eu.jwt.records())
            us.jwt.trust({kid: eu.jwt.bundle().keys[kid] for kid in (mine, next_)}, ())
            us.nodes[0] = dataclasses.replace(us.nodes[0], jwt_keys=frozenset({key.kid, mine}))
            await roots.ask(link)
            assert roots.missing_jwt(mine) == {}
            assert "not all acknowledged" in eu.jwt.missing(next_)["region us"]
            us.nodes[0] = dataclasses.replace(us.nodes[0], jwt_keys=frozenset({key.kid, mine, next_}))
            await roots.ask(link)
            assert eu.jwt.missing(next_) == {}
            web = SpiffeId.parse(WEB)
            token = us.jwt.sign(web, ("orders",), utc_now()).token
            with pytest.raises(InvalidJwtSvid, match="key"):
                validate(token, "orders", {TRUST_DOMAIN: eu.jwt.bundle()}, utc_now())
            eu.jwt.trust({key.kid: key.key}, ())
            verified = validate(token, "orders", {TRUST_DOMAIN: eu.jwt.bundle()}, utc_now())
            assert verified.spiffe_id == web
            # Its own are told on, and not those that it has been told.
            assert [record.kid for record in eu.jwt.records()] == [mine, next_]
            eu.jwt.trust({}, ())
            assert key.kid not in eu.jwt.bundle().keys
        finally:
            await link.close()


def row(**changes: Any) -> CallStat:
    values: dict[str, Any] = {
        "source": WEB,
        "destination": "platform/orders",
        "method": "/a.B/C",
        "status": "OK",
        "decision": CallStat.ALLOWED,
        "reporter": CallStat.SOURCE,
        "count": 1,
    }
    stat = CallStat(**{**values, **changes})
    if not stat.HasField("minute"):
        stat.minute.seconds = MINUTE
    return stat


class Hostile(RegionServiceServicer):
    """Says whatever a test wants."""

    def __init__(self) -> None:
        self.pages: list[PullResponse] = []
        self.asked: list[PullRequest] = []

    async def Pull(self, request: Any, context: Any) -> AsyncIterator[PullResponse]:  # noqa: N802
        self.asked.append(request)
        for page in self.pages:
            yield page


@pytest.fixture
async def hostile(tmp_path: Path, authority: MemoryAuthority, stack: AsyncExitStack) -> tuple[Region, Hostile]:
    region = Region("us", "eu", tmp_path, authority)
    region.servicer = servicer = Hostile()
    await region.start(stack)
    return region, servicer


async def test_rows_that_make_no_sense_are_refused_and_counted_and_the_rest_taken(
    eu: Region, hostile: tuple[Region, Hostile]
) -> None:
    region, servicer = hostile
    minute = row().minute
    minute.seconds += 30 * 86_400
    bad = [
        row(region="eu"),
        row(source="spiffe://other.test/tenant/acme/service/web"),
        row(source="spiffe://mesh.test/region/eu/node/a"),
        row(source="no identity"),
        row(destination="orders"),
        row(method="a\x1b[2Jb"),
        row(status=""),
        row(decision=0),
        row(reporter=0),
        row(count=0),
        row(count=2**63),
        row(revision=2**64 - 1),
        row(duration_sum_s=float("nan")),
        row(duration_sum_s=-1.0),
        row(durations={"buckets": [1], "counts": [2]}),
        row(durations={"buckets": [100_000], "counts": [1]}),
        row(minute=minute),
        row(minute={"seconds": 2**62}),
    ]
    old = [row(minute={"seconds": 60}), row(minute={"seconds": -(2**62)})]
    servicer.pages = [PullResponse(incarnation="0a", sequence=9, rows=[*bad, *old, row(method="/good")])]
    await eu.puller(region.port).pull()
    assert [found.method for found in await eu.rows("us")] == ["/good"]
    assert await eu.rows("eu") == []
    drops = {reason: count for (stage, _, reason, _), count in eu.gather.tally.drops().items() if stage == "region.us"}
    assert sum(drops.values()) == len(bad)
    assert set(drops) == {"malformed", "unidentified", "out_of_time"}


@pytest.mark.parametrize(
    "page",
    [
        {"incarnation": "", "sequence": 1},
        {"incarnation": "x" * 65, "sequence": 1},
        {"incarnation": "a\nb", "sequence": 1},
        {"incarnation": "0a", "sequence": 2**63},
        {"incarnation": "0a", "sequence": 1, "rows": [row()] * (MAX_ROWS + 1)},
        {"kept": {"epoch": "", "sequence": 1}},
        {"kept": {"epoch": "0" * 65}},
        {"kept": {"epoch": "a b"}},
        {"kept": {"epoch": "0a", "sequence": 2**63}},
        {"kept": {"epoch": "0a", "trace_ids": b"t" * 17}},
        {"kept": {"epoch": "0a", "trace_ids": b"t" * 16 * 4097}},
    ],
    ids=[
        "none",
        "long",
        "control",
        "beyond",
        "flood",
        "no-epoch",
        "long-epoch",
        "odd-epoch",
        "beyond-epoch",
        "half-a-trace",
        "flood-of-traces",
    ],
)
async def test_a_page_that_cannot_be_gone_on_with_ends_the_pull(
    eu: Region, hostile: tuple[Region, Hostile], page: dict[str, Any]
) -> None:
    region, servicer = hostile
    servicer.pages = [PullResponse(**page)]
    with pytest.raises(Untrue):
        await eu.puller(region.port).pull()
    assert eu.inbox.cursor("us").sequence == 0
    assert await eu.rows("us") == []


async def test_a_page_of_our_own_ledger_is_refused(eu: Region, hostile: tuple[Region, Hostile]) -> None:
    region, servicer = hostile
    servicer.pages = [PullResponse(incarnation=eu.ledger.incarnation, sequence=1, rows=[row()])]
    with pytest.raises(Untrue, match="our own"):
        await eu.puller(region.port).pull()
    assert (await eu.ledger.changed(0, 10)).rows == []


async def test_a_message_that_is_too_large_is_not_read(eu: Region, hostile: tuple[Region, Hostile]) -> None:
    region, servicer = hostile
    servicer.pages = [PullResponse(incarnation="0a", sequence=1, rows=[row(method="/" + "x" * 5_000_000)])]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await eu.puller(region.port).pull()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_what_a_hostile_region_breaks_is_its_own_pull_alone(
    eu: Region, hostile: tuple[Region, Hostile], stack: AsyncExitStack
) -> None:
    region, servicer = hostile
    servicer.pages = [PullResponse()]
    puller = eu.puller(region.port)
    await run(stack, Regions("eu", [puller], eu.inbox, utc_now).run)
    await until(lambda: puller.error and "Untrue" in puller.error)
    servicer.pages = [PullResponse(incarnation="0a", sequence=3, rows=[row()])]
    await until(lambda: eu.inbox.cursor("us").sequence == 3)
    await until(lambda: puller.error == "")
    await until(lambda: servicer.asked[-1].after == 3)
    assert servicer.asked[-1].incarnation == "0a"


async def test_a_number_that_was_never_given_out_starts_over(eu: Region, us: Region) -> None:
    await us.count(call(), call(1))
    eu.inbox.put("us", us.ledger.incarnation, 1_000, [])
    await eu.gather.settle()
    await eu.puller(us.port).pull()
    assert await eu.rows("us") == await us.rows("us")
    assert eu.inbox.cursor("us").sequence == us.ledger.sequence
