"""`meshwarden down`."""

from pathlib import Path

import click

from meshwarden.controlplane.cli.failure import Failure
from meshwarden.controlplane.local import context


@click.command()
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The mesh's; default that of the context, else that of `up`.",
)
def down(state_dir: Path | None) -> None:
    """Stop a mesh that `up` started, and whatever a killed `up` has left."""
    from meshwarden.controlplane.local.down import down as end
    from meshwarden.controlplane.local.plan import default_state_dir

    if state_dir is None:
        wanted = click.get_current_context().find_root().obj
        current, known = context.load()
        if wanted is not None:
            _, chosen = context.get(wanted)
            if not chosen.state_dir:
                raise Failure(f"the mesh of context {wanted!r} was not started by `up`", "stop it where it runs")
            state_dir = Path(chosen.state_dir)
        elif current in known and known[current].state_dir:
            state_dir = Path(known[current].state_dir)
        else:
            state_dir = default_state_dir(vault=False)
    if not end(state_dir.expanduser().resolve(), lambda text: click.echo(text, err=True)):
        click.echo(f"no mesh runs on {state_dir}", err=True)
