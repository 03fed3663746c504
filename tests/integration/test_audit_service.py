"""AuditService as operators meet it: each is shown what concerns it, and a file that was changed is told of."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane.api.audit import AuditServicer
from meshwarden.controlplane.api.validation import ValidationInterceptor
from meshwarden.controlplane.audit.anchor import Anchor
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.identity.authorize import admit
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.v1 import audit_service_pb2 as v1
from meshwarden.v1.audit_service_pb2_grpc import AuditServiceStub, add_AuditServiceServicer_to_server

DOMAIN = "mesh.test"
SERVER_NAME = "controlplane.mesh.test"
ROOT, ANNA, PAUL = "operator/root", "tenant/acme/operator/anna", "tenant/platform/operator/paul"
NODE = "region/eu/node/n1"
Stub = Callable[[str], AuditServiceStub]


@dataclass
class World:
    path: Path
    audit: FileAuditLog
    anchor: Anchor
    stub: Stub


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        authority = MemoryAuthority(DOMAIN)
        bundle = await authority.bundle()

        async def svid(path: str, dns: tuple[str, ...] = ()) -> X509Svid:
            key = new_key()
            template = LeafTemplate(SpiffeId.parse(f"spiffe://{DOMAIN}/{path}"), timedelta(hours=1), dns)
            return X509Svid.of(await authority.sign(template, key.public_key(), utc_now()), key)

        path = tmp_path / "audit.jsonl"
        store = await stack.enter_async_context(open_store(tmp_path / "store"))
        audit = await stack.enter_async_context(FileAuditLog.open(path, utc_now))
        anchor = Anchor(store, audit, lambda: audit.end, path, "test", utc_now)
        front = Front(tmp_path / "in.sock")
        peers = PeerInterceptor(front, PeerVerifier(lambda: {DOMAIN: bundle}, utc_now), admit)
        server = grpc.aio.server(interceptors=[peers, ValidationInterceptor(audit)])
        add_AuditServiceServicer_to_server(AuditServicer(path, anchor), server)
        server.add_insecure_port(front.inner_target)
        await server.start()
        stack.push_async_callback(server.stop, None)
        await stack.enter_async_context(front)
        served = await svid("region/eu/controlplane", (SERVER_NAME,))
        context = server_context(served.chain_pem(), served.key_pem(), bundle.pem())
        port = await front.serve_tls("127.0.0.1", 0, lambda: context)
        identities = {one: await svid(one) for one in (ROOT, ANNA, PAUL, NODE)}

        def stub(path: str) -> AuditServiceStub:
            own = identities[path]
            credentials = grpc.ssl_channel_credentials(bundle.pem(), own.key_pem(), own.chain_pem())
            options = [("grpc.ssl_target_name_override", SERVER_NAME)]
            channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)
            stack.push_async_callback(channel.close)
            return AuditServiceStub(channel)

        yield World(path, audit, anchor, stub)


async def fill(audit: FileAuditLog) -> None:
    await audit.record("node.attest", node="n1", serial="aa")
    await audit.record("workload.sign", tenant="acme", entry="web", serial="bb")
    await audit.record("resource.apply", by=f"spiffe://{DOMAIN}/{PAUL}", changes=["Service platform/orders", 3, None])
    await audit.record("identity.deny", spiffe_id=f"spiffe://{DOMAIN}/tenant/acme/service/web", by="spiffe:///")


async def names(stub: AuditServiceStub, **words: object) -> list[str]:
    answer = await stub.ListEvents(v1.ListEventsRequest(**words), timeout=30)
    return [event.event for event in answer.events]


async def test_each_is_shown_what_concerns_it(world: World) -> None:
    await fill(world.audit)
    everything = ["identity.deny", "resource.apply", "workload.sign", "node.attest"]
    assert await names(world.stub(ROOT)) == everything
    assert await names(world.stub(ROOT), event="node.") == ["node.attest"]
    assert await names(world.stub(ROOT), event="node") == []
    assert await names(world.stub(ROOT), tenant="acme") == ["identity.deny", "workload.sign"]
    assert await names(world.stub(ANNA)) == ["identity.deny", "workload.sign"]
    assert await names(world.stub(ANNA), tenant="acme", page_size=1) == ["identity.deny"]
    assert await names(world.stub(PAUL)) == ["resource.apply"]


async def test_a_tenant_of_that_name_in_another_trust_domain_is_another(world: World) -> None:
    foreign = "spiffe://b.test/tenant/acme/service/web"
    await world.audit.record("identity.deny", spiffe_id=foreign, by=f"spiffe://{DOMAIN}/{ROOT}")
    assert await names(world.stub(ROOT)) == ["identity.deny"]
    assert await names(world.stub(ANNA)) == []
    assert await names(world.stub(ROOT), tenant="acme") == []


async def test_an_event_is_shown_as_it_was_stored(world: World) -> None:
    await fill(world.audit)
    answer = await world.stub(PAUL).ListEvents(v1.ListEventsRequest(), timeout=30)
    event = answer.events[0]
    fields = {"by": f"spiffe://{DOMAIN}/{PAUL}", "changes": ["Service platform/orders", 3, None]}
    assert MessageToDict(event.fields) == fields
    assert event.seq == 3
    assert len(event.hash) == 64


@pytest.mark.parametrize(
    ("who", "words", "code"),
    [
        (ANNA, {"tenant": "platform"}, grpc.StatusCode.PERMISSION_DENIED),
        (NODE, {}, grpc.StatusCode.PERMISSION_DENIED),
        (ROOT, {"page_size": 1001}, grpc.StatusCode.INVALID_ARGUMENT),
        (ROOT, {"event": "a b"}, grpc.StatusCode.INVALID_ARGUMENT),
        (ROOT, {"event": "a\n"}, grpc.StatusCode.INVALID_ARGUMENT),
        (ROOT, {"event": "x" * 65}, grpc.StatusCode.INVALID_ARGUMENT),
        (ROOT, {"tenant": "x" * 64}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_is_refused(world: World, who: str, words: dict[str, object], code: grpc.StatusCode) -> None:
    await fill(world.audit)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub(who).ListEvents(v1.ListEventsRequest(**words), timeout=30)
    assert refused.value.code() == code


async def test_a_time_that_is_none_is_refused(world: World) -> None:
    request = v1.ListEventsRequest()
    request.start.seconds = 1 << 60
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub(ROOT).ListEvents(request, timeout=30)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_whole_chain_holds_and_a_changed_one_is_told(world: World) -> None:
    await fill(world.audit)
    await world.anchor.note()
    answer = await world.stub(ROOT).VerifyEvents(v1.VerifyEventsRequest(), timeout=30)
    assert (answer.fault, answer.seq, answer.anchored_seq, answer.hash) == ("", 4, 4, world.audit.end.hash)
    whole = world.path.read_bytes()
    world.path.write_bytes(whole.replace(b'"web"', b'"wet"'))
    answer = await world.stub(ROOT).VerifyEvents(v1.VerifyEventsRequest(), timeout=30)
    assert answer.fault.startswith("line 2")
    world.path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    answer = await world.stub(ROOT).VerifyEvents(v1.VerifyEventsRequest(), timeout=30)
    assert "the newest were cut off" in answer.fault


@pytest.mark.parametrize("who", [ANNA, NODE])
async def test_only_operators_of_the_mesh_verify(world: World, who: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub(who).VerifyEvents(v1.VerifyEventsRequest(), timeout=30)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_a_file_that_is_no_log_is_unavailable(world: World) -> None:
    await fill(world.audit)
    world.path.write_bytes(b"noise\n")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub(ROOT).ListEvents(v1.ListEventsRequest(), timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "can't be read" in (refused.value.details() or "")
