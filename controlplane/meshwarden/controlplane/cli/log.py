"""`meshwarden logs`."""

import os
import time
from collections import deque
from pathlib import Path

import click

from meshwarden.controlplane.cli.failure import NotFound
from meshwarden.controlplane.local import context

POLL_S = 0.25


@click.command()
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="How many last lines.")
def logs(name: str | None, follow: bool, lines: int) -> None:
    """Show the last lines of NAME's log; without NAME, list the logs there are."""
    _, current = context.get(click.get_current_context().find_root().obj)
    directory = Path(current.state_dir) / "logs"
    known = sorted(path.stem for path in directory.glob("*.log")) if current.state_dir else []
    if name is None:
        for stem in known:
            click.echo(stem)
        return
    # Looked up in the list, so that a name can't lead out of the directory.
    if name not in known:
        raise NotFound(f"no log {name!r}", f"known: {', '.join(known) or 'none'}")
    with open(directory / f"{name}.log", errors="replace") as file:
        for line in deque(file, maxlen=lines):
            click.echo(line, nl=False)
        while follow:
            if chunk := file.read(65536):
                click.echo(chunk, nl=False)
            elif os.fstat(file.fileno()).st_nlink == 0:
                return
            else:
                time.sleep(POLL_S)
