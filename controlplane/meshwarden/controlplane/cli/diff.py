"""`meshwarden diff`."""

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.apply import read, send
from meshwarden.controlplane.cli.failure import Differs
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.diff import FieldChange
from meshwarden.controlplane.resources.diff import diff as changes_of
from meshwarden.v1.resource_service_pb2 import Change, GetRequest


@click.command()
@click.option("-f", "--file", "files", multiple=True, required=True, metavar="PATH", help='A file, directory or "-".')
@render.output_option
def diff(files: tuple[str, ...], output: str) -> None:
    """Say field by field what applying manifests would change, and change nothing. Exits 5 if anything would."""
    located = read(files)
    found: list[tuple[str, str, list[FieldChange]]] = []
    with client.connect_current() as mesh, render.progress("comparing"):
        for item, change in zip(located, send(mesh, located, dry_run=True).changes, strict=True):
            if change.action == Change.UNCHANGED:
                continue
            old = None
            if change.action == Change.UPDATED:
                old = mesh.resource.Get(GetRequest(ref=change.ref), timeout=client.TIMEOUT_S)
            action = Change.Action.Name(change.action).lower()
            found.append((action, model.title(change.ref), changes_of(old, model.normalise(item.resource))))
    if output == "table":
        for action, title, changes in found:
            click.echo(f"{action} {title}")
            for changed in changes:
                click.echo(f"  {render.plain(changed)}")
    else:
        render.data([_as_dict(*row) for row in found], output)
    if found:
        raise Differs(f"{len(found)} of {len(located)} resources differ")
    click.echo(f"no difference in {len(located)} resources", err=True)


def _as_dict(action: str, title: str, changes: list[FieldChange]) -> dict[str, object]:
    fields = [{"field": changed.field, "old": changed.old, "new": changed.new} for changed in changes]
    return {"action": action, "resource": title, "changes": fields}
