"""`meshwarden wait`, and what `status` and `apply` say of how far a revision has come."""

from collections.abc import Iterable
from typing import Final, Literal, cast

import click
import grpc

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.failure import Failure, TooLate
from meshwarden.controlplane.cli.span_of_time import SpanOfTime
from meshwarden.v1.revision_service_pb2 import GetProgressRequest, Lagging, Progress, ProgressShare

Of = Literal["nodes", "data-planes"]
"""Whose share is meant."""
ALL: Final = 100.0
_NAMED: Final = 8

timeout_option = click.option(
    "--timeout", type=SpanOfTime(), default="30s", show_default=True, help="How long to wait, 30s, 5m."
)


@click.command()
@click.option("--revision", type=click.IntRange(1, 2**63 - 1), required=True, help="The revision.")
@click.option(
    "--for", "of", type=click.Choice(["nodes", "data-planes"]), default="nodes", show_default=True, help="Whose share."
)
@click.option(
    "--share",
    type=click.FloatRange(0, 100, min_open=True),
    default=ALL,
    show_default=True,
    help="The share that has to have it, in percent of those that need it.",
)
@click.option("--tenant", default="", help="Only this tenant's data planes, and the nodes that have any.")
@timeout_option
@render.output_option
def wait(revision: int, of: Of, share: float, tenant: str, timeout: float, output: str) -> None:
    """Wait until a share of the nodes, or of the data planes, has a revision.

    Exits with 1 as soon as one has refused it, and with 7 if it took too long; then it says who lags.
    """
    request = GetProgressRequest(revision=revision, tenant=tenant)
    with client.connect_current() as mesh, render.progress(f"waiting for revision {revision}"):
        last = until_reached(mesh, request, of, share, timeout)
    say(last, output)


def until_reached(mesh: client.Client, request: GetProgressRequest, of: Of, share: float, timeout_s: float) -> Progress:
    """Waits until a revision has come as far as it shall; returns how far it is then.

    Raises:
        Failure: somebody has refused it.
        TooLate: it took too long.
    """
    call, last = mesh.revision.WatchProgress(request, timeout=max(timeout_s, 0.1)), None
    try:
        for last in call:
            if _of(last, of).rejected:
                raise Failure("\n".join(_refusals(last)), "`meshwarden history show` says what it has changed")
            if percent(_of(last, of)) >= share:
                return cast("Progress", last)
    except grpc.RpcError as error:
        if cast("grpc.Call", error).code() is not grpc.StatusCode.DEADLINE_EXCEEDED or last is None:
            raise
    finally:
        call.cancel()
    if last is None:
        raise Failure("the control plane has ended the stream", "ask again")
    lagging = "; ".join(map(_late, last.lagging[:_NAMED]))
    raise TooLate(f"{summary(last)}\n{lagging}", "see `meshwarden status --revision`, or wait longer")


def say(progress: Progress, output: str) -> None:
    """Prints how far a revision has come."""
    if output != "table":
        render.data(render.as_dict(progress), output)
        return
    click.echo(summary(progress))
    if progress.lagging:
        rows = [
            (
                one.node,
                f"at {one.control_plane}" if one.control_plane else "connected" if one.connected else "away",
                one.acked_revision or "unknown",
                _moment(one, "since"),
                _moment(one, "last_seen"),
                ", ".join(one.data_planes),
            )
            for one in progress.lagging
        ]
        render.table(("LAGS", "STATE", "HAS", "SINCE (UTC)", "LAST HEARD OF", "DATA PLANES"), rows)
    if progress.rejections:
        refused = [
            (
                one.nack.data_plane,
                one.node,
                one.nack.type_url.rpartition(".")[2],
                one.nack.taken_revision or "unknown",
                one.nack.message,
            )
            for one in progress.rejections
        ]
        render.table(("REFUSED BY", "NODE", "TYPE", "HAS", "WHY"), refused)
    if progress.omitted:
        click.echo(f"and {progress.omitted} more that lag or refuse", err=True)


def summary(progress: Progress) -> str:
    """How far a revision has come, in a line."""
    nodes, planes = _share(progress.nodes, "nodes"), _share(progress.data_planes, "data planes")
    return f"revision {progress.revision}\t{nodes}\t{planes}"


def percent(share: ProgressShare) -> float:
    """The share that has it of those that need it; all, where nobody does."""
    needing = share.acknowledged + share.lagging + share.rejected
    return ALL * share.acknowledged / needing if needing else ALL


def _share(share: ProgressShare, of: str) -> str:
    needing = share.acknowledged + share.lagging + share.rejected
    notes = [f"{count} {word}" for count, word in ((share.lagging, "lag"), (share.rejected, "refused it")) if count]
    notes += [f"{share.unneeded} need nothing of it"] if share.unneeded else []
    return f"{share.acknowledged} of {needing} {of} have it" + (f" ({', '.join(notes)})" if notes else "")


def _of(progress: Progress, of: Of) -> ProgressShare:
    return progress.nodes if of == "nodes" else progress.data_planes


def _refusals(progress: Progress) -> Iterable[str]:
    for one in progress.rejections[:_NAMED]:
        type_url = one.nack.type_url.rpartition(".")[2]
        yield render.plain(f"{one.nack.data_plane} on {one.node} has refused {type_url}: {one.nack.message}")
    if len(progress.rejections) > _NAMED or progress.omitted:
        yield f"and more: {progress.data_planes.rejected} data planes have refused it"


def _late(one: Lagging) -> str:
    away = "" if one.connected else " (away)"
    planes = f" ({', '.join(one.data_planes[:_NAMED])})" if one.data_planes and one.connected else ""
    return render.plain(f"{one.node}{away or planes} has {one.acked_revision or 'none'}")


def _moment(one: Lagging, field: str) -> str:
    if not one.HasField(field):  # type: ignore[arg-type]
        return "-"
    return str(getattr(one, field).ToDatetime().isoformat(sep=" ", timespec="seconds"))
