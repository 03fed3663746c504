"""`meshwarden suggest`: policies by what was seen."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import click
import yaml

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.change import preview
from meshwarden.controlplane.cli.change.explain import LABEL
from meshwarden.controlplane.cli.failure import NotFound
from meshwarden.controlplane.cli.span_of_time import SpanOfTime
from meshwarden.v1.preview_service_pb2 import (
    SuggestAccessRequest,
    SuggestAccessResponse,
    SuggestedAccess,
    SuggestedRule,
    UnusedAccess,
)
from meshwarden.v1.report_pb2 import CallStat

TIMEOUT_S: Final = 300.0
_METHODS: Final = 6


@click.group()
def suggest() -> None:
    """Propose policies by the calls that were seen."""


@suggest.command()
@click.option(
    "--service", default="", metavar="TENANT/SERVICE", help="Of this service; left out, of each that was called."
)
@click.option(
    "--since",
    "span_s",
    type=SpanOfTime(),
    default="24h",
    show_default=True,
    help="By the calls of how long, at most 7d.",
)
@click.option(
    "--prefix-from",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Beyond how many methods of a gRPC service, or paths below one, to propose a prefix, if all of it is allowed.",
)
@click.option("--denied", is_flag=True, help="Show what was denied as well, in comments.")
@click.option("--compare", is_flag=True, help="Show what is allowed now and nobody used, instead of a policy.")
@click.option(
    "-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True, help="What to print."
)
def access(service: str, span_s: float, prefix_from: int, denied: bool, compare: bool, output: str) -> None:
    """Propose the AccessPolicy of least privilege: each call that was seen, allowed and answered, and nothing else.

    Never more than is allowed now. What is printed can be applied as it is; see `meshwarden diff -f - --replay 24h`
    first.
    """
    if service and re.fullmatch(f"{LABEL}/{LABEL}", service) is None:
        raise click.BadParameter(
            f"write TENANT/SERVICE, platform/orders for one, not {service!r}", param_hint="--service"
        )
    if not 60 <= span_s <= 7 * 86_400:
        raise click.BadParameter("give from 60s to 7d", param_hint="--since")
    request = SuggestAccessRequest(service=service, prefix_from=prefix_from)
    request.span.FromTimedelta(timedelta(seconds=span_s))
    with client.connect_current() as mesh, render.progress("reading the ledger of calls"):
        answer: SuggestAccessResponse = mesh.preview.SuggestAccess(request, timeout=TIMEOUT_S)
    if output == "json":
        render.data(render.as_dict(answer), output)
    elif compare:
        rows = list(_unused(answer))
        render.table(("SERVICE", "FROM", "METHOD", "ALLOWED BY", "LAST USED"), rows)
        since, until = render.moment(answer.start), render.moment(answer.end)
        click.echo(f"{len(rows)} permissions were not used from {since} to {until}", err=True)
    else:
        click.echo(
            "---\n".join("\n".join(_document(answer, one, denied=denied)) + "\n" for one in answer.services), nl=False
        )
    if answer.omitted:
        click.echo(f"{answer.omitted} services are left out: --service asks for one", err=True)
    if not answer.services:
        raise NotFound("no call was seen in that time", "ask for longer: --since 7d")


def _document(answer: SuggestAccessResponse, one: SuggestedAccess, *, denied: bool) -> Iterator[str]:
    """A manifest, with comments that say where it comes from."""
    yield f"# {one.service}: by the calls from {render.moment(answer.start)} to {render.moment(answer.end)}."
    yield "# What is called less often than that is not in it."
    for warning in one.warnings:
        yield f"# Note: {render.plain(warning)}."
    if denied:
        for rule in one.denied:
            who = ", ".join(getattr(rule, "from"))
            yield f"# Denied: {render.plain(f'{who}: {rule.methods[0]}, {rule.calls} calls')}"
    if not one.HasField("policy"):
        yield "# Nothing was seen that it could allow."
        return
    policy = render.as_dict(one.policy)
    allow = policy["spec"].pop("allow")
    yield _yaml(policy).rstrip()
    yield "  allow:"
    for made, rule in zip(allow, one.rules, strict=True):
        yield f"  # {_told(rule)}"
        yield from (f"  {line}" for line in _yaml([made]).splitlines())


def _told(rule: SuggestedRule) -> str:
    text = f"{preview.listed(list(getattr(rule, 'from')))}: {rule.calls} calls, the last at {render.moment(rule.last)}"
    if rule.seen_methods:
        text += f"; a prefix for the {rule.seen_methods} methods that were called"
    if rule.only == CallStat.SOURCE:
        text += "; some were told of by the caller alone"
    elif rule.only == CallStat.DESTINATION:
        text += "; some were told of by the service alone"
    return render.plain(text)


def _unused(answer: SuggestAccessResponse) -> Iterator[tuple[str, ...]]:
    for one in answer.services:
        for unused in one.unused:
            yield (
                one.service,
                getattr(unused, "from"),
                unused.method or "every method",
                f"AccessPolicy {unused.policy} {unused.field}",
                _last(unused),
            )


def _last(unused: UnusedAccess) -> str:
    return render.moment(unused.last) if unused.HasField("last") else "not in 7 days"


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text
