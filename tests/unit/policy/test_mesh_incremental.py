"""A mesh changed step by step is the mesh built at once, and `Impact` names all that compiles anew."""

from typing import Any

from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwarden.controlplane.policy.compile import Parts, compile_scope
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.scope import touched
from meshwarden.v1 import node_service_pb2, resources_pb2

TENANTS, SERVICES, NODES = ["acme", "globex", "platform"], ["web", "orders"], ["n1", "n2"]
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
REF = node_service_pb2.DataPlaneRef(
    id="x", dialect="ENVOY", listen_address="127.0.0.1:1", app_address="127.0.0.1:2", outbound_path="/o"
)

service = st.sampled_from(SERVICES)
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
    "WorkloadEntry": st.fixed_dictionaries(
        {"service": service, "version": version, "nodes": st.lists(st.sampled_from(NODES), unique=True, min_size=1)}
    ),
    "Endpoint": st.fixed_dictionaries(
        {
            "service": service,
            "version": version,
            "address": st.just("127.0.0.1"),
            "port": st.integers(1, 3),
            "health": st.sampled_from(["HEALTHY", "UNHEALTHY", "DRAINING"]),
        }
    ),
    "AccessPolicy": st.fixed_dictionaries(
        {
            "service": service,
            "allow": st.lists(
                st.fixed_dictionaries({"from": st.lists(caller, min_size=1, max_size=2)}), min_size=1, max_size=2
            ),
        }
    ),
    "RoutePolicy": st.fixed_dictionaries(
        {
            "service": service,
            "rules": st.lists(
                st.fixed_dictionaries(
                    {
                        "match": st.fixed_dictionaries({"from": st.lists(caller, max_size=2)}),
                        "timeout": st.sampled_from(["1s", "2s"]),
                        "mirror": st.sampled_from([{"service": "web"}, {"service": "orders"}, {"version": "v4"}]),
                        "split": st.lists(
                            st.builds(
                                lambda v, w: {"version": v, "weight": w},
                                st.sampled_from(["v1", "v3"]),
                                st.integers(0, 3),
                            ),
                            min_size=1,
                            max_size=2,
                        ),
                    }
                ),
                min_size=1,
                max_size=2,
            ),
        }
    ),
    "RatePolicy": st.builds(
        lambda reach, limits: {**reach, "limits": limits},
        st.sampled_from(
            [
                {"service": "web"},
                {"service": "orders"},
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
    "Tenant": st.just({}),
}


@st.composite
def changes(draw: st.DrawFn) -> Change:
    kind = draw(st.sampled_from(sorted(specs)))
    tenant = draw(st.sampled_from(TENANTS))
    name = draw(service) if kind == "Service" else draw(st.sampled_from(["a", "b"]))
    if draw(st.integers(0, 3)) == 0:
        return Change(Key(kind, tenant, name), None)
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": draw(specs[kind])}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def compiled(mesh: Mesh, parts: Parts | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {scope: compile_scope(mesh, scope, parts=parts) for scope in SHARED}
    for node in NODES:
        for entry in mesh.entries_on(node):
            scope = f"listener/{node}/{entry.metadata.tenant}/{entry.metadata.name}"
            found[scope] = compile_scope(mesh, scope, REF, entry)
    return found


@settings(max_examples=25)
@given(st.lists(st.lists(changes(), min_size=1, max_size=3), max_size=8))
def test_step_by_step_is_as_at_once_and_no_touched_scope_is_missed(batches: list[list[Change]]) -> None:
    mesh, parts = Mesh("mesh.test"), Parts()
    before = compiled(mesh, parts)
    for batch in batches:
        impact = mesh.apply(batch)
        parts.forget(impact)
        now = compiled(mesh, parts)
        for scope in before.keys() | now.keys():
            if before.get(scope) != now.get(scope):
                assert touched(scope, impact), scope
        before = now
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
