"""Compiled scopes of small meshes, held against files that people read.

After a change that is meant: `MESHWARDEN_REGENERATE=1 pytest tests/golden/test_policy.py`, and look at the difference.
"""

import functools
import json
import os
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format

from meshwarden.controlplane.policy.compile import ScopeContent, compile_scope
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.variant import Kind
from meshwarden.v1 import node_service_pb2, resources_pb2
from meshwarden.xds import api

HERE = Path(__file__).parent
AT_S = 1_900_000_000.0
ENVOY = node_service_pb2.DataPlaneRef(
    id="platform/billing#1/envoy",
    tenant="platform",
    entry="billing",
    dialect="ENVOY",
    listen_address="127.0.0.1:7101",
    app_address="127.0.0.1:8101",
    outbound_path="/run/billing/outbound.sock",
)
GRPC = node_service_pb2.DataPlaneRef(
    id="platform/orders#1/grpc", tenant="platform", entry="orders-v1", dialect="GRPC", listen_address="127.0.0.1:7001"
)
CALLER = node_service_pb2.DataPlaneRef(
    id="acme/web#1/envoy", tenant="acme", entry="web", dialect="ENVOY", outbound_path="/run/web/outbound.sock"
)
INGRESS = node_service_pb2.DataPlaneRef(id="platform/edge#1/envoy", tenant="platform", entry="edge", dialect="ENVOY")
SCOPES: dict[tuple[str, str], node_service_pb2.DataPlaneRef | None] = {
    # A mesh that lets another trust domain call and calls it.
    ("federated", "client/acme/envoy"): None,
    ("federated", "client/acme/c-core"): None,
    ("federated", "server/platform/billing/envoy"): None,
    ("federated", "server/platform/billing/grpc"): None,
    ("federated", "listener/n1/platform/billing#1/envoy"): ENVOY,
    # Each way to choose an endpoint.
    ("choice", "client/acme/envoy"): None,
    ("choice", "client/acme/c-core"): None,
    ("choice", "client/acme/node"): None,
    ("choice", "client/acme/go"): None,
    ("choice", "near/acme/eu/a"): None,
    ("choice", "near/acme/us/c"): None,
    ("choice", "listener/n1/acme/web#1/envoy"): CALLER,
    # What lies outside of the mesh.
    ("egress", "client/acme/envoy"): None,
    ("egress", "client/acme/c-core"): None,
    ("egress", "egress/acme/platform/model"): None,
    ("egress", "egress/acme/acme/ledger"): None,
    ("egress", "egress/acme/acme/queue"): None,
    ("egress", "listener/n1/acme/web#1/envoy"): CALLER,
    # Calls in the clear, for a time.
    ("permissive", "server/platform/billing/envoy"): None,
    ("permissive", "listener/n1/platform/billing#1/envoy"): ENVOY,
    ("policy", "client/acme/envoy"): None,
    ("policy", "client/acme/c-core"): None,
    ("policy", "client/platform/c-core"): None,
    ("policy", "server/platform/billing/envoy"): None,
    ("policy", "server/platform/orders/envoy"): None,
    ("policy", "server/platform/orders/grpc"): None,
    ("policy", "server/acme/web/envoy"): None,
    ("policy", "server/acme/web/grpc"): None,
    ("policy", "listener/n1/platform/billing#1/envoy"): ENVOY,
    ("policy", "listener/n1/platform/orders#1/grpc"): GRPC,
    # Where calls come in from outside.
    ("ingress", "listener/n1/platform/edge#1/envoy"): INGRESS,
    # What becomes of calls, for each kind of client, and for a caller that policies name.
    **{("route", f"client/acme/{kind}"): None for kind in Kind},
    ("route", "client/acme/c-core/web"): None,
    ("route", "client/acme/envoy/web"): None,
}


@functools.cache
def mesh_of(directory: str) -> Mesh:
    made = Mesh("mesh.test")
    for fields in yaml.safe_load_all((HERE / directory / "mesh.yaml").read_text()):
        kind, metadata = fields["kind"], fields["metadata"]
        message = json_format.ParseDict(fields, getattr(resources_pb2, kind)())
        made.apply([Change(Key(kind, metadata["tenant"], metadata["name"]), message)])
    return made


def compiled(directory: str, scope: str) -> ScopeContent:
    mesh, ref = mesh_of(directory), SCOPES[directory, scope]
    entry = mesh.find("WorkloadEntry", ref.tenant, ref.entry) if ref is not None else None
    return compile_scope(mesh, scope, ref, entry, at_s=AT_S if directory == "permissive" else None)


@pytest.mark.parametrize(("directory", "scope"), SCOPES)
def test_a_scope_compiles_to_its_file(directory: str, scope: str) -> None:
    content = compiled(directory, scope)
    resources = {
        f"{item.type_url.rpartition('.')[2]} {item.name}": api.to_dict(
            api.parse(item.type_url.rpartition("/")[2], item.body)
        )
        for item in content.resources
    }
    assert len(resources) == len(content.resources), "type and name are distinct"
    limits = json_format.MessageToDict(content.limits) if content.limits is not None else None
    text = json.dumps({"resources": resources, "limits": limits}, indent=1, sort_keys=True) + "\n"
    path = HERE / directory / (scope.replace("/", "_").replace("#", "_") + ".json")
    if os.environ.get("MESHWARDEN_REGENERATE"):
        path.write_text(text)
    assert json.loads(text) == json.loads(path.read_text())


def test_a_compile_is_the_same_bytes_each_time() -> None:
    for directory, scope in SCOPES:
        assert compiled(directory, scope) == compiled(directory, scope)
