"""`meshwarden ca jwt`: the keys of JWT-SVIDs and their rotation."""

from collections.abc import Iterator
from typing import Any

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.v1.admin_service_pb2 import (
    ChangeJwtKeyRequest,
    ChangeRootRequest,
    JwtKeyState,
    ListJwtKeysRequest,
    ListJwtKeysResponse,
    RootState,
)

SHOWN = 16
"""So much of a key's id is shown; commands take it."""

reason_option = click.option("--reason", default="", help="Why, for the audit log.")
key_argument = click.argument("key")


@click.group("jwt")
def jwt() -> None:
    """Show the keys that JWT-SVIDs are signed by, and rotate them."""


@jwt.command("list")
@render.output_option
def list_(output: str) -> None:
    """Show each key: its state, and what becomes of it.

    \b
    PREPARED  published, signs nothing yet
    ACTIVE    signs
    OLD       signs no more; what it has signed is good until it ends
    TAINTED   must not be relied on: agents drop what it has signed, and fetch anew
    """  # noqa: D301 - click's mark for text that keeps its lines
    with client.connect_current() as mesh:
        answer = mesh.admin.ListJwtKeys(ListJwtKeysRequest(), timeout=client.TIMEOUT_S)
    _show(answer, output)


@jwt.command()
@reason_option
@render.output_option
def prepare(reason: str, output: str) -> None:
    """Make the next key. It is published; it signs nothing yet."""
    _change(output, change=ChangeRootRequest.PREPARE, reason=reason)


@jwt.command()
@key_argument
@click.option("--force", is_flag=True, help="Although others may not have read of it yet; they refuse its tokens.")
@reason_option
@render.output_option
def activate(key: str, force: bool, reason: str, output: str) -> None:
    """Have KEY, which is prepared, sign from now on. The one that did is OLD, and its private half is deleted."""
    _change(output, change=ChangeRootRequest.ACTIVATE, kid=key, force=force, reason=reason)


@jwt.command()
@key_argument
@reason_option
@render.output_option
def taint(key: str, reason: str, output: str) -> None:
    """Mark KEY as leaked: agents drop the tokens that it has signed, and fetch anew. It is good until it is revoked."""
    _change(output, change=ChangeRootRequest.TAINT, kid=key, reason=reason)


@jwt.command()
@key_argument
@reason_option
@render.output_option
def revoke(key: str, reason: str, output: str) -> None:
    """Take KEY out of all bundles: no token that it has signed is good any more."""
    _change(output, change=ChangeRootRequest.REVOKE, kid=key, reason=reason)


def _change(output: str, **fields: Any) -> None:
    with client.connect_current() as mesh:
        answer = mesh.admin.ChangeJwtKey(ChangeJwtKeyRequest(**fields), timeout=client.TIMEOUT_S)
    _show(answer, output)


def _show(answer: ListJwtKeysResponse, output: str) -> None:
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    render.table(("KEY", "STATE", "SINCE", "NEXT"), list(_rows(answer)))
    for key in answer.keys:
        for line in key.missing:
            click.echo(f"waits for {render.plain(line)}", err=True)


def _rows(answer: ListJwtKeysResponse) -> Iterator[tuple[object, ...]]:
    for key in answer.keys:
        yield (
            key.kid[:SHOWN],
            RootState.State.Name(key.state),
            render.moment(key.since),
            _next(key, answer.now.seconds),
        )


def _next(key: JwtKeyState, now_s: int) -> str:
    if key.elsewhere:
        return "in another control plane's memory"
    if not key.next:
        return "-"
    wait_s = key.next_time.seconds - now_s
    return f"{key.next} {'in ' + render.life(wait_s) if wait_s > 0 else 'now'}"
