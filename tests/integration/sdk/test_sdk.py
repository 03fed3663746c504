"""Channels and servers of the SDK against a real ADS server, real certificates and a WorkloadService."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.policy.neutral import Caller
from meshwarden.sdk.backpressure.criticality import KEY
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

SHAPES = str(Path(__file__).with_name("shapes.py"))
UNARY, FAN_OUT, FAN_IN, BOTH = (f"/test.Shapes/{name}" for name in ("Unary", "FanOut", "FanIn", "Both"))
GET = "/meshwarden.examples.v1.Orders/Get"
WEB = "spiffe://mesh.test/tenant/acme/service/web"


def serve_shapes(mesh: Any, port: int, **variables: str) -> Any:
    serving = mesh.workload("platform", "orders", port)
    serving.variables.update(variables)
    mesh.until_open(serving, serving.start(SHAPES, "serve"))
    return serving


def answers(mesh: Any, kind: str) -> tuple[Any, dict[str, Any]]:
    calling = mesh.workload("acme", "web")
    program = calling.start(SHAPES, "call", kind)
    line = program.popen.stdout.readline()
    assert line, "".join(program.log)
    assert program.popen.wait(60) == 0, program.log
    return calling, json.loads(line)


def test_every_shape_and_every_end_of_a_call_is_answered_and_counted_by_both_sides(
    mesh: Any, port: int, until: Callable[..., Any]
) -> None:
    serving = serve_shapes(mesh, port)
    calling, said = answers(mesh, "sync")
    assert json.loads(said["fine"])[0] == WEB
    assert said["raise"].startswith("UNKNOWN: Exception calling application")
    assert said["abort"] == "FAILED_PRECONDITION: not now"
    assert said["none"] == "INTERNAL: the handler returned None"
    assert said["code"].startswith("NOT_FOUND")
    assert said["bad"] == said["fan_in_bad"] == "INTERNAL: the request could not be read"
    assert said["xxxxxxxx"].startswith("RESOURCE_EXHAUSTED")
    assert said["wait"].startswith("DEADLINE_EXCEEDED")
    assert (said["cancel"], said["fan_out"], said["fan_out_none"]) == (True, 3, 0)
    assert said["fan_out_raise"].startswith("UNKNOWN")
    assert (said["fan_in"], said["both"]) == ("2", ["a", "b"])
    assert said["missing"] == "UNIMPLEMENTED: /test.Shapes/Missing: no such method"
    # What is a policy's doing is told apart from what is the program's.
    source = calling.agent.counted(CallStat.SOURCE)
    assert {decision for _, _, decision in source} == {CallStat.ALLOWED}
    assert source[UNARY, "OK", CallStat.ALLOWED] == 4
    assert source[FAN_OUT, "CANCELLED", CallStat.ALLOWED] == 1
    assert source[UNARY, "CANCELLED", CallStat.ALLOWED] == 1

    # A call cancelled at once may never reach the server; one too large never reaches the handler.
    one_sided = {(UNARY, "CANCELLED"), (UNARY, "RESOURCE_EXHAUSTED")}
    expected = {key: count for key, count in source.items() if key[:2] not in one_sided}
    # What there is no such method of is one thing to the server, whatever its callers make up.
    expected["_OTHER", "UNIMPLEMENTED", CallStat.ALLOWED] = expected.pop(
        ("/test.Shapes/Missing", "UNIMPLEMENTED", CallStat.ALLOWED)
    )

    def served() -> dict[Any, int]:
        counted = serving.agent.counted(CallStat.DESTINATION)
        return {key: count for key, count in counted.items() if key[:2] not in one_sided}

    with contextlib.suppress(AssertionError):  # for the difference, below
        until(lambda: served() == expected, "both sides count alike")
    assert served() == expected
    assert {stat.source for stat in serving.agent.reports} == {WEB}
    assert {stat.destination for stat in (*serving.agent.reports, *calling.agent.reports)} == {"platform/orders"}
    assert {stat.revision for stat in serving.agent.reports} == {7}


def test_calls_of_grpc_aio_are_counted_whatever_their_end(mesh: Any, port: int) -> None:
    serve_shapes(mesh, port)
    calling, said = answers(mesh, "aio")
    assert json.loads(said["fine"])[0] == WEB
    assert said["abort"] == "FAILED_PRECONDITION: not now"
    assert (said["fan_out"], said["fan_in"], said["both"]) == (3, "2", ["a", True])
    source = calling.agent.counted(CallStat.SOURCE)
    expected = {
        (UNARY, "OK"): 1,
        (UNARY, "FAILED_PRECONDITION"): 1,
        (UNARY, "CANCELLED"): 1,
        (FAN_OUT, "OK"): 1,
        (FAN_OUT, "CANCELLED"): 1,
        (FAN_IN, "OK"): 1,
        (BOTH, "OK"): 1,
    }
    assert {key[:2]: count for key, count in source.items()} == expected


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_each_call_has_a_span_on_both_sides_whatever_its_end(
    mesh: Any, port: int, until: Callable[..., Any], kind: str
) -> None:
    serving = serve_shapes(mesh, port)
    calling, _ = answers(mesh, kind)
    made = calling.agent.counted(CallStat.SOURCE).total()
    until(lambda: len(calling.agent.spans) >= made, "the caller's spans")
    assert len(calling.agent.spans) == made
    own = b"\xbb" * 8  # of the call that brought a parent of its own

    def served() -> list[Any]:
        """The server's spans of calls without a parent of their own, once there is one for each call counted."""
        counted = serving.agent.counted(CallStat.DESTINATION).total()
        spans = list(serving.agent.spans)
        return [span for span in spans if span.parent_span_id != own] if len(spans) >= counted > 0 else []

    until(served, "the server's spans")
    below = served()
    parents = {span.span_id: span.trace_id for span in calling.agent.spans}
    assert all(parents[span.parent_span_id] == span.trace_id for span in below)
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano > 0 for span in serving.agent.spans)


def test_a_trace_that_the_program_sets_stands_and_a_tenant_header_means_nothing(mesh: Any, port: int) -> None:
    serve_shapes(mesh, port)
    _, said = answers(mesh, "sync")
    caller, headers = json.loads(said["own trace"])
    assert caller == WEB
    assert headers["traceparent"].startswith("00-" + "a" * 32)
    assert KEY not in headers
    assert json.loads(said["sheddable"])[1][KEY] == "SHEDDABLE"


@pytest.mark.parametrize(
    "metadata", [{"x-tenant": "platform"}, {"x-forwarded-client-cert": "URI=spiffe://mesh.test/x"}]
)
def test_headers_do_not_change_who_calls(mesh: Any, metadata: dict[str, str]) -> None:
    mesh.orders()
    _, probe = mesh.probe()
    assert probe.ask("grpc", count=3, metadata=metadata)["tenants"] == {"acme": 3}


def test_a_grant_and_its_revocation_reach_an_open_channel(mesh: Any, until: Callable[..., Any]) -> None:
    mesh.orders()
    _, probe = mesh.probe("acme", "intruder")
    assert probe.ask("grpc", count=3)["codes"] == {"PERMISSION_DENIED": 3}
    mesh.callers = {Caller("acme", "intruder")}
    mesh.push()
    until(lambda: probe.ask("grpc")["codes"] == {"OK": 1}, "granted")
    mesh.callers = set()
    mesh.push()
    until(lambda: probe.ask("grpc")["codes"] == {"PERMISSION_DENIED": 1}, "revoked")


def test_a_limit_holds_for_its_tenant_alone_and_says_when_to_try_again(mesh: Any, until: Callable[..., Any]) -> None:
    mesh.callers = {Caller("acme", "web"), Caller("globex", "web")}
    serving, _ = mesh.orders()
    _, acme = mesh.probe("acme", "web")
    _, globex = mesh.probe("globex", "web")
    limit = RateLimit(tenant="acme", requests=1, per=Duration(seconds=3600), burst=5)
    spec = RatePolicySpec(scope=RatePolicySpec.POINT, limits=[limit])
    serving.tell(ServerLimits(policies=[PolicyLimits(policy="platform/orders", spec=spec)]))
    until(lambda: "RESOURCE_EXHAUSTED" in acme.ask("grpc")["codes"], "limited")
    answer = acme.ask("grpc", count=10)
    assert answer["codes"] == {"RESOURCE_EXHAUSTED": 10}
    assert "rate policy platform/orders limits tenant acme" in answer["errors"][0]
    assert int(answer["trailing"][0]["retry-after"]) >= 1
    assert globex.ask("grpc", count=100, metadata={"x-tenant": "acme"})["codes"] == {"OK": 100}
    key = (GET, "RESOURCE_EXHAUSTED", CallStat.LIMITED)
    until(lambda: serving.agent.counted(CallStat.DESTINATION)[key] >= 10, "counted as limited")


def test_connections_of_bounded_age_fail_no_call(mesh: Any, port: int) -> None:
    serve_shapes(mesh, port, SHAPES_AGE_S="0.5")
    _, said = answers(mesh, "steady")
    assert set(said) == {"OK"}, said
    assert said["OK"] > 100


def test_a_server_of_another_name_is_not_called(mesh: Any) -> None:
    mesh.expected = SpiffeId.workload("mesh.test", "platform", "other")
    mesh.orders()
    _, probe = mesh.probe()
    answer = probe.ask("grpc", timeout_s=3)
    assert answer["codes"] == {"UNAVAILABLE": 1}
    assert "SAN" in answer["errors"][0]


def test_an_open_channel_ends_with_its_certificate(mesh: Any, until: Callable[..., Any]) -> None:
    mesh.orders()
    calling, probe = mesh.probe()
    calling.publish(mesh.authority.issue(calling.spiffe_id, timedelta(seconds=8)))
    assert probe.ask("grpc", count=5)["codes"] == {"OK": 5}
    probe.ask("steady_start", id="watch", call={"op": "grpc", "method": "Watch", "messages": 0, "timeout_s": 60})
    refused = until(lambda: _refusal(probe), "refused")
    assert "expired" in refused, refused
    stopped = probe.ask("steady_stop", id="watch")
    assert "CANCELLED" in stopped["codes"], stopped


def _refusal(probe: Any) -> str | None:
    answer = probe.ask("grpc")
    return str(answer["errors"][0]) if "UNAUTHENTICATED" in answer["codes"] else None


def test_a_root_that_is_trusted_no_more_ends_open_channels(
    mesh: Any, until: Callable[..., Any], authority: Any
) -> None:
    serving, _ = mesh.orders()
    _, probe = mesh.probe()
    assert probe.ask("grpc", count=5)["codes"] == {"OK": 5}
    serving.tell(bundle=authority().bundle)
    until(lambda: _refusal(probe), "refused")


def test_calls_go_on_while_the_agent_is_away_and_their_counts_are_kept(mesh: Any, until: Callable[..., Any]) -> None:
    serving, _ = mesh.orders()
    calling, probe = mesh.probe()
    assert probe.ask("grpc")["codes"] == {"OK": 1}
    serving.agent.stop()
    calling.agent.stop()
    assert probe.ask("grpc", count=50)["codes"] == {"OK": 50}
    serving.agent.start()
    calling.agent.start()
    key = (GET, "OK", CallStat.ALLOWED)
    until(lambda: calling.agent.counted(CallStat.SOURCE)[key] == 51, "the caller's counts")
    until(lambda: serving.agent.counted(CallStat.DESTINATION)[key] == 51, "the server's counts")


def test_a_configuration_that_cannot_be_used_leaves_the_last_one(mesh: Any, until: Callable[..., Any]) -> None:
    serving, program = mesh.orders()
    _, probe = mesh.probe()
    good = serving.agent.config
    for fault in ({"spiffe_id": "nonsense"}, {"spiffe_id": "spiffe://mesh.test/region/r/node/n"}, {"bundle": None}):
        config = type(good)()
        config.CopyFrom(good)
        for field, value in fault.items():
            config.ClearField(field) if value is None else setattr(config, field, value)
        said = _warnings(program)
        serving.agent.say(config)
        until(lambda before=said: _warnings(program) > before, "a warning")
        assert probe.ask("grpc", count=3)["codes"] == {"OK": 3}


def _warnings(program: Any) -> int:
    return sum("the last configuration stands" in line for line in list(program.log))


OPEN = "import sys; from meshwarden import sdk; sdk.channel(sys.argv[1])"


# The same with less patience.
OPEN_SOON = f"from meshwarden.sdk.agent import AgentLink; AgentLink.wait.__defaults__ = (2.0,); {OPEN}"


def opened(target: str, program: str = OPEN, **variables: str) -> str:
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-c", program, target], env={**plain, **variables}, capture_output=True, text=True, timeout=50
    )
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


def test_outside_of_the_mesh_it_says_how_to_get_in(tmp_path: Path) -> None:
    assert "meshwarden-agent exec" in opened("xds:///orders")
    assert "MESHWARDEN_AGENT_SOCKET" in opened("xds:///orders", GRPC_XDS_BOOTSTRAP="/nowhere")
    assert "xds:///orders.platform" in opened("127.0.0.1:1")


def test_an_agent_that_is_not_there_or_talks_garbage_is_an_error_within_the_deadline(tmp_path: Path) -> None:
    import socket
    import threading

    path = tmp_path / "garbage.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)

        def babble() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nhello")
            except OSError:
                return

        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        for socket_path in (path, tmp_path / "none.sock"):
            variables = {"GRPC_XDS_BOOTSTRAP": "/x", "MESHWARDEN_AGENT_SOCKET": str(socket_path)}
            said = opened("xds:///orders", OPEN_SOON, **variables)
            assert f"{socket_path}: no configuration from the node agent within 2 s" in said
            assert "UNAVAILABLE" in said
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
