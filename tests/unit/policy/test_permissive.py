"""Calls in the clear, for a time: what of it holds when, with a control plane or without."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from meshwarden.agents.cache import Cache
from meshwarden.agents.telemetry.clear import OTHERS, ClearCallers
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.api.edges import edge_warnings, permissive_states
from meshwarden.controlplane.api.gaps import policy_gaps
from meshwarden.controlplane.cli.status import _in_the_clear
from meshwarden.controlplane.policy import permissive
from meshwarden.controlplane.policy.compile import ScopeContent, compile_scope
from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.publish.compiled import Scopes
from meshwarden.v1 import admin_service_pb2, node_service_pb2, resources_pb2
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.xds import api

UNTIL_S = 2_000_000_000.0
END = datetime.fromtimestamp(UNTIL_S, UTC)
ORDERS = Name("platform", "orders")
REF = node_service_pb2.DataPlaneRef(
    id="platform/orders#1/envoy",
    tenant="platform",
    entry="orders",
    dialect="ENVOY",
    listen_address="127.0.0.1:7101",
    app_address="127.0.0.1:8101",
)


def made(kind: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": "platform", "name": name}, "spec": spec}
    return Change(Key(kind, "platform", name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def mesh(**more: Any) -> Mesh:
    found = Mesh("mesh.test")
    found.apply(
        [
            made("Service", "orders", {"protocol": "HTTP", **more}),
            made("WorkloadEntry", "orders", {"service": "orders", "nodes": ["n1"], "dataPlane": "ENVOY"}),
        ]
    )
    return found


SAID = {"permissive": {"until": "2033-05-18T03:33:20Z", "methods": ["GET /open/*"]}}


def listener(at_s: float | None) -> ScopeContent:
    found = mesh(**SAID)
    entry = found.find("WorkloadEntry", "platform", "orders")
    return compile_scope(found, "listener/n1/platform/orders#1/envoy", REF, entry, at_s=at_s)


def chains(content: ScopeContent) -> int:
    found = next(one for one in content.resources if one.name == "inbound")
    return len(api.to_dict(api.parse("envoy.config.listener.v3.Listener", found.body))["filter_chains"])


def clear(content: ScopeContent) -> str:
    found = next(one for one in content.resources if one.name == "clear/platform/orders")
    return str(api.to_dict(api.parse("envoy.config.core.v3.TypedExtensionConfig", found.body)))


def test_the_listener_says_itself_when_it_is_strict_again() -> None:
    before = listener(UNTIL_S - 1)
    assert chains(before) == 2
    (later,) = before.later
    assert later.from_s == UNTIL_S
    strict = listener(UNTIL_S)
    assert (chains(strict), strict.later) == (1, ())
    assert later.resources == tuple(one for one in strict.resources if one.name == "inbound")
    # At a time that nobody knows nobody is let in.
    assert chains(listener(None)) == 1


def test_what_lets_in_ends_by_the_clock_as_well() -> None:
    found = mesh(**SAID)
    now = compile_scope(found, "server/platform/orders/envoy", at_s=UNTIL_S - 1)
    assert "/open/" in clear(now)
    (later,) = now.later
    assert later.from_s == UNTIL_S
    assert [one.name for one in later.resources] == ["clear/platform/orders"]
    for at_s in (UNTIL_S, None):
        assert "/open/" not in clear(compile_scope(found, "server/platform/orders/envoy", at_s=at_s))


def test_a_service_that_says_nothing_is_as_ever() -> None:
    found = mesh()
    assert permissive.find(found, ORDERS) is None
    content = compile_scope(found, "server/platform/orders/envoy", at_s=0.0)
    assert not [one for one in content.resources if one.name.startswith("clear/")]
    assert content.later == ()


def test_callers_in_the_clear_are_counted_within_bounds() -> None:
    callers, now = ClearCallers(), utc_now()
    for number in range(100):
        callers.add("platform/orders", f"192.0.2.{number}", now)
    callers.add("platform/orders", "192.0.2.1", now)
    callers.add("platform/orders", "<script>", now)
    for number in range(200):
        callers.add(f"platform/s{number}", "192.0.2.1", now)
    rows = {(service, address): seen.count for service, address, seen in callers.rows()}
    of_orders = {address: count for (service, address), count in rows.items() if service == "platform/orders"}
    assert len(of_orders) == 33
    assert (of_orders["192.0.2.1"], of_orders[OTHERS]) == (2, 69)
    assert len(rows) == 33 + 63


def seen(address: str, before_end_s: float, service: str = "orders", count: int = 1) -> node_service_pb2.ClearCaller:
    found = node_service_pb2.ClearCaller(tenant="platform", service=service, address=address, count=count)
    found.last.FromDatetime(END - timedelta(seconds=before_end_s))
    return found


def test_status_tells_until_when_and_who_still_calls() -> None:
    found, now = mesh(**SAID), END - timedelta(days=3)
    node = admin_service_pb2.NodeState(node="n1")
    day_s = 86_400.0
    node.health.clear_callers.extend(
        [
            seen("192.0.2.1", 20 * day_s, count=7),
            seen("192.0.2.2", 4 * day_s),
            seen("192.0.2.3", day_s, "other"),
        ]
    )
    (state,) = permissive_states(found, [node], lambda _: True, now)
    assert (state.service, state.until.ToDatetime(UTC)) == ("platform/orders", END)
    assert [(one.node, one.address, one.count) for one in state.callers] == [
        ("n1", "192.0.2.2", 1),
        ("n1", "192.0.2.1", 7),
    ]
    (warning,) = edge_warnings(found, [state], lambda _: True, now)
    assert warning == (
        "Service platform/orders takes calls in the clear until 2033-05-18 03:33 UTC; addresses that still call so,"
        " and get nothing any more then: 1"
    )
    (early,) = edge_warnings(found, [state], lambda _: True, END - timedelta(days=8))
    assert early.endswith("until 2033-05-18 03:33 UTC")
    assert not permissive_states(found, [node], lambda tenant: tenant == "acme", now)
    assert not permissive_states(found, [node], lambda _: True, END)
    answer = admin_service_pb2.GetStatusResponse(permissive=[state])
    assert _in_the_clear(answer)[0][:5] == ("platform/orders", "2033-05-18T03:33Z", "n1", "192.0.2.2", 1)
    del state.callers[:]
    answer = admin_service_pb2.GetStatusResponse(permissive=[state])
    assert [row[3] for row in _in_the_clear(answer)] == ["nobody"]


def test_grpcs_own_servers_are_named_since_they_take_none() -> None:
    grpc = node_service_pb2.DataPlaneRef(
        id="o/grpc", tenant="platform", entry="orders", dialect="GRPC", listen_address="127.0.0.1:1"
    )
    node = admin_service_pb2.NodeState(node="n1", connected=True, data_planes=[grpc])
    (gap,) = policy_gaps(mesh(**SAID), [node], lambda _: True)
    assert (gap.policy, gap.field, gap.client) == ("Service platform/orders", "spec.permissive", "platform/orders")
    assert gap.effect == admin_service_pb2.PolicyGap.IGNORED
    assert not policy_gaps(mesh(), [node], lambda _: True)
    assert not policy_gaps(mesh(**SAID), [node], lambda tenant: tenant == "acme")
    node.data_planes[0].dialect = node_service_pb2.DataPlaneRef.ENVOY
    assert not policy_gaps(mesh(**SAID), [node], lambda _: True)


@pytest.mark.parametrize(
    ("method", "at_s", "told"),
    [
        ("GET /open/a", UNTIL_S - 1, True),
        ("POST /open/a", UNTIL_S - 1, False),
        ("GET /shut", UNTIL_S - 1, False),
        ("GET /open/a", UNTIL_S, False),
        ("GET /open/a", None, False),
    ],
)
def test_explain_says_what_anybody_may_call(method: str, at_s: float | None, told: bool) -> None:
    request = admin_service_pb2.ExplainRequest(to="platform/orders", method=method)
    setattr(request, "from", "platform/web")
    answer = explain(mesh(**SAID), request, at_s=at_s)
    steps = [step for step in answer.steps if step.stage == "in the clear"]
    assert answer.decision == CallStat.DENIED
    assert bool(steps) == told
    assert all("until 2033-05-18 03:33 UTC anybody may call this in the clear" in step.text for step in steps)


def test_an_agent_is_strict_again_by_its_clock_whatever_becomes_of_its_control_plane(tmp_path: Path) -> None:
    found, now = mesh(**SAID), [UNTIL_S - 1]
    entry = found.find("WorkloadEntry", "platform", "orders")
    scopes, scope = Scopes(found, lambda: now[0], lambda _: None), "listener/n1/platform/orders#1/envoy"
    update = node_service_pb2.ConfigUpdate(revision=1)
    for made_of in (scopes.listener(scope, REF, entry, None), scopes.get("server/platform/orders/envoy")):
        update.MergeFromString(b"".join(made_of.whole()))
    update.data_planes.add(id=REF.id, scopes=[scope, "server/platform/orders/envoy"])
    store = ScopeStore(Cache(tmp_path), lambda: datetime.fromtimestamp(now[0], UTC))
    store.apply(update)

    def held() -> tuple[int, bool]:
        snapshot = store.snapshot(REF.id)
        assert snapshot is not None
        items = [one for of in snapshot.resources.values() for one in of.values()]
        return chains(ScopeContent(tuple(items))), "/open/" in clear(ScopeContent(tuple(items)))

    assert held() == (2, True)
    now[0] = UNTIL_S
    store.turn()
    assert held() == (1, False)
    now[0] = UNTIL_S - 3600  # a clock that is put back opens nothing again
    store.turn()
    assert held() == (1, False)
