"""`meshwarden quota`: how limits that hold across the mesh are divided at this moment."""

import itertools
import math
import sys
import time
from collections.abc import Iterable

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.quota.view import measured
from meshwarden.sdk.quota.unit import CONCURRENT
from meshwarden.v1.admin_service_pb2 import GetQuotasRequest, GetQuotasResponse, QuotaState

_COLUMNS = (
    "POLICY",
    "TENANT",
    "PART",
    "UNIT",
    "LIMIT",
    "WANTED",
    "SHARE",
    "ALLOWED/S",
    "LIMITED/S",
    "SHADOW/S",
    "POINTS",
)
_PERIOD_COLUMNS = ("POLICY", "TENANT", "PART", "UNIT", "LIMIT", "USED", "LEFT", "HELD", "LOST", "LIMITED/S", "ENDS")
_SILENT_S = 2.0
"""Points are heard of each second."""


@click.group()
def quota() -> None:
    """Show how limits that hold across the mesh are divided, and why so."""


@quota.command()
@click.option("--tenant", default="", help="Only this calling tenant.")
@click.option("--policy", default="", help="Only this policy, TENANT/NAME.")
@click.option("--every", "every_s", type=click.FloatRange(0.5, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Show it once; so it is where the output is no terminal.")
@render.output_option
def top(tenant: str, policy: str, every_s: float, once: bool, output: str) -> None:
    """Show each bucket's limit, what is wanted of it, its share and its use, until Ctrl-C."""
    request = GetQuotasRequest(tenant=tenant, policy=policy)
    with client.connect_current() as mesh:
        first = mesh.admin.GetQuotas(request, timeout=client.TIMEOUT_S)
        if output != "table":
            render.data(render.as_dict(first), output)
            return
        _say_how_it_stands(first)
        for before, now in itertools.pairwise(_answers(mesh, request, first, every_s)):
            if sys.stdout.isatty() and not once:
                click.clear()
            _show(before, now)
            if once or not sys.stdout.isatty():
                return


@quota.command()
@click.argument("tenant")
@click.option("--policy", default="", help="Only this policy, TENANT/NAME.")
@render.output_option
def explain(tenant: str, policy: str, output: str) -> None:
    """Say what TENANT has of each limit, why so, and at which enforcement points."""
    with client.connect_current() as mesh:
        answer = mesh.admin.GetQuotas(GetQuotasRequest(tenant=tenant, policy=policy), timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    _say_how_it_stands(answer)
    if not answer.quotas:
        click.echo(f"tenant {render.plain(tenant)} uses no limit that holds across the mesh", err=True)
    for state in answer.quotas:
        part = _part(state)
        what = f"{state.bucket.policy} at {part}" if part else state.bucket.policy
        if state.HasField("period"):
            _explain_period(state, what)
            continue
        click.echo(f"RatePolicy {render.plain(what)}: {measured(state.share, state.unit)}")
        click.echo(f"  {state.reason}")
        if state.excess >= 1:
            what = "calls at once too many, times seconds" if state.unit == CONCURRENT else f"{state.unit} beyond it"
            click.echo(f"  about {state.excess:.0f} {what}, since this control plane began to divide")
        for point in state.points:
            name = render.plain(f"{point.node} {point.point}")
            share, demand = (measured(rate, state.unit) for rate in (point.share, point.demand))
            used = f", {point.in_use:.0f} in use" if state.unit == CONCURRENT else ""
            age_s = point.age.ToTimedelta().total_seconds()
            silent = f", not heard of for {age_s:.1f} s" if age_s >= _SILENT_S else ""
            click.echo(f"  {name}: {share} of {demand} wanted there{used}{silent}")


def _show(before: GetQuotasResponse, now: GetQuotasResponse) -> None:
    rates, periods = rows(before, now), period_rows(before, now)
    if rates or not periods:
        render.table(_COLUMNS, rates)
    if rates and periods:
        click.echo()
    if periods:
        render.table(_PERIOD_COLUMNS, periods)


def _explain_period(state: QuotaState, what: str) -> None:
    period = state.period
    click.echo(
        f"RatePolicy {render.plain(what)}: {period.used:.0f} of {_amount(state.limit)} {state.unit} used,"
        f" {render.moment(period.start)} to {render.moment(period.end)}"
    )
    click.echo(f"  {state.reason}; {period.held:.0f} are at hand at enforcement points, {period.lost:.0f} are lost")
    for point in state.points:
        name = render.plain(f"{point.node} {point.point}")
        click.echo(f"  {name}: {point.share:.0f} at hand, {measured(point.demand, state.unit)} are used there")
    if period.HasField("used_before"):
        click.echo(f"  {period.used_before:.0f} were used in the period before")


def period_rows(before: GetQuotasResponse, now: GetQuotasResponse) -> list[tuple[object, ...]]:
    """The rows of amounts for a period; what was refused is taken between two answers."""
    known = {_key(state): state for state in before.quotas}
    passed_s = max(1e-3, (now.now.ToNanoseconds() - before.now.ToNanoseconds()) / 1e9)
    found: list[tuple[object, ...]] = []
    for state in now.quotas:
        if state.HasField("period"):
            period, bucket = state.period, state.bucket
            amounts = (f"{amount:.0f}" for amount in (period.used, period.left, period.held, period.lost))
            limited = max(0, state.denied - known.get(_key(state), QuotaState()).denied) / passed_s
            named = bucket.policy, bucket.tenant, _part(state) or "-", state.unit, _amount(state.limit)
            found.append((*named, *amounts, f"{limited:.1f}", render.moment(period.end)))
    return found


def _amount(limit: float) -> str:
    return f"{limit:.0f}" if math.isfinite(limit) else "-"


def rows(before: GetQuotasResponse, now: GetQuotasResponse) -> list[tuple[object, ...]]:
    """The table's rows; what was called is taken between two answers."""
    known = {_key(state): state for state in before.quotas}
    passed_s = max(1e-3, (now.now.ToNanoseconds() - before.now.ToNanoseconds()) / 1e9)
    return [
        _row(state, known.get(_key(state), QuotaState()), passed_s)
        for state in now.quotas
        if not state.HasField("period")
    ]


def _answers(
    mesh: client.Client, request: GetQuotasRequest, first: GetQuotasResponse, every_s: float
) -> Iterable[GetQuotasResponse]:
    yield first
    while True:
        time.sleep(every_s)
        yield mesh.admin.GetQuotas(request, timeout=client.TIMEOUT_S)


def _row(state: QuotaState, before: QuotaState, passed_s: float) -> tuple[object, ...]:
    calls = (
        # Less than before: the control plane has started again.
        f"{max(0, count - was) / passed_s:.1f}"
        for count, was in (
            (state.allowed, before.allowed),
            (state.denied, before.denied),
            (state.shadowed, before.shadowed),
        )
    )
    rates = (f"{rate:.1f}" for rate in (state.limit, state.demand, state.share))
    bucket = state.bucket
    return bucket.policy, bucket.tenant, _part(state) or "-", state.unit, *rates, *calls, len(state.points)


def _part(state: QuotaState) -> str:
    """Which of its tenant's calls a bucket is for: a service's, a method's or both; empty for all others."""
    return " ".join(filter(None, (state.bucket.service, state.bucket.method)))


def _key(state: QuotaState) -> tuple[str, str, str]:
    return state.bucket.policy, state.bucket.tenant, _part(state)


def _say_how_it_stands(answer: GetQuotasResponse) -> None:
    if not answer.divides:
        click.echo("this control plane divides no limits: no RatePolicy holds across the mesh", err=True)
    elif answer.learns:
        click.echo("it has just begun, and learns what was given before: nothing more is given yet", err=True)
