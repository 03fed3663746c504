"""`meshwarden operator`: who may operate the mesh, and how far."""

import shlex
from pathlib import Path

import click
from cryptography import x509

from meshwarden.certs import files
from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.failure import Failure
from meshwarden.controlplane.local import context as contexts
from meshwarden.v1.operator_service_pb2 import (
    CreateOperatorRequest,
    ListOperatorsRequest,
    OperatorCertificate,
    OperatorRole,
    RemoveOperatorRequest,
    RenewOperatorRequest,
)

_ROLES = ("viewer", "editor", "admin")


@click.group()
def operator() -> None:
    """Say who may operate the mesh or a tenant, and how far.

    A viewer looks at everything and changes nothing; an editor applies and deletes resources as well; an admin does
    everything, this included. An operator of a tenant does so for that tenant alone.
    """


@operator.command()
@click.argument("name")
@click.option("--tenant", default="", help="Of this tenant alone, instead of the mesh.")
@click.option("--role", type=click.Choice(_ROLES), default="viewer", show_default=True, help="How far.")
@click.option(
    "--ttl",
    "ttl_s",
    type=click.IntRange(60, 86_400),
    default=8 * 3600,
    show_default=True,
    help="The life of each of its certificates, in seconds.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The directory for its key and its certificate.",
)
@render.output_option
def create(name: str, tenant: str, role: str, ttl_s: int, out: Path, output: str) -> None:
    """Let NAME operate, or change how far, and write a certificate for it.

    The key is made here and goes nowhere; give the directory to NAME alone.
    """
    key = new_key()
    request = CreateOperatorRequest(tenant=tenant, name=name, role=_role(role), csr=make_csr(key))
    request.ttl.FromSeconds(ttl_s)
    with client.connect_current() as mesh:
        answer = mesh.operator.CreateOperator(request, timeout=client.TIMEOUT_S)
    svid = X509Svid.of(tuple(map(x509.load_der_x509_certificate, answer.chain)), key)
    _publish(out, svid, answer)
    if output != "table":
        render.data(
            {"spiffe_id": answer.spiffe_id, "directory": str(out), "not_after": svid.not_after.isoformat()}, output
        )
        return
    click.echo(f"created\t{answer.spiffe_id}\t{role}\tuntil {svid.not_after:%Y-%m-%d %H:%M:%S}Z")
    _, context = contexts.get(click.get_current_context().find_root().obj)
    add = f"meshwarden context add {name} --address {context.address} --directory {shlex.quote(str(out.absolute()))}"
    click.echo(f"use it with: {add}", err=True)


@operator.command()
@render.output_option
def renew(output: str) -> None:
    """Get the next certificate of the operator that we are, before the present one ends."""
    name, context = contexts.get(click.get_current_context().find_root().obj)
    directory = Path(context.cert_file).parent
    if Path(context.key_file) != directory / "tls.key" or Path(context.cert_file) != directory / "tls.crt":
        raise Failure(
            f"context {name}: its files are not of `meshwarden operator create`", "renew them as they were made"
        )
    key = new_key()
    with client.connect_current() as mesh:
        answer = mesh.operator.RenewOperator(RenewOperatorRequest(csr=make_csr(key)), timeout=client.TIMEOUT_S)
    svid = X509Svid.of(tuple(map(x509.load_der_x509_certificate, answer.chain)), key)
    _publish(directory, svid, answer)
    if output != "table":
        render.data({"spiffe_id": answer.spiffe_id, "not_after": svid.not_after.isoformat()}, output)
        return
    click.echo(f"renewed\t{answer.spiffe_id}\tuntil {svid.not_after:%Y-%m-%d %H:%M:%S}Z")


@operator.command("list")
@click.option("--tenant", default="", help="Only this tenant's.")
@render.output_option
def list_operators(tenant: str, output: str) -> None:
    """Show who may operate, and how far."""
    with client.connect_current() as mesh:
        answer = mesh.operator.ListOperators(ListOperatorsRequest(tenant=tenant), timeout=client.TIMEOUT_S)
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    rows = [
        (one.name, one.tenant or "(mesh)", OperatorRole.Name(one.role).lower(), render.moment(one.time), one.by)
        for one in answer.operators
    ]
    render.table(("OPERATOR", "OF", "ROLE", "SINCE", "BY"), rows)


@operator.command()
@click.argument("name")
@click.option("--tenant", default="", help="Of this tenant, instead of the mesh.")
def remove(name: str, tenant: str) -> None:
    """Let NAME operate no more: its next call is refused, and its open streams end."""
    with client.connect_current() as mesh:
        mesh.operator.RemoveOperator(RemoveOperatorRequest(tenant=tenant, name=name), timeout=client.TIMEOUT_S)
    click.echo(f"removed\t{f'{tenant}/' if tenant else ''}{name}")


def _role(word: str) -> OperatorRole.ValueType:
    return OperatorRole.Value(word.upper())


def _publish(directory: Path, svid: X509Svid, answer: OperatorCertificate) -> None:
    files.publish(directory, {"tls.crt": svid.chain_pem(), "tls.key": svid.key_pem(), "ca.crt": answer.roots})
