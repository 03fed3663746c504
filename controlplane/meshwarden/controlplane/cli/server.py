"""`meshwarden server`."""

from pathlib import Path

import click

from meshwarden.controlplane.cli.failure import Failure


@click.command()
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file.")
def server(file: Path | None) -> None:
    """Run a control plane, told by a TOML file and then by MESHWARDEN_… in the environment."""
    from meshwarden.controlplane.app import AlreadyRunning, run_server
    from meshwarden.controlplane.config import ConfigError, load
    from meshwarden.controlplane.store.port import StoreError

    try:
        config = load(file)
    except ConfigError as error:
        raise Failure(str(error)) from None
    try:
        run_server(config)
    except (AlreadyRunning, StoreError) as error:
        raise Failure(str(error)) from None
