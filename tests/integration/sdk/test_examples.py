"""The sample programs, on a small real mesh."""

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from meshwarden.v1.report_pb2 import CallStat

GET = "/meshwarden.examples.v1.Orders/Get"


def test_the_probe_calls_orders_and_says_who_it_is(mesh: Any) -> None:
    mesh.orders()
    _, probe = mesh.probe()
    answer = probe.ask("grpc", count=20, concurrency=4)
    assert answer["codes"] == {"OK": 20}, answer["errors"]
    assert answer["versions"] == {"v1": 20}
    assert answer["instances"] == {"a": 20}
    assert answer["tenants"] == {"acme": 20}
    assert answer["spiffe_ids"] == {"spiffe://mesh.test/tenant/acme/service/web": 20}
    identity = probe.ask("identity")
    assert identity["spiffe_id"] == "spiffe://mesh.test/tenant/acme/service/web"
    assert identity["revision"] == 7


@pytest.mark.parametrize(("method", "more"), [("List", {}), ("Watch", {"messages": 3})])
def test_the_other_methods(mesh: Any, method: str, more: dict[str, int]) -> None:
    mesh.orders()
    _, probe = mesh.probe()
    assert probe.ask("grpc", target="xds:///orders.platform", method=method, count=3, **more)["codes"] == {"OK": 3}


def test_what_a_probe_is_told_badly_is_answered_and_it_goes_on(mesh: Any) -> None:
    _, probe = mesh.probe()
    lines = [
        "not json",
        "[]",
        json.dumps({"op": "dance"}),
        json.dumps({"op": "grpc", "target": "127.0.0.1:1"}),
        json.dumps({"op": "grpc", "method": "Put"}),
        json.dumps({"op": "grpc", "count": -1}),
        json.dumps({"op": "grpc", "concurrency": 10_000}),
        json.dumps({"op": "grpc", "metadata": 5}),
        json.dumps({"op": "http"}),
        json.dumps({"op": "steady_stop", "id": "none"}),
        json.dumps({"op": "steady_start", "id": "x", "call": {"op": "identity"}}),
    ]
    for line in lines:
        assert "error" in probe.send(line), line
    assert probe.ask("identity")["tenant"] == "acme"


def test_a_steady_load_counts_each_call_and_goes_on_through_a_graceful_stop(mesh: Any, until: Any) -> None:
    _, first = mesh.orders()
    _, probe = mesh.probe()
    assert probe.ask("grpc")["codes"] == {"OK": 1}
    mesh.orders("b")
    # A client that has met a closed port waits before it tries again.
    until(lambda: set(probe.ask("grpc", count=4)["instances"]) == {"a", "b"}, "calls go to both")
    probe.ask("steady_start", id="x", call={"op": "grpc", "rate": 100})
    assert probe.ask("grpc", count=50, rate=100)["codes"] == {"OK": 50}
    assert first.end() == 0
    assert probe.ask("grpc", count=50, rate=100)["codes"] == {"OK": 50}
    answer = probe.ask("steady_stop", id="x")
    assert set(answer["codes"]) == {"OK"}, answer
    assert answer["codes"]["OK"] > 50


def test_web_calls_steadily_and_ends_cleanly(mesh: Any, until: Callable[..., Any]) -> None:
    serving, _ = mesh.orders()
    web = mesh.workload("acme", "web")
    program = web.start("-m", "meshwarden.examples.web", "--rate", "50")
    key = (GET, "OK", CallStat.ALLOWED)
    until(lambda: serving.agent.counted(CallStat.DESTINATION)[key] >= 10, "calls counted")
    program.popen.send_signal(signal.SIGTERM)
    assert program.end() == 0, program.log
    assert "OK" in "".join(program.log)
    until(
        lambda: serving.agent.counted(CallStat.DESTINATION)[key] == web.agent.counted(CallStat.SOURCE)[key],
        "both sides count the same",
    )


def test_the_intruder_is_denied_and_told_how_to_find_out_why(mesh: Any, until: Callable[..., Any]) -> None:
    mesh.orders()
    intruder = mesh.workload("acme", "intruder")
    program = intruder.start("-m", "meshwarden.examples.intruder", "--rate", "20")
    key = (GET, "PERMISSION_DENIED", CallStat.DENIED)
    until(lambda: intruder.agent.counted(CallStat.SOURCE)[key] >= 5, "denials counted")
    assert program.end() == 0
    said = [line for line in program.log if "explain" in line]
    assert len(said) == 1  # once a minute
    assert f"meshwarden explain --from acme/intruder --to platform/orders --method {GET}" in said[0]
    assert {stat.destination for stat in intruder.agent.reports} == {"platform/orders"}
