"""`meshwarden backup` and `meshwarden restore`."""

from pathlib import Path

import click

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli.failure import Failure

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The control plane's, on this machine.",
)
file_argument = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.command()
@state_dir_option
@file_argument
def backup(state_dir: Path, file: Path) -> None:
    """Write store, roots and audit log of a control plane to FILE; it may run meanwhile.

    Keys of roots are in it encrypted, as they are on disk. Keep the passphrase too, elsewhere: without it they are
    lost.
    """
    from meshwarden.controlplane.backup import BackupError, back_up

    try:
        about = back_up(state_dir, file, utc_now())
    except BackupError as error:
        raise Failure(str(error)) from None
    click.echo(f"{file}: revision {about.revision} of {about.incarnation}, {about.roots} roots")
    if about.keys:
        click.echo(f"it holds {about.keys} keys of roots, encrypted under the passphrase of [authority]", err=True)


@click.command()
@state_dir_option
@file_argument
def restore(state_dir: Path, file: Path) -> None:
    """Make a state directory, which must be new or empty, of a backup. Start the control plane on it then.

    It begins a history of its own: cursors of before are refused, and whoever watches reads everything anew.
    """
    from meshwarden.controlplane.backup import BackupError
    from meshwarden.controlplane.backup import restore as bring_back

    try:
        about = bring_back(file, state_dir)
    except BackupError as error:
        raise Failure(str(error)) from None
    click.echo(f"{state_dir}: as of {about.time:%Y-%m-%d %H:%M:%S}Z, revision {about.revision} of {about.incarnation}")
