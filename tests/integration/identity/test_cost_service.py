"""What models cost, told by a node and asked of a whole control plane by its operators: each sees what it may."""

from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509

from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import cost_service_pb2 as v1
from meshwarden.v1 import operator_service_pb2 as operator_pb
from meshwarden.v1.cost_service_pb2 import GetCostsRequest
from meshwarden.v1.cost_service_pb2_grpc import CostServiceStub
from meshwarden.v1.report_pb2 import ExportRequest, ModelCall, ModelCalls
from meshwarden.v1.report_pb2_grpc import ReportServiceStub
from meshwarden.v1.resource_service_pb2 import ApplyRequest

DEADLINE_S = 60.0
MESH = """\
{kind: Tenant, metadata: {name: acme}}
---
{kind: Tenant, metadata: {name: globex}}
---
{kind: Service, metadata: {tenant: acme, name: web}, spec: {protocol: GRPC}}
---
{kind: Service, metadata: {tenant: globex, name: web}, spec: {protocol: GRPC}}
---
{kind: WorkloadEntry, metadata: {tenant: acme, name: web}, spec: {service: web, nodes: [n1], selectors: {uid: 1}}}
---
{kind: WorkloadEntry, metadata: {tenant: globex, name: web}, spec: {service: web, nodes: [n2], selectors: {uid: 1}}}
"""
KNOWN = ModelCall(provider="openai", model="gpt-4o", id=1, input_tokens=1_000_000, output_tokens=100_000)
UNKNOWN = ModelCall(provider="openai", model="gpt-of-tomorrow", id=2, input_tokens=40, output_tokens=2)


def told(reporter: str, *calls: ModelCall) -> bytes:
    message = ModelCalls(reporter=reporter, time_s=int(utc_now().timestamp()), calls=calls)
    return message.SerializeToString()


async def report(mesh: Any, node: str, *bodies: bytes, sequence: int = 1) -> None:
    """Has a node tell of calls of its workloads."""
    async with mesh.channel(mesh.nodes[node]) as channel:
        request = ExportRequest(run_id=node, first_sequence=sequence, sequence=sequence, model_calls=bodies)
        await ReportServiceStub(channel).Export(request, timeout=DEADLINE_S)
        await ReportServiceStub(channel).Export(request, timeout=DEADLINE_S)  # again, as if it had not been answered


async def of_tenant(mesh: Any, tenant: str) -> Any:
    """What an operator of a tenant may ask."""
    key = new_key()
    asked = operator_pb.CreateOperatorRequest(tenant=tenant, name="ann", role=operator_pb.VIEWER, csr=make_csr(key))
    answer = await mesh.operators.CreateOperator(asked, timeout=DEADLINE_S)
    svid = X509Svid.of([x509.load_der_x509_certificate(der) for der in answer.chain], key)
    channel = mesh.channel(svid)
    mesh.channels.append(channel)
    return CostServiceStub(channel)


@pytest.fixture
async def told_of(mesh: Any) -> Any:
    """A mesh of whose two tenants each has called a model."""
    resources = [item.resource for item in parse(MESH, "mesh.yaml")]
    await mesh.resources.Apply(ApplyRequest(resources=resources), timeout=DEADLINE_S)
    mesh.nodes = {node: await mesh.attest_by_token(await mesh.token(node)) for node in ("n1", "n2")}
    await report(mesh, "n1", told("web.acme", KNOWN, UNKNOWN))
    await report(mesh, "n2", told("web.globex", KNOWN))
    mesh.cost = CostServiceStub(mesh.channels[-1])
    return mesh


async def ask(stub: Any, **asked: Any) -> v1.GetCostsResponse:
    answer: v1.GetCostsResponse = await stub.GetCosts(GetCostsRequest(**asked), timeout=DEADLINE_S)
    return answer


async def test_money_is_told_by_tenant_service_and_model(told_of: Any) -> None:
    answer = await ask(told_of.cost)
    found = {(one.tenant, one.service, one.model): one for one in answer.costs}
    assert found.keys() == {
        ("acme", "web", "gpt-4o"),
        ("acme", "web", "gpt-of-tomorrow"),
        ("globex", "web", "gpt-4o"),
    }
    # A list price of 2.50 $ and 10 $ for a million tokens.
    assert found["acme", "web", "gpt-4o"].usd == pytest.approx(3.5)
    unknown = found["acme", "web", "gpt-of-tomorrow"]
    assert (unknown.HasField("usd"), unknown.unpriced_tokens, unknown.unpriced_calls) == (False, 42, 1)
    assert answer.total.usd == pytest.approx(7.0)
    assert (answer.total.calls, answer.total.unpriced_tokens, answer.omitted) == (3, 42, 0)
    assert answer.prices.startswith("genai-prices ")
    assert answer.prices_date.seconds < answer.end.seconds
    by_hour = await ask(told_of.cost, by=[GetCostsRequest.HOUR, GetCostsRequest.TENANT], limit=1)
    assert (by_hour.omitted, by_hour.costs[0].start.seconds % 3600, by_hour.costs[0].model) == (1, 0, "")
    assert by_hour.total == answer.total
    (one,) = (await ask(told_of.cost, service="acme/web", model="gpt-4o")).costs
    assert one.usd == pytest.approx(3.5)
    before = GetCostsRequest()
    before.end.FromDatetime(utc_now() - timedelta(hours=1))
    assert not (await told_of.cost.GetCosts(before, timeout=DEADLINE_S)).costs


async def test_an_operator_of_a_tenant_sees_its_own_alone(told_of: Any) -> None:
    stub = await of_tenant(told_of, "acme")
    for asked in ({}, {"tenant": "acme"}, {"service": "acme/web"}, {"service": "web"}):
        answer = await ask(stub, **asked)
        assert {one.tenant for one in answer.costs} == {"acme"}
        assert answer.total.usd == pytest.approx(3.5)
    for asked in ({"tenant": "globex"}, {"service": "globex/web"}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(stub, **asked)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_node_is_believed_for_its_own_workloads_alone(told_of: Any) -> None:
    other = ModelCall(provider="openai", model="gpt-4o", id=9, input_tokens=1_000_000)
    bodies = (told("web.globex", other), told("meshwarden-agent", other), told("", other), b"\xff\xff")
    await report(told_of, "n1", *bodies, told("web.acme", other), sequence=2)
    answer = await ask(told_of.cost, by=[GetCostsRequest.TENANT])
    found = {one.tenant: one.usd for one in answer.costs}
    assert found == {"acme": pytest.approx(6.0), "globex": pytest.approx(3.5)}


# What is asked, and the field that the refusal names.
UNASKABLE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"by": [0]}, "by"),
    ({"by": [99]}, "by"),
    ({"by": [1, 1]}, "by"),
    ({"by": [5, 6]}, "by"),
    ({"limit": 10_001}, "limit"),
    ({"tenant": "../x"}, "tenant"),
    ({"tenant": "acme", "service": "globex/web"}, "service"),
    ({"model": "x" * 129}, "model"),
    ({"start": {"seconds": 2**62}}, "start"),
    ({"start": {"seconds": 20}, "end": {"seconds": 10}}, "start"),
)


async def test_what_cannot_be_asked_is_refused_by_its_name(told_of: Any) -> None:
    for asked, field in UNASKABLE:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(told_of.cost, **asked)
        assert (caught.value.code(), field in str(caught.value.details())) == (grpc.StatusCode.INVALID_ARGUMENT, True)
