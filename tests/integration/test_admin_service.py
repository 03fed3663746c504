"""AdminService as operators meet it: real certificates, a real front, a real store; each is shown what it may see."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import anyio
import grpc
import pytest

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane.api.admin import AdminServicer
from meshwarden.controlplane.api.validation import ValidationInterceptor
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.ledger import Ledger
from meshwarden.controlplane.gather.metrics import Metrics
from meshwarden.controlplane.identity.authorize import admit
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.controlplane.store.port import Put
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.front import Front
from meshwarden.sdk.peer import PeerInterceptor
from meshwarden.sdk.tls import server_context
from meshwarden.v1 import admin_service_pb2 as v1
from meshwarden.v1.admin_service_pb2_grpc import AdminServiceStub, add_AdminServiceServicer_to_server
from meshwarden.v1.report_pb2 import CallStat

DOMAIN = "mesh.test"
SERVER_NAME = "controlplane.mesh.test"
MESH = """\
kind: Tenant
metadata: {name: platform}
---
kind: Tenant
metadata: {name: acme}
---
kind: Tenant
metadata: {name: globex}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC, exportTo: ["*"]}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: HTTP}
---
kind: Service
metadata: {tenant: globex, name: web}
spec: {protocol: HTTP}
"""


@dataclass
class World:
    gather: Gather
    stub: Callable[[str], AdminServiceStub]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        authority = MemoryAuthority(DOMAIN)
        bundle = await authority.bundle()

        async def svid(identity: SpiffeId, dns: tuple[str, ...] = ()) -> X509Svid:
            key = new_key()
            template = LeafTemplate(identity, timedelta(hours=1), dns)
            return X509Svid.of(await authority.sign(template, key.public_key(), utc_now()), key)

        store = await stack.enter_async_context(open_store(tmp_path / "s" / "store.db"))
        resources = [item.resource for item in parse(MESH, "mesh.yaml")]
        await store.commit([Put(model.key_of(item), model.encode(item), 0) for item in resources])
        audit = await stack.enter_async_context(FileAuditLog.open(tmp_path / "audit.log", utc_now))
        publisher = Publisher(store, trust_domain=DOMAIN, audit=audit)
        durable = Durable(tmp_path / "gather.sqlite")
        stack.callback(durable.close)
        gather = Gather(
            durable,
            Ledger(durable, DOMAIN, utc_now),
            Metrics(),
            [],
            utc_now,
            random.Random(),
            owns=publisher.mesh.owns,
            trust_domain=DOMAIN,
            region="eu",
        )
        admin = AdminServicer(
            trust_domain=DOMAIN,
            region="eu",
            version="0",
            authority=authority,
            tokens=JoinTokens(store, utc_now),
            publisher=publisher,
            sessions=Sessions(publisher, store, region="eu", clock=utc_now),
            gather=gather,
            audit=audit,
            clock=utc_now,
        )
        front = Front(tmp_path / "in.sock")
        peers = PeerInterceptor(front, PeerVerifier(lambda: {DOMAIN: bundle}, utc_now), admit)
        server = grpc.aio.server(interceptors=[peers, ValidationInterceptor(audit)])
        add_AdminServiceServicer_to_server(admin, server)
        server.add_insecure_port(front.inner_target)
        await server.start()
        stack.push_async_callback(server.stop, None)
        await stack.enter_async_context(front)
        own = await svid(SpiffeId.parse(f"spiffe://{DOMAIN}/region/eu/controlplane"), (SERVER_NAME,))
        context = server_context(own.chain_pem(), own.key_pem(), bundle.pem())
        port = await front.serve_tls("127.0.0.1", 0, lambda: context)
        operators = {
            path: await svid(SpiffeId.parse(f"spiffe://{DOMAIN}/{path}"))
            for path in ("operator/root", "tenant/acme/operator/anna", "tenant/platform/operator/paul")
        }

        def stub(path: str) -> AdminServiceStub:
            identity = operators[path]
            credentials = grpc.ssl_channel_credentials(bundle.pem(), identity.key_pem(), identity.chain_pem())
            options = [("grpc.ssl_target_name_override", SERVER_NAME)]
            channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)
            stack.push_async_callback(channel.close)
            return AdminServiceStub(channel)

        async with anyio.create_task_group() as group:
            await group.start(publisher.run)
            yield World(gather, stub)
            group.cancel_scope.cancel()


def call(source_tenant: str) -> Call:
    return Call(
        source_tenant=source_tenant,
        source_service="web",
        destination_tenant="platform",
        destination_service="orders",
        method="/o.Orders/Get",
        status="OK",
        decision=CallStat.ALLOWED,
        reporter=CallStat.SOURCE,
        revision=1,
        minute=int(utc_now().timestamp()) // 60 * 60,
        count=3,
        sum_s=0.3,
        durations={100: 3},
    )


@pytest.mark.parametrize(
    ("operator", "edges", "services"),
    [
        ("operator/root", {"acme/web", "globex/web"}, {"acme/web", "globex/web", "platform/orders"}),
        ("tenant/platform/operator/paul", {"acme/web", "globex/web"}, {"platform/orders"}),
        ("tenant/acme/operator/anna", {"acme/web"}, {"acme/web"}),
    ],
)
async def test_a_graph_shows_each_operator_the_edges_of_its_tenant(
    world: World, operator: str, edges: set[str], services: set[str]
) -> None:
    world.gather.graph.add([call("acme"), call("globex")])
    answer = await world.stub(operator).GetGraph(v1.GetGraphRequest())
    assert {edge.source for edge in answer.edges} == edges
    assert {node.service for node in answer.nodes} == services
    assert answer.region == "eu"
    assert answer.window.seconds == 300


async def test_an_operator_of_a_tenant_may_not_ask_for_anothers_graph(world: World) -> None:
    anna = world.stub("tenant/acme/operator/anna")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anna.GetGraph(v1.GetGraphRequest(tenant="globex"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await anna.GetGraph(v1.GetGraphRequest(tenant="acme"))).nodes


@pytest.mark.parametrize("seconds", [0, 59, 901])
async def test_a_window_out_of_range_is_refused_by_its_name(world: World, seconds: int) -> None:
    request = v1.GetGraphRequest()
    request.window.FromSeconds(seconds)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub("operator/root").GetGraph(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "window" in str(refused.value.details())
