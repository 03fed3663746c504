"""NodeService.Sync behind the front, the peer check and the validation, as an agent meets it."""

import contextlib
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
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane.api.node import NodeServicer
from meshwarden.controlplane.api.validation import ValidationInterceptor
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.identity.authorize import admit
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.identity.record import node_key
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.store.port import Put, Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.front import Front
from meshwarden.sdk.peer import PeerInterceptor
from meshwarden.sdk.tls import server_context
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1 import node_service_pb2_grpc, resources_pb2

DOMAIN, SERVER_NAME = "mesh.test", "controlplane.mesh.test"
HELLO = v1.SyncRequest(hello=v1.NodeHello(agent_version="1", zone="a"))
DEADLINE_S = 10.0


def put(kind: str, tenant: str, name: str, **spec: Any) -> Put:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    message = json_format.ParseDict(fields, getattr(resources_pb2, kind)())
    return Put(f"/resource/{kind}/{tenant}/{name}", model.encode(model.wrap(message)))


WEB = (
    put("Service", "acme", "web", protocol="GRPC"),
    put("WorkloadEntry", "acme", "web", service="web", nodes=["n1"]),
)


@dataclass
class World:
    """A control plane that serves NodeService on a port."""

    store: Store
    sessions: Sessions
    authority: MemoryAuthority
    port: int
    stack: AsyncExitStack

    async def sync(self, identity: SpiffeId) -> Any:
        """A stream of whoever bears that identity."""
        svid = await issue(self.authority, identity)
        credentials = grpc.ssl_channel_credentials(
            (await self.authority.bundle()).pem(), svid.key_pem(), svid.chain_pem()
        )
        options = [("grpc.ssl_target_name_override", SERVER_NAME)]
        channel = grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options)
        await self.stack.enter_async_context(channel)
        return node_service_pb2_grpc.NodeServiceStub(channel).Sync(timeout=DEADLINE_S)


async def issue(authority: MemoryAuthority, identity: SpiffeId, *dns: str) -> X509Svid:
    key = new_key()
    template = LeafTemplate(identity, timedelta(hours=1), dns)
    return X509Svid.of(await authority.sign(template, key.public_key(), utc_now()), key)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(tmp_path / "s" / "store.sqlite"))
        await store.commit([*WEB, Put(node_key("n1"), b"{}")])
        audit = await stack.enter_async_context(FileAuditLog.open(tmp_path / "audit.jsonl", utc_now))
        authority = MemoryAuthority(DOMAIN)
        publisher = Publisher(store, trust_domain=DOMAIN, audit=audit)
        sessions = Sessions(publisher, store, region="eu", clock=utc_now)
        tokens = JoinTokens(store, utc_now)
        nodes = NodeIdentity(authority, store, tokens, audit, utc_now, trust_domain=DOMAIN, region="eu")
        bundle = await authority.bundle()
        front = Front(tmp_path / "in.sock")
        peers = PeerInterceptor(front, PeerVerifier(lambda: {DOMAIN: bundle}, utc_now), admit)
        server = grpc.aio.server(interceptors=[peers, ValidationInterceptor(audit)])
        servicer = NodeServicer(nodes, publisher, sessions, authority, heartbeat_s=0.5)
        node_service_pb2_grpc.add_NodeServiceServicer_to_server(servicer, server)
        server.add_insecure_port(front.inner_target)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        await stack.enter_async_context(front)
        own = await issue(authority, SpiffeId.control_plane(DOMAIN, "eu"), SERVER_NAME)
        context = server_context(own.chain_pem(), own.key_pem(), bundle.pem())
        port = await front.serve_tls("127.0.0.1", 0, lambda: context)
        async with anyio.create_task_group() as group:
            await group.start(publisher.run)
            group.start_soon(sessions.run)
            async with AsyncExitStack() as callers:
                yield World(store, sessions, authority, port, callers)
            group.cancel_scope.cancel()


def node(name: str = "n1", region: str = "eu") -> SpiffeId:
    return SpiffeId.node(DOMAIN, region, name)


async def opened(world: World, name: str = "n1") -> Any:
    stream = await world.sync(node(name))
    await stream.write(HELLO)
    assert (await stream.read()).HasField("welcome")
    return stream


async def heard(stream: Any, kind: str) -> Any:
    """The next message of a kind."""
    while (message := await stream.read()) is not grpc.aio.EOF:
        if message.HasField(kind):
            return getattr(message, kind)
    return pytest.fail(f"the session ended without {kind}")


async def code(stream: Any) -> grpc.StatusCode:
    """How the session ends; the status comes after all that was sent before it."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await stream.read() is not grpc.aio.EOF:
            pass
    return await stream.code()


async def test_a_session_gives_bundle_entries_and_configuration(world: World) -> None:
    stream = await opened(world)
    assert (await heard(stream, "bundle")).trust_domain == DOMAIN
    entries = await heard(stream, "entries")
    assert [entry.metadata.name for entry in entries.entries] == ["web"]
    ref = v1.DataPlaneRef(id="acme/web#1/grpc", tenant="acme", entry="web", dialect="GRPC")
    await stream.write(v1.SyncRequest(interest=v1.Interest(data_planes=[ref])))
    config = await heard(stream, "config")
    assert [scope.scope for scope in config.scopes] == ["client/acme/grpc"]
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
    assert world.sessions.states() == []
    stream = await opened(world)
    await stream.write(HELLO)
    assert await code(stream) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("now", [{"seconds": 1 << 60}, {"nanos": -1}])
async def test_a_clock_that_says_no_time_is_refused_by_its_field(world: World, now: dict[str, int]) -> None:
    stream = await world.sync(node())
    await stream.write(v1.SyncRequest(hello=v1.NodeHello(agent_version="1", now=now)))
    assert await code(stream) is grpc.StatusCode.INVALID_ARGUMENT
    assert "hello.now" in await stream.details()
    assert world.sessions.states() == []


async def test_a_message_that_breaks_the_schema_ends_the_session_with_the_field(world: World) -> None:
    stream = await opened(world)
    await stream.write(v1.SyncRequest(interest=v1.Interest(data_planes=[v1.DataPlaneRef(id="x", tenant="acme")])))
    assert await code(stream) is grpc.StatusCode.INVALID_ARGUMENT
    assert "interest.dataPlanes[0].entry" in await stream.details()
    assert not world.sessions.states()[0].connected


@pytest.mark.parametrize(
    "identity",
    [node(region="us"), node("removed"), SpiffeId.workload(DOMAIN, "acme", "web"), SpiffeId.operator(DOMAIN, "root")],
    ids=["another region's node", "one that has not joined", "a workload", "an operator"],
)
async def test_only_a_node_that_joined_this_region_has_a_session(world: World, identity: SpiffeId) -> None:
    stream = await world.sync(identity)
    assert await code(stream) is grpc.StatusCode.PERMISSION_DENIED
    assert world.sessions.states() == []


async def test_a_silent_node_is_let_go(world: World) -> None:
    stream = await opened(world)
    assert await code(stream) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "nothing was heard for 1.5 s" in await stream.details()
    assert not world.sessions.states()[0].connected


async def test_a_newer_session_of_a_node_ends_the_older(world: World) -> None:
    older, newer = await opened(world), await opened(world)
    assert await code(older) is grpc.StatusCode.ABORTED
    assert world.sessions.states()[0].connected
    await newer.write(v1.SyncRequest(heartbeat=v1.Heartbeat()))
    assert (await heard(newer, "bundle")).trust_domain == DOMAIN
