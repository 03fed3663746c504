"""What a change would do, asked of a whole control plane by its operators: each is shown what it may see."""

import asyncio
from typing import Any

import grpc
import pytest
from cryptography import x509
from google.protobuf.duration_pb2 import Duration

from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import operator_service_pb2 as operator_pb
from meshwarden.v1 import preview_service_pb2 as v1
from meshwarden.v1.admin_service_pb2 import ExplainRequest
from meshwarden.v1.preview_service_pb2 import ClientChange, ReplayedCalls
from meshwarden.v1.preview_service_pb2_grpc import PreviewServiceStub
from meshwarden.v1.report_pb2 import CallStat, ExportRequest
from meshwarden.v1.report_pb2_grpc import ReportServiceStub
from meshwarden.v1.resource_service_pb2 import ApplyRequest, DeleteRequest, GetRequest, ResourceRef
from meshwarden.v1.resources_pb2 import Resource

DEADLINE_S = 60.0
MESH = """\
kind: Tenant
metadata: {name: platform}
---
kind: Tenant
metadata: {name: acme}
---
kind: Tenant
metadata: {name: hidden}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC, exportTo: [acme, hidden]}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: GRPC}
---
kind: Service
metadata: {tenant: hidden, name: orders}
spec: {protocol: GRPC, exportTo: [acme]}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: orders}
spec: {service: orders, nodes: [n1], selectors: {uid: 1001}, version: v1, port: 7001}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: web}
spec: {service: web, nodes: [n1], selectors: {uid: 1002}}
---
kind: AccessPolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, allow: [{from: [{tenant: acme, service: "*"}]}]}
"""
NARROW = """\
kind: AccessPolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, allow: [{from: [{tenant: acme, service: web}], methods: [/s.O/Get]}]}
"""
ORDERS = "platform/orders"


def batch(text: str) -> list[Resource]:
    return [item.resource for item in parse(text, "mesh.yaml")]


def stat(
    method: str, count: int, reporter: CallStat.Reporter.ValueType, status: str = "OK", decision: int = 1
) -> CallStat:
    made = CallStat(
        source="spiffe://mesh.test/tenant/acme/service/web",
        destination=ORDERS,
        method=method,
        status=status,
        decision=CallStat.Decision.ValueType(decision),
        reporter=reporter,
        count=count,
    )
    made.minute.seconds = int(utc_now().timestamp()) // 60 * 60
    return made


async def called(mesh: Any, *stats: CallStat) -> None:
    """Has a node report calls of its workloads."""
    node = await mesh.attest_by_token(await mesh.token("n1"))
    async with mesh.channel(node) as channel:
        request = ExportRequest(run_id="platform", first_sequence=1, sequence=1, calls=stats)
        await ReportServiceStub(channel).Export(request, timeout=DEADLINE_S)


@pytest.fixture
async def declared(mesh: Any) -> Any:
    await mesh.resources.Apply(ApplyRequest(resources=batch(MESH)), timeout=DEADLINE_S)
    mesh.preview = PreviewServiceStub(mesh.channels[-1])
    return mesh


async def of_tenant(mesh: Any, tenant: str, role: operator_pb.OperatorRole.ValueType = operator_pb.EDITOR) -> Any:
    """What an operator of a tenant may ask."""
    key = new_key()
    asked = operator_pb.CreateOperatorRequest(tenant=tenant, name=f"op-{role}", role=role, csr=make_csr(key))
    answer = await mesh.operators.CreateOperator(asked, timeout=DEADLINE_S)
    svid = X509Svid.of([x509.load_der_x509_certificate(der) for der in answer.chain], key)
    channel = mesh.channel(svid)
    mesh.channels.append(channel)
    return PreviewServiceStub(channel)


async def replay(stub: Any, resources: list[Resource], span_s: int = 3600) -> v1.ReplayAnswer:
    request = v1.ReplayRequest(resources=resources, span=Duration(seconds=span_s))
    told = [message async for message in stub.Replay(request, timeout=DEADLINE_S)]
    assert [message.HasField("answer") for message in told] == [False] * (len(told) - 1) + [True]
    return told[-1].answer


async def test_a_preview_says_for_whom_calls_change_and_changes_nothing(declared: Any) -> None:
    answer = await declared.preview.Preview(v1.PreviewRequest(resources=batch(NARROW)), timeout=DEADLINE_S)
    told = {tuple(getattr(one, "from")): (one.kind, list(one.methods)) for one in answer.changes}
    assert told == {
        ("acme/*",): (ClientChange.DENIED, []),
        ("acme/web",): (ClientChange.DENIED, ["/*"]),
    }
    assert answer.changes[0].before.field == "spec.allow[0]"
    assert (answer.services, answer.other_services, answer.omitted_services) == (1, 2, 0)
    again = await declared.preview.Preview(v1.PreviewRequest(resources=batch(NARROW)), timeout=DEADLINE_S)
    assert again == answer


async def test_a_preview_says_which_rules_another_policy_overrules(declared: Any) -> None:
    deny = """\
kind: AccessPolicy
metadata: {tenant: platform, name: no}
spec: {service: orders, deny: [{from: [{tenant: acme, service: web}]}]}
"""
    both = v1.PreviewRequest(resources=[*batch(deny), *batch(NARROW)])
    (rule,) = (await declared.preview.Preview(both, timeout=DEADLINE_S)).overruled
    assert (rule.resource, rule.field, rule.wholly) == ("AccessPolicy platform/orders", "spec.allow[0]", True)
    assert (rule.by_resource, rule.by_field) == ("AccessPolicy platform/no", "spec.deny[0]")
    assert list(getattr(rule, "from")) == ["acme/web"]
    alone = await declared.preview.Preview(v1.PreviewRequest(resources=batch(NARROW)), timeout=DEADLINE_S)
    assert not alone.overruled


async def test_a_replay_counts_calls_once_and_says_which_would_be_denied(declared: Any) -> None:
    sides = (CallStat.SOURCE, CallStat.DESTINATION)
    await called(declared, *(stat(method, 5, side) for method in ("/s.O/Get", "/s.O/Put") for side in sides))
    answer = await replay(declared.preview, batch(NARROW))
    assert (answer.calls, answer.denied, answer.unchanged) == (10, 5, 5)
    (one,) = answer.changed
    assert (one.method, one.outcome, len(one.told_by)) == ("/s.O/Put", ReplayedCalls.DENIED, 2)
    limit = "kind: RatePolicy\nmetadata: {tenant: platform, name: much}\n"
    limit += "spec: {service: orders, limits: [{tenant: acme, requests: 1, per: 3600s, burst: 1}]}\n"
    limited = await replay(declared.preview, batch(limit))
    (one,) = limited.changed
    assert (one.outcome, getattr(one, "from"), limited.limited) == (ReplayedCalls.LIMITED, "acme/*", 8)


async def test_a_proposal_has_what_was_called_and_can_be_applied(declared: Any) -> None:
    sides = (CallStat.SOURCE, CallStat.DESTINATION)
    denied = [stat("/s.O/Drop", 3, side, "PERMISSION_DENIED", CallStat.DENIED) for side in sides]
    unanswered = stat("/s.O/Gone", 3, CallStat.SOURCE, "UNAVAILABLE")
    await called(declared, *(stat("/s.O/Get", 5, side) for side in sides), *denied, unanswered)
    answer = await declared.preview.SuggestAccess(v1.SuggestAccessRequest(service=ORDERS), timeout=DEADLINE_S)
    (one,) = answer.services
    (rule,) = one.policy.spec.allow
    assert ([(who.tenant, who.service) for who in getattr(rule, "from")], list(rule.methods)) == (
        [("acme", "web")],
        ["/s.O/Get"],
    )
    assert [list(rule.methods) for rule in one.denied] == [["/s.O/Drop"]]
    assert one.rules[0].calls == 5
    await declared.resources.Apply(ApplyRequest(resources=[Resource(access_policy=one.policy)]), timeout=DEADLINE_S)
    compared = await declared.preview.SuggestAccess(v1.SuggestAccessRequest(), timeout=DEADLINE_S)
    assert [(item.service, len(item.unused)) for item in compared.services] == [(ORDERS, 0)]


async def test_an_operator_of_a_tenant_asks_of_its_own_and_is_shown_no_other(declared: Any, refusal: Any) -> None:
    await called(declared, stat("/s.O/Put", 5, CallStat.DESTINATION))
    platform = await of_tenant(declared, "platform", operator_pb.VIEWER)
    answer = await platform.Preview(v1.PreviewRequest(resources=batch(NARROW)), timeout=DEADLINE_S)
    assert (answer.reach.connected_nodes, len(answer.changes)) == (0, 2)
    assert (await replay(platform, batch(NARROW))).denied == 5
    widened = batch(
        "kind: Service\nmetadata: {tenant: platform, name: orders}\nspec: {protocol: GRPC, exportTo: ['*']}\n"
    )
    told = await platform.Preview(v1.PreviewRequest(resources=widened), timeout=DEADLINE_S)
    assert "hidden/" not in str(told), "what else acme may mean by orders"
    acme = await of_tenant(declared, "acme")
    for call in (
        acme.Preview(v1.PreviewRequest(resources=batch(NARROW)), timeout=DEADLINE_S),
        acme.SuggestAccess(v1.SuggestAccessRequest(service=ORDERS), timeout=DEADLINE_S),
    ):
        code, text, _ = await refusal(call)
        assert (code, "platform" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
    code, _, _ = await refusal(replay(acme, batch(NARROW)))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    nothing = await acme.SuggestAccess(v1.SuggestAccessRequest(), timeout=DEADLINE_S)
    assert not nothing.services


async def test_a_batch_that_would_be_refused_is_refused_with_its_fields(declared: Any, refusal: Any) -> None:
    wrong = batch(NARROW.replace("service: web", "service: nobody"))
    for call in (
        declared.preview.Preview(v1.PreviewRequest(resources=wrong), timeout=DEADLINE_S),
        replay(declared.preview, wrong),
    ):
        code, text, _ = await refusal(call)
        assert (code, "resources[0].spec.allow[0].from[0].service" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    hostile = (
        declared.preview.Preview(v1.PreviewRequest(), timeout=DEADLINE_S),
        declared.preview.Preview(v1.PreviewRequest(resources=batch(NARROW) * 101), timeout=DEADLINE_S),
        replay(declared.preview, batch(NARROW), 59),
        replay(declared.preview, batch(NARROW), 604_801),
        declared.preview.SuggestAccess(v1.SuggestAccessRequest(service="a/b/c"), timeout=DEADLINE_S),
        declared.preview.SuggestAccess(v1.SuggestAccessRequest(prefix_from=257), timeout=DEADLINE_S),
    )
    for call in hostile:
        assert (await refusal(call))[0] is grpc.StatusCode.INVALID_ARGUMENT
    absent = declared.preview.SuggestAccess(v1.SuggestAccessRequest(service="platform/none"), timeout=DEADLINE_S)
    assert (await refusal(absent))[0] is grpc.StatusCode.NOT_FOUND


def ref(title: str) -> ResourceRef:
    kind, tenant, name = title.split("/")
    return ResourceRef(kind=kind, tenant=tenant, name=name)


async def test_what_a_deletion_would_do_is_told_as_of_any_change(declared: Any, refusal: Any) -> None:
    await called(declared, *(stat("/s.O/Get", 5, side) for side in (CallStat.SOURCE, CallStat.DESTINATION)))
    gone = [ref("AccessPolicy/platform/orders")]
    answer = await declared.preview.Preview(v1.PreviewRequest(deletions=gone), timeout=DEADLINE_S)
    assert [(list(getattr(one, "from")), one.kind) for one in answer.changes] == [(["acme/*"], ClientChange.DENIED)]
    request = v1.ReplayRequest(deletions=gone)
    told = [message async for message in declared.preview.Replay(request, timeout=DEADLINE_S)][-1].answer
    assert (told.calls, told.denied) == (5, 5)
    assert await declared.resources.Get(GetRequest(ref=gone[0]), timeout=DEADLINE_S), "it is still there"
    # What takes the place of it lets the same callers in, and is stored first.
    instead = batch(MESH.rpartition("---")[2].replace("name: orders}\nspec", "name: instead}\nspec"))
    both = v1.PreviewRequest(resources=instead, deletions=gone)
    assert not (await declared.preview.Preview(both, timeout=DEADLINE_S)).changes
    # A service with all that names it.
    whole = [*gone, ref("WorkloadEntry/platform/orders"), ref("Service/platform/orders")]
    hidden = await declared.preview.Preview(v1.PreviewRequest(deletions=whole), timeout=DEADLINE_S)
    assert {one.kind for one in hidden.changes} == {ClientChange.HIDDEN, ClientChange.DENIED}
    assert [(name.tenant, list(name.before), list(name.after)) for name in hidden.names if name.tenant == "acme"] == [
        ("acme", ["hidden/orders", ORDERS], ["hidden/orders"])
    ]


ROLLOUT = """\
kind: Rollout
metadata: {tenant: platform, name: narrow}
spec:
  accessPolicies:
    - kind: AccessPolicy
      metadata: {tenant: platform, name: orders}
      spec: {service: orders, allow: [{from: [{tenant: acme, service: web}], methods: [/s.O/Get]}]}
  stages: [{percent: 100, hold: 3600s}]
"""


async def test_what_ends_with_a_rollout_that_is_under_way_is_told(declared: Any) -> None:
    await declared.resources.Apply(ApplyRequest(resources=batch(ROLLOUT)), timeout=DEADLINE_S)
    gone = v1.PreviewRequest(deletions=[ref("Rollout/platform/narrow")])
    async with asyncio.timeout(DEADLINE_S):
        while not (answer := await declared.preview.Preview(gone, timeout=DEADLINE_S)).ended:
            assert not answer.changes, "one that waits has changed nothing"
            await asyncio.sleep(0.05)
    assert not answer.changes, "the mesh as it is stays as it is"
    (ended,) = answer.ended
    assert (ended.rollout, ended.stage) == ("Rollout platform/narrow", "stage 1 of 1 (100 %)")
    assert list(ended.policies) == ["AccessPolicy platform/orders"]
    told = {tuple(getattr(one, "from")): (one.kind, list(one.methods)) for one in ended.changes}
    assert told == {("acme/*",): (ClientChange.ALLOWED, []), ("acme/web",): (ClientChange.ALLOWED, ["/*"])}

    async def explained(method: str) -> Any:
        asked = ExplainRequest(to=ORDERS, method=method)
        setattr(asked, "from", "acme/web")
        return await declared.admin.Explain(asked, timeout=DEADLINE_S)

    put = await explained("/s.O/Put")
    assert (put.decision, put.staged.decision) == (CallStat.ALLOWED, CallStat.DENIED)
    assert [(step.stage, step.ok, step.field) for step in put.staged.steps] == [("access", False, "spec.allow")]
    get = await explained("/s.O/Get")
    assert (get.decision, get.staged.decision) == (CallStat.ALLOWED, CallStat.ALLOWED)
    assert [step.text for step in get.staged.steps] == ["allowed: web of tenant acme may call this"]
    platform = await of_tenant(declared, "platform", operator_pb.VIEWER)
    shown = await platform.Preview(gone, timeout=DEADLINE_S)
    assert shown.ended[0].changes == ended.changes
    await declared.resources.Delete(DeleteRequest(refs=gone.deletions), timeout=DEADLINE_S)
    # What is pushed comes after what is stored.
    async with asyncio.timeout(DEADLINE_S):
        while (await explained("/s.O/Put")).HasField("staged"):  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.05)


async def test_a_deletion_that_would_be_refused_is_refused(declared: Any, refusal: Any) -> None:
    policy, service = ref("AccessPolicy/platform/orders"), ref("Service/platform/orders")
    version = batch(
        "kind: RoutePolicy\nmetadata: {tenant: platform, name: orders}\n"
        "spec: {service: orders, rules: [{split: [{version: v1, weight: 1}]}]}\n"
    )
    of_version = ref("WorkloadEntry/platform/orders")
    for resources, deletions, code, word in (
        ([], [ref("AccessPolicy/platform/none")], grpc.StatusCode.NOT_FOUND, "AccessPolicy platform/none"),
        ([], [service], grpc.StatusCode.FAILED_PRECONDITION, "AccessPolicy platform/orders needs it"),
        # Needed by what is to be stored with it.
        (version, [of_version], grpc.StatusCode.FAILED_PRECONDITION, "RoutePolicy platform/orders needs it"),
        (batch(NARROW), [policy], grpc.StatusCode.INVALID_ARGUMENT, "deletions[0]"),
        ([], [policy] * 101, grpc.StatusCode.INVALID_ARGUMENT, "deletions"),
        (
            [],
            [ResourceRef(kind="Nothing", tenant="a", name="a")],
            grpc.StatusCode.INVALID_ARGUMENT,
            "deletions[0].kind",
        ),
    ):
        for call in (
            declared.preview.Preview(v1.PreviewRequest(resources=resources, deletions=deletions), timeout=DEADLINE_S),
            _first(declared.preview.Replay(v1.ReplayRequest(resources=resources, deletions=deletions))),
        ):
            found, text, _ = await refusal(call)
            assert (found, word in text) == (code, True), text
    acme = await of_tenant(declared, "acme")
    found, text, _ = await refusal(acme.Preview(v1.PreviewRequest(deletions=[policy]), timeout=DEADLINE_S))
    assert (found, "platform" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)


async def _first(stream: Any) -> Any:
    return await anext(aiter(stream))


async def test_who_asks_too_much_at_once_is_told_to_ask_later(declared: Any) -> None:
    request = v1.PreviewRequest(resources=batch(NARROW))
    asked = [declared.preview.Preview(request, timeout=DEADLINE_S) for _ in range(14)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert {answer.code() for answer in refused} <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}, (
        refused[:1]
    )
    assert len(answers) > len(refused)
    assert (await declared.preview.Preview(request, timeout=DEADLINE_S)).changes


async def test_a_rollout_of_no_node_that_is_there_is_told(declared: Any) -> None:
    async def warned() -> list[str]:
        text = ROLLOUT.replace("{percent: 100, hold: 3600s}", "{zone: nowhere}, {region: eu}, {all: true}")
        request = v1.PreviewRequest(resources=batch(text))
        return list((await declared.preview.Preview(request, timeout=DEADLINE_S)).warnings)

    none = "Rollout platform/narrow spec: it concerns no node that has joined: it is judged by no call"
    assert await warned() == [none]
    await declared.attest_by_token(await declared.token("n1"))
    (nowhere,) = await warned()
    assert nowhere.startswith(
        "Rollout platform/narrow spec.stages[0].zone: no node that it concerns is in zone nowhere"
    )
