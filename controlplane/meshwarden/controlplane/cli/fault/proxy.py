"""`meshwarden proxy`: what data planes are to have, and what they have."""

import os
from pathlib import Path
from typing import Any, Final

import click

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.failure import Failure
from meshwarden.controlplane.cli.fault.proxy_config import TYPES, Config, fetch
from meshwarden.controlplane.cli.fault.proxy_snapshot import write
from meshwarden.v1.data_plane_service_pb2 import DataPlaneState, DataPlaneType, ListDataPlanesRequest

_COLUMNS: Final = ("cluster", "endpoint", "listener", "route", "extension")


@click.group()
def proxy() -> None:
    """Show what data planes, Envoys and gRPC programs, are to have, and have."""


@proxy.command()
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option("--node", default="", help="Only those of this node.")
@render.output_option
def status(tenant: str, node: str, output: str) -> None:
    """Show each data plane, and how it stands with each type of its configuration: SYNCED, STALE or NACKED."""
    with client.connect_current() as mesh:
        request = ListDataPlanesRequest(tenant=tenant, node=node)
        answer = mesh.data_plane.ListDataPlanes(request, timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(answer), output)
    else:
        rows = [_row(state, answer.revision) for state in answer.data_planes]
        render.table(("DATA PLANE", "NODE", "CLIENT", "REVISION", *(name.upper() for name in _COLUMNS)), rows)
        for state in answer.data_planes:
            for one in state.types:
                if one.state == DataPlaneType.NACKED:
                    name = one.type_url.rpartition(".")[2]
                    click.echo(f"{state.ref.id} refuses {name}: {render.plain(one.nack.message)}", err=True)
            if state.refused:
                click.echo(f"{state.ref.id} gets nothing: {render.plain(state.refused)}", err=True)
    if answer.omitted:
        click.echo(f"and {answer.omitted} more: ask for a --node or a --tenant", err=True)


@proxy.command()
@click.argument("data_plane", metavar="NODE/DATA_PLANE")
@click.option("--type", "kind", type=click.Choice(list(TYPES)), help="Only resources of this type.")
@click.option("--live", is_flag=True, help="Ask for what it has, too, and show the difference.")
@render.output_option
def config(data_plane: str, kind: str | None, live: bool, output: str) -> None:
    """Show what a data plane, NODE/TENANT/WORKLOAD#1/envoy as `proxy status` has it, is to have.

    With --live an Envoy is asked what it has; of a gRPC program its agent says what it has answered to. Exits with 1 if
    that can't be had.
    """
    with client.connect_current() as mesh:
        found = fetch(mesh, *parse(data_plane), live=live)
    if output != "table":
        render.data(found.as_dict(kind), output)
    else:
        _show(found, kind)
    if found.live_error:
        raise Failure(f"what it has is not known: {render.plain(found.live_error)}", "see `meshwarden node list`")


@proxy.command()
@click.option("--node", default="", help="Only data planes of this node.")
@click.option("--tenant", default="", help="Only data planes of this tenant.")
@click.option(
    "--file", "path", type=click.Path(path_type=Path), help="The file to write; by default a name with the time."
)
def snapshot(node: str, tenant: str, path: Path | None) -> None:
    """Write status and configuration, as it is to be and as it is, to a tar.gz for whoever looks for a fault.

    Keys, tokens and secrets are left out.
    """
    path = path or Path(f"meshwarden-proxy-{utc_now():%Y%m%dT%H%M%SZ}.tar.gz")
    with client.connect_current() as mesh, render.progress("gathering"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            count, failed = write(mesh, file, node, tenant)
    click.echo(f"{path}\t{count} data planes")
    for text in failed:
        click.echo(f"not live: {render.plain(text)}", err=True)


def parse(data_plane: str) -> tuple[str, str]:
    """Reads NODE/DATA_PLANE.

    Raises:
        click.BadParameter: it is not written so.
    """
    node, slash, name = data_plane.partition("/")
    if not slash or not node or not name:
        raise click.BadParameter(
            "write NODE/DATA_PLANE, as `meshwarden proxy status` has both", param_hint="DATA_PLANE"
        )
    return node, name


def _row(state: DataPlaneState, newest: int) -> tuple[object, ...]:
    types = {one.type_url: one for one in state.types}
    words = []
    for column in _COLUMNS:
        one = types.get(TYPES[column])
        words.append(f"{DataPlaneType.State.Name(one.state)} {one.resources}" if one is not None else "-")
    dialect = state.ref.Dialect.Name(state.ref.dialect).lower()
    away = "" if state.connected else " (away)"
    revision = f"{state.revision} of {newest}" if state.revision < newest else state.revision
    return state.ref.id, f"{state.node}{away}", state.ref.client or dialect, revision, *words


def _show(found: Config, kind: str | None) -> None:
    rows: list[tuple[Any, ...]] = found.rows(kind)
    columns = ("TYPE", "NAME", "VERSION", "SAYS")
    render.table((*columns, "LIVE") if found.live is not None else columns, rows)
    if found.live is not None:
        differ = sum(row[-1] != "same" for row in rows)
        source = {"envoy": "by its own word", "agent": "by its agent's word"}.get(found.source, "")
        click.echo(f"{differ} of {len(rows)} differ {source}".rstrip(), err=True)
        for refusal in found.refused:
            click.echo(f"it refuses {render.plain(refusal)}", err=True)
