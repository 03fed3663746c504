"""`meshwarden explain`."""

import re
from collections.abc import Iterable

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.v1.admin_service_pb2 import ExplainRequest, ExplainResponse, ExplainRoute, ExplainStep
from meshwarden.v1.report_pb2 import CallStat

LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
FOREIGN = r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+"


@click.command()
@click.option(
    "--from",
    "source",
    required=True,
    metavar="TENANT/SERVICE",
    help="The caller; of another trust domain its SPIFFE ID.",
)
@click.option("--to", "destination", required=True, metavar="TENANT/SERVICE", help="The service called.")
@click.option("--method", required=True, help='"/package.Service/Method", or "GET /path".')
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="A header of the call; repeatable.")
@render.output_option
def explain(source: str, destination: str, method: str, headers: tuple[str, ...], output: str) -> None:
    """Say what would become of a call, and which policy decides. Exits 0 whatever the answer.

    A caller that is not there is answered for as if it were, and said to be none; a service called that is not there
    is exit code 4.
    """
    for param, text in (("--from", source), ("--to", destination)):
        foreign = f"|{FOREIGN}" if param == "--from" else ""
        if re.fullmatch(f"{LABEL}/{LABEL}{foreign}", text) is None:
            raise click.BadParameter(f"write TENANT/SERVICE, acme/web for one, not {text!r}", param_hint=param)
    pairs = [header.partition("=") for header in headers]
    if any(not name or not equals for name, equals, _ in pairs):
        raise click.BadParameter("write NAME=VALUE", param_hint="--header")
    request = ExplainRequest(to=destination, method=method, headers={name: value for name, _, value in pairs})
    setattr(request, "from", source)  # a keyword of Python
    with client.connect_current() as mesh:
        answer = mesh.admin.Explain(request, timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    decision = CallStat.Decision.Name(answer.decision)
    click.echo(f"{decision}  {source} -> {destination}  {method}  (revision {answer.revision})")
    _steps(answer.steps)
    _routes(answer.routes)
    if answer.limit:
        click.echo(f"limit: {render.plain(answer.limit)}")
    if not any(step.stage == "endpoints" for step in answer.steps):
        owner = destination.partition("/")[0]
        click.echo(f"policies, routes, limits and endpoints are shown to the operators of tenant {owner}", err=True)
        return
    if answer.routes:
        click.echo(f"endpoints: {answer.healthy_endpoints} healthy of {answer.endpoints}")
    if answer.HasField("staged"):
        _staged(answer)


def _staged(answer: ExplainResponse) -> None:
    """What is said where a node has the changes of a rollout."""
    staged = answer.staged
    if not staged.steps and staged.decision == answer.decision:
        click.echo(f"where a node has {staged.rollout}: the same")
        return
    click.echo(f"where a node has {staged.rollout}: {CallStat.Decision.Name(staged.decision)}, and other than above")
    _steps(staged.steps)
    if list(staged.routes) != list(answer.routes):
        _routes(staged.routes)


def _steps(steps: Iterable[ExplainStep]) -> None:
    rows = [("ok" if step.ok else "stops", step.stage, step.resource, step.field, step.text) for step in steps]
    render.table(("", "STAGE", "DECIDED BY", "FIELD", "WHY"), rows)


def _routes(routes: Iterable[ExplainRoute]) -> None:
    rows = [(route.version or "every version", f"{route.percent:g}%", route.healthy_endpoints) for route in routes]
    if rows:
        render.table(("VERSION", "SHARE", "HEALTHY"), rows)
