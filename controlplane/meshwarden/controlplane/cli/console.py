"""`meshwarden console`: the address by which a browser looks at the mesh as the operator that we are."""

import html
import webbrowser
from pathlib import Path
from urllib.parse import quote

import click
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.failure import Failure
from meshwarden.controlplane.local import context as contexts
from meshwarden.controlplane.local.record import write_private
from meshwarden.v1.session_service_pb2 import CreateSessionCodeRequest, SessionCode

TRUST = "docs/console.md says how a browser comes to trust it"


@click.command()
@click.option("--open", "is_opened", is_flag=True, help="Have the browser of this machine open it.")
@render.output_option
def console(is_opened: bool, output: str) -> None:
    """Print the console's address, with a code that logs one browser in, once, within a minute.

    The page asks first whether to sign in as the operator that we are, and shows the certificate that is printed here.
    The session ends with that certificate, after an hour, or after a quarter of an hour in which no page is open.
    """
    name, context = contexts.get(click.get_current_context().find_root().obj)
    with client.connect_current() as mesh:
        leaf, identity = client.read_certificate(context)
        made = mesh.session.CreateSessionCode(CreateSessionCodeRequest(), timeout=client.TIMEOUT_S)
    url, digest = _url(made, context.address), leaf.fingerprint(SHA256()).hex(":").upper()
    ca_file = _root(name, made.browser_root) if made.browser_root else context.ca_file
    if output != "table":
        said = {"url": url, "expire_time": render.moment(made.expire_time)}
        said |= {"spiffe_id": str(identity), "certificate_sha256": digest}
        render.data({**said, **({"ca_file": str(ca_file)} if made.mesh_certificate else {})}, output)
    elif not is_opened:
        click.echo(url)
    if is_opened:
        _open(url)
    if output == "table":
        click.echo(f"good once, until {render.moment(made.expire_time)}", err=True)
        click.echo(f"signs in as {identity}, certificate {digest}", err=True)
        if made.mesh_certificate:
            click.echo(f"the browser must trust {ca_file}: {TRUST}", err=True)


def _url(made: SessionCode, address: str) -> str:
    """The address; where the control plane doesn't know its name it is the one by which we found it."""
    host, _, port = made.address.rpartition(":")
    host = host or address.rpartition(":")[0]
    # After the "#" it is for the page alone: no server and no log is told.
    return f"https://{host}:{port}/console/#code={made.code}"


def _root(name: str, pem: str) -> Path:
    """Keeps the root for browsers of a context beside the contexts; one that does as well stays as it is.

    Raises:
        Failure: it isn't one.
    """
    file = contexts.contexts_file().with_name(f"browser-{quote(name, safe='')}.pem")
    proves = _proves(pem.encode())
    if proves is None:
        raise Failure("the control plane's root for browsers is none", "see that a Meshwarden answers at this address")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (file.exists() and _proves(file.read_bytes()) == proves):
        write_private(file, pem)
    return file


def _proves(pem: bytes) -> tuple[object, ...] | None:
    """What a root is good for: whose it is, until when, and for which names; each time it is signed it is another."""
    try:
        root = x509.load_pem_x509_certificate(pem)
        limits = root.extensions.get_extension_for_class(x509.NameConstraints).value
    except (ValueError, x509.ExtensionNotFound):
        return None
    return root.subject, root.public_key(), root.not_valid_after_utc, limits


def _open(url: str) -> None:
    """Has the browser open a file of ours that leads there: everybody may see what a program is started with.

    Raises:
        Failure: there is no browser.
    """
    file = contexts.contexts_file().with_name("console.html")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    there = html.escape(url)
    write_private(
        file, f'<!doctype html><meta http-equiv="refresh" content="0; url={there}"><a href="{there}">Go on</a>\n'
    )
    if not webbrowser.open(Path(file).as_uri()):
        raise Failure(
            "there is no browser here that could be opened", "leave --open out, and open the address yourself"
        )
