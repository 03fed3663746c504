"""`meshwarden cost`: what calls of generative models cost."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import click

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.span_of_time import SpanOfTime
from meshwarden.v1.cost_service_pb2 import Cost, GetCostsRequest, GetCostsResponse

_BY: Final = ("tenant", "service", "provider", "model", "hour", "day")
_DEFAULT: Final = ("tenant", "service", "model")
_ROWS: Final = 100
_MOST: Final = 10_000
_COUNTS: Final = ("CALLS", "INPUT", "CACHED", "OUTPUT", "USD", "UNPRICED")


@click.command()
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option("--service", default="", help="Only of this service that calls models, NAME or TENANT/NAME.")
@click.option("--model", default="", help="Only of this model.")
@click.option("--since", "since_s", type=SpanOfTime(), default="24h", show_default=True, help="Of how long, until now.")
@click.option(
    "--by",
    "by",
    type=click.Choice(_BY),
    multiple=True,
    help="What there is a row for each of; can be given again. Default: tenant, service and model.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, _MOST),
    help="How many rows at most: the dearest first. Default 100, of json and yaml all.",
)
@render.output_option
def cost(
    tenant: str, service: str, model: str, since_s: float, by: Sequence[str], limit: int | None, output: str
) -> None:
    """Show tokens and estimated money of calls of models, by list prices, as spans tell of them."""
    asked = by or _DEFAULT
    request = GetCostsRequest(
        tenant=tenant,
        service=service,
        model=model,
        by=[GetCostsRequest.Dimension.Value(one.upper()) for one in asked],
        limit=limit or (_ROWS if output == "table" else _MOST),
    )
    now = utc_now()
    request.start.FromDatetime(now - timedelta(seconds=since_s))
    with client.connect_current() as mesh:
        answer = mesh.cost.GetCosts(request, timeout=client.TIMEOUT_S)
    if output in ("json", "yaml"):
        render.data(render.as_dict(answer), output)
        return
    render.table((*(one.upper() for one in asked), *_COUNTS), [_row(found, asked) for found in answer.costs])
    for line in _about(answer, now):
        click.echo(line, err=True)


def _row(found: Cost, asked: Sequence[str]) -> tuple[object, ...]:
    counts = (found.calls, found.input_tokens, found.cached_tokens, found.output_tokens)
    return (*(_value(found, one) for one in asked), *counts, _usd(found), found.unpriced_tokens)


def _value(found: Cost, by: str) -> str:
    if by in ("hour", "day"):
        return found.start.ToDatetime(UTC).strftime("%Y-%m-%dT%H:00Z" if by == "hour" else "%Y-%m-%d")
    return str(getattr(found, by))


def _usd(found: Cost) -> str:
    """Money, as far as prices are known: "≥" where it is less than all."""
    if not found.HasField("usd"):
        return "unknown" if found.unpriced_calls or found.unmetered_calls or found.refused_calls else "-"
    is_less = found.unpriced_calls or found.unmetered_calls or found.refused_calls
    return f"{'≥ ' if is_less else ''}{found.usd:.4f}"


def _about(answer: GetCostsResponse, now: datetime) -> list[str]:
    """What there is to know of the sums, for people."""
    whole = answer.total
    if not whole.calls and not whole.refused_calls:
        return ["no call of a model was told of: spans tell with gen_ai.usage.input_tokens and the like (docs/cost.md)"]
    lines = [f"{answer.omitted} more rows are left out, which cost less: --limit shows more"] if answer.omitted else []
    said = f"at least {whole.usd:.4f} USD" if _usd(whole).startswith("≥") else f"{_usd(whole)} USD"
    lines.append(f"all of it: {said}, by list prices; {whole.unpriced_tokens} tokens of unknown price")
    if whole.unmetered_calls:
        lines.append(f"{whole.unmetered_calls} calls whose spans don't say how many tokens they took")
    if whole.refused_calls:
        lines.append(f"{whole.refused_calls} calls whose spans say what can't be, and count for nothing")
    old = (now - answer.prices_date.ToDatetime(UTC)).days
    lines.append(
        f"prices: {answer.prices}, the newest of {answer.prices_date.ToDatetime(UTC):%Y-%m-%d}, {old} days ago"
    )
    return lines
