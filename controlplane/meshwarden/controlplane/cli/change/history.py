"""`meshwarden history`: what was changed, by whom and why."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.change.resource import parse_kind, parse_ref
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.diff import FieldChange
from meshwarden.controlplane.resources.diff import diff as fields_of
from meshwarden.v1.resource_service_pb2 import Change
from meshwarden.v1.revision_service_pb2 import GetRevisionRequest, ListRevisionsRequest, Revision, RevisionChange

_PAGE: Final = 200
_NAMED: Final = 4
_COLOURS: Final = {"+": "green", "-": "red", "~": "yellow"}


class _ListFirst(click.Group):
    """A group that means `list` where none of its commands is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Names `list`, unless a command or the help is asked for."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListFirst)
def history() -> None:
    """Show what was changed, by whom and why; `meshwarden history` alone lists it."""


@history.command("list")
@click.argument("kind", required=False)
@click.argument("name", required=False)
@click.option("--tenant", default="", help="Only changes of this tenant's resources.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many at most.")
@render.output_option
def list_revisions(kind: str | None, name: str | None, tenant: str, limit: int, output: str) -> None:
    """Show changes, the newest first: all, those of a KIND, or those of one resource by TENANT/NAME."""
    request = ListRevisionsRequest(tenant=tenant, kind=parse_kind(kind) if kind else "")
    if kind and name:
        request.resource.CopyFrom(parse_ref(kind, name))
    found: list[Revision] = []
    with client.connect_current() as mesh:
        while len(found) < limit:
            request.page_size = min(_PAGE, limit - len(found))
            answer = mesh.revision.ListRevisions(request, timeout=client.TIMEOUT_S)
            found += answer.revisions
            request.before = answer.next_before
            if not answer.next_before:
                break
    if output != "table":
        render.data([render.as_dict(one) for one in found], output)
        return
    rows = [
        (one.revision, one.time.ToDatetime().isoformat(sep=" ", timespec="seconds"), one.by, _named(one), one.reason)
        for one in found
    ]
    render.table(("REVISION", "TIME (UTC)", "BY", "WHAT", "WHY"), rows)
    if request.before:
        click.echo(f"there may be more before revision {request.before}: ask for a longer --limit", err=True)


@history.command()
@click.argument("revision", type=click.IntRange(1, 2**63 - 1))
@click.option("--tenant", default="", help="Only this tenant's part of it.")
@render.output_option
def show(revision: int, tenant: str, output: str) -> None:
    """Show what REVISION has changed, field by field."""
    with client.connect_current() as mesh:
        request = GetRevisionRequest(revision=revision, tenant=tenant)
        found = mesh.revision.GetRevision(request, timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(found), output)
        return
    click.echo(f"revision {found.revision}\t{found.time.ToDatetime().isoformat(sep=' ', timespec='seconds')} UTC")
    click.echo(f"by {render.plain(found.by)}")
    if found.reason:
        click.echo(f"because {render.plain(found.reason)}")
    if found.trace_id:
        click.echo(f"trace {found.trace_id}\tmeshwarden trace --revision {found.revision}")
    print_changes(found.changes)


def print_changes(changes: Iterable[RevisionChange]) -> None:
    """Prints what becomes of each resource, field by field."""
    for change in changes:
        click.echo(f"{_word(change)} {model.title(change.ref)}")
        for field in differences(change):
            text = render.plain(field)
            click.secho(f"  {text}", fg=_COLOURS.get(text[:1]))


def differences(change: RevisionChange) -> Sequence[FieldChange]:
    """What differs between a resource before a change and after it."""
    before = change.before if change.HasField("before") else None
    return fields_of(before, change.after if change.HasField("after") else None)


def _word(change: RevisionChange) -> str:
    return Change.Action.Name(change.action).lower()


def _named(revision: Revision) -> str:
    def each() -> Iterator[str]:
        for change in revision.changes[:_NAMED]:
            yield f"{_word(change)} {model.title(change.ref)}"
        if len(revision.changes) > _NAMED:
            yield f"and {len(revision.changes) - _NAMED} more"

    return ", ".join(each())
