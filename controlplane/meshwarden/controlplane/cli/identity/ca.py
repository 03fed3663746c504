"""`meshwarden ca`: the roots of the mesh and their rotation."""

from collections.abc import Iterable
from typing import Any

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.identity.jwt_key import jwt
from meshwarden.v1.admin_service_pb2 import ChangeRootRequest, ListRootsRequest, ListRootsResponse, RootState

SHOWN = 16
"""So much of a fingerprint is shown; commands take it."""

reason_option = click.option("--reason", default="", help="Why, for the audit log.")
root_argument = click.argument("root")


@click.group()
def ca() -> None:
    """Show the roots that the mesh trusts, and rotate them; likewise the keys of JWT-SVIDs."""


ca.add_command(jwt)


@ca.command("list")
@render.output_option
def list_(output: str) -> None:
    """Show each root: its state, who uses it, and what becomes of it.

    \b
    PREPARED  trusted already, signs nothing yet
    ACTIVE    signs
    OLD       signs no more; what it has signed is good until it ends
    TAINTED   must not be relied on: what it has signed is renewed at once
    """  # noqa: D301 - click's mark for text that keeps its lines
    with client.connect_current() as mesh:
        answer = mesh.admin.ListRoots(ListRootsRequest(), timeout=client.TIMEOUT_S)
    show(answer, output)


@ca.command()
@reason_option
@render.output_option
def prepare(reason: str, output: str) -> None:
    """Make the next root. Every node learns to trust it; it signs nothing yet."""
    _change(output, change=ChangeRootRequest.PREPARE, reason=reason)


@ca.command()
@root_argument
@click.option("--force", is_flag=True, help="Although nodes don't trust it yet; they are cut off and join anew.")
@reason_option
@render.output_option
def activate(root: str, force: bool, reason: str, output: str) -> None:
    """Have ROOT, which is prepared, sign from now on. The one that did is OLD, and its key is deleted."""
    _change(output, change=ChangeRootRequest.ACTIVATE, fingerprint=root, force=force, reason=reason)


@ca.command()
@root_argument
@reason_option
@render.output_option
def taint(root: str, reason: str, output: str) -> None:
    """Mark ROOT as leaked: every certificate that leads to it is renewed at once. It is trusted until it is revoked."""
    _change(output, change=ChangeRootRequest.TAINT, fingerprint=root, reason=reason)


@ca.command()
@root_argument
@click.option(
    "--force", is_flag=True, help="Although certificates in use lead to it, or connections may; they are cut off."
)
@reason_option
@render.output_option
def revoke(root: str, force: bool, reason: str, output: str) -> None:
    """Trust ROOT no more, nor anything that leads to it."""
    _change(output, change=ChangeRootRequest.REVOKE, fingerprint=root, force=force, reason=reason)


def _change(output: str, **fields: Any) -> None:
    with client.connect_current() as mesh:
        answer = mesh.admin.ChangeRoot(ChangeRootRequest(**fields), timeout=client.TIMEOUT_S)
    show(answer, output)


def show(answer: ListRootsResponse, output: str) -> None:
    """Prints the roots, and the nodes that were told to renew or that a prepared root waits for."""
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    heads = ("ROOT", "STATE", "SINCE", "LEFT", "USED BY", "NEXT")
    render.table(heads, rows(answer.roots, answer.now.seconds, True))
    for node in answer.told:
        click.echo(f"told to renew\t{render.plain(node)}")
    for root in answer.roots:
        if root.state == RootState.PREPARED:
            for line in root.missing:
                click.echo(f"waits for {render.plain(line)}", err=True)


def rows(roots: Iterable[RootState], now_s: int, whole: bool) -> list[tuple[object, ...]]:
    """One row a root: how it stands, and if `whole` who uses it and what becomes of it."""
    return [_row(root, now_s, whole) for root in roots]


def _row(root: RootState, now_s: int, whole: bool) -> tuple[object, ...]:
    state = RootState.State.Name(root.state)
    short = (root.fingerprint[:SHOWN], f"{state} in {root.region}" if root.region else state)
    left = render.life(root.not_after.seconds - now_s)
    if not whole:
        return (*short, left)
    following = "-"
    if root.next:
        wait_s = root.next_time.seconds - now_s
        following = f"{root.next} {'in ' + render.life(wait_s) if wait_s > 0 else 'now'}"
    nodes = f"{len(root.used_by)} node{'' if len(root.used_by) == 1 else 's'}"
    return (*short, render.moment(root.since), left, nodes, following)
