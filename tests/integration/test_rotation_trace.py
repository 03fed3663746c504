"""What becomes of certificates and roots, each as one trace: from its cause to programs and Envoys."""

import asyncio
import sys
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.v1 import node_service_pb2 as node_pb

sys.path.insert(0, str(Path(__file__).parent))
from policy_world import Policy, settled

TRUST_DOMAIN = "mesh.test"

TRACE, ABOVE = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SIGN, RENEW = (f"/meshwarden.v1.NodeService/{name}" for name in ("SignWorkload", "Renew"))
ORDER = node_pb.RenewNow(reason="test", trace_parent=f"00-{TRACE}-{ABOVE}-01")


def all_spans(control_plane: Any) -> list[Span]:
    """The agent's spans."""
    found = [ResourceSpans.FromString(body) for export in control_plane.exports for body in export.resource_spans]
    return [span for item in found for scope in item.scope_spans for span in scope.spans]


def below(control_plane: Any) -> list[Span]:
    """The agent's spans of that trace."""
    return [span for span in all_spans(control_plane) if span.trace_id.hex() == TRACE]


def ended(control_plane: Any, name: str) -> list[dict[str, Span]]:
    """The traces whose root bears a name and that are over: {name: one span of it}, each."""
    traces: dict[bytes, dict[str, Span]] = defaultdict(dict)
    roots = set()
    for span in all_spans(control_plane):
        traces[span.trace_id][span.name] = span
        if span.name == name and not span.parent_span_id:
            roots.add(span.trace_id)
    return [trace for trace_id, trace in traces.items() if trace_id in roots]


def said(span: Span, key: str) -> str:
    return next(pair.value.string_value for pair in span.attributes if pair.key == key)


def workload_of(span: Span) -> str:
    return said(span, "mesh.workload")


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

    await until(lambda: _all(agent, 2), "both have certificates", 60)
    await settled(policy, until)
    before = await held(agent)
    control_plane.push(renew_now=ORDER)
    await until(lambda: any(span.name == "renew" for span in below(control_plane)), "it is over", 60)
    spans = below(control_plane)
    (renew,) = [span for span in spans if span.name == "renew"]
    assert renew.parent_span_id.hex() == ABOVE
    assert renew.status.code == 0
    assert {span.name for span in spans} == {"renew", "deliver", "connect", SIGN, RENEW}
    assert {span.parent_span_id for span in spans if span is not renew} == {renew.span_id}
    delivered = {workload_of(span): span for span in spans if span.name == "deliver"}
    assert set(delivered) == {"acme/shop#1", "acme/cart#1"}
    after = await held(agent)
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
    await until(lambda: _all(agent, 1), "it has a certificate", 60)
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


async def held(agent: Any) -> dict[str, str]:
    return {item["id"]: item.get("serial", "") for item in (await agent.status()).get("workloads", ())}


async def _all(agent: Any, count: int) -> bool:
    found = await held(agent)
    return len(found) == count and all(found.values())


async def test_an_order_amid_another_ends_it(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    agent.exec("web", "cat")
    await until(lambda: control_plane.signed == 1, "it has a certificate")
    for _ in range(5):
        control_plane.push(renew_now=ORDER)
    await until(lambda: sum(span.name == "renew" for span in below(control_plane)) == 5, "each has ended", 60)


async def test_a_renewal_at_half_life_has_a_trace_of_its_own(agent: Any, control_plane: Any, until: Any) -> None:
    control_plane.ttl = timedelta(seconds=16)
    await agent.ready()
    agent.exec("web", "cat")
    for steps in ({SIGN, "deliver"}, {RENEW, "connect"}):

        def over(steps: set[str] = steps) -> dict[str, Span] | None:
            return next((trace for trace in ended(control_plane, "renew") if trace.keys() == {"renew", *steps}), None)

        trace = await until(over, f"a renewal by {steps} is over", 90)
        assert said(trace["renew"], "mesh.cause") == "half-life"
        assert {span.status.code for span in trace.values()} == {0}
        assert {span.parent_span_id for name, span in trace.items() if name != "renew"} == {trace["renew"].span_id}


async def test_a_first_certificate_stands_below_the_registration_that_wants_it(
    agent: Any, control_plane: Any, until: Any
) -> None:
    await agent.ready()
    agent.exec("web", "cat")
    register = "/meshwarden.v1.WorkloadService/Register"
    (trace,) = await until(lambda: ended(control_plane, register), "it is registered", 60)
    assert trace.keys() == {register, "issue", SIGN, "deliver"}
    assert trace["issue"].parent_span_id == trace[register].span_id
    assert trace["deliver"].parent_span_id == trace[SIGN].parent_span_id == trace["issue"].span_id
    assert workload_of(trace["deliver"]) == "acme/web#1"


async def test_a_start_is_followed_until_what_went_on_running_is_served_again(
    agent: Any, control_plane: Any, until: Any
) -> None:
    policy = Policy(control_plane)
    policy.declare({"tenant": "acme", "name": "shop", "protocol": "HTTP", "envoy": True})
    await agent.ready()
    (first,) = await until(lambda: ended(control_plane, "start"), "the first start is over", 60)
    attest = "/meshwarden.v1.NodeService/Attest"
    assert first.keys() == {"start", attest, "connect"}
    program = agent.exec("shop", "sh", "-c", "echo up; exec cat")
    assert program.stdout is not None
    assert await asyncio.to_thread(program.stdout.readline) == "up\n"
    await settled(policy, until)
    await asyncio.to_thread(agent.stop)
    await agent.ready()
    _, again = await until(lambda: len(found := ended(control_plane, "start")) == 2 and found, "it is back", 90)
    assert again.keys() == {"start", "connect", "configure", "deliver"}
    assert workload_of(again["deliver"]) == "acme/shop#1"
    assert {span.status.code for span in again.values()} == {0}
    assert {span.parent_span_id for name, span in again.items() if name != "start"} == {again["start"].span_id}


async def test_other_roots_are_followed_until_each_workload_trusts_them(
    agent: Any, control_plane: Any, until: Any
) -> None:
    policy = Policy(control_plane)
    policy.declare(
        {"tenant": "acme", "name": "shop", "protocol": "HTTP", "envoy": True}, {"tenant": "acme", "name": "cart"}
    )
    await agent.ready()
    for name in ("shop", "cart"):
        agent.exec(name, "cat")
    await until(lambda: _all(agent, 2), "both have certificates", 60)
    await settled(policy, until)
    other = (await MemoryAuthority(TRUST_DOMAIN).bundle()).to_proto()
    message = control_plane.bundle.to_proto()
    for revision, parent in ((2, f"00-{TRACE}-{ABOVE}-01"), (3, f"00-{TRACE}-{ABOVE}-01"), (4, "nonsense")):
        # The second brings nothing new, and says so by nothing.
        message.revision, message.trace_parent = revision, parent
        if revision != 3:
            message.roots.append(other.roots[0])
        control_plane.push(bundle=message)
    await until(lambda: any(span.name == "trust" for span in below(control_plane)), "it is over", 60)
    spans = below(control_plane)
    (trust,) = [span for span in spans if span.name == "trust"]
    assert (trust.parent_span_id.hex(), trust.status.code) == (ABOVE, 0)
    delivered = [span for span in spans if span.name == "deliver"]
    assert {workload_of(span) for span in delivered} == {"acme/shop#1", "acme/cart#1"}
    assert {span.parent_span_id for span in delivered} == {trust.span_id}
    assert len(spans) == 3
