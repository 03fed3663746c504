"""`meshwarden graph`: who calls whom."""

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.insight import picture
from meshwarden.v1.admin_service_pb2 import GetGraphRequest, GraphEdge

MAX_EDGES = 10_000
# More of them no terminal and no picture shows to anybody's profit.
_LIMITS = {"table": 100, "dot": 60, "svg": 60}
_TLS = {GraphEdge.PROVEN: "proven", GraphEdge.SAID: "said", GraphEdge.NONE: "none"}
_RATES = ("CALLS/S", "ERRORS/S", "DENIED/S", "LIMITED/S")
_COLUMNS = ("REGION", "SOURCE", "DESTINATION", *_RATES, "P50", "P95", "P99", "MTLS", "TOLD BY")


@click.command()
@click.option("--tenant", default="", help="Only edges from or to this tenant.")
@click.option("--service", default="", help="Only edges from or to this service, NAME or TENANT/NAME.")
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_EDGES),
    help="How many edges at most: those first that fail, are refused, or are used most. "
    "Default 100, of pictures 60, of json and yaml all.",
)
@click.option(
    "--window",
    "window_s",
    type=click.IntRange(60, 900),
    default=300,
    show_default=True,
    help="What rates and percentiles are taken over, in seconds.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml", "dot", "svg"]),
    default="table",
    show_default=True,
    help="What to print; svg is a picture.",
)
def graph(tenant: str, service: str, limit: int | None, window_s: int, output: str) -> None:
    """Show who calls whom: rates, errors and latency of each edge, by the identities in certificates."""
    request = GetGraphRequest(tenant=tenant, service=service, limit=limit or _LIMITS.get(output, MAX_EDGES))
    request.window.FromSeconds(window_s)
    with client.connect_current() as mesh:
        answer = mesh.admin.GetGraph(request, timeout=client.TIMEOUT_S)
    if output in ("json", "yaml"):
        render.data(render.as_dict(answer), output)
    elif output == "dot":
        click.echo(picture.dot(answer))
    elif output == "svg":
        click.echo(picture.svg(answer))
    else:
        for region in answer.regions:
            old = "" if region.own else f", as of {render.age(region)} ago" if region.HasField("age") else ", unknown"
            click.echo(f"region {region.region}, the last {window_s} s{old}", err=True)
        render.table(_COLUMNS, [_row(edge) for edge in answer.edges])
    if not answer.edges:
        click.echo("no call was seen: an edge comes with the first, a second or two after it", err=True)
    if answer.omitted:
        click.echo(
            f"{answer.omitted} more edges are left out, which are well and used less: "
            "--tenant and --service show those of one, --limit more",
            err=True,
        )


def _row(edge: GraphEdge) -> tuple[object, ...]:
    rates = (edge.calls_per_s, edge.errors_per_s, edge.denied_per_s, edge.limited_per_s)
    both = edge.source_reports and edge.destination_reports
    told_by = "both" if both else "source" if edge.source_reports else "destination"
    return (
        edge.region,
        edge.source,
        edge.destination,
        *(f"{rate:.1f}" for rate in rates),
        *(render.duration(seconds) for seconds in (edge.p50_s, edge.p95_s, edge.p99_s)),
        _TLS.get(edge.mutual_tls, ""),
        told_by,
    )
