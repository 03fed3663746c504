"""What a change would do to whoever calls, for people."""

from collections.abc import Iterable, Iterator
from typing import Final

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.v1.preview_service_pb2 import (
    ClientChange,
    Decider,
    EndedRollout,
    NameChange,
    OverruledRule,
    PreviewRequest,
    PreviewResponse,
    PushReach,
)
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import Resource

TIMEOUT_S: Final = 60.0
_METHODS: Final = 4
_CALLERS: Final = 6
_WORDS: Final = {
    ClientChange.DENIED: "newly denied",
    ClientChange.ALLOWED: "newly allowed",
    ClientChange.HIDDEN: "no longer sees it",
    ClientChange.SEEN: "newly sees it",
}


def ask(mesh: client.Client, resources: Iterable[Resource], deletions: Iterable[ResourceRef] = ()) -> PreviewResponse:
    """Asks what a change would do.

    Raises:
        grpc.RpcError: the call failed.
    """
    request = PreviewRequest(resources=resources, deletions=deletions)
    answer: PreviewResponse = mesh.preview.Preview(request, timeout=TIMEOUT_S)
    return answer


def lines(answer: PreviewResponse) -> Iterator[str]:
    """The answer, a line for each change; of the mesh as it is only if something of that changes."""
    for warning in answer.warnings:
        yield f"warning: {warning}"
    if answer.services or not answer.ended:
        yield from _of_mesh(answer)
    for ended in answer.ended:
        yield from _ended(ended)


def _of_mesh(answer: PreviewResponse) -> Iterator[str]:
    if answer.changes or answer.names:
        yield "for callers"
    for change in answer.changes:
        yield f"  {_change(change)}"
    for name in answer.names:
        yield f"  {_name(name)}"
    if answer.omitted_changes:
        yield f"  and {answer.omitted_changes} more changes"
    if answer.omitted_services:
        yield f"  {answer.omitted_services} services were not looked at: it would have taken too long"
    if not answer.changes and not answer.names and not answer.omitted_services:
        yield "for callers nothing changes"
    if answer.overruled:
        yield "overruled"
    for rule in answer.overruled:
        yield f"  {_overruled(rule)}"
    for some in answer.untouched:
        callers = list(getattr(some, "from"))
        yield f"not touched: {listed(callers, some.callers)} of {some.to}"
    yield f"not touched: {answer.other_services} other services" if answer.services else "it touches no service"
    yield _reach(answer.reach)


def _ended(ended: EndedRollout) -> Iterator[str]:
    yield f"{ended.rollout} is under way, in {ended.stage}: its nodes lose {listed(list(ended.policies))} of it"
    for change in ended.changes:
        yield f"  {_change(change)}"
    if ended.omitted_changes:
        yield f"  and {ended.omitted_changes} more changes"
    if ended.omitted_services:
        yield f"  {ended.omitted_services} services were not looked at: it would have taken too long"
    if not ended.changes and not ended.omitted_services:
        yield "  for callers nothing changes"
    yield f"  {_reach(ended.reach)}"


def listed(names: list[str], count: int | None = None) -> str:
    """Some names, and how many more there are."""
    count = len(names) if count is None else count
    shown = names[:_CALLERS]
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _change(change: ClientChange) -> str:
    who = f"{listed(list(getattr(change, 'from')))} -> {change.to}"
    if change.kind in (ClientChange.HIDDEN, ClientChange.SEEN):
        by = change.after.resource or change.before.resource
        return f"{who}: {_WORDS[change.kind]}{f' ({by} spec.exportTo)' if by else ''}"
    methods = f"{', '.join(change.methods[:_METHODS])}" if change.methods else "every method"
    if len(change.methods) > _METHODS:
        methods += f" and {len(change.methods) - _METHODS} more"
    if change.headers:
        methods += f" with {', '.join(change.headers)}"
    if change.at_other_times:
        methods += " at some times"
    if change.kind in _WORDS:
        why = decided(change.before, change.after, allowed=change.kind == ClientChange.ALLOWED)
        return f"{who}: {methods} {_WORDS[change.kind]} ({why})"
    what = "limit" if change.kind == ClientChange.LIMITED else "route"
    place = _place(change.after) or _place(change.before)
    return f"{who}: {methods} {what}: {change.before.text} -> {change.after.text}{f' ({place})' if place else ''}"


def decided(before: Decider, after: Decider, *, allowed: bool) -> str:
    """Which rule lets calls in, or keeps them out: that which does it, else that which no longer lets them in."""
    if allowed:
        if after.field.startswith("spec.allow"):
            return _place(after)
        return f"{_place(before)} no longer denies it" if before.field.startswith("spec.deny") else after.text
    if before.field.startswith("spec.allow[") and not after.field.startswith("spec.deny"):
        return f"{_place(before)} no longer allows it"
    return _place(after) or after.text


def _place(decider: Decider) -> str:
    return f"{decider.resource} {decider.field}".strip()


def _name(name: NameChange) -> str:
    old, new = (" or ".join(side) or "nothing" for side in (name.before, name.after))
    text = f"tenant {name.tenant}: the name {name.name} means {old} -> {new}"
    return f"{text}, which is ambiguous: it resolves no more" if len(name.after) > 1 else text


def _overruled(rule: OverruledRule) -> str:
    by = f"{rule.by_resource} {rule.by_field}" if rule.by_resource != rule.resource else rule.by_field
    who = listed(list(getattr(rule, "from")))
    if rule.resource.startswith("RoutePolicy"):
        return f"{rule.resource} {rule.field} decides of no call: {by} comes before it ({who})"
    what = "lets nobody in" if rule.wholly else "does not let in all that it says"
    return f"{rule.resource} {rule.field} {what}: {by} denies it to {who}"


def _reach(reach: PushReach) -> str:
    most = "at most " if reach.at_most else ""
    nodes, planes = (
        f"{count} of {whole}" if whole else str(count)
        for count, whole in (
            (reach.nodes, reach.connected_nodes),
            (reach.data_planes, reach.connected_data_planes),
        )
    )
    return f"pushed to {most}{nodes} nodes, {planes} data planes"


def show(answer: PreviewResponse) -> None:
    """Prints the answer."""
    for line in lines(answer):
        click.echo(render.plain(line))
