"""`meshwarden init`: commented manifests for a service of one's own."""

import json
import os
from pathlib import Path

import click

from meshwarden.controlplane.cli.failure import Failure
from meshwarden.controlplane.local.error import LocalError

ASK_S = 3.0

TENANT = """\
# A tenant is the boundary of names, permissions, limits and telemetry.
kind: Tenant
metadata:
  name: {tenant}
---
"""
KNOWN_TENANT = """\
# Tenant {tenant} is in the mesh already and stays as it is. See it with: meshwarden get tenant {tenant} -o yaml

"""
TEMPLATE = """\
# The mesh's view of {tenant}/{service}. Store it with: meshwarden apply -f {file}

{tenant_part}# What clients call: {service} within the tenant, {service}.{tenant} from any other that sees it.
kind: Service
metadata:
  tenant: {tenant}
  name: {service}
spec:
  protocol: {protocol}
  # Tenants that see this service; seeing is not permission to call.
  # exportTo: ["*"]
---
# Which program on which nodes may be {tenant}/{service}.
kind: WorkloadEntry
metadata:
  tenant: {tenant}
  name: {service}
spec:
  service: {service}
  nodes: [{node}]
  # What the kernel must say of the program.
  selectors:
    uid: {uid}
{path}  # ENVOY: an Envoy beside the program takes care of TLS. PROXYLESS: the program uses the SDK or gRPC's xDS.
  dataPlane: {data_plane}
  port: {port}
  # Programs of one user can read each other's memory, keys included. Give each service a user of its own, then remove
  # this line.
  insecureSameUser: true
---
# Who may call it. Without such a policy nobody may.
kind: AccessPolicy
metadata:
  tenant: {tenant}
  name: {service}
spec:
  service: {service}
  allow:
    - from:
        # Every service of the same tenant. For one of another: {{tenant: globex, service: web}}.
        - service: "*"
      # methods: ["{method}"]
# ---
# # How much each tenant may call it, across the mesh.
# kind: RatePolicy
# metadata:
#   tenant: {tenant}
#   name: {service}
# spec:
#   service: {service}
#   limits:
#     - tenant: "*"
#       requests: 100
#       per: 1s
# ---
# # Which share of its calls must go well. `meshwarden slo rules` makes Prometheus rules and alerts of it.
# kind: SLO
# metadata:
#   tenant: {tenant}
#   name: {service}-availability
# spec:
#   service: {service}
#   availability: {{}}
#   objective: 99.9
"""


def _label(ctx: click.Context, param: click.Parameter, value: str) -> str:
    ok = 0 < len(value) <= 63 and all(char in "abcdefghijklmnopqrstuvwxyz0123456789-" for char in value)
    if not ok or value[0] == "-" or value[-1] == "-":
        raise click.BadParameter("lower-case letters, digits and inner hyphens, at most 63")
    return value


def _is_known(tenant: str) -> bool:
    """Whether the mesh of the context has the tenant; where nobody can be asked it is taken for new."""
    import grpc  # slow to import

    from meshwarden.controlplane.cli import client, render
    from meshwarden.v1.resource_service_pb2 import GetRequest, ResourceRef

    ref = ResourceRef(kind="Tenant", tenant=tenant, name=tenant)
    try:
        with client.connect_current() as mesh, render.progress("asking the mesh for the tenant"):
            mesh.resource.Get(GetRequest(ref=ref), timeout=ASK_S)
    except (LocalError, grpc.RpcError):
        return False
    return True


def _scalar(name: str) -> str:
    """Quotes what YAML would take for a number, a date or a truth: "no" is a fine name."""
    import yaml  # slow to import

    return name if yaml.safe_load(name) == name else json.dumps(name)


@click.command()
@click.option("--tenant", required=True, callback=_label, help="The tenant that owns the service.")
@click.option("--service", required=True, callback=_label, help="The service's name.")
@click.option("--port", required=True, type=click.IntRange(1, 65535), help="Where the program listens.")
@click.option("--protocol", type=click.Choice(["http", "grpc"]), default="http", show_default=True)
@click.option("--node", default="node-a", show_default=True, callback=_label, help="The node it runs on.")
@click.option("--command", "program", type=click.Path(exists=True, dir_okay=False), help="Admit this program alone.")
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where to.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def init(
    tenant: str, service: str, port: int, protocol: str, node: str, program: str | None, directory: Path, force: bool
) -> None:
    """Write commented manifests for a service, which `apply -f` takes as they are.

    A tenant that the mesh of the context has already is left out.
    """
    file = directory / f"{service}.yaml"
    if file.exists() and not force:
        raise Failure(f"{file} is there already", "write over it with --force")
    path = f"    path: {json.dumps(str(Path(program).resolve()))}\n" if program else ""
    tenant_part = KNOWN_TENANT if _is_known(tenant) else TENANT
    text = TEMPLATE.format(
        tenant_part=tenant_part.format(tenant=_scalar(tenant)),
        tenant=_scalar(tenant),
        service=_scalar(service),
        port=port,
        protocol=protocol.upper(),
        node=_scalar(node),
        uid=os.getuid(),
        path=path,
        file=file,
        data_plane="ENVOY" if protocol == "http" else "PROXYLESS",
        method="GET /*" if protocol == "http" else "/my.package.Service/*",
    )
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    click.echo(f"wrote {file}")
    click.echo(f"next:  meshwarden apply -f {file}")
    click.echo(f"       meshwarden-agent exec --entry {service} -- {program or './my-server'}")
