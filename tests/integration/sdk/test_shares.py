"""Servers of the SDK under limits that hold across the mesh: real servers and callers, an agent that gives shares."""

from collections.abc import Callable
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from meshwarden.controlplane.policy.neutral import Caller
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Share
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resources_pb2 import MethodLimit, RateLimit, RatePolicySpec

GET, WATCH = "/meshwarden.examples.v1.Orders/Get", "/meshwarden.examples.v1.Orders/Watch"
POLICY = "platform/orders"


def limits(**fields: Any) -> ServerLimits:
    parts = [MethodLimit(method=WATCH, requests=1000, burst=1000)]
    acme = RateLimit(tenant="acme", requests=1000, burst=1000, methods=parts)
    said = PolicyLimits(policy=POLICY, spec=RatePolicySpec(limits=[acme], **fields))
    return ServerLimits(policies=[said])


def share(rate: float, burst: float, method: str = "") -> Share:
    return Share(bucket=Bucket(policy=POLICY, tenant="acme", method=method), rate=rate, burst=burst)


def test_a_server_lets_through_its_share_and_says_what_it_used(mesh: Any, until: Callable[..., Any]) -> None:
    mesh.callers = {Caller("acme", "web"), Caller("globex", "web")}
    serving, _ = mesh.orders()
    _, acme = mesh.probe("acme", "web")
    _, globex = mesh.probe("globex", "web")
    agent = serving.agent
    agent.shares = [share(1e-6, 5.0), share(1000.0, 1000.0, WATCH)]
    serving.tell(limits())
    until(lambda: acme.ask("grpc")["codes"] == {"RESOURCE_EXHAUSTED": 1}, "its first calls, and no more")
    answer = acme.ask("grpc", count=10)
    assert answer["codes"] == {"RESOURCE_EXHAUSTED": 10}
    assert "rate policy platform/orders limits tenant acme: try again in" in answer["errors"][0]
    assert answer["trailing"][0]["x-meshwarden-policy"] == "RatePolicy platform/orders"
    assert int(answer["trailing"][0]["retry-after"]) >= 1
    assert answer["headers"][0]["ratelimit-policy"] == '"platform/orders tenant";q=1000;w=1;pk=:YWNtZQ==:'
    assert answer["headers"][0]["ratelimit"].startswith('"platform/orders tenant";r=0;t=')
    assert "ratelimit" not in answer["trailing"][0], "which the draft forbids"
    until(lambda: acme.ask("grpc", method="Watch", messages=3)["codes"] == {"OK": 1}, "another bucket")
    assert globex.ask("grpc", count=50)["codes"] == {"OK": 50}, "whom no limit names"
    until(lambda: agent.used["acme", "", "denied"] >= 11, "said")
    counted = agent.counted(CallStat.DESTINATION)
    until(lambda: agent.counted(CallStat.DESTINATION)[GET, "RESOURCE_EXHAUSTED", CallStat.LIMITED] >= 11, f"{counted}")
    assert agent.used["globex", "", "allowed"] == 0
    agent.shares = [share(1000.0, 1000.0)]
    until(lambda: acme.ask("grpc")["codes"] == {"OK": 1}, "more of it")


def test_a_refused_caller_is_told_in_googles_words(mesh: Any, until: Callable[..., Any]) -> None:
    serving, _ = mesh.orders()
    serving.agent.shares = [share(1e-6, 1.0)]
    serving.tell(limits())
    _, probe = mesh.probe()

    def trailing() -> Any:
        answer = probe.ask("grpc")
        return answer["trailing"] and answer

    answer = until(trailing, "refused")
    details = answer["trailing"][0]["grpc-status-details-bin"]
    assert "RetryInfo" in details
    assert "RatePolicy platform/orders: tenant acme" in details
    error = FakeCall(answer["errors"][0].partition(": ")[2], eval(details))  # noqa: S307 - the probe's own repr of bytes
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
    assert status.details[0].Unpack(retry)
    assert status.details[1].Unpack(quota)
    assert retry.retry_delay.seconds > 0
    assert quota.violations[0].subject == "acme"


class FakeCall:
    """A call as grpc_status looks at it."""

    def __init__(self, details: str, status: bytes) -> None:
        self._details, self._status = details, status

    def trailing_metadata(self) -> Any:
        return (("grpc-status-details-bin", self._status),)

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    def details(self) -> str:
        return self._details


def test_in_shadow_all_go_on_and_are_counted(mesh: Any, until: Callable[..., Any]) -> None:
    serving, _ = mesh.orders()
    serving.tell(limits(shadow=True))
    _, probe = mesh.probe()
    assert probe.ask("grpc", count=50)["codes"] == {"OK": 50}
    until(lambda: serving.agent.used["acme", "", "shadowed"] >= 20, "counted")


def test_while_the_agent_is_away_the_last_share_stands_and_is_told_when_it_is_back(
    mesh: Any, until: Callable[..., Any]
) -> None:
    serving, _ = mesh.orders()
    _, probe = mesh.probe()
    serving.agent.shares = [share(500.0, 500.0)]
    serving.tell(limits())
    until(lambda: probe.ask("grpc", count=5)["codes"] == {"OK": 5} and serving.agent.used["acme", "", "allowed"], "on")
    serving.agent.stop()
    assert probe.ask("grpc", count=50, rate=100)["codes"] == {"OK": 50}
    begun = len(serving.agent.held)
    serving.agent.start()
    until(lambda: len(serving.agent.held) > begun, "a new stream")
    assert [item.rate for item in serving.agent.held[-1]] == [500.0]


def test_a_server_that_stops_says_goodbye(mesh: Any, until: Callable[..., Any]) -> None:
    serving, program = mesh.orders()
    _, probe = mesh.probe()
    serving.tell(limits())
    until(lambda: probe.ask("grpc")["codes"] and serving.agent.held, "a stream")
    program.end()
    until(lambda: serving.agent.left == 1, "goodbye")
