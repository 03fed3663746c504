"""What would become of the calls that were seen, for people."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Final

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.change import preview
from meshwarden.controlplane.cli.failure import Failure
from meshwarden.v1.preview_service_pb2 import ReplayAnswer, ReplayedCalls, ReplayRequest
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import Resource

TIMEOUT_S: Final = 600.0
_ROWS: Final = 100
_SIDES: Final = {CallStat.SOURCE: "caller", CallStat.DESTINATION: "service"}


def ask(
    mesh: client.Client, resources: Iterable[Resource], span_s: float, deletions: Iterable[ResourceRef] = ()
) -> ReplayAnswer:
    """Has the calls of a span of time held against a change.

    Raises:
        Failure: the control plane ends without an answer.
        grpc.RpcError: the call failed.
    """
    request = ReplayRequest(resources=resources, deletions=deletions)
    request.span.FromTimedelta(timedelta(seconds=span_s))
    with render.progress("replaying the ledger of calls"):
        for told in mesh.preview.Replay(request, timeout=TIMEOUT_S):
            if told.HasField("answer"):
                return told.answer  # type: ignore[no-any-return]
    raise Failure("the control plane has ended the replay without an answer", "ask again")


def show(answer: ReplayAnswer) -> None:
    """Prints the answer."""
    since, until = render.moment(answer.start), render.moment(answer.end)
    click.echo(f"replay of {answer.calls} calls from {since} to {until}")
    if answer.changed:
        rows = [_row(one) for one in answer.changed[:_ROWS]]
        render.table(("OUTCOME", "CALLS", "FROM", "TO", "METHOD", "WHY", "TOLD BY"), rows)
    left = answer.omitted + max(0, len(answer.changed) - _ROWS)
    if left:
        click.echo(f"and {left} more: -o json has the first {len(answer.changed)}", err=True)
    counts = (
        (answer.denied, "newly denied"),
        (answer.allowed, "newly allowed"),
        (answer.rerouted, "rerouted"),
        (answer.limited, "newly limited"),
        (answer.undecidable, "undecidable"),
        (answer.unchanged, "unchanged"),
    )
    click.echo(", ".join(f"{count} {what}" for count, what in counts))
    if answer.truncated:
        click.echo("there were too many different calls: the oldest are left out", err=True)


def counts(answer: ReplayAnswer) -> dict[str, int]:
    """How many calls would come to what, by the words of --fail-on."""
    return {
        "denied": answer.denied,
        "allowed": answer.allowed,
        "rerouted": answer.rerouted,
        "limited": answer.limited,
        "undecidable": answer.undecidable + sum(_undecided_limits(answer.changed)),
    }


def _undecided_limits(changed: Iterable[ReplayedCalls]) -> Iterator[int]:
    """Calls of which nobody knows whether a limit refuses them; they are among the others, too."""
    for one in changed:
        if one.outcome == ReplayedCalls.UNDECIDABLE and one.after.resource.startswith("RatePolicy"):
            yield one.calls


def _row(one: ReplayedCalls) -> tuple[object, ...]:
    word = ReplayedCalls.Outcome.Name(one.outcome).lower()
    calls = f"at least {one.calls}" if one.outcome == ReplayedCalls.LIMITED else one.calls
    told = [_SIDES.get(side, "") for side in one.told_by]
    return word, calls, getattr(one, "from"), one.to, one.method or "every method", _why(one), " and ".join(told)


def _why(one: ReplayedCalls) -> str:
    if one.outcome == ReplayedCalls.UNDECIDABLE:
        return f"depends on {one.needs}"
    if one.outcome in (ReplayedCalls.DENIED, ReplayedCalls.ALLOWED):
        return preview.decided(one.before, one.after, allowed=one.outcome == ReplayedCalls.ALLOWED)
    text = f"{one.before.text} -> {one.after.text}"
    return f"{text}: {one.moved:.0%} of them move" if one.moved else text
