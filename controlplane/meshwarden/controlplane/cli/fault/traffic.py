"""What is wrong with calls: denied, limited, or nowhere to go. It asks the control plane why."""

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc

from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.controlplane.cli import client
from meshwarden.controlplane.cli.fault.finding import Cause, Finding, Severity, listed
from meshwarden.controlplane.policy.endpoint import takes_calls
from meshwarden.v1 import admin_service_pb2 as v1
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resource_service_pb2 import ListRequest

_WINDOW_S: Final = 60
_LEDGER: Final = timedelta(minutes=3)
_MAX_ASKED: Final = 12


def of_calls(mesh: client.Client, now: datetime, away: Collection[str]) -> Iterator[Finding]:
    """What is wrong with calls.

    Args:
        mesh: a connection.
        now: the control plane's clock.
        away: the nodes whose agents are away, which explain why endpoints are.

    Raises:
        grpc.RpcError: a call failed.
    """
    request = v1.GetGraphRequest()
    request.window.FromSeconds(_WINDOW_S)
    graph = mesh.admin.GetGraph(request, timeout=client.TIMEOUT_S)
    called = {edge.destination for edge in graph.edges if edge.calls_per_s}
    yield from _nowhere(mesh, graph.nodes, called, away)
    refused = [edge for edge in graph.edges if edge.denied_per_s or edge.limited_per_s]
    methods = _methods(mesh, now) if refused else {}
    for edge in sorted(refused, key=lambda edge: -(edge.denied_per_s + edge.limited_per_s))[:_MAX_ASKED]:
        yield from _refused(mesh, edge, methods)


def _nowhere(
    mesh: client.Client, nodes: Iterable[v1.GraphNode], called: Collection[str], away: Collection[str]
) -> Iterator[Finding]:
    # What has no endpoint at all may only call, unless it is called.
    bare = {node.service: node for node in nodes if not node.healthy_endpoints}
    bare = {service: node for service, node in bare.items() if node.endpoints or service in called}
    if not bare:
        return
    where: dict[str, set[str]] = {}
    for endpoint in _endpoints(mesh):
        if not takes_calls(endpoint.spec):
            where.setdefault(f"{endpoint.metadata.tenant}/{endpoint.spec.service}", set()).add(endpoint.spec.node)
    for service, node in bare.items():
        homes = where.get(service, set())
        if homes and homes <= set(away):
            continue  # the finding of the node says it all
        evidence = f"none of its {node.endpoints} endpoints takes calls, on {listed(sorted(homes))}"
        if not homes:
            evidence = "it is called, and nobody serves it"
        yield Finding(
            Severity.CRITICAL,
            f"service {service}",
            Cause.NO_ENDPOINT,
            evidence,
            "see that its program runs and answers health checks: meshwarden logs --workload NAME",
        )


def _endpoints(mesh: client.Client) -> Iterator[Any]:
    token = ""
    while True:
        answer = mesh.resource.List(ListRequest(kind="Endpoint", page_token=token), timeout=client.TIMEOUT_S)
        yield from (resource.endpoint for resource in answer.resources)
        token = answer.next_page_token
        if not token:
            return


def _methods(mesh: client.Client, now: datetime) -> dict[tuple[str, str, int], str]:
    """A method of the newest refused calls: {(source, destination, decision): method}."""
    request = v1.ListCallsRequest(limit=10_000)
    request.start.FromDatetime(now - _LEDGER)
    found = {}
    for call in mesh.admin.ListCalls(request, timeout=client.TIMEOUT_S).calls:
        found[_service(call.source), call.destination, call.decision] = call.method
    return found


def _service(identity: str) -> str:
    try:
        spiffe_id = SpiffeId.parse(identity)
    except InvalidSpiffeId:
        return identity
    return f"{spiffe_id.tenant}/{spiffe_id.service}"


def _refused(mesh: client.Client, edge: v1.GraphEdge, methods: dict[tuple[str, str, int], str]) -> Iterator[Finding]:
    who = f"{edge.source} → {edge.destination}"
    for decision, rate, cause in (
        (CallStat.DENIED, edge.denied_per_s, Cause.DENIED),
        (CallStat.LIMITED, edge.limited_per_s, Cause.LIMITED),
    ):
        if not rate:
            continue
        method = methods.get((edge.source, edge.destination, decision), "")
        stage = "access" if decision == CallStat.DENIED else "limit"
        step = _step(mesh, edge, method, stage) if method else None
        reason = f"{step.text} ({step.resource or 'no policy'})" if step is not None else "by the policy of then"
        what = f"{rate:.1f}/s of {method}" if method else f"{rate:.1f}/s"
        if decision == CallStat.DENIED:
            fix = f"if it shall be allowed, add it to an AccessPolicy of {edge.destination}; else stop the caller"
        else:
            fix = f"if it shall have more, raise its limit in the RatePolicy of {edge.destination}"
        severity = Severity.WARNING if cause is Cause.DENIED else Severity.NOTICE
        yield Finding(severity, who, cause, f"{what}: {reason}", fix)


def _step(mesh: client.Client, edge: v1.GraphEdge, method: str, stage: str) -> v1.ExplainStep | None:
    if "unknown" in (edge.source.partition("/")[0], edge.destination.partition("/")[0]):
        return None
    asked: dict[str, Any] = {"from": edge.source, "to": edge.destination, "method": method}
    request = v1.ExplainRequest(**asked)
    try:
        answer = mesh.admin.Explain(request, timeout=client.TIMEOUT_S)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None  # the service is gone that was called a moment ago
    return next((step for step in answer.steps if step.stage == stage), None)


def clock_of(answer: v1.GetStatusResponse) -> datetime:
    """The control plane's clock."""
    return answer.now.ToDatetime(UTC)
