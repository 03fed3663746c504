"""`meshwarden rollback`."""

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.change.history import print_changes
from meshwarden.controlplane.cli.change.progress import ALL, summary, timeout_option, until_reached
from meshwarden.controlplane.cli.change.resource import parse_title
from meshwarden.controlplane.cli.failure import Failure
from meshwarden.v1.revision_service_pb2 import GetProgressRequest, RollbackRequest, RollbackResponse


@click.command()
@click.argument("revision", type=click.IntRange(1, 2**63 - 1))
@click.option(
    "--resource", "names", multiple=True, metavar="KIND/TENANT/NAME", help="Only this resource; may be given again."
)
@click.option("--tenant", default="", help="Only this tenant's resources.")
@click.option("--dry-run", is_flag=True, help="Check and say what would change, and change nothing.")
@click.option(
    "--as-of",
    type=click.IntRange(1, 2**63 - 1),
    help="Refuse if any of it was changed after this revision, which a dry run says.",
)
@click.option("--reason", default="", help="Why, for the history.")
@click.option("--wait", "waits", is_flag=True, help="Wait until every node has it, as `meshwarden wait` does.")
@timeout_option
@render.output_option
def rollback(
    revision: int,
    names: tuple[str, ...],
    tenant: str,
    dry_run: bool,
    as_of: int | None,
    reason: str,
    waits: bool,
    timeout: float,
    output: str,
) -> None:
    """Bring resources back to what they were as of REVISION, as a change of its own, all or none."""
    refs = [parse_title(name) for name in names]
    request = RollbackRequest(
        revision=revision, resources=refs, tenant=tenant, dry_run=dry_run, reason=reason, as_of=as_of or 0
    )
    with client.connect_current() as mesh:
        with render.progress("rolling back"):
            answer = mesh.revision.Rollback(request, timeout=client.TIMEOUT_S)
        _say(answer, dry_run, output)
        if waits and answer.changes and not dry_run:
            with render.progress(f"waiting for revision {answer.revision}"):
                reached = until_reached(mesh, GetProgressRequest(revision=answer.revision), "nodes", ALL, timeout)
            click.echo(summary(reached), err=True)


def _say(answer: RollbackResponse, dry_run: bool, output: str) -> None:
    if output != "table":
        render.data(render.as_dict(answer), output)
    else:
        print_changes(answer.changes)
    if answer.faults:
        lines = "\n".join(
            render.plain(f"{fault.field}: {fault.message}" if fault.field else fault.message) for fault in answer.faults
        )
        raise Failure(lines, "it would be refused: mend these first, or name what to bring back; nothing was changed")
    if output != "table":
        return
    if not answer.changes:
        click.echo("nothing to bring back: all is as it was", err=True)
    elif dry_run:
        click.echo(f"nothing was changed: a dry run, as of revision {answer.revision}", err=True)
    else:
        click.echo(f"revision {answer.revision}", err=True)
    if answer.trace_id:
        click.echo(f"trace {answer.trace_id}", err=True)
