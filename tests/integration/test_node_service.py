"""NodeService.Sync behind the front, the peer check and the validation, as an agent meets it."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
from google.protobuf import json_format

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.port import AuthorityUnavailable
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import PeerVerifier, VerifiedPeer
from meshwarden.controlplane.api import node as api_node
from meshwarden.controlplane.api.node import NodeServicer, add_to
from meshwarden.controlplane.api.report import ReportServicer
from meshwarden.controlplane.api.server import overload, traced
from meshwarden.controlplane.api.validation import ValidationInterceptor
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.gather.mark import Marks
from meshwarden.controlplane.identity.attestor_token import TokenAttestor
from meshwarden.controlplane.identity.authorize import admit
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.identity.record import NodeRecord, node_key
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.store.port import Op, Put, Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.sdk.tracing.own_span import own_provider, server_interceptor
from meshwarden.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    node_service_pb2_grpc,
    report_pb2,
    report_pb2_grpc,
    resources_pb2,
)
from meshwarden.v1 import node_service_pb2 as v1

DOMAIN, SERVER_NAME = "mesh.test", "controlplane.mesh.test"
HELLO = v1.SyncRequest(hello=v1.NodeHello(agent_version="1", zone="a"))
DEADLINE_S = 60.0


def tracing() -> grpc.aio.ServerInterceptor:
    """What stands around handlers where a backend takes traces."""
    return server_interceptor(own_provider("test", lambda body, count: None), traced())


def put(kind: str, tenant: str, name: str, **spec: Any) -> Put:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    message = json_format.ParseDict(fields, getattr(resources_pb2, kind)())
    return Put(f"/resource/{kind}/{tenant}/{name}", model.encode(model.wrap(message)))


WEB = (
    put("Service", "acme", "web", protocol="GRPC"),
    put("WorkloadEntry", "acme", "web", service="web", nodes=["n1"]),
)


class Gathered:
    """Takes what nodes report."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.marks = Marks()
        self.reads_spans = True

    def ingest(self, node: str, *_: object) -> None:
        self.nodes.append(node)

    async def make_room(self) -> None:
        """Has room."""

    async def settle(self) -> None:
        """Has nothing to wait for."""


class Busy(admin_service_pb2_grpc.AdminServiceServicer):
    """Computes for some milliseconds whatever it is asked, and waits for nothing."""

    async def GetGraph(self, request: Any, context: Any) -> admin_service_pb2.GetGraphResponse:  # noqa: N802
        sum(range(200_000))
        return admin_service_pb2.GetGraphResponse()


@dataclass
class World:
    """A control plane that serves NodeService on a port."""

    store: Store
    sessions: Sessions
    authority: MemoryAuthority
    tokens: JoinTokens
    audit: Path
    gathered: "Gathered"
    port: int
    stack: AsyncExitStack
    servicer: NodeServicer
    publisher: Publisher

    async def channel(self, identity: SpiffeId | None) -> grpc.aio.Channel:
        """A channel of whoever bears that identity; None shows no certificate."""
        svid = await issue(self.authority, identity) if identity is not None else None
        pair = (svid.key_pem(), svid.chain_pem()) if svid is not None else (None, None)
        credentials = grpc.ssl_channel_credentials((await self.authority.bundle()).pem(), *pair)
        options = [("grpc.ssl_target_name_override", SERVER_NAME)]
        channel = grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options)
        return await self.stack.enter_async_context(channel)

    async def stub(self, identity: SpiffeId | None) -> Any:
        return node_service_pb2_grpc.NodeServiceStub(await self.channel(identity))

    async def sync(self, identity: SpiffeId) -> Any:
        """A stream of whoever bears that identity."""
        return (await self.stub(identity)).Sync(timeout=DEADLINE_S)

    async def report(self, identity: SpiffeId) -> None:
        stub = report_pb2_grpc.ReportServiceStub(await self.channel(identity))
        await stub.Export(report_pb2.ExportRequest(), timeout=DEADLINE_S)

    async def refusal(self, number: int) -> dict[str, str]:
        """The refusal of that number, counted from 1, once it is in the audit log; and no other is."""
        async with asyncio.timeout(DEADLINE_S):
            while len(events := self._refusals()) < number:  # noqa: ASYNC110 - a file tells nobody
                await anyio.sleep(0.02)
        assert len(events) == number
        return events[-1]

    def _refusals(self) -> list[dict[str, str]]:
        lines = map(json.loads, self.audit.read_text().splitlines())
        return [line["fields"] for line in lines if line["event"] == "rpc.refused"]


async def issue(authority: MemoryAuthority, identity: SpiffeId, *dns: str) -> X509Svid:
    key = new_key()
    template = LeafTemplate(identity, timedelta(hours=1), dns)
    return X509Svid.of(await authority.sign(template, key.public_key(), utc_now()), key)


@pytest.fixture
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A control plane; its parameter says how often it wants to hear of nodes, in seconds."""
    node = Put(node_key("n1"), NodeRecord("n1", utc_now(), "192.0.2.1", "1").encode())
    async with serving(
        tmp_path, MemoryAuthority(DOMAIN), *WEB, node, heartbeat_s=getattr(request, "param", 30.0)
    ) as made:
        yield made


@contextlib.asynccontextmanager
async def serving(
    tmp_path: Path, authority: MemoryAuthority, *first: Op, port: int = 0, heartbeat_s: float = 30.0
) -> AsyncIterator[World]:
    """A control plane with the store that is there, or a new one; it changes that first."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(tmp_path / "s" / "store.sqlite"))
        if first:
            await store.commit(first)
        audit = await stack.enter_async_context(FileAuditLog.open(tmp_path / "audit.jsonl", utc_now))
        publisher = Publisher(store, trust_domain=DOMAIN, audit=audit)
        sessions = Sessions(publisher, store, region="eu", clock=utc_now)
        tokens = JoinTokens(store, utc_now)
        nodes = NodeIdentity(
            authority, store, {"join_token": TokenAttestor(tokens)}, audit, utc_now, trust_domain=DOMAIN, region="eu"
        )
        bundle = await authority.bundle()
        front = Front(tmp_path / "in.sock")
        peers = PeerInterceptor(
            front,
            PeerVerifier(lambda: {DOMAIN: bundle}, utc_now),
            admit,
            lambda caller, method, reason: audit.note("rpc.refused", caller=caller, method=method, reason=reason),
        )
        bound = overload(lambda: 0.5)
        server = grpc.aio.server(interceptors=[peers, bound, tracing(), ValidationInterceptor(audit)])
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(Busy(), server)
        servicer = NodeServicer(nodes, publisher, sessions, authority, heartbeat_s=heartbeat_s)
        add_to(server, servicer)
        gathered = Gathered()
        report_pb2_grpc.add_ReportServiceServicer_to_server(ReportServicer(gathered, nodes), server)
        server.add_insecure_port(front.inner_target)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        await stack.enter_async_context(front)
        own = await issue(authority, SpiffeId.control_plane(DOMAIN, "eu"), SERVER_NAME)
        context = server_context(own.chain_pem(), own.key_pem(), bundle.pem())
        port = await front.serve_tls("127.0.0.1", port, lambda: context)
        async with anyio.create_task_group() as group:
            await group.start(publisher.run)
            group.start_soon(sessions.run)
            async with AsyncExitStack() as callers:
                audited = tmp_path / "audit.jsonl"
                yield World(store, sessions, authority, tokens, audited, gathered, port, callers, servicer, publisher)
            group.cancel_scope.cancel()


def node(name: str = "n1", region: str = "eu") -> SpiffeId:
    return SpiffeId.for_node(DOMAIN, region, name)


async def opened(world: World, name: str = "n1") -> Any:
    stream = await world.sync(node(name))
    await stream.write(HELLO)
    assert (await stream.read()).HasField("welcome")
    return stream


async def test_a_node_that_has_left_before_it_is_welcomed_is_no_defect(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    svid = await issue(world.authority, node())
    leaf = svid.leaf
    peer = VerifiedPeer(node(), leaf, leaf.not_valid_after_utc, leaf.not_valid_before_utc)
    monkeypatch.setattr(api_node.peer, "current", lambda: peer)

    class Gone:
        async def write(self, _: bytes) -> None:
            raise grpc.aio.UsageError("RPC already finished.")

    async def requests() -> AsyncIterator[v1.SyncRequest]:
        yield HELLO

    async with asyncio.timeout(DEADLINE_S):
        await world.servicer.Sync(requests(), Gone())  # type: ignore[arg-type]
    (state,) = world.sessions.states()
    assert not state.connected


async def heard(stream: Any, kind: str) -> Any:
    """The next message of a kind."""
    while (message := await stream.read()) is not grpc.aio.EOF:
        if message.HasField(kind):
            return getattr(message, kind)
    return pytest.fail(f"the session ended without {kind}")


async def let_go(world: World) -> None:
    """Waits until the node has no session: the caller hears of the end before that."""
    async with asyncio.timeout(DEADLINE_S):
        while world.sessions.states()[0].connected:  # noqa: ASYNC110 - nothing signals it
            await anyio.sleep(0.01)


async def code(stream: Any) -> grpc.StatusCode:
    """How the session ends; the status comes after all that was sent before it."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await stream.read() is not grpc.aio.EOF:
            pass
    return await stream.code()


async def test_an_agent_is_told_over_how_long_to_come_back(world: World) -> None:
    more = [Put(node_key(f"m{n}"), NodeRecord(f"m{n}", utc_now(), "192.0.2.1", "1").encode()) for n in range(99)]
    await world.store.commit(more)
    async with asyncio.timeout(DEADLINE_S):
        while len(world.sessions.joined) < 100:  # noqa: ASYNC110 - nothing signals it
            await anyio.sleep(0.01)
    stream = await world.sync(node())
    await stream.write(HELLO)
    assert (await stream.read()).welcome.reconnect_spread.ToTimedelta() == timedelta(microseconds=300_300)


async def test_a_session_gives_bundle_entries_and_configuration(world: World) -> None:
    stream = await opened(world)
    assert (await heard(stream, "bundle")).trust_domain == DOMAIN
    entries = await heard(stream, "entries")
    assert [entry.metadata.name for entry in entries.entries] == ["web"]
    ref = v1.DataPlaneRef(id="acme/web#1/grpc", tenant="acme", entry="web", dialect="GRPC")
    await stream.write(v1.SyncRequest(interest=v1.Interest(data_planes=[ref])))
    config = await heard(stream, "config")
    assert [scope.scope for scope in config.scopes] == ["client/acme/c-core"]
    await stream.write(v1.SyncRequest(ack=v1.ConfigAck(revision=config.revision)))
    revision = await world.store.commit([put("Service", "acme", "more", protocol="GRPC")])
    assert (await heard(stream, "config")).revision == revision
    (state,) = world.sessions.states()
    assert (state.node, state.connected, state.zone, state.acked_revision) == ("n1", True, "a", config.revision)
    assert world.sessions.renew_all("now") == ["n1"]
    assert (await heard(stream, "renew_now")).reason == "now"


async def test_the_first_message_must_be_hello_and_only_the_first(world: World) -> None:
    stream = await world.sync(node())
    await stream.write(v1.SyncRequest(heartbeat=v1.Heartbeat()))
    assert await code(stream) is grpc.StatusCode.INVALID_ARGUMENT
    assert "hello" in await stream.details()
    assert not world.sessions.states()[0].connected
    stream = await opened(world)
    await stream.write(HELLO)
    assert await code(stream) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("now", [{"seconds": 1 << 60}, {"nanos": -1}])
async def test_a_clock_that_says_no_time_is_refused_by_its_field(world: World, now: dict[str, int]) -> None:
    stream = await world.sync(node())
    await stream.write(v1.SyncRequest(hello=v1.NodeHello(agent_version="1", now=now)))
    assert await code(stream) is grpc.StatusCode.INVALID_ARGUMENT
    assert "hello.now" in await stream.details()
    assert not world.sessions.states()[0].connected


async def test_heartbeats_tell_of_a_clock_that_goes_wrong(world: World) -> None:
    stream = await opened(world)
    assert abs(world.sessions.states()[0].clock_skew.ToTimedelta()) < timedelta(minutes=1)
    heartbeat = v1.Heartbeat()
    heartbeat.now.FromDatetime(utc_now() + timedelta(minutes=5))
    await stream.write(v1.SyncRequest(heartbeat=heartbeat))
    health = v1.AgentHealth(disk_error="No space left on device", waiting=["acme/web#1/grpc"])
    await stream.write(v1.SyncRequest(health=health))

    async with asyncio.timeout(DEADLINE_S):
        while not world.sessions.states()[0].health.disk_error:  # noqa: ASYNC110 - nothing signals it
            await anyio.sleep(0.01)
    state = world.sessions.states()[0]
    assert abs(state.clock_skew.ToTimedelta() - timedelta(minutes=5)) < timedelta(minutes=1)
    assert state.health == health


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"heartbeat": {"now": {"seconds": 1 << 60}}}, "heartbeat.now"),
        ({"interest": {"held": {"client/acme/c-core": b"short"}}}, "interest.held"),
        ({"interest": {"held": {"": bytes(32)}}}, "interest.held"),
        ({"interest": {"held": {"x" * 513: bytes(32)}}}, "interest.held"),
        ({"interest": {"held": {str(number): bytes(32) for number in range(4097)}}}, "interest.held"),
        ({"health": {"not_after": {"nanos": -1}}}, "health.notAfter"),
        (
            {
                "workloads": {
                    "workloads": [{"id": "a", "tenant": "acme", "entry": "web", "not_after": {"seconds": 1 << 60}}]
                }
            },
            "workloads.workloads[0].notAfter",
        ),
        (
            {"health": {"clear_callers": [{"tenant": "acme", "service": "web", "last": {"seconds": 1 << 60}}]}},
            "health.clearCallers[0].last",
        ),
        ({"health": {"waiting": ["x"] * 65}}, "health.waiting"),
        ({"health": {"disk_error": "x" * 1025}}, "health.diskError"),
    ],
)
async def test_what_an_agent_says_of_itself_is_bounded(world: World, message: dict[str, Any], field: str) -> None:
    stream = await opened(world)
    await stream.write(v1.SyncRequest(**message))
    assert await code(stream) is grpc.StatusCode.INVALID_ARGUMENT
    assert field in await stream.details()


async def test_a_message_that_breaks_the_schema_ends_the_session_with_the_field(world: World) -> None:
    stream = await opened(world)
    await stream.write(v1.SyncRequest(interest=v1.Interest(data_planes=[v1.DataPlaneRef(id="x", tenant="acme")])))
    assert await code(stream) is grpc.StatusCode.INVALID_ARGUMENT
    assert "interest.dataPlanes[0].entry" in await stream.details()
    await let_go(world)


@pytest.mark.parametrize(
    "identity",
    [
        node(region="us"),
        node("removed"),
        SpiffeId.workload(DOMAIN, "acme", "web"),
        SpiffeId.for_operator(DOMAIN, "root"),
    ],
    ids=["another region's node", "one that has not joined", "a workload", "an operator"],
)
async def test_only_a_node_that_joined_this_region_has_a_session_and_reports(world: World, identity: SpiffeId) -> None:
    stream = await world.sync(identity)
    assert await code(stream) is grpc.StatusCode.PERMISSION_DENIED
    assert not world.sessions.states()[0].connected
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.report(identity)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await world.report(node())
    assert world.gathered.nodes == ["n1"]
    assert str(identity) in (await world.refusal(2))["caller"]


CSR = make_csr(new_key())
TOKEN = "x" * 43


@pytest.mark.parametrize(
    ("token", "csr", "status", "said"),
    [
        ("short", CSR, "INVALID_ARGUMENT", "joinToken"),
        ("x" * 257, CSR, "INVALID_ARGUMENT", "joinToken"),
        ("x\n" * 21 + "x", CSR, "PERMISSION_DENIED", "unknown"),
        (TOKEN, CSR, "PERMISSION_DENIED", "unknown"),
        (TOKEN, b"", "INVALID_ARGUMENT", "csr"),
        (TOKEN, b"x" * 8193, "INVALID_ARGUMENT", "csr"),
        (None, b"x" * 8192, "INVALID_ARGUMENT", "CSR"),
        (None, CSR[:-1], "INVALID_ARGUMENT", "CSR"),
    ],
)
async def test_what_a_stranger_brings_is_refused_audited_and_costs_nothing(
    world: World, token: str | None, csr: bytes, status: str, said: str
) -> None:
    good = await world.tokens.create("n2")
    stranger = await world.stub(None)
    for number in (1, 2):
        with pytest.raises(grpc.aio.AioRpcError, match=said) as refused:
            await stranger.Attest(v1.AttestRequest(join_token=token or good, csr=csr), timeout=DEADLINE_S)
        assert refused.value.code().name == status
        event = await world.refusal(number)
        assert event["method"] == "/meshwarden.v1.NodeService/Attest"
        assert event["caller"].startswith("127.0.0.1:")
        assert said in event["reason"]
        assert good not in world.audit.read_text()
    answer = await stranger.Attest(v1.AttestRequest(join_token=good, csr=CSR), timeout=DEADLINE_S)
    assert answer.node == "n2"


async def test_a_used_token_is_refused_and_audited(world: World) -> None:
    token = await world.tokens.create("n2")
    stranger = await world.stub(None)
    await stranger.Attest(v1.AttestRequest(join_token=token, csr=CSR), timeout=DEADLINE_S)
    with pytest.raises(grpc.aio.AioRpcError, match="another key") as refused:
        await stranger.Attest(v1.AttestRequest(join_token=token, csr=make_csr(new_key())), timeout=DEADLINE_S)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "'n2'" in (await world.refusal(1))["reason"]


async def test_bad_requests_of_a_node_leave_its_session_alone(world: World) -> None:
    stream = await opened(world)
    mine = await world.stub(node())
    large = v1.SignWorkloadRequest(requests=[v1.WorkloadCsr(tenant="acme", entry="web", csr=b"x" * 8193)])
    bad = [(mine.Renew, v1.RenewRequest(csr=b"noise")), (mine.SignWorkload, v1.SignWorkloadRequest())]
    for number, (method, request) in enumerate([*bad, (mine.SignWorkload, large)], 1):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(request, timeout=DEADLINE_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(node()) in (await world.refusal(number))["caller"]
    await stream.write(v1.SyncRequest(heartbeat=v1.Heartbeat()))
    assert (await heard(stream, "entries")).entries[0].metadata.name == "web"
    assert (await mine.Renew(v1.RenewRequest(csr=CSR), timeout=DEADLINE_S)).chain


async def test_while_nobody_can_sign_a_node_is_told_to_come_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise AuthorityUnavailable("Vault is away")

    stranger = await world.stub(None)
    request = v1.AttestRequest(join_token=await world.tokens.create("n2"), csr=CSR)
    with monkeypatch.context() as patched:
        patched.setattr(world.authority, "sign", away)
        with pytest.raises(grpc.aio.AioRpcError, match="Vault is away") as refused:
            await stranger.Attest(request, timeout=DEADLINE_S)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (await stranger.Attest(request, timeout=DEADLINE_S)).node == "n2"


async def test_a_flood_of_reads_stops_no_node(world: World) -> None:
    """An operator asks for the graph as fast as it can, over three connections; a node renews and is heard."""
    stream, mine = await opened(world), await world.stub(node())
    answers = Counter[grpc.StatusCode]()
    is_over = asyncio.Event()

    async def flood(ask: Any) -> None:
        while not is_over.is_set():
            call = ask(admin_service_pb2.GetGraphRequest(), timeout=DEADLINE_S)
            answers[await call.code()] += 1

    async with anyio.create_task_group() as group:
        for _ in range(3):
            channel = await world.channel(SpiffeId.for_operator(DOMAIN, "eve"))
            for _ in range(60):
                group.start_soon(flood, admin_service_pb2_grpc.AdminServiceStub(channel).GetGraph)
        while not answers[grpc.StatusCode.UNAVAILABLE]:  # noqa: ASYNC110 - nothing signals it
            await anyio.sleep(0.01)
        for _ in range(10):
            assert (await mine.Renew(v1.RenewRequest(csr=CSR), timeout=DEADLINE_S)).chain
            await stream.write(v1.SyncRequest(heartbeat=v1.Heartbeat()))
        is_over.set()
    assert set(answers) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    revision = await world.store.commit([put("Service", "acme", "more", protocol="GRPC")])
    ref = v1.DataPlaneRef(id="acme/web#1/grpc", tenant="acme", entry="web", dialect="GRPC")
    await stream.write(v1.SyncRequest(interest=v1.Interest(data_planes=[ref])))
    while (await heard(stream, "config")).revision < revision:
        pass  # what was there when the interest came


@pytest.mark.parametrize("world", [0.5], indirect=True)
async def test_a_silent_node_is_let_go(world: World) -> None:
    stream = await opened(world)
    assert await code(stream) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "nothing was heard for 1.5 s" in await stream.details()
    await let_go(world)


@pytest.mark.parametrize("world", [0.5], indirect=True)
async def test_a_control_plane_that_was_held_up_takes_no_node_for_silent(world: World) -> None:
    stream = await opened(world)
    time.sleep(2.5)  # noqa: ASYNC251 - longer than a node may be silent: nobody reads meanwhile, and nobody is at fault
    await anyio.lowlevel.checkpoint()
    await stream.write(v1.SyncRequest(heartbeat=v1.Heartbeat()))
    ref = v1.DataPlaneRef(id="acme/web#1/grpc", tenant="acme", entry="web", dialect="GRPC")
    await stream.write(v1.SyncRequest(interest=v1.Interest(data_planes=[ref])))
    assert await heard(stream, "config")


@pytest.mark.parametrize("world", [0.5], indirect=True)
async def test_a_node_that_speaks_and_does_not_read_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_node, "UNREAD_S", 0.2)
    stream = await opened(world)
    (session,) = world.sessions._open.values()
    async with asyncio.timeout(60):
        while world.sessions.states()[0].connected:
            # More than flow control lets through, and a sign of life each time.
            session.feed.say(v1.SyncResponse(welcome=v1.Welcome(server_version="x" * 1_000_000)))
            with contextlib.suppress(asyncio.InvalidStateError, grpc.RpcError):
                await stream.write(v1.SyncRequest(heartbeat=v1.Heartbeat()))
            await asyncio.sleep(0.05)
    stream.cancel()


async def test_a_newer_session_of_a_node_ends_the_older(world: World) -> None:
    older, newer = await opened(world), await opened(world)
    assert await code(older) is grpc.StatusCode.ABORTED
    assert world.sessions.states()[0].connected
    await newer.write(v1.SyncRequest(heartbeat=v1.Heartbeat()))
    assert (await heard(newer, "bundle")).trust_domain == DOMAIN
