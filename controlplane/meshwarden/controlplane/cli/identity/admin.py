"""`meshwarden token` and `meshwarden svid`."""

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.v1.admin_service_pb2 import CreateJoinTokenRequest, GetStatusRequest, RenewSvidsRequest


@click.group()
def token() -> None:
    """Make join tokens for nodes."""


@token.command("create")
@click.option("--node", required=True, help="The node that may join with it.")
@click.option(
    "--ttl", "ttl_s", type=click.IntRange(1, 600), default=600, show_default=True, help="Its life, in seconds."
)
@click.option("--tenant", "tenants", multiple=True, help="Of whom the node may serve entries; default of any tenant.")
@render.output_option
def create(node: str, ttl_s: int, tenants: tuple[str, ...], output: str) -> None:
    """Make a one-time token with which NODE joins. It is shown once."""
    request = CreateJoinTokenRequest(node=node, tenants=tenants)
    request.ttl.FromSeconds(ttl_s)
    with client.connect_current() as mesh:
        answer = mesh.admin.CreateJoinToken(request, timeout=client.TIMEOUT_S)
    if output == "table":
        scope = f", serving {', '.join(tenants)} alone" if tenants else ""
        click.echo(answer.token)
        click.echo(f"valid until {answer.expire_time.ToJsonString()}, for node {node} alone{scope}", err=True)
    else:
        render.data(render.as_dict(answer), output)


@click.group()
def svid() -> None:
    """Show and renew workload certificates."""


@svid.command()
@click.option("--tenant", default="", help="Only this tenant's.")
@render.output_option
def show(tenant: str, output: str) -> None:
    """Show each workload's certificate and its remaining life."""
    with client.connect_current() as mesh:
        answer = mesh.admin.GetStatus(GetStatusRequest(tenant=tenant), timeout=client.TIMEOUT_S)
    workloads = [(node.node, workload) for node in answer.nodes for workload in node.workloads]
    if output != "table":
        render.data([{"node": node, **render.as_dict(workload)} for node, workload in workloads], output)
        return
    rows = [
        (
            workload.id,
            node,
            workload.spiffe_id,
            workload.serial,
            workload.not_after.ToJsonString(),
            render.life(workload.not_after.seconds - answer.now.seconds),
        )
        for node, workload in workloads
    ]
    render.table(("WORKLOAD", "NODE", "SPIFFE ID", "SERIAL", "NOT AFTER", "LEFT"), rows)


@svid.command()
@click.option("--reason", default="", help="Why, for the audit log.")
@render.output_option
def renew(reason: str, output: str) -> None:
    """Ask every agent to renew every certificate now."""
    with client.connect_current() as mesh:
        answer = mesh.admin.RenewSvids(RenewSvidsRequest(reason=reason), timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    for node in answer.nodes:
        click.echo(f"told\t{node}")
    if answer.trace_id:
        click.echo(f"trace {answer.trace_id}", err=True)
