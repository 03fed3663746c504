"""`meshwarden way-back`: what stands between the mesh and the last release."""

from typing import Final

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.released import may_be_unreleased, unreleased
from meshwarden.v1.resource_service_pb2 import ListRequest

_PAGE: Final = 500
IN_THE_WAY: Final = 6


@click.command("way-back")
@render.output_option
@click.pass_context
def way_back(context: click.Context, output: str) -> None:
    """List what the last release would misread; exit with 6 if there is anything.

    As long as there is, that release refuses the store. Delete these resources, or leave out the fields.
    """
    found: list[tuple[str, str]] = []
    with client.connect_current() as mesh:
        for kind in filter(may_be_unreleased, model.KINDS):
            request = ListRequest(kind=kind, page_size=_PAGE)
            while True:
                page = mesh.resource.List(request, timeout=client.TIMEOUT_S)
                for resource in page.resources:
                    title = model.title(model.ref_of(resource))
                    found += [(title, field) for field in unreleased(resource)]
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
    if output != "table":
        render.data([{"resource": title, "field": field} for title, field in found], output)
    elif found:
        rows = [(title, "all of it" if field == "kind" else field) for title, field in found]
        render.table(("RESOURCE", "THE LAST RELEASE KNOWS NO"), rows)
    else:
        click.echo("nothing: the last release reads all that is stored")
    if found:
        context.exit(IN_THE_WAY)
