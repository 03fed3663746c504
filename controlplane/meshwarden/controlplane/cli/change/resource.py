"""`meshwarden get` and `meshwarden delete`."""

import click

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.resources import model
from meshwarden.v1.resource_service_pb2 import DeleteRequest, GetRequest, ListRequest, ResourceRef
from meshwarden.v1.resources_pb2 import Resource

PAGE_SIZE = 500


def parse_kind(text: str) -> str:
    """Reads a kind as people write it: "Service", "service", "services", "access-policies".

    Raises:
        click.BadParameter: there is no such kind.
    """
    word = text.lower().replace("-", "").replace("_", "")
    for kind in model.KINDS:
        name = kind.lower()
        if word in (name, f"{name}s", f"{name.removesuffix('y')}ies"):
            return kind
    raise click.BadParameter(f"no kind {text!r}; known: {', '.join(model.KINDS)}")


def parse_ref(kind: str, name: str) -> ResourceRef:
    """Reads KIND and TENANT/NAME; a Tenant is written by its name alone.

    Raises:
        click.BadParameter: it is not written so.
    """
    kind = parse_kind(kind)
    if kind == "Tenant":
        return ResourceRef(kind=kind, tenant=name, name=name)
    tenant, slash, rest = name.partition("/")
    if not slash or not tenant or not rest:
        raise click.BadParameter(f"write {kind} as TENANT/NAME, not {name!r}")
    return ResourceRef(kind=kind, tenant=tenant, name=rest)


def parse_title(text: str) -> ResourceRef:
    """Reads KIND/TENANT/NAME.

    Raises:
        click.BadParameter: it is not written so.
    """
    kind, _, name = text.partition("/")
    return parse_ref(kind, name)


@click.command()
@click.argument("kind", required=False)
@click.argument("name", required=False)
@click.option("--tenant", default="", help="Only this tenant's.")
@render.output_option
def get(kind: str | None, name: str | None, tenant: str, output: str) -> None:
    """Show resources: all, those of a KIND, or one by TENANT/NAME."""
    ref = parse_ref(kind, name) if kind and name else None
    kind = parse_kind(kind) if kind else ""
    with client.connect_current() as mesh:
        if ref is not None:
            found = [mesh.resource.Get(GetRequest(ref=ref), timeout=client.TIMEOUT_S)]
        else:
            found = list_all(mesh, kind, tenant)
    messages = [model.unwrap(resource) for resource in found]
    if output != "table":
        values = [render.as_dict(message) for message in messages]
        render.data(values[0] if name else values, output)
        return
    rows = []
    for message in messages:
        ref = model.ref_of(message)
        full = ref.name if ref.kind == "Tenant" else f"{ref.tenant}/{ref.name}"
        record = message.metadata.record
        rows.append((ref.kind, full, record.revision, record.update_time.ToJsonString()))
    render.table(("KIND", "NAME", "REVISION", "CHANGED"), rows)


def list_all(mesh: client.Client, kind: str, tenant: str) -> list[Resource]:
    """Reads every page."""
    found: list[Resource] = []
    token = ""
    while True:
        request = ListRequest(kind=kind, tenant=tenant, page_size=PAGE_SIZE, page_token=token)
        page = mesh.resource.List(request, timeout=client.TIMEOUT_S)
        found.extend(page.resources)
        token = page.next_page_token
        if not token:
            return found


@click.command()
@click.argument("kind")
@click.argument("names", nargs=-1, required=True)
@click.option("--reason", default="", help="Why, for the history.")
@render.output_option
def delete(kind: str, names: tuple[str, ...], reason: str, output: str) -> None:
    """Delete resources of a KIND by TENANT/NAME, all or none."""
    refs = [parse_ref(kind, name) for name in names]
    with client.connect_current() as mesh:
        answer = mesh.resource.Delete(DeleteRequest(refs=refs, reason=reason), timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    for ref in refs:
        click.echo(f"deleted\t{model.title(ref)}")
    click.echo(f"revision {answer.revision}", err=True)
    if answer.trace_id:
        click.echo(f"trace {answer.trace_id}", err=True)
