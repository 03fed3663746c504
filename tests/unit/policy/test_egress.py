"""What is compiled of external services, who is told of it, and what is said of them."""

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf import json_format

from meshwarden.certs.clock import utc_now
from meshwarden.certs.deny import Deny, DenyList
from meshwarden.controlplane.api.edges import edge_warnings
from meshwarden.controlplane.api.gaps import policy_gaps
from meshwarden.controlplane.policy.compile import ScopeContent, compile_scope
from meshwarden.controlplane.policy.envoy.egress import socket_path
from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.external import External, find
from meshwarden.controlplane.policy.foresight.verdict import Call, Judge
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Foreign, Name
from meshwarden.controlplane.policy.scope import scopes_of, service_of, touched
from meshwarden.v1 import admin_service_pb2, node_service_pb2, resources_pb2
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.xds import api

MODEL, QUEUE, WEB = Name("platform", "model"), Name("platform", "queue"), Name("acme", "web")
ENVOY = node_service_pb2.DataPlaneRef(
    id="acme/web#1/envoy", tenant="acme", entry="web", dialect="ENVOY", outbound_path="/run/web/outbound.sock"
)


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def model(**more: Any) -> Change:
    spec = {
        "protocol": "HTTPS",
        "hosts": [{"address": "api.model.example", "port": 443}],
        "exportTo": ["acme", "globex"],
    }
    return made("ExternalService", "platform", "model", {**spec, **more})


def allow(service: str, *callers: tuple[str, str]) -> Change:
    rules = [{"from": [{"tenant": tenant, "service": name}], "methods": []} for tenant, name in callers]
    return made("AccessPolicy", "platform", service, {"service": service, "allow": rules})


@pytest.fixture
def mesh() -> Mesh:
    found = Mesh("mesh.test")
    limits = [{"tenant": "acme", "requests": 10}, {"tenant": "globex", "requests": 99}]
    found.apply(
        [
            model(),
            made(
                "ExternalService",
                "platform",
                "queue",
                {
                    "protocol": "TCP",
                    "hosts": [{"address": "192.0.2.9", "port": 5672}],
                    "exportTo": ["*"],
                    "insecure": True,
                    "internal": True,
                },
            ),
            made("Service", "acme", "web", {"protocol": "HTTP"}),
            made("WorkloadEntry", "acme", "web", {"service": "web", "nodes": ["n1"], "dataPlane": "ENVOY"}),
            made("WorkloadEntry", "globex", "app", {"service": "app", "nodes": ["n2"]}),
            allow("model", ("acme", "web"), ("globex", "*")),
            made("RatePolicy", "platform", "model", {"service": "model", "limits": limits}),
        ]
    )
    return found


def text_of(content: ScopeContent) -> str:
    bodies = [str(api.to_dict(api.parse(one.type_url.rpartition("/")[2], one.body))) for one in content.resources]
    return " ".join([*bodies, str(content.limits)])


def test_a_tenant_is_told_of_itself_and_of_nobody_else_that_may_call(mesh: Mesh) -> None:
    own = text_of(compile_scope(mesh, "egress/acme/platform/model"))
    assert "tenant/acme/service/web" in own
    assert "globex" not in own
    other = text_of(compile_scope(mesh, "egress/globex/platform/model"))
    assert "globex" in other
    assert "acme" not in other


def test_an_envoy_holds_what_its_tenant_sees_and_grpc_nothing(mesh: Mesh) -> None:
    entry = mesh.find("WorkloadEntry", "acme", "web")
    scopes = scopes_of(ENVOY, "n1", entry, externals=mesh.externals("acme"))
    egress = [scope for scope in scopes if scope.startswith("egress/")]
    assert egress == ["egress/acme/platform/model", "egress/acme/platform/queue"]
    assert [service_of(scope) for scope in egress] == [MODEL, QUEUE]
    grpc = node_service_pb2.DataPlaneRef(id="g", tenant="acme", entry="web", dialect="GRPC")
    assert scopes_of(grpc, "n1", entry, externals=mesh.externals("acme")) == ("client/acme/c-core",)
    assert "model" not in text_of(compile_scope(mesh, "client/acme/c-core"))
    assert mesh.externals("stranger") == [QUEUE]


def test_a_change_touches_who_holds_it_and_nobody_else(mesh: Mesh) -> None:
    impact = mesh.apply([allow("model", ("acme", "web"))])
    assert touched("egress/acme/platform/model", impact)
    assert not touched("egress/acme/platform/queue", impact)
    assert not impact.nodes
    assert mesh.apply([allow("queue", ("acme", "web"))]).nodes == {"n1", "n2"}, "connections end by their listener"
    assert mesh.apply([model(exportTo=["acme"])]).nodes == {"n1", "n2"}
    assert mesh.apply([model(exportTo=["acme"], connectTimeout="1s")]).nodes == {"n1"}


def connections(mesh: Mesh) -> Any:
    content = compile_scope(mesh, "listener/n1/x", ENVOY, mesh.find("WorkloadEntry", "acme", "web"))
    (found,) = [one for one in content.resources if one.name == "egress/platform/queue"]
    return api.to_dict(api.parse("envoy.config.listener.v3.Listener", found.body))["filter_chains"][0]["filters"]


def test_connections_are_let_through_for_who_may_and_is_not_revoked(mesh: Mesh) -> None:
    assert not connections(mesh)[0]["typed_config"]["rules"].get("policies")
    mesh.apply([allow("queue", ("acme", "web"))])
    assert set(connections(mesh)[0]["typed_config"]["rules"]["policies"]) == {"acme/web"}
    end = utc_now() + timedelta(hours=1)
    impact = mesh.deny(DenyList([Deny("spiffe://mesh.test/tenant/acme/service/web", "", end)], 1))
    assert "n1" in impact.nodes
    assert not connections(mesh)[0]["typed_config"]["rules"].get("policies")
    mesh.deny(DenyList([], 2))
    mesh.apply([allow("queue", ("acme", "other"))])
    assert not connections(mesh)[0]["typed_config"]["rules"].get("policies")


def test_a_route_that_names_callers_is_nobodys(mesh: Mesh) -> None:
    """Refused by `apply`; what an older control plane has stored holds for none."""
    rule = {"match": {"from": [{"tenant": "acme", "service": "web"}]}, "timeout": "7s"}
    mesh.apply([made("RoutePolicy", "platform", "model", {"service": "model", "rules": [rule]})])
    assert "7.0" not in text_of(compile_scope(mesh, "egress/acme/platform/model"))


def external(tenant: str, name: str, authority: str = "") -> External:
    return External(Name(tenant, name), (("192.0.2.1", 1),), authority, "", "", timedelta(seconds=1))


def test_a_socket_fits_beside_that_of_all_calls() -> None:
    assert socket_path("/run/e/outbound.sock", external("acme", "db")) == "/run/e/db.acme.sock"
    called = socket_path("/run/e/outbound.sock", external("acme", "model", "a.example"))
    assert called == f"/run/e/{hashlib.sha256(b'model.acme').hexdigest()[:8]}.sock"
    longest = "/" + "d" * 92 + "/outbound.sock"
    assert len(longest) == 107
    for said in (external("a" * 63, "b" * 63), external("acme", "db")):
        assert len(socket_path(longest, said)) <= len(longest)
    assert socket_path("/run/e/outbound.sock", external("a" * 63, "b" * 63)).endswith(".sock")


@pytest.mark.parametrize(
    ("spec", "authority"),
    [
        ({}, "api.model.example"),
        ({"hosts": [{"address": "a.example", "port": 8443}]}, "a.example:8443"),
        ({"hosts": [{"address": "192.0.2.1", "port": 443}], "tls": {"sni": "b.example"}}, "b.example"),
        ({"protocol": "HTTP", "hosts": [{"address": "2001:db8::1", "port": 80}]}, "[2001:db8::1]"),
        ({"protocol": "HTTP", "hosts": [{"address": "192.0.2.1", "port": 8080}]}, "192.0.2.1:8080"),
    ],
)
def test_the_host_is_named_as_the_other_end_expects(spec: dict[str, Any], authority: str) -> None:
    found = Mesh("mesh.test")
    found.apply([model(**spec)])
    said = find(found, MODEL)
    assert said is not None
    assert said.authority == authority


def test_explain_says_where_a_call_goes_and_what_is_proved(mesh: Mesh) -> None:
    request = admin_service_pb2.ExplainRequest(to="platform/model", method="POST /v1/chat")
    setattr(request, "from", "acme/web")
    answer = explain(mesh, request)
    assert (answer.visible, answer.decision) == (True, CallStat.ALLOWED)
    said = {step.stage: step for step in answer.steps}
    assert "10 calls in 1 s" in said["limit"].text
    assert said["endpoints"].ok
    assert "api.model.example:443, outside of the mesh, proved as api.model.example" in said["endpoints"].text
    setattr(request, "from", "spiffe://partner.example/x")
    answer = explain(mesh, request)
    assert (answer.visible, answer.decision) == (False, CallStat.DENIED)
    verdict = Judge(mesh).verdict(WEB, MODEL, Call("/v1/chat", "POST"))
    assert verdict.passes
    assert verdict.limits
    assert not Judge(mesh).verdict(Foreign("partner.example", "/x"), MODEL, Call("/v1/chat", "POST")).seen


def test_status_tells_who_has_no_envoy_and_what_is_in_the_clear(mesh: Mesh) -> None:
    grpc = node_service_pb2.DataPlaneRef(id="a/grpc", tenant="globex", entry="app", dialect="GRPC", client="c-core/58")
    node = admin_service_pb2.NodeState(node="n2", connected=True, data_planes=[grpc])
    (gap,) = policy_gaps(mesh, [node], lambda _: True)
    assert (gap.policy, gap.client) == ("ExternalService platform/model", "globex/app")
    assert gap.effect == admin_service_pb2.PolicyGap.REFUSED
    assert not policy_gaps(mesh, [node], lambda tenant: tenant == "acme")
    beside = node_service_pb2.DataPlaneRef(id="a/envoy", tenant="globex", entry="app", dialect="ENVOY")
    node.data_planes.append(beside)
    assert not policy_gaps(mesh, [node], lambda _: True)
    warnings = list(edge_warnings(mesh, (), lambda _: True, utc_now()))
    assert [text.partition(" is ")[0].partition(" may ")[0] for text in warnings] == [
        "ExternalService platform/queue"
    ] * 2
    assert not list(edge_warnings(mesh, (), lambda tenant: tenant == "acme", utc_now()))
