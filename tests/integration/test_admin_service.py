"""AdminService as operators meet it: real certificates, a real front, a real store; each is shown what it may see."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.slot import MAX_ROOTS
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.bundle_document import TrustBundle, format_document, parse_document
from meshwarden.certs.clock import utc_now
from meshwarden.certs.deny import Denied
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane.api import certificate
from meshwarden.controlplane.api.admin import AdminServicer
from meshwarden.controlplane.api.bundles import BundleDesk
from meshwarden.controlplane.api.health import Health
from meshwarden.controlplane.api.validation import ValidationInterceptor
from meshwarden.controlplane.audit.count import CountedAuditLog
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.graph.remote import Remote
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.identity.authorize import admit
from meshwarden.controlplane.identity.bundle_document import BundleDocument
from meshwarden.controlplane.identity.deny import Denies
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.identity.federation import Federation
from meshwarden.controlplane.identity.issued import ISSUED, Certificate, Issued
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.record import NodeRecord
from meshwarden.controlplane.identity.roster import Roster
from meshwarden.controlplane.identity.rotation import RootRotation
from meshwarden.controlplane.local.check.identity import make_room
from meshwarden.controlplane.local.check.mesh import Mesh
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.quota.division import Division
from meshwarden.controlplane.regions.inbox import Inbox
from meshwarden.controlplane.regions.link import Own, Peer
from meshwarden.controlplane.regions.puller import Puller
from meshwarden.controlplane.regions.regions import Regions
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.controlplane.store.port import Put, Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.v1 import admin_service_pb2 as v1
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1.admin_service_pb2_grpc import AdminServiceStub, add_AdminServiceServicer_to_server
from meshwarden.v1.report_pb2 import CallStat, ExportRequest
from meshwarden.v1.resources_pb2 import BundleEndpoint, TrustDomain, TrustDomainSpec

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
---
kind: WorkloadEntry
metadata: {tenant: acme, name: web}
spec: {service: web, nodes: [n1], selectors: {uid: 1000}, port: 7001}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: orders}
spec: {service: orders, nodes: [n1], selectors: {uid: 1001}, port: 7002}
---
kind: RoutePolicy
metadata: {tenant: platform, name: orders}
spec:
  service: orders
  rules:
  - match: {headers: [{name: a-bin, present: true}]}
    split: [{version: v1, weight: 1}]
"""


@dataclass
class World:
    store: Store
    gather: Gather
    durable: Durable
    inbox: Inbox
    sessions: Sessions
    federation: Federation
    channel: Callable[[str], grpc.aio.Channel]
    operators: dict[str, X509Svid]

    def stub(self, path: str) -> AdminServiceStub:
        """The API as one operator reaches it."""
        return AdminServiceStub(self.channel(path))


def foreign(name: str, bundle: Bundle | None) -> TrustDomain:
    """A trust domain whose endpoint answers nobody; what is given of it stands."""
    pinned = format_document(TrustBundle(name, bundle, JwtBundle(name), 7)).decode() if bundle is not None else ""
    endpoint = BundleEndpoint(url="https://127.0.0.1:1/b", profile=BundleEndpoint.HTTPS_WEB)
    return TrustDomain(spec=TrustDomainSpec(trust_domain=name, bundle_endpoint=endpoint, bundle=pinned))


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
            Ledger(durable, DOMAIN, utc_now, region="eu"),
            Metrics(),
            [],
            utc_now,
            random.Random(),
            owns=publisher.mesh.owns,
            trust_domain=DOMAIN,
            region="eu",
        )
        remote = Remote(["us"], utc_now)
        inbox = Inbox(gather.ledger, remote)
        durable.add(inbox)
        there = Peer("us", "us.example:7443")
        own = Own(DOMAIN, lambda: None, lambda: {DOMAIN: bundle})
        puller = Puller(
            there, own, inbox, gather.ledger, gather.tail, gather.tally, gather.settle, utc_now, random.Random()
        )
        sessions = Sessions(publisher, store, region="eu", clock=utc_now)
        deny_watch, denied = DenyWatch(store, utc_now), Denied(utc_now)
        deny_watch.listen(publisher.deny)
        rotation = RootRotation(
            authority, store, sessions.trust, sessions.renew, CountedAuditLog(audit), utc_now, owner="test"
        )
        await rotation.follow()
        denies = Denies(store, audit, utc_now)
        jwt = JwtAuthority(store, audit, utc_now, trust_domain=DOMAIN)
        federation = Federation(store, audit, utc_now, random.Random(), own=dict, trust_domain=DOMAIN)
        federation.want([foreign("b.test", await MemoryAuthority("b.test").bundle()), foreign("c.test", None)])
        running = asyncio.ensure_future(federation.run())
        stack.callback(running.cancel)
        admin = AdminServicer(
            trust_domain=DOMAIN,
            region="eu",
            version="0",
            authority=authority,
            store=store,
            tokens=JoinTokens(store, utc_now),
            publisher=publisher,
            sessions=sessions,
            gather=gather,
            remote=remote,
            regions=Regions("eu", [puller], inbox, utc_now),
            division=Division(store, publisher.mesh, "test", time.monotonic, lambda: 0.0, lambda: 1),
            audit=audit,
            deny_watch=deny_watch,
            denies=denies,
            roster=Roster(store, denies, Issued(store, utc_now), audit, utc_now),
            health=Health(
                state_dir=tmp_path,
                authority=authority,
                audit=CountedAuditLog(audit),
                gather=gather,
                secrets=lambda: ["vault:kv/a: sealed", "vault:kv/b: sealed"],
                settings=list,
                svid=lambda: None,
                roots=lambda: rotation.known,
            ),
            rotation=rotation,
            jwt=jwt,
            bundles=BundleDesk(BundleDocument(store, authority, jwt, DOMAIN), federation, DOMAIN),
            clock=utc_now,
        )
        front = Front(tmp_path / "in.sock")
        peers = PeerInterceptor(front, PeerVerifier(lambda: {DOMAIN: bundle}, utc_now, denied), admit)
        deny_watch.listen(lambda deny_list: setattr(denied, "present", deny_list))
        server = grpc.aio.server(interceptors=[peers, ValidationInterceptor(audit)])
        add_AdminServiceServicer_to_server(admin, server)
        server.add_insecure_port(front.inner_target)
        await server.start()
        stack.push_async_callback(server.stop, None)
        await stack.enter_async_context(front)
        served = await svid(SpiffeId.parse(f"spiffe://{DOMAIN}/region/eu/controlplane"), (SERVER_NAME,))
        context = server_context(served.chain_pem(), served.key_pem(), bundle.pem())
        port = await front.serve_tls("127.0.0.1", 0, lambda: context)
        operators = {
            path: await svid(SpiffeId.parse(f"spiffe://{DOMAIN}/{path}"))
            for path in ("operator/root", "tenant/acme/operator/anna", "tenant/platform/operator/paul")
        }

        def channel(path: str) -> grpc.aio.Channel:
            identity = operators[path]
            credentials = grpc.ssl_channel_credentials(bundle.pem(), identity.key_pem(), identity.chain_pem())
            options = [("grpc.ssl_target_name_override", SERVER_NAME)]
            opened = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)
            stack.push_async_callback(opened.close)
            return opened

        async with anyio.create_task_group() as group:
            await group.start(publisher.run)
            await group.start(deny_watch.run)
            yield World(store, gather, durable, inbox, sessions, federation, channel, operators)
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


@pytest.mark.parametrize(
    ("operator", "sources", "address"),
    [
        ("operator/root", {"acme", "globex"}, "us.example:7443"),
        ("tenant/acme/operator/anna", {"acme"}, ""),
    ],
)
async def test_what_another_region_has_counted_is_shown_as_its_own_is(
    world: World, operator: str, sources: set[str], address: str
) -> None:
    world.gather.ledger.add([call("acme")])
    world.inbox.put("us", "0a", 1, [call("acme"), call("globex")])
    await world.durable.flush()
    world.inbox.caught_up("us", utc_now() - timedelta(minutes=5))
    operators = world.stub(operator)
    graph = await operators.GetGraph(v1.GetGraphRequest())
    assert {edge.source.partition("/")[0] for edge in graph.edges if edge.region == "us"} == sources
    calls = await operators.ListCalls(v1.ListCallsRequest())
    assert sorted(row.region for row in calls.calls) == sorted(["eu", *("us" for _ in sources)])
    status = await operators.GetStatus(v1.GetStatusRequest())
    for own, there in (graph.regions, calls.regions, status.regions):
        assert (own.region, own.own, own.answers, own.age.seconds) == ("eu", True, True, 0)
        assert (there.region, there.own, there.answers, there.address) == ("us", False, False, address)
        assert 300 <= there.age.seconds < 400
    assert any("region us does not answer" in warning for warning in status.warnings) == bool(address)


@pytest.mark.parametrize(
    ("operator", "stages"),
    [
        ("operator/root", ["visibility", "access", "route", "limit", "endpoints"]),
        ("tenant/platform/operator/paul", ["visibility", "access", "route", "limit", "endpoints"]),
        ("tenant/acme/operator/anna", ["visibility", "access"]),
    ],
)
async def test_operators_of_both_tenants_may_ask_why(world: World, operator: str, stages: list[str]) -> None:
    answer = await world.stub(operator).Explain(explained("acme/web", "platform/orders"))
    assert [step.stage for step in answer.steps] == stages
    assert answer.decision == CallStat.DENIED


async def test_an_operator_of_neither_tenant_may_not_ask_why(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub("tenant/acme/operator/anna").Explain(explained("globex/web", "platform/orders"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("operator", "callee", "told"),
    [
        ("operator/root", "platform/order", "there is no Service platform/order; did you mean platform/orders?"),
        ("operator/root", "platfrm/orders", "there is no Service platfrm/orders; did you mean platform/orders?"),
        ("operator/root", "globex/nothing-like-it", "there is no Service globex/nothing-like-it"),
        ("tenant/acme/operator/anna", "acme/wbe", "there is no Service acme/wbe; did you mean acme/web?"),
    ],
)
async def test_a_service_called_that_is_not_there_is_not_explained(
    world: World, operator: str, callee: str, told: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub(operator).Explain(explained("acme/web", callee))
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.NOT_FOUND, told)


async def test_whether_another_tenant_has_a_service_is_not_told(world: World) -> None:
    answer = await world.stub("tenant/acme/operator/anna").Explain(explained("acme/web", "platform/order"))
    assert [step.text for step in answer.steps] == [
        "tenant acme sees no service platform/order: its name does not resolve there"
    ]
    answer = await world.stub("tenant/platform/operator/paul").Explain(explained("acme/wbe", "platform/orders"))
    assert answer.steps[0].stage == "visibility", "nor whether it has a caller"


@pytest.mark.parametrize("operator", ["operator/root", "tenant/acme/operator/anna"])
async def test_a_caller_that_is_not_there_is_told_before_the_answer(world: World, operator: str) -> None:
    answer = await world.stub(operator).Explain(explained("acme/wbe", "platform/orders"))
    first = answer.steps[0]
    assert (first.stage, first.ok) == ("caller", False)
    assert first.text.startswith("there is no Service acme/wbe, and nobody calls as one; did you mean acme/web?")
    assert [step.stage for step in answer.steps][1:3] == ["visibility", "access"], "its policy may come before it"


def explained(source: str, destination: str) -> v1.ExplainRequest:
    return v1.ExplainRequest(**{"from": source, "to": destination, "method": "/o.Orders/Get"})


async def test_an_operator_of_a_tenant_is_told_of_its_own_troubles_alone(world: World) -> None:
    session = world.sessions.open("n1", node_pb.NodeHello())
    planes = [
        node_pb.DataPlaneRef(id=f"{tenant}/web#1/grpc", tenant=tenant, entry="web", dialect="GRPC")
        for tenant in ("acme", "globex")
    ]
    session.take(node_pb.SyncRequest(interest=node_pb.Interest(data_planes=planes)))
    health = node_pb.AgentHealth(
        disk_error="/var/lib/m: No space left on device",
        renewal_error="banned",
        waiting=[plane.id for plane in planes],
        spools=[node_pb.SpoolState(tenant=tenant, size_mib=2, limit_mib=64) for tenant in ("acme", "globex")],
    )
    session.take(node_pb.SyncRequest(health=health))
    whole = await world.stub("operator/root").GetStatus(v1.GetStatusRequest())
    assert whole.nodes[0].health == health
    assert whole.health.disk_free_bytes > 0
    mine = await world.stub("tenant/acme/operator/anna").GetStatus(v1.GetStatusRequest())
    assert not mine.HasField("health")
    kept = node_pb.AgentHealth(waiting=["acme/web#1/grpc"], spools=health.spools[:1])
    assert mine.nodes[0].health == kept


async def test_what_clients_cant_do_of_a_policy_is_told_to_its_owner(world: World) -> None:
    session = world.sessions.open("n1", node_pb.NodeHello())
    planes = [
        node_pb.DataPlaneRef(id=f"{tenant}/web#1/grpc", tenant=tenant, entry="web", dialect="GRPC", client=client)
        for tenant, client in (("acme", "node/1.14.1"), ("globex", "perl/5"), ("platform", ""))
    ]
    session.take(node_pb.SyncRequest(interest=node_pb.Interest(data_planes=planes)))

    async def told(operator: str) -> list[tuple[str, str, str]]:
        status = await world.stub(operator).GetStatus(v1.GetStatusRequest())
        return [(gap.policy, gap.field, gap.client) for gap in status.gaps]

    field = "spec.rules[0].match.headers[0]"
    owned = [("RoutePolicy platform/orders", field, kind) for kind in ("c-core", "node")]
    assert await told("operator/root") == [("", "", "unknown/5"), *owned]
    assert await told("tenant/platform/operator/paul") == owned
    assert await told("tenant/acme/operator/anna") == []
    session.close()
    assert await told("operator/root") == [], "of clients that are there"


async def test_who_does_nothing_with_other_trust_domains_is_told(world: World) -> None:
    session = world.sessions.open("n1", node_pb.NodeHello())
    planes = [
        node_pb.DataPlaneRef(
            id=f"{tenant}/web#1/grpc", tenant=tenant, entry="web", dialect="GRPC", client="node/1.14.1", home_only=alone
        )
        for tenant, alone in (("acme", True), ("globex", True), ("platform", False))
    ]
    session.take(node_pb.SyncRequest(interest=node_pb.Interest(data_planes=planes)))
    for operator, count, names in (
        ("operator/root", 2, "acme/web#1/grpc (node/1.14.1), globex/web#1/grpc (node/1.14.1)"),
        ("tenant/acme/operator/anna", 1, "acme/web#1/grpc (node/1.14.1)"),
    ):
        warnings = (await world.stub(operator).GetStatus(v1.GetStatusRequest())).warnings
        (found,) = (text for text in warnings if "our own trust domain alone" in text)
        assert found.startswith(f"{count} data planes on node n1 "), found
        assert found.endswith(f": {names}"), found
    world.federation.want([])
    warnings = (await world.stub("operator/root").GetStatus(v1.GetStatusRequest())).warnings
    assert not [text for text in warnings if "trust domain alone" in text]


async def test_an_operator_of_a_tenant_may_not_ask_for_anothers_graph(world: World) -> None:
    anna = world.stub("tenant/acme/operator/anna")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anna.GetGraph(v1.GetGraphRequest(tenant="globex"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await anna.GetGraph(v1.GetGraphRequest(tenant="acme"))).nodes


async def test_a_graph_can_be_of_one_service_and_says_what_it_leaves_out(world: World) -> None:
    root = world.stub("operator/root")
    world.gather.graph.add([call("acme"), call("globex"), replace(call("globex"), destination_service="billing")])
    answer = await root.GetGraph(v1.GetGraphRequest(service="billing"))
    assert [edge.destination for edge in answer.edges] == ["platform/billing"]
    assert {node.service for node in answer.nodes} == {"globex/web"}
    answer = await root.GetGraph(v1.GetGraphRequest(service="acme/web", limit=1))
    assert ([edge.source for edge in answer.edges], answer.omitted) == (["acme/web"], 0)
    answer = await root.GetGraph(v1.GetGraphRequest(limit=1))
    assert (len(answer.edges), answer.omitted) == (1, 2)
    anna = await world.stub("tenant/acme/operator/anna").GetGraph(v1.GetGraphRequest(service="billing"))
    assert (list(anna.edges), list(anna.nodes)) == ([], [])
    for wrong in (v1.GetGraphRequest(limit=10_001), v1.GetGraphRequest(service="x" * 128)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await root.GetGraph(wrong)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("seconds", [0, 59, 901])
async def test_a_window_out_of_range_is_refused_by_its_name(world: World, seconds: int) -> None:
    request = v1.GetGraphRequest()
    request.window.FromSeconds(seconds)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub("operator/root").GetGraph(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "window" in str(refused.value.details())


TRACE = bytes(range(1, 17))


async def report_trace(world: World) -> None:
    """A trace from web of acme into orders of platform, of which the agent has a span too."""
    bodies = []
    for number, name in enumerate(("web.acme", "orders.platform", "meshwarden-agent"), 1):
        span = Span(trace_id=TRACE, span_id=number.to_bytes(8, "big"), name=f"of {name}")
        span.parent_span_id = (number - 1).to_bytes(8, "big") if number > 1 else b""
        span.start_time_unix_nano = int(utc_now().timestamp() * 1e9) + number
        span.end_time_unix_nano = span.start_time_unix_nano + 1000
        resource = Resource(attributes=[KeyValue(key="service.name", value=AnyValue(string_value=name))])
        scope = ScopeSpans(spans=[span])
        bodies.append(ResourceSpans(resource=resource, scope_spans=[scope]).SerializeToString())
    world.gather.ingest("n1", ExportRequest(run_id="r", first_sequence=1, sequence=1, resource_spans=bodies))
    await world.durable.flush()


@pytest.mark.parametrize(
    ("operator", "tenant", "services"),
    [
        ("operator/root", "", ["acme/web", "platform/orders", "meshwarden-agent"]),
        ("operator/root", "platform", ["platform/orders"]),
        ("tenant/acme/operator/anna", "", ["acme/web"]),
        ("tenant/acme/operator/anna", "acme", ["acme/web"]),
        ("tenant/platform/operator/paul", "", ["platform/orders"]),
    ],
)
async def test_a_trace_shows_each_operator_the_spans_of_its_tenant(
    world: World, operator: str, tenant: str, services: list[str]
) -> None:
    await report_trace(world)
    stub = world.stub(operator)
    answer = await stub.GetTrace(v1.GetTraceRequest(trace_id=TRACE.hex(), tenant=tenant))
    assert [span.service for span in answer.spans] == services
    assert answer.incomplete is (services[0] != "acme/web")
    assert answer.spans[0].node == "n1"
    (found,) = (await stub.SearchTraces(v1.SearchTracesRequest(tenant=tenant))).traces
    assert (found.trace_id, found.spans, list(found.services)) == (TRACE.hex(), len(services), sorted(services))
    assert found.incomplete is answer.incomplete


def own_spans(revision: int, tenant: str = "") -> bytes:
    """A span of the control plane, of a change that a tenant's operator made."""
    about = [KeyValue(key="mesh.revision", value=AnyValue(int_value=revision))]
    if tenant:
        about.append(KeyValue(key="mesh.tenant", value=AnyValue(string_value=tenant)))
    span = Span(trace_id=revision.to_bytes(16, "big"), span_id=b"12345678", name="Apply", attributes=about)
    return ResourceSpans(scope_spans=[ScopeSpans(spans=[span])]).SerializeToString()


async def test_the_trace_of_a_change_is_found_by_its_revision(world: World) -> None:
    world.gather.take_own(own_spans(7), 1)
    world.gather.take_own(own_spans(8, "acme"), 1)
    await world.durable.flush()
    root, anna = world.stub("operator/root"), world.stub("tenant/acme/operator/anna")
    for stub, revision in ((root, 7), (root, 8), (anna, 8)):
        answer = await stub.GetTrace(v1.GetTraceRequest(revision=revision))
        assert (answer.trace_id, [span.name for span in answer.spans]) == (f"{revision:032x}", ["Apply"])
        assert not answer.calls
    paul = world.stub("tenant/platform/operator/paul")
    for stub, revision in ((anna, 7), (paul, 8), (root, 9), (root, 2**64 - 1)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetTrace(v1.GetTraceRequest(revision=revision))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert f"a change that made revision {revision}" in str(refused.value.details())
    for wrong in (v1.GetTraceRequest(), v1.GetTraceRequest(revision=7, trace_id=TRACE.hex())):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await root.GetTrace(wrong)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def why(stub: AdminServiceStub, revision: int, tenant: str = "") -> str:
    """What is said of a revision that leads to no trace."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetTrace(v1.GetTraceRequest(revision=revision, tenant=tenant))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    return str(refused.value.details())


async def test_a_revision_without_a_trace_says_what_made_it_to_whom_may_see_that(world: World) -> None:
    root, anna = world.stub("operator/root"), world.stub("tenant/acme/operator/anna")
    store = world.store
    service = Put("/resource/Service/platform/late", b"", 0)
    made = await store.commit([service, Put("/resource/odd", b""), Put("/identity/node/n7", b"{}")])
    many = await store.commit([Put(f"/resource/Service/acme/s{number}", b"") for number in range(10)])
    await store.acquire("quota", "us", 5.0)
    token = await store.commit([Put("/identity/token/ab12", b"{}")])
    assert "it changed node n7, Service platform/late" in await why(root, made)
    assert "Service platform/late" in await why(root, made, "platform")
    assert "node n7" not in await why(root, made, "platform")
    assert "platform" not in await why(anna, made)
    assert "Service acme/s7 and 2 more" in await why(anna, many)
    assert "it changed join tokens" in await why(root, token)
    if token > many + 1:
        assert "it changed nothing" in await why(root, many + 1)
    for number in (token + 1, 2**64 - 1):
        assert f"there is no such revision yet, the newest is {token}" in await why(root, number)
    await store.compact(many)
    assert "the store has forgotten what it changed" in await why(root, made)


async def test_an_operator_of_a_tenant_may_not_ask_for_anothers_traces(world: World) -> None:
    await report_trace(world)
    anna = world.stub("tenant/acme/operator/anna")
    for call in (
        anna.SearchTraces(v1.SearchTracesRequest(tenant="platform")),
        anna.GetTrace(v1.GetTraceRequest(tenant="platform", trace_id=TRACE.hex())),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    answer = await anna.SearchTraces(v1.SearchTracesRequest(service="platform/orders"))
    assert not answer.traces
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anna.GetTrace(v1.GetTraceRequest(trace_id="f" * 32))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("page_token", "x"),
        ("page_token", f"{2**63}.1.{'0' * 32}"),
        ("page_size", 501),
        ("service", "x" * 128),
        ("start", {"seconds": 2**60}),
        ("end", {"nanos": -1, "seconds": -(2**60)}),
        ("min_duration", {"seconds": -1}),
    ],
)
async def test_a_search_that_makes_no_sense_is_refused_by_the_name_of_the_field(
    world: World, field: str, value: object
) -> None:
    request = v1.SearchTracesRequest(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub("operator/root").SearchTraces(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert v1.SearchTracesRequest.DESCRIPTOR.fields_by_name[field].json_name in str(refused.value.details())


async def test_times_before_and_after_all_others_find_what_there_is(world: World) -> None:
    await report_trace(world)
    request = v1.SearchTracesRequest(start={"seconds": -62_135_596_800}, end={"seconds": 253_402_300_799})
    assert len((await world.stub("operator/root").SearchTraces(request)).traces) == 1


async def test_quotas_are_shown_to_who_may_see_them(world: World) -> None:
    for path in ("operator/root", "tenant/acme/operator/anna"):
        answer = await world.stub(path).GetQuotas(v1.GetQuotasRequest(), timeout=60)
        assert not answer.divides
        assert answer.HasField("now")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub("tenant/acme/operator/anna").GetQuotas(v1.GetQuotasRequest(tenant="globex"), timeout=60)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


ROOT, ANNA, PAUL = "operator/root", "tenant/acme/operator/anna", "tenant/platform/operator/paul"
WEB, ORDERS = f"spiffe://{DOMAIN}/tenant/acme/service/web", f"spiffe://{DOMAIN}/tenant/platform/service/orders"


def denying(*targets: tuple[str, str], **more: object) -> v1.DenyRequest:
    made = [v1.DenyTarget(spiffe_id=spiffe_id, serial=serial) for spiffe_id, serial in targets]
    return v1.DenyRequest(targets=made, reason="leaked", **more)


def allowing(*targets: tuple[str, str]) -> v1.AllowRequest:
    return v1.AllowRequest(targets=denying(*targets).targets)


async def refusal(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code()


async def test_an_operator_of_a_tenant_revokes_what_is_of_its_tenant(world: World) -> None:
    anna, root = world.stub(ANNA), world.stub(ROOT)
    answer = await anna.Deny(denying((WEB, ""), (WEB, "AB:01")))
    assert {(state.target.serial, state.reason, state.by) for state in answer.denied} == {
        (serial, "leaked", f"spiffe://{DOMAIN}/{ANNA}") for serial in ("", "ab01")
    }
    for stranger in (
        (ORDERS, ""),
        (ORDERS, "1"),
        ("", "1"),
        (f"spiffe://{DOMAIN}/region/eu/node/n1", ""),
        (f"spiffe://{DOMAIN}/operator/root", ""),
        ("spiffe://other.test/tenant/acme/service/web", ""),
    ):
        assert await refusal(anna.Deny(denying(stranger))) is grpc.StatusCode.PERMISSION_DENIED, stranger
        assert await refusal(anna.Allow(allowing(stranger))) is grpc.StatusCode.PERMISSION_DENIED, stranger
    await root.Deny(denying((ORDERS, ""), ("", "5")))
    assert {state.target.spiffe_id for state in (await anna.ListDenied(v1.ListDeniedRequest())).denied} == {WEB}
    assert len((await root.ListDenied(v1.ListDeniedRequest())).denied) == 4
    assert await refusal(anna.ListDenied(v1.ListDeniedRequest(tenant="platform"))) is grpc.StatusCode.PERMISSION_DENIED
    await anna.Allow(allowing((WEB, ""), (WEB, "ab01")))
    assert not (await anna.ListDenied(v1.ListDeniedRequest())).denied


async def test_what_the_mesh_denies_no_tenant_allows_or_shortens(world: World) -> None:
    anna, root = world.stub(ANNA), world.stub(ROOT)
    await root.Deny(denying((WEB, "")))
    assert await refusal(anna.Allow(allowing((WEB, "")))) is grpc.StatusCode.PERMISSION_DENIED
    assert await refusal(anna.Deny(denying((WEB, ""), ttl=Duration(seconds=1)))) is grpc.StatusCode.PERMISSION_DENIED
    await root.Allow(allowing((WEB, "")))
    assert await refusal(root.Allow(allowing((WEB, "")))) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("serial", ["", "its own"])
async def test_a_denied_operator_is_refused_at_its_next_call(world: World, serial: str) -> None:
    anna, root = world.stub(ANNA), world.stub(ROOT)
    await anna.GetStatus(v1.GetStatusRequest())
    target = (f"spiffe://{DOMAIN}/{ANNA}", world.operators[ANNA].serial if serial else "")
    await root.Deny(denying(target))
    # Deny has returned: that very call is the next.
    assert await refusal(anna.GetStatus(v1.GetStatusRequest())) is grpc.StatusCode.UNAUTHENTICATED
    await world.stub(PAUL).GetStatus(v1.GetStatusRequest())
    await root.Allow(allowing(target))
    await anna.GetStatus(v1.GetStatusRequest())


@pytest.mark.parametrize(
    "wrong",
    [
        denying(),
        denying(("", "")),
        denying((WEB + "/", "")),
        denying(("https://mesh.test/x", "")),
        denying((WEB, "xyz")),
        denying((WEB, "0")),
        denying(("", "a" * 41)),
        denying((WEB + "\n", "")),
        denying((f"spiffe://{DOMAIN}/region/eu/controlplane", "")),
        denying(*[(f"{WEB}{number}", "") for number in range(101)]),
        denying((WEB, ""), ttl=Duration(seconds=0)),
        denying((WEB, ""), ttl=Duration(seconds=40_000_000)),
        v1.DenyRequest(targets=denying((WEB, "")).targets),
        v1.DenyRequest(targets=denying((WEB, "")).targets, reason="x" * 513),
    ],
    ids=str,
)
async def test_a_deny_of_nothing_that_can_be_denied_is_refused(world: World, wrong: v1.DenyRequest) -> None:
    root = world.stub(ROOT)
    assert await refusal(root.Deny(wrong)) is grpc.StatusCode.INVALID_ARGUMENT
    assert not (await root.ListDenied(v1.ListDeniedRequest())).denied


async def test_a_list_tells_which_nodes_do_not_know_of_it_yet(world: World) -> None:
    root = world.stub(ROOT)
    session = world.sessions.open("n1", node_pb.NodeHello())
    revision = (await root.Deny(denying((WEB, "")))).revision
    (message,) = [item for item in await session.feed.next() if item.kind == "deny_list"]
    said = node_pb.SyncResponse.FromString(message.body()).deny_list
    assert [deny.spiffe_id for deny in said.denies] == [WEB]
    assert said.revision == revision
    assert list((await root.ListDenied(v1.ListDeniedRequest())).behind) == ["n1"]
    session.take(node_pb.SyncRequest(deny_ack=node_pb.DenyAck(revision=revision)))
    listed = await root.ListDenied(v1.ListDeniedRequest())
    assert (list(listed.behind), listed.nodes) == ([], 1)


async def give(world: World, node: str, *certificates: tuple[str, str, float]) -> None:
    """Records certificates (SPIFFE ID, serial, how many seconds from now it ends) as given to a node at once."""
    found, _ = await world.store.get(f"/identity/node/{node}")
    record = NodeRecord(node, utc_now(), "127.0.0.1", "1")
    if found is None:
        await world.store.commit([Put(record.key, record.encode(), 0)])
        found, _ = await world.store.get(record.key)
    assert found is not None
    made = [Certificate(name, serial, utc_now() + timedelta(seconds=left_s)) for name, serial, left_s in certificates]
    await Issued(world.store, utc_now).add(replace(record, revision=found.revision), made)


async def serials(stub: AdminServiceStub, **asked: Any) -> list[str]:
    """The serial numbers of all pages."""
    request, found = v1.ListCertificatesRequest(**asked), []
    while True:
        answer = await stub.ListCertificates(request)
        found += [one.serial for one in answer.certificates]
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


async def test_certificates_are_shown_with_who_holds_them(world: World) -> None:
    root = world.stub(ROOT)
    await give(world, "n1", (WEB, "a1", 600), (WEB, "a2", 900))
    await give(world, "n2", (ORDERS, "b1", 700))
    session = world.sessions.open("n1", node_pb.NodeHello())
    held = node_pb.WorkloadState(id="acme/web#1", tenant="acme", entry="web", spiffe_id=WEB, serial="a2")
    held.not_before.FromDatetime(utc_now() - timedelta(seconds=60))
    session.take(node_pb.SyncRequest(workloads=node_pb.WorkloadReport(workloads=[held])))
    await root.Deny(denying((WEB, "a1"), (ORDERS, "")))
    answer = await root.ListCertificates(v1.ListCertificatesRequest())
    shown = [(c.node, c.serial, v1.CertificateState.Use.Name(c.use), c.denied) for c in answer.certificates]
    assert shown == [("n1", "a1", "NOT_HELD", True), ("n1", "a2", "HELD", False), ("n2", "b1", "UNKNOWN", True)]
    second = answer.certificates[1]
    assert (list(second.workloads), second.not_before) == (["acme/web#1"], held.not_before)
    assert second.not_after.seconds > answer.now.seconds
    await root.Deny(denying(("", "a2")))
    assert all(c.denied for c in (await root.ListCertificates(v1.ListCertificatesRequest())).certificates)


async def test_an_operator_of_a_tenant_sees_its_own_certificates_alone(world: World) -> None:
    anna, root = world.stub(ANNA), world.stub(ROOT)
    for number in range(4):
        await give(world, "n1", (WEB, f"a{number}", 600 + number), (ORDERS, f"b{number}", 600 + number))
    await give(world, "n1", (WEB, "e1", -5))
    assert await serials(anna) == ["a0", "a1", "a2", "a3"]
    assert await serials(anna, page_size=1) == ["a0", "a1", "a2", "a3"]
    assert await serials(anna, spiffe_id=ORDERS) == []
    assert await serials(root, tenant="platform", page_size=3) == ["b0", "b1", "b2", "b3"]
    assert sorted(await serials(root, node="n1", page_size=1)) == [f"{c}{n}" for c in "ab" for n in range(4)]
    assert await serials(root, node="n") == []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anna.ListCertificates(v1.ListCertificatesRequest(tenant="platform"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_page_token_says_nothing_of_another_tenants_certificates(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "MAX_READ", 2)
    anna = world.stub(ANNA)
    for node in ("n1", "n2", "n3"):
        for number in range(3):
            await give(world, node, (ORDERS, f"{node[1]}b{number}", 600 + number))
    await give(world, "n3", (WEB, "a1", 900))
    answer = await anna.ListCertificates(v1.ListCertificatesRequest())
    assert (len(answer.certificates), answer.next_page_token) == (0, "n1/999999999999")
    assert await serials(anna) == ["a1"]


@pytest.mark.parametrize(
    "wrong",
    [
        v1.ListCertificatesRequest(page_size=1001),
        v1.ListCertificatesRequest(node="../n1"),
        v1.ListCertificatesRequest(spiffe_id="x" * 2049),
        v1.ListCertificatesRequest(page_token="n1"),
        v1.ListCertificatesRequest(page_token="../node/n1/999999999999"),
        v1.ListCertificatesRequest(page_token="n1/999999999999\n"),
        v1.ListCertificatesRequest(node="n2", page_token="n1/999999999999"),
    ],
    ids=str,
)
async def test_a_page_of_certificates_that_makes_no_sense_is_refused(
    world: World, wrong: v1.ListCertificatesRequest
) -> None:
    assert await refusal(world.stub(ROOT).ListCertificates(wrong)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_batch_that_cant_be_read_hides_no_other(world: World) -> None:
    await give(world, "n1", (WEB, "a1", 600))
    await world.store.commit([Put(f"{ISSUED}n1/000000000000-0", b"[]", 0), Put(f"{ISSUED}n1", b"{}", 0)])
    assert await serials(world.stub(ANNA)) == ["a1"]


async def test_an_operator_of_the_mesh_moves_roots_on(world: World) -> None:
    admin, kinds = world.stub("operator/root"), v1.ChangeRootRequest
    prepared = await admin.ChangeRoot(kinds(change=kinds.PREPARE, reason="yearly"))
    assert [v1.RootState.State.Name(root.state) for root in prepared.roots] == ["ACTIVE", "PREPARED"]
    new = prepared.roots[1]
    assert new.next == "is activated, once no node is missing"
    assert new.next_time.seconds > prepared.now.seconds
    done = await admin.ChangeRoot(kinds(change=kinds.ACTIVATE, fingerprint=new.fingerprint[:12]))
    old = done.roots[0].fingerprint
    with pytest.raises(grpc.aio.AioRpcError, match="connections") as caught:
        await admin.ChangeRoot(kinds(change=kinds.REVOKE, fingerprint=old))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert not (await admin.ChangeRoot(kinds(change=kinds.TAINT, fingerprint=old))).told
    await admin.ChangeRoot(kinds(change=kinds.REVOKE, fingerprint=old, force=True))
    (left,) = (await admin.ListRoots(v1.ListRootsRequest())).roots
    assert left.fingerprint == new.fingerprint
    assert (await admin.GetStatus(v1.GetStatusRequest())).roots[0].fingerprint == new.fingerprint


async def test_a_check_drops_the_roots_that_those_before_it_have_left(world: World) -> None:
    class Running(Mesh):
        @contextlib.asynccontextmanager
        async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
            yield world.channel("operator/root")

    mesh = Running(None)  # type: ignore[arg-type]  # its processes are not looked at
    while not (refused := await mesh.change_root("PREPARE")):
        (old,) = await mesh.roots("ACTIVE")
        (new,) = await mesh.roots("PREPARED")
        assert not await mesh.change_root("ACTIVATE", new.fingerprint)
        assert not await mesh.change_root("TAINT", old.fingerprint)
    assert refused == f"there are {MAX_ROOTS} roots: revoke one of those that sign no more first"
    await make_room(mesh)
    assert not await mesh.roots("TAINTED")
    assert not await mesh.change_root("PREPARE")


@pytest.mark.parametrize(
    ("change", "fingerprint"),
    [
        (0, ""),
        (9, "aaaaaa"),
        (1, "aaaaaa"),
        (2, ""),
        (2, "aaaaa"),
        (3, "zzzzzz"),
        (4, "a" * 65),
        (4, "../../"),
        (2, "aaaaaa\n"),
    ],
)
async def test_a_change_of_a_root_that_makes_no_sense_is_refused(world: World, change: int, fingerprint: str) -> None:
    request: Any = v1.ChangeRootRequest(change=change, fingerprint=fingerprint)  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stub("operator/root").ChangeRoot(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_operator_of_a_tenant_does_not_see_roots(world: World) -> None:
    anna = world.stub("tenant/acme/operator/anna")
    request = v1.ChangeRootRequest(change=v1.ChangeRootRequest.PREPARE)
    for call in (anna.ListRoots(v1.ListRootsRequest()), anna.ChangeRoot(request)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not (await anna.GetStatus(v1.GetStatusRequest(tenant="acme"))).roots


async def test_an_operator_of_the_mesh_sees_every_bundle_and_what_is_wrong_with_it(world: World) -> None:
    admin = world.stub("operator/root")
    status = await admin.GetStatus(v1.GetStatusRequest())
    async with asyncio.timeout(60):
        while not all(one.fault for one in status.foreign):  # until both were asked
            status = await admin.GetStatus(v1.GetStatusRequest())
    assert [(one.trust_domain, one.roots, one.sequence) for one in status.foreign] == [
        ("b.test", 1, 7),
        ("c.test", 0, 0),
    ]
    assert not any(one.document for one in status.foreign)
    assert sum("the bundle of trust domain" in warning for warning in status.warnings) == 2
    own, known, unknown = (await admin.ListBundles(v1.ListBundlesRequest())).bundles
    assert (own.trust_domain, own.own, own.roots) == (DOMAIN, True, 1)
    assert parse_document(DOMAIN, own.document).x509 is not None
    assert parse_document("b.test", known.document).sequence == 7
    assert (unknown.document, bool(unknown.fault), unknown.HasField("fetched")) == (b"", True, False)
    tenant = world.stub("tenant/acme/operator/anna")
    assert not (await tenant.GetStatus(v1.GetStatusRequest())).foreign
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tenant.ListBundles(v1.ListBundlesRequest())
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
