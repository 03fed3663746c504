"""A mesh changed step by step is the mesh built at once, and `Impact` names all that compiles anew."""

from typing import Any

from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwarden.controlplane.policy.compile import Parts, ScopeContent, compile_scope
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.publish.compiled import Compiled, Scopes
from meshwarden.v1 import node_service_pb2, resources_pb2
from meshwarden.v1 import node_service_pb2 as v1

TENANTS, SERVICES, NODES = ["acme", "globex", "platform"], ["web", "orders"], ["n1", "n2"]
CHOICES = st.one_of(
    st.just({}),
    st.sampled_from(
        [
            {"locality": {}},
            {"affinity": {"cookie": {"name": "at"}}},
            {"outlierDetection": {"consecutive5xx": 3}},
            {"loadBalancing": {"ringHash": {"header": "x-user"}}, "locality": {"healthyPercent": 50}},
        ]
    ),
)
SHARED = [
    f"client/{tenant}/{dialect}"
    for tenant in TENANTS
    for dialect in ("c-core", "node", "node/web", "envoy", "envoy/web")
] + [
    f"server/{tenant}/{service}/{dialect}"
    for tenant in TENANTS
    for service in SERVICES
    for dialect in ("grpc", "envoy")
]
SHARED += [f"egress/{tenant}/{owner}/outside" for tenant in TENANTS for owner in TENANTS]
SHARED += [f"near/{tenant}/eu/{zone}" for tenant in TENANTS for zone in ("a", "b")]
REF = node_service_pb2.DataPlaneRef(
    id="x", dialect="ENVOY", listen_address="127.0.0.1:1", app_address="127.0.0.1:2", outbound_path="/o"
)

TOKENS = {"issuer": "i", "audiences": ["a"], "claim": "c", "callers": [{"value": t, "tenant": t} for t in TENANTS]}
service = st.sampled_from(SERVICES)
callee = st.sampled_from([*SERVICES, "outside"])
version = st.sampled_from(["", "v1", "v2"])
caller = st.fixed_dictionaries(
    {"tenant": st.sampled_from(["", *TENANTS]), "service": st.sampled_from(["*", *SERVICES])}
)
specs: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "Service": st.fixed_dictionaries(
        {
            "protocol": st.sampled_from(["GRPC", "HTTP"]),
            "exportTo": st.lists(st.sampled_from(["*", *TENANTS]), unique=True, max_size=2),
        }
    ),
    "ExternalService": st.fixed_dictionaries(
        {
            "protocol": st.sampled_from(["HTTP", "HTTPS", "TCP", "TLS"]),
            "hosts": st.sampled_from([[{"address": "a.example", "port": 1}], [{"address": "192.0.2.1", "port": 2}]]),
            "exportTo": st.lists(st.sampled_from(["*", *TENANTS]), unique=True, max_size=2),
        }
    ),
    "WorkloadEntry": st.builds(
        lambda service, version, nodes, plane: {"service": service, "version": version, "nodes": nodes, **plane},
        service,
        version,
        st.lists(st.sampled_from(NODES), unique=True, min_size=1),
        st.sampled_from([{}, {}, {"dataPlane": "INGRESS"}, {"dataPlane": "INGRESS", "ingress": "acme/web"}]),
    ),
    "Ingress": st.builds(
        lambda service, routes: {"service": service, "listen": "127.0.0.1:80", "jwt": [TOKENS], "routes": routes},
        service,
        st.lists(
            st.fixed_dictionaries(
                {
                    "hosts": st.sampled_from([["a.test"], ["*"]]),
                    "pathPrefix": st.sampled_from(["/", "/a"]),
                    "service": st.sampled_from(["web", "globex/orders", "platform/web"]),
                    "public": st.booleans(),
                }
            ),
            min_size=1,
            max_size=2,
        ),
    ),
    "Endpoint": st.fixed_dictionaries(
        {
            "service": service,
            "version": version,
            "address": st.just("127.0.0.1"),
            "port": st.integers(1, 3),
            "health": st.sampled_from(["HEALTHY", "UNHEALTHY", "DRAINING"]),
            "locality": st.sampled_from([{}, {"region": "eu", "zone": "a"}, {"region": "eu", "zone": "b"}]),
        }
    ),
    "AccessPolicy": st.fixed_dictionaries(
        {
            "service": callee,
            "allow": st.lists(
                st.fixed_dictionaries({"from": st.lists(caller, min_size=1, max_size=2)}), min_size=1, max_size=2
            ),
        }
    ),
    "RoutePolicy": st.builds(
        lambda service, rules, choice: {"service": service, "rules": rules, **choice},
        callee,
        st.lists(
            st.fixed_dictionaries(
                {
                    "match": st.fixed_dictionaries({"from": st.lists(caller, max_size=2)}),
                    "timeout": st.sampled_from(["1s", "2s"]),
                    "mirror": st.sampled_from([{"service": "web"}, {"service": "orders"}, {"version": "v4"}]),
                    "split": st.lists(
                        st.builds(
                            lambda v, w: {"version": v, "weight": w}, st.sampled_from(["v1", "v3"]), st.integers(0, 3)
                        ),
                        min_size=1,
                        max_size=2,
                    ),
                }
            ),
            min_size=1,
            max_size=2,
        ),
        CHOICES,
    ),
    "RatePolicy": st.builds(
        lambda reach, limits: {**reach, "limits": limits},
        st.sampled_from(
            [
                {"service": "web"},
                {"service": "orders"},
                {"service": "outside"},
                {"services": ["*"]},
                {"services": ["web", "acme/*"]},
                {"services": ["*/*"]},
            ]
        ),
        st.lists(
            st.builds(lambda t, r: {"tenant": t, "requests": r}, st.sampled_from(["*", *TENANTS]), st.integers(1, 99)),
            min_size=1,
            max_size=2,
        ),
    ),
    "Drain": st.sampled_from([{"zone": "a"}, {"service": "orders", "version": "v1"}, {"endpoint": "a"}]),
    "Tenant": st.just({}),
}


@st.composite
def changes(draw: st.DrawFn) -> Change:
    kind = draw(st.sampled_from(sorted(specs)))
    tenant = draw(st.sampled_from(TENANTS))
    name = draw(service) if kind == "Service" else draw(st.sampled_from(["a", "b"]))
    name = "outside" if kind == "ExternalService" else name
    if draw(st.integers(0, 3)) == 0:
        return Change(Key(kind, tenant, name), None)
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": draw(specs[kind])}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def compiled(mesh: Mesh, parts: Parts | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {scope: contents(compile_scope(mesh, scope, parts=parts)) for scope in SHARED}
    for node in NODES:
        for entry in mesh.entries_on(node):
            scope = f"listener/{node}/{entry.metadata.tenant}/{entry.metadata.name}"
            found[scope] = contents(compile_scope(mesh, scope, REF, entry))
    return found


def contents(content: ScopeContent) -> Any:
    return {(item.type_url, item.name): item.version for item in content.resources}, content.limits


class Node:
    """Takes updates of shared scopes as an agent does, now and then."""

    def __init__(self) -> None:
        self.held: dict[str, Compiled] = {}
        self.found: dict[str, Any] = {}

    def take(self, scopes: Scopes) -> None:
        for scope in SHARED:
            before, now = self.held.get(scope), scopes.get(scope)
            self.held[scope] = now
            if now is before:
                continue
            wire = now.whole() if before is None else now.update(before)
            if not wire:  # it has become something else and what it was again
                continue
            (update,) = v1.ConfigUpdate.FromString(b"".join(wire)).scopes
            known, limits = ({}, None) if update.full else self.found[scope]
            for gone in update.removed:
                del known[gone.type_url, gone.name]
            known.update({(item.type_url, item.name): item.version for item in update.resources})
            self.found[scope] = known, update.limits if update.HasField("limits") else limits


@settings(max_examples=25)
@given(st.lists(st.tuples(st.lists(changes(), min_size=1, max_size=3), st.booleans()), max_size=8))
def test_step_by_step_is_as_at_once_and_nobody_misses_a_change(batches: list[tuple[list[Change], bool]]) -> None:
    mesh, parts, quick, slow = Mesh("mesh.test"), Parts(), Node(), Node()
    scopes = Scopes(mesh, lambda: 0.0, lambda _: None)
    before = compiled(mesh, parts)
    for batch, is_taken in batches:
        impact = mesh.apply(batch)
        parts.forget(impact)
        scopes.touch(impact)
        now = compiled(mesh, parts)
        for scope in before.keys() | now.keys():
            if before.get(scope) != now.get(scope) and scope.startswith("listener/"):
                assert scope.split("/")[1] in impact.nodes
        for node in (quick, slow) if is_taken else (quick,):
            node.take(scopes)
        assert quick.found == {scope: now[scope] for scope in SHARED}
        before = now
    slow.take(scopes)
    assert slow.found == {scope: before[scope] for scope in SHARED}
    fresh = Mesh("mesh.test")
    fresh.apply([Change(key, message) for key, message in mesh.all().items()])
    assert compiled(fresh) == before
    assert all(fresh.visible(tenant) == mesh.visible(tenant) for tenant in TENANTS)
    assert all(fresh.short_names(tenant) == mesh.short_names(tenant) for tenant in TENANTS)
    for tenant in TENANTS:
        for short in SERVICES:
            assert mesh.short_names(tenant).get(short) == mesh.resolve(tenant, short)
            found = mesh.candidates(tenant, short)
            assert mesh.ambiguous_names(tenant).get(short, []) == (found if len(found) > 1 else [])
