"""`meshwarden rollout`: how rollouts do, and what is said to them."""

import time
from collections.abc import Iterator
from datetime import UTC
from typing import Any, Final

import click
import grpc

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.change.resource import parse_ref
from meshwarden.controlplane.cli.failure import Failure, NotFound, TooLate
from meshwarden.controlplane.cli.span_of_time import SpanOfTime
from meshwarden.controlplane.rollout.plan import hold, part, title, wait
from meshwarden.v1.resources_pb2 import RolloutStatus, RolloutVerdict, SLOSpec
from meshwarden.v1.rollout_service_pb2 import ChangeRolloutRequest, ListRolloutsRequest, RolloutState

_BAR: Final = 20
_EVERY_S: Final = 1.0
_OVER: Final = (RolloutStatus.COMMITTED, RolloutStatus.ROLLED_BACK, RolloutStatus.ABORTED)
_MARKS: Final = {
    RolloutStatus.PENDING: "·",
    RolloutStatus.RUNNING: "▶",
    RolloutStatus.PAUSED: "‖",
    RolloutStatus.COMMITTED: "✓",
    RolloutStatus.ROLLED_BACK: "✗",
    RolloutStatus.ABORTED: "✗",
}
_COLOURS: Final = {"✓": "green", "✗": "red", "▶": "cyan", "‖": "yellow"}
_reason = click.option("--reason", default="", help="Why, for the history.")


@click.group()
def rollout() -> None:
    """Show rollouts, and pause, resume and abort them; `meshwarden apply` begins them."""


@rollout.command()
@click.argument("name", required=False, metavar="[TENANT/NAME]")
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option("--running", is_flag=True, help="Only those that are not over.")
@render.output_option
def status(name: str | None, tenant: str, running: bool, output: str) -> None:
    """Show how far rollouts have come, and by what they are judged: all, or one."""
    request = ListRolloutsRequest(tenant=tenant, running=running)
    with client.connect_current() as mesh:
        found = [_one(mesh, name)] if name else _listed(mesh, request)
    if output != "table":
        render.data([render.as_dict(state) for state in found], output)
        return
    for state in found:
        say(state)
    if not found:
        click.echo("no rollouts", err=True)


@rollout.command()
@click.argument("name", metavar="TENANT/NAME")
@click.option("--timeout", type=SpanOfTime(), default="1h", show_default=True, help="How long to watch, 30s, 5m.")
def watch(name: str, timeout: float) -> None:
    """Say whenever something becomes of a rollout, until it is over. Exits with 1 unless it is committed."""
    said, until_s = "", time.monotonic() + timeout
    with client.connect_current() as mesh:
        while True:
            state = _one(mesh, name)
            if (now := line(state)) != said:
                click.echo(f"{utc_now():%H:%M:%S}  {now}")
                said = now
            phase = state.rollout.status.phase
            if phase in _OVER:
                break
            if time.monotonic() >= until_s:
                raise TooLate(now, "it goes on by itself: watch it again, or see `meshwarden rollout status`")
            time.sleep(_EVERY_S)
    if phase != RolloutStatus.COMMITTED:
        raise Failure(f"{_word(phase)}: {render.plain(state.rollout.status.reason)}")


def _command(action: "ChangeRolloutRequest.Action.ValueType", text: str) -> click.Command:
    name = ChangeRolloutRequest.Action.Name(action).lower()

    @click.argument("name", metavar="TENANT/NAME")
    @_reason
    def run(name: str, reason: str) -> None:
        request = ChangeRolloutRequest(ref=parse_ref("Rollout", name), action=action, reason=reason)
        with client.connect_current() as mesh:
            answer = mesh.rollout.ChangeRollout(request, timeout=client.TIMEOUT_S)
        click.echo(f"{_word(answer.rollout.status.phase)}\tRollout {name}")
        click.echo(f"revision {answer.revision}", err=True)

    return click.command(name, help=text)(run)


rollout.add_command(
    _command(ChangeRolloutRequest.PAUSE, "Keep a rollout in its stage: it is neither judged nor promoted.")
)
rollout.add_command(_command(ChangeRolloutRequest.RESUME, "Let a paused rollout go on: its stage is held anew."))
rollout.add_command(_command(ChangeRolloutRequest.ABORT, "End a rollout: no node keeps its changes."))


def _one(mesh: client.Client, name: str) -> RolloutState:
    ref = parse_ref("Rollout", name)
    found = _listed(mesh, ListRolloutsRequest(tenant=ref.tenant, name=ref.name))
    if not found:
        raise NotFound(f"there is no Rollout {name}", "`meshwarden rollout status` lists them")
    return found[0]


def _listed(mesh: client.Client, request: ListRolloutsRequest) -> list[RolloutState]:
    return list(mesh.rollout.ListRollouts(request, timeout=client.TIMEOUT_S).rollouts)


def running_rows(mesh: client.Client, tenant: str) -> list[tuple[str, str, str, str]]:
    """A row for each rollout that is not over, for `status`; none from a control plane that knows none, being older."""
    try:
        found = _listed(mesh, ListRolloutsRequest(tenant=tenant, running=True))
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        return []
    return [(_name(one), _word(one.rollout.status.phase), title(one.rollout), _share(one.now)) for one in found]


def say(state: RolloutState) -> None:
    """Prints how a rollout does: each stage with its share, then what it is judged by."""
    status, spec = state.rollout.status, state.rollout.spec
    click.echo(f"{_name(state)}\t{_word(status.phase)}\t{render.plain(status.reason)}")
    for number, stage in enumerate(spec.stages):
        mark, verdict = _stage(state, number)
        share = verdict.nodes / verdict.nodes_concerned if verdict is not None and verdict.nodes_concerned else 0.0
        filled = round(share * _BAR)
        bar = "█" * filled + "░" * (_BAR - filled)
        told = [f"{part(stage):<12}", bar]
        if verdict is not None:
            told += [_share(verdict), *_judged(verdict)]
        click.secho(f"  {mark} {render.plain('  '.join(told)).rstrip()}", fg=_COLOURS.get(mark))
    if status.phase == RolloutStatus.RUNNING:
        stage = spec.stages[status.stage]
        held = utc_now() - status.stage_time.ToDatetime(UTC)
        until = f"held for {held.total_seconds():.0f} s of {hold(stage).total_seconds():.0f} s"
        more = f", at most {(hold(stage) + wait(stage)).total_seconds():.0f} s"
        taken = f"; {state.nodes_taken} of {state.now.nodes} nodes have taken it" if state.now.nodes else ""
        click.echo(f"  {until}{more}{taken}")
    last = state.now if state.HasField("now") else status.verdicts[-1] if status.verdicts else None
    if last is not None and last.comparisons:
        rows = [_row(one) for one in last.comparisons]
        render.table(("CALLED", "SEEN BY", "SLO", "ALLOWED", "WITH IT", "WITHOUT IT", "SURELY", "IS"), rows)
    if state.trace_id:
        click.echo(f"  trace {state.trace_id}")


def line(state: RolloutState) -> str:
    """How a rollout does, in a line."""
    status = state.rollout.status
    text = _word(status.phase)
    if state.HasField("now"):
        text += f"  {title(state.rollout)}  {_share(state.now)}  {_outcome(state.now.outcome)}"
    return render.plain(f"{text}  {status.reason}")


def _stage(state: RolloutState, number: int) -> tuple[str, RolloutVerdict | None]:
    """A stage's mark, and what is known of it."""
    status = state.rollout.status
    known = next((one for one in status.verdicts if one.stage == number), None)
    if number < status.stage:
        return "✓", known
    if number > status.stage or status.phase == RolloutStatus.PENDING:
        return "·", None
    return _MARKS.get(status.phase, "·"), state.now if state.HasField("now") else known


def _judged(verdict: RolloutVerdict) -> Iterator[str]:
    yield _outcome(verdict.outcome)
    calls = sum(one.changed_calls for one in verdict.comparisons)
    bad = sum(one.changed_bad for one in verdict.comparisons)
    if calls:
        yield f"{bad} of {calls} calls bad"


def _row(one: Any) -> tuple[str, ...]:
    return (
        one.service,
        "callers" if one.side == SLOSpec.CALLER else "the service",
        one.slo or "(99 %)",
        f"{one.allowed:.3%}",
        _ratio(one.changed_bad, one.changed_calls),
        _ratio(one.unchanged_bad, one.unchanged_calls),
        f">= {one.changed_at_least:.2%} with it, {_at_most(one.unchanged_at_most)} without",
        _outcome(one.outcome),
    )


def _at_most(share: float) -> str:
    return f"<= {share:.2%}" if share < 1 else "unknown"


def _ratio(bad: int, calls: int) -> str:
    return f"{bad} of {calls}" + (f" ({bad / calls:.2%})" if calls else "")


def _share(verdict: RolloutVerdict) -> str:
    if not verdict.nodes_concerned:
        return "no node that it concerns has joined"
    return f"{verdict.nodes} of {verdict.nodes_concerned} nodes"


def _outcome(outcome: "RolloutVerdict.Outcome.ValueType") -> str:
    return RolloutVerdict.Outcome.Name(outcome).lower().replace("_", " ")


def _word(phase: "RolloutStatus.Phase.ValueType") -> str:
    return RolloutStatus.Phase.Name(phase)


def _name(state: RolloutState) -> str:
    return f"{state.rollout.metadata.tenant}/{state.rollout.metadata.name}"
