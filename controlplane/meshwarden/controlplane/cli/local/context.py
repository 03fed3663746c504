"""`meshwarden context`."""

from dataclasses import asdict
from pathlib import Path

import click

from meshwarden.controlplane.cli import render
from meshwarden.controlplane.local import context as contexts


@click.group()
def context() -> None:
    """Choose the mesh to talk to."""


@context.command("list")
@render.output_option
def list_contexts(output: str) -> None:
    """Show the meshes that this machine knows."""
    current, known = contexts.load()
    if output != "table":
        render.data({"current": current, "contexts": {name: asdict(value) for name, value in known.items()}}, output)
        return
    rows = [("*" if name == current else "", name, value.address) for name, value in sorted(known.items())]
    render.table(("CURRENT", "NAME", "ADDRESS"), rows)


@context.command()
@click.argument("name")
@click.option("--address", required=True, help="Where the control plane listens, HOST:PORT.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="What `meshwarden operator create` has written: tls.crt, tls.key and ca.crt.",
)
def add(name: str, address: str, directory: Path) -> None:
    """Make a context NAME of an operator's certificate, and the current one."""
    from meshwarden.controlplane.cli.client import read_certificate

    ca_file, cert_file, key_file = (str(directory.absolute() / file) for file in ("ca.crt", "tls.crt", "tls.key"))
    value = contexts.Context(address, ca_file, cert_file, key_file)
    _, spiffe_id = read_certificate(value)
    contexts.put(name, value)
    click.echo(f"context {name}\t{address}\t{spiffe_id}")


@context.command()
@click.argument("name")
def use(name: str) -> None:
    """Make NAME the current context."""
    contexts.use(name)
    click.echo(f"context {name}")


@context.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget the context NAME; its files stay."""
    contexts.get(name)
    contexts.remove(name)
    click.echo(f"removed\tcontext {name}")


@context.command()
@click.argument("name", required=False)
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), default="yaml", show_default=True)
def show(name: str | None, output: str) -> None:
    """Show a context, and who we are to its mesh."""
    from meshwarden.controlplane.cli.client import read_certificate

    name, value = contexts.get(name or click.get_current_context().find_root().obj)
    leaf, spiffe_id = read_certificate(value)
    who = {"spiffe_id": str(spiffe_id), "not_after": leaf.not_valid_after_utc.isoformat()}
    shown = {"name": name, **asdict(value), **who}
    render.data({key: list(item) if isinstance(item, tuple) else item for key, item in shown.items()}, output)
