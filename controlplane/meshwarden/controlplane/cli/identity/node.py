"""`meshwarden node`: who belongs to the mesh, and who no longer does."""

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.v1.admin_service_pb2 import (
    BanNodeRequest,
    EvictNodeRequest,
    ForgetNodeRequest,
    ListNodesRequest,
    NodeMember,
    UnbanNodeRequest,
)


@click.group()
def node() -> None:
    """Show, evict, ban and forget nodes."""


@node.command("list")
@render.output_option
def list_(output: str) -> None:
    """Show the nodes that have joined, and those that are banned."""
    with client.connect_current() as mesh:
        answer = mesh.admin.ListNodes(ListNodesRequest(), timeout=client.TIMEOUT_S)
    if output != "table":
        render.data([render.as_dict(member) for member in answer.nodes], output)
        return
    rows = [
        (
            member.node,
            _state(member),
            member.attestor or "-",
            ", ".join(member.tenants) or ("any" if member.attestor else "-"),
            member.join_time.ToJsonString() if member.HasField("join_time") else "-",
            f"by {member.ban.by}: {member.ban.reason}" if member.HasField("ban") else "",
        )
        for member in answer.nodes
    ]
    render.table(("NODE", "STATE", "ATTESTED BY", "TENANTS", "JOINED", ""), rows)


@node.command()
@click.argument("name")
@click.option("--reason", default="", help="Why; the node is told.")
@render.output_option
def ban(name: str, reason: str, output: str) -> None:
    """Ban node NAME, until `unban`.

    Its sessions end at once, it can't attest, renew or have anything signed, and its workloads' certificates are
    denied. Its agent removes what it has and ends.
    """
    with client.connect_current() as mesh:
        answer = mesh.admin.BanNode(BanNodeRequest(node=name, reason=reason), timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    click.echo(f"node {name} is banned, and {answer.denied} certificates of its workloads are denied")


@node.command()
@click.argument("name")
def unban(name: str) -> None:
    """Take the ban of node NAME back; it has to attest anew."""
    with client.connect_current() as mesh:
        mesh.admin.UnbanNode(UnbanNodeRequest(node=name), timeout=client.TIMEOUT_S)
    click.echo(f"node {name} isn't banned any more; it has to attest anew")


@node.command()
@click.argument("name")
@click.option("--reason", default="", help="Why, for the audit log.")
def evict(name: str, reason: str) -> None:
    """Have node NAME attest again; its certificates are no good any more.

    A node with an attestor comes back by itself; one that joined by a token needs a new one.
    """
    with client.connect_current() as mesh:
        mesh.admin.EvictNode(EvictNodeRequest(node=name, reason=reason), timeout=client.TIMEOUT_S)
    click.echo(f"node {name} is evicted")


@node.command()
@click.argument("name")
@render.output_option
def forget(name: str, output: str) -> None:
    """Remove what is left of node NAME, which is gone for good; a ban of it stays."""
    with client.connect_current() as mesh:
        answer = mesh.admin.ForgetNode(ForgetNodeRequest(node=name), timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    click.echo(f"node {name} is forgotten, with {answer.endpoints} endpoints")


def _state(member: NodeMember) -> str:
    if member.HasField("ban"):
        return "banned"
    return "connected" if member.connected else "away"
