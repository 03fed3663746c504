"""The mesh as it changes, told by nodes and watched on a whole control plane: each operator sees what it may."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from google.protobuf.json_format import MessageToDict, ParseDict
from rest_client import Rest

from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import console_service_pb2 as v1
from meshwarden.v1 import operator_service_pb2 as operator_pb
from meshwarden.v1.admin_service_pb2 import GraphEdge
from meshwarden.v1.console_service_pb2_grpc import ConsoleServiceStub
from meshwarden.v1.report_pb2 import CallStat, ExportRequest, Histogram
from meshwarden.v1.report_pb2_grpc import ReportServiceStub
from meshwarden.v1.resource_service_pb2 import ApplyRequest

DEADLINE_S = 60.0
DOMAIN = "mesh.test"
MESH = """\
{kind: Tenant, metadata: {name: acme}}
---
{kind: Tenant, metadata: {name: globex}}
---
{kind: Service, metadata: {tenant: acme, name: web}, spec: {protocol: GRPC}}
---
{kind: Service, metadata: {tenant: acme, name: orders}, spec: {protocol: GRPC}}
---
{kind: Service, metadata: {tenant: globex, name: web}, spec: {protocol: GRPC}}
---
{kind: Service, metadata: {tenant: globex, name: secret}, spec: {protocol: GRPC}}
---
{kind: Endpoint, metadata: {tenant: acme, name: orders-1},
 spec: {service: orders, address: 10.0.0.1, port: 80, locality: {region: eu}}}
---
{kind: Endpoint, metadata: {tenant: globex, name: web-1},
 spec: {service: web, address: 10.0.0.2, port: 80, locality: {region: us}}}
---
{kind: SLO, metadata: {tenant: acme, name: orders}, spec: {service: orders, objective: 99, availability: {}}}
---
{kind: WorkloadEntry, metadata: {tenant: acme, name: web}, spec: {service: web, nodes: [n1], selectors: {uid: 1}}}
---
{kind: WorkloadEntry, metadata: {tenant: acme, name: orders}, spec: {service: orders, nodes: [n1], selectors: {uid: 2}}}
---
{kind: WorkloadEntry, metadata: {tenant: globex, name: web}, spec: {service: web, nodes: [n2], selectors: {uid: 1}}}
"""


class Told:
    """What one who watches knows, by what the stream has told."""

    def __init__(self) -> None:
        self.services: dict[str, v1.MeshService] = {}
        self.edges: dict[str, v1.MeshEdge] = {}
        self.objectives: dict[str, v1.MeshObjective] = {}
        self.nodes: dict[str, v1.MeshNode] = {}
        self.wholes = 0
        self.last = v1.WatchMeshResponse()

    def take(self, message: v1.WatchMeshResponse) -> None:
        if message.whole:
            self.wholes += 1
            for part in (self.services, self.edges, self.objectives, self.nodes):
                part.clear()
        for name in message.gone_services:
            del self.services[name]
        for name in message.gone_edges:
            del self.edges[name]
        for name in message.gone_objectives:
            del self.objectives[name]
        for name in message.gone_nodes:
            del self.nodes[name]
        self.services.update({one.service: one for one in message.services})
        self.edges.update({f"{one.source} {one.destination}": one for one in message.edges})
        self.objectives.update({one.slo: one for one in message.objectives})
        self.nodes.update({one.node: one for one in message.nodes})
        self.last = message


class Watch:
    """A stream of gRPC that is watched."""

    def __init__(self, stub: Any, **asked: Any) -> None:
        self.call = stub.WatchMesh(v1.WatchMeshRequest(**asked))
        self.told = Told()

    async def until(self, holds: Callable[[Told], bool]) -> Told:
        async with asyncio.timeout(DEADLINE_S):
            while not holds(self.told):
                message = await self.call.read()
                assert message is not grpc.aio.EOF
                self.told.take(message)
        return self.told


def calls(source: str, destination: str, *, status: str = "OK", count: int = 10, slow: bool = False) -> CallStat:
    tenant, service = source.split("/")
    stat = CallStat(
        source=f"spiffe://{DOMAIN}/tenant/{tenant}/service/{service}",
        destination=destination,
        method="/orders.Orders/Get",
        status=status,
        decision=CallStat.DENIED if status == "PERMISSION_DENIED" else CallStat.ALLOWED,
        reporter=CallStat.SOURCE,
        count=count,
        durations=Histogram(buckets=[400 if slow else 100], counts=[count]),
    )
    stat.minute.FromDatetime(utc_now().replace(second=0, microsecond=0))
    return stat


async def report(mesh: Any, node: str, *stats: CallStat) -> None:
    """Has a node tell of calls of its workloads."""
    mesh.sequence = getattr(mesh, "sequence", 0) + 1
    async with mesh.channel(mesh.nodes[node]) as channel:
        request = ExportRequest(run_id=node, first_sequence=mesh.sequence, sequence=mesh.sequence, calls=stats)
        await ReportServiceStub(channel).Export(request, timeout=DEADLINE_S)


async def certificate(mesh: Any, tenant: str, name: str = "ann") -> X509Svid:
    """What an operator of a tenant shows; "" for one of the mesh."""
    key = new_key()
    asked = operator_pb.CreateOperatorRequest(tenant=tenant, name=name, role=operator_pb.VIEWER, csr=make_csr(key))
    answer = await mesh.operators.CreateOperator(asked, timeout=DEADLINE_S)
    return X509Svid.of([x509.load_der_x509_certificate(der) for der in answer.chain], key)


def stub_of(mesh: Any, svid: X509Svid) -> Any:
    channel = mesh.channel(svid)
    mesh.channels.append(channel)
    return ConsoleServiceStub(channel)


@pytest.fixture
async def told_of(start: Any) -> Any:
    """A mesh of two tenants, one of which calls the other."""
    mesh = await start(rest={"listen": "127.0.0.1:0"})
    resources = [item.resource for item in parse(MESH, "mesh.yaml")]
    await mesh.resources.Apply(ApplyRequest(resources=resources), timeout=DEADLINE_S)
    mesh.nodes = {node: await mesh.attest_by_token(await mesh.token(node)) for node in ("n1", "n2")}
    mesh.console = ConsoleServiceStub(mesh.channels[-1])
    return mesh


async def test_what_happens_is_told_to_whoever_watches(told_of: Any) -> None:
    watch = Watch(told_of.console)
    told = await watch.until(lambda told: len(told.services) == 4)
    assert (told.last.trust_domain, told.last.region, told.last.whole) == (DOMAIN, "eu", True)
    orders = told.services["acme/orders"]
    assert (orders.endpoints, orders.healthy_endpoints, list(orders.regions)) == (1, 1, ["eu"])
    assert set(told.nodes) == {"n1", "n2"}
    assert told.objectives["acme/orders"].burn == 0
    await report(told_of, "n1", calls("acme/web", "acme/orders"), calls("acme/web", "globex/web", status="UNAVAILABLE"))
    told = await watch.until(lambda told: len(told.edges) == 2)
    edge = told.edges["acme/web acme/orders"]
    assert edge.calls_per_s > 0
    assert edge.errors_per_s == 0
    assert edge.p95_s > 0
    assert (edge.mutual_tls, list(edge.regions)) == (GraphEdge.SAID, ["eu"])
    assert told.edges["acme/web globex/web"].errors_per_s > 0
    # A call that is denied, and a budget that burns.
    await report(told_of, "n1", calls("acme/web", "globex/web", status="PERMISSION_DENIED", count=3))
    await report(told_of, "n1", calls("acme/web", "acme/orders", status="INTERNAL", count=10))
    told = await watch.until(
        lambda told: told.edges["acme/web globex/web"].denied_per_s > 0 and told.objectives["acme/orders"].burn > 0
    )
    objective = told.objectives["acme/orders"]
    # Half of the calls, of which one in a hundred may be bad.
    assert (objective.service, objective.objective) == ("acme/orders", 99)
    assert objective.burn == pytest.approx(50, rel=0.01)
    assert told.services["acme/orders"].burn == objective.burn
    # All of that was told by changes.
    assert told.wholes == 1
    await told_of.resources.Apply(ApplyRequest(resources=_service("acme", "late")), timeout=DEADLINE_S)
    await watch.until(lambda told: "acme/late" in told.services)
    watch.call.cancel()


def _service(tenant: str, name: str) -> list[Any]:
    text = f"{{kind: Service, metadata: {{tenant: {tenant}, name: {name}}}, spec: {{protocol: GRPC}}}}"
    return [item.resource for item in parse(text, "more.yaml")]


async def test_an_operator_of_a_tenant_is_told_of_that_tenant(told_of: Any) -> None:
    ann = stub_of(told_of, await certificate(told_of, "acme"))
    await report(told_of, "n1", calls("acme/web", "acme/orders"), calls("acme/web", "globex/web"))
    await report(told_of, "n2", calls("globex/web", "globex/secret"))
    everything = Watch(told_of.console)
    await everything.until(lambda told: len(told.edges) == 3)
    watch = Watch(ann)
    told = await watch.until(lambda told: len(told.edges) == 2)
    # Of the other tenant: that it is called, and nothing of what it has.
    assert set(told.services) == {"acme/web", "acme/orders", "globex/web"}
    assert (told.services["globex/web"].endpoints, list(told.services["globex/web"].regions)) == (0, [])
    assert set(told.edges) == {"acme/web acme/orders", "acme/web globex/web"}
    assert set(told.objectives) == {"acme/orders"}
    assert set(told.nodes) == set()  # it has no workloads yet that anybody runs
    assert told.last.all_services == 3
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ann.WatchMesh(v1.WatchMeshRequest(tenant="globex")).read()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    # Asking for another's service by its name shows no more than the edges that lead there from one's own.
    other = await Watch(ann, service="globex/web").until(lambda told: bool(told.edges))
    assert set(other.edges) == {"acme/web globex/web"}
    nothing = await Watch(ann, service="globex/secret").until(lambda told: told.wholes > 0)
    assert not nothing.services
    assert not nothing.edges
    for one in (everything, watch):
        one.call.cancel()


async def test_services_are_folded_where_there_are_too_many(told_of: Any) -> None:
    await report(told_of, "n1", calls("acme/web", "acme/orders"), calls("acme/web", "globex/web"))
    await report(told_of, "n2", calls("globex/web", "globex/secret", status="INTERNAL"))
    folded = await Watch(told_of.console, max_services=3).until(lambda told: bool(told.edges) and told.wholes > 0)
    assert len(folded.services) <= 3
    assert folded.last.all_services == 4
    assert sum(one.folded or 1 for one in folded.services.values()) == 4
    assert any(one.folded for one in folded.services.values())
    rest = await Watch(told_of.console, max_services=1).until(lambda told: told.wholes > 0)
    assert set(rest.services) == {"*/*"}
    assert rest.services["*/*"].folded == 4
    assert not rest.edges
    one = await Watch(told_of.console, service="globex/secret").until(lambda told: bool(told.edges))
    assert set(one.services) == {"globex/web", "globex/secret"}


async def test_what_is_asked_wrongly_is_refused(told_of: Any) -> None:
    for wrong in (
        {"max_services": 1001},
        {"tenant": "x" * 64},
        {"tenant": "Acme"},
        {"service": "orders"},
        {"service": "acme/../globex"},
        {"service": "<img src=x onerror=alert(1)>/x"},
        {"service": "acme/" + "x" * 200},
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await told_of.console.WatchMesh(v1.WatchMeshRequest(**wrong)).read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, wrong
    async with told_of.channel(None) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ConsoleServiceStub(channel).WatchMesh(v1.WatchMeshRequest()).read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    async with told_of.channel(told_of.nodes["n1"]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ConsoleServiceStub(channel).WatchMesh(v1.WatchMeshRequest()).read()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_one_caller_has_so_many_watches_and_others_have_theirs(told_of: Any) -> None:
    ann = stub_of(told_of, await certificate(told_of, "acme"))
    bob = stub_of(told_of, await certificate(told_of, "acme", "bob"))
    open_ones = [Watch(ann) for _ in range(16)]
    for one in open_ones:
        await one.until(lambda told: told.wholes > 0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ann.WatchMesh(v1.WatchMeshRequest()).read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await Watch(bob).until(lambda told: told.wholes > 0)
    open_ones.pop().call.cancel()
    async with asyncio.timeout(DEADLINE_S):
        while not await _may(ann):  # until the control plane has seen that one is gone
            pass


async def _may(stub: Any) -> bool:
    """Whether one may watch, or is told that as many do as may."""
    try:
        await Watch(stub).until(lambda told: told.wholes > 0)
    except grpc.aio.AioRpcError as refused:
        if refused.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return True


async def test_browsers_watch_by_server_sent_events(told_of: Any) -> None:
    state = told_of.directory / told_of.name
    url = json.loads((state / "server.json").read_text())["rest_url"]
    ann = Rest(url, state / "ca.pem", await certificate(told_of, "acme"))
    nobody = Rest(url, state / "ca.pem", None)
    try:
        assert (await nobody.ask("GET", "/v1/mesh:watch")).status_code == 401
        refused = await ann.ask("GET", "/v1/mesh:watch?tenant=globex")
        assert (refused.status_code, refused.json()["code"]) == (403, "PERMISSION_DENIED")
        wrong = await ann.ask("GET", "/v1/mesh:watch?maxServices=5000&service=%3Cscript%3E&x=1")
        assert wrong.status_code == 400
        assert {fault["field"] for fault in wrong.json()["faults"]} >= {"query.x"}
        async with ann.events("/v1/mesh:watch") as events, ann.events("/v1/mesh:watch") as others:
            assert events.answer.headers["content-type"] == "text/event-stream"
            told = Told()
            for stream in (events, others):
                kind, _, data = await stream.next()
                assert kind == "message"
            # As protobuf writes JSON, which other messages' JSON is made by.
            message = ParseDict(data, v1.WatchMeshResponse())
            assert MessageToDict(message) == data
            told.take(message)
            await report(told_of, "n1", calls("acme/web", "acme/orders"))
            async with asyncio.timeout(DEADLINE_S):
                while not told.edges:
                    _, _, data = await events.next()
                    told.take(ParseDict(data, v1.WatchMeshResponse()))
            assert told.wholes == 1
    finally:
        await ann.client.aclose()
        await nobody.client.aclose()


async def test_a_removed_operator_is_told_no_more(told_of: Any) -> None:
    state = told_of.directory / told_of.name
    url = json.loads((state / "server.json").read_text())["rest_url"]
    svid = await certificate(told_of, "acme", "eve")
    eve, watch = Rest(url, state / "ca.pem", svid), Watch(stub_of(told_of, svid))
    await watch.until(lambda told: told.wholes > 0)
    try:
        async with eve.events("/v1/mesh:watch") as events:
            assert (await events.next())[0] == "message"
            gone = operator_pb.RemoveOperatorRequest(tenant="acme", name="eve")
            await told_of.operators.RemoveOperator(gone, timeout=DEADLINE_S)
            await _ends(told_of, events)
        with pytest.raises(grpc.aio.AioRpcError):
            await watch.until(lambda told: False)
    finally:
        await eve.client.aclose()


async def _ends(mesh: Any, events: Any) -> None:
    """Returns when a stream of one who was removed is over, though there is news all the time."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                kind, _, _ = await events.next()
            except httpx.HTTPError:
                return
            if kind == "problem":
                return
            await report(mesh, "n1", calls("acme/web", "acme/orders"))
