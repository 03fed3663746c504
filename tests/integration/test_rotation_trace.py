"""A renewal that was asked for, as one trace: from who asks through the agent to programs and Envoys."""

import sys
from pathlib import Path
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from meshwarden.v1 import node_service_pb2 as node_pb

sys.path.insert(0, str(Path(__file__).parent))
from policy_world import Policy, settled

TRACE, ABOVE = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ORDER = node_pb.RenewNow(reason="test", trace_parent=f"00-{TRACE}-{ABOVE}-01")


def below(control_plane: Any) -> list[Span]:
    """The agent's spans of that trace."""
    found = [ResourceSpans.FromString(body) for export in control_plane.exports for body in export.resource_spans]
    spans = [span for item in found for scope in item.scope_spans for span in scope.spans]
    return [span for span in spans if span.trace_id.hex() == TRACE]


def workload_of(span: Span) -> str:
    return next(pair.value.string_value for pair in span.attributes if pair.key == "mesh.workload")


async def test_a_renewal_is_followed_until_programs_and_envoys_have_it(
    agent: Any, control_plane: Any, until: Any
) -> None:
    policy = Policy(control_plane)
    policy.declare(
        {"tenant": "acme", "name": "shop", "protocol": "HTTP", "envoy": True}, {"tenant": "acme", "name": "cart"}
    )
    await agent.ready()
    for name in ("shop", "cart"):
        agent.exec(name, "cat")

    async def held() -> dict[str, str]:
        return {item["id"]: item.get("serial", "") for item in (await agent.status()).get("workloads", ())}

    await until(lambda: _all(held, 2), "both have certificates", 60)
    await settled(policy, until)
    before = await held()
    control_plane.push(renew_now=ORDER)
    await until(lambda: any(span.name == "renew" for span in below(control_plane)), "it is over", 60)
    spans = below(control_plane)
    (renew,) = [span for span in spans if span.name == "renew"]
    assert renew.parent_span_id.hex() == ABOVE
    assert renew.status.code == 0
    calls = {f"/meshwarden.v1.NodeService/{name}" for name in ("SignWorkload", "Renew")}
    assert {span.name for span in spans} == {"renew", "deliver", *calls}
    assert {span.parent_span_id for span in spans if span is not renew} == {renew.span_id}
    delivered = {workload_of(span): span for span in spans if span.name == "deliver"}
    assert set(delivered) == {"acme/shop#1", "acme/cart#1"}
    after = await held()
    serials = {pair.value.string_value for span in delivered.values() for pair in span.attributes} - set(delivered)
    assert serials == set(after.values())
    assert serials.isdisjoint(before.values())
    # What the control plane does for it is below as well.
    (signing,) = [span for span in spans if span.name.endswith("/SignWorkload")]
    assert f"00-{TRACE}-{signing.span_id.hex()}-01" in control_plane.signed_below


async def test_one_that_is_refused_says_so_and_one_that_nobody_traces_says_nothing(
    agent: Any, control_plane: Any, until: Any
) -> None:
    await agent.ready()
    agent.exec("web", "cat")
    await until(lambda: control_plane.signed == 1, "it has a certificate")
    control_plane.sign_refusal = "not now"
    control_plane.push(renew_now=ORDER)
    await until(lambda: any(span.name == "renew" for span in below(control_plane)), "it is over", 60)
    (deliver,) = [span for span in below(control_plane) if span.name == "deliver"]
    assert (deliver.status.code, deliver.status.message) == (2, "not now")
    (renew,) = [span for span in below(control_plane) if span.name == "renew"]
    assert renew.status.code == 2
    count, control_plane.sign_refusal = len(below(control_plane)), ""
    for number, parent in enumerate(("", "nonsense", f"00-{TRACE}-{'0' * 16}-01"), start=2):
        # An order that a session is given while the agent moves over to the next would be lost with it.
        await until(
            lambda n=number: control_plane.opened == n and len(control_plane.sessions) == 1, "it has moved over", 60
        )
        signed = control_plane.signed
        control_plane.push(renew_now=node_pb.RenewNow(reason="test", trace_parent=parent))
        await until(
            lambda signed=signed, n=number: control_plane.signed > signed and control_plane.renewed == n,
            "all is renewed",
        )
    assert len(below(control_plane)) == count


async def _all(held: Any, count: int) -> bool:
    found = await held()
    return len(found) == count and all(found.values())


async def test_an_order_amid_another_ends_it(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    agent.exec("web", "cat")
    await until(lambda: control_plane.signed == 1, "it has a certificate")
    for _ in range(5):
        control_plane.push(renew_now=ORDER)
    await until(lambda: sum(span.name == "renew" for span in below(control_plane)) == 5, "each has ended", 60)
