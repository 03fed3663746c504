"""`meshwarden diff`."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.change import preview, replay
from meshwarden.controlplane.cli.change.apply import read, send
from meshwarden.controlplane.cli.change.resource import parse_title
from meshwarden.controlplane.cli.failure import Differs, Unwanted
from meshwarden.controlplane.cli.span_of_time import SpanOfTime
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.diff import FieldChange
from meshwarden.controlplane.resources.diff import diff as changes_of
from meshwarden.controlplane.resources.manifest import Located
from meshwarden.v1.preview_service_pb2 import ClientChange, EndedRollout, PreviewResponse, ReplayAnswer
from meshwarden.v1.resource_service_pb2 import Change, GetRequest, ResourceRef
from meshwarden.v1.resources_pb2 import Resource

OUTCOMES: Final = ("denied", "allowed", "rerouted", "limited", "undecidable")
_KINDS: Final = {
    ClientChange.DENIED: "denied",
    ClientChange.HIDDEN: "denied",
    ClientChange.ALLOWED: "allowed",
    ClientChange.ROUTED: "rerouted",
    ClientChange.LIMITED: "limited",
}


@click.command()
@click.option("-f", "--file", "files", multiple=True, metavar="PATH", help='A file, directory or "-".')
@click.option(
    "--delete",
    "deleted",
    multiple=True,
    metavar="KIND/TENANT/NAME",
    help="What deleting this would change, once the manifests are applied; may be given again.",
)
@click.option(
    "--replay",
    "span_s",
    type=SpanOfTime(),
    help="Hold the calls of so long, 1h for one, at most 7d, against the change: which of them would be denied, "
    "allowed, rerouted or limited then and are not now.",
)
@click.option(
    "--fail-on",
    type=click.Choice(OUTCOMES),
    multiple=True,
    help="Exit 6 if this would come of calls that were seen, or without --replay of some that may be made; else 0.",
)
@render.output_option
def diff(
    files: tuple[str, ...], deleted: tuple[str, ...], span_s: float | None, fail_on: tuple[str, ...], output: str
) -> None:
    """Say what applying manifests, or deleting resources, would change, field by field and for whoever calls.

    Changes nothing. Exits 5 if anything would change.
    """
    if not files and not deleted:
        raise click.UsageError("give manifests by -f, or resources by --delete")
    if span_s is not None and not 60 <= span_s <= 7 * 86_400:
        raise click.BadParameter("give from 60s to 7d", param_hint="--replay")
    located = read(files) if files else []
    refs = [parse_title(name) for name in deleted]
    with client.connect_current() as mesh:
        found = _resources(mesh, located, refs)
        resources = [item.resource for item in located]
        seen = preview.ask(mesh, resources, refs)
        answer = replay.ask(mesh, resources, span_s, refs) if span_s is not None else None
    if output == "table":
        _show(found, seen, answer)
    else:
        whole: dict[str, Any] = {
            "resources": [_as_dict(*row) for row in found],
            "preview": render.as_dict(seen),
        }
        render.data(whole | ({"replay": render.as_dict(answer)} if answer is not None else {}), output)
    if fail_on:
        _fail_on(fail_on, replay.counts(answer) if answer is not None else _counts(seen))
    elif found:
        raise Differs(f"{len(found)} of {len(located) + len(refs)} resources differ")
    if not found:
        click.echo(f"no difference in {len(located)} resources", err=True)


def _resources(
    mesh: client.Client, located: list[Located], refs: list[ResourceRef]
) -> list[tuple[str, str, list[FieldChange]]]:
    """What becomes of each resource that changes: (action, title, fields)."""
    found = []
    with render.progress("comparing"):
        for item, change in zip(located, _stored(mesh, located), strict=True):
            if change.action == Change.UNCHANGED:
                continue
            old = _get(mesh, change.ref) if change.action == Change.UPDATED else None
            action = Change.Action.Name(change.action).lower()
            found.append((action, model.title(change.ref), changes_of(old, model.normalise(item.resource))))
        for ref in refs:
            found.append(("deleted", model.title(ref), changes_of(_get(mesh, ref), None)))
    return found


def _stored(mesh: client.Client, located: list[Located]) -> Iterable[Change]:
    return send(mesh, located, dry_run=True).changes if located else ()


def _get(mesh: client.Client, ref: ResourceRef) -> Resource:
    found: Resource = mesh.resource.Get(GetRequest(ref=ref), timeout=client.TIMEOUT_S)
    return found


def _show(found: list[tuple[str, str, list[FieldChange]]], seen: PreviewResponse, answer: ReplayAnswer | None) -> None:
    for action, title, changes in found:
        click.echo(f"{action} {title}")
        for changed in changes:
            click.echo(f"  {render.plain(changed)}")
    if found:
        preview.show(seen)
    if answer is not None:
        replay.show(answer)


def _counts(seen: PreviewResponse) -> Counter[str]:
    """How many changes of each outcome there are, by the words of --fail-on."""
    parts: list[PreviewResponse | EndedRollout] = [seen, *seen.ended]
    found = Counter(_KINDS[change.kind] for part in parts for change in part.changes if change.kind in _KINDS)
    found["undecidable"] = sum(part.omitted_changes + part.omitted_services for part in parts)
    return found


def _fail_on(unwanted: tuple[str, ...], counts: Any) -> None:
    wrong = [word for word in unwanted if counts[word]]
    if wrong:
        texts = ", ".join(f"{counts[word]} {word}" for word in wrong)
        raise Unwanted(f"the change does what is not wanted: {texts}", "see above for which calls and why")


def _as_dict(action: str, title: str, changes: list[FieldChange]) -> dict[str, object]:
    fields = [{"field": changed.field, "old": changed.old, "new": changed.new} for changed in changes]
    return {"action": action, "resource": title, "changes": fields}
