"""`meshwarden backup` and `meshwarden restore`."""

import sys
from pathlib import Path

import anyio
import click
from pydantic import SecretStr

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli.failure import Failure

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The control plane's, on this machine.",
)
file_argument = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
passphrase_option = click.option(
    "--passphrase",
    metavar="REFERENCE",
    help="Where the backup's passphrase is: file:PATH, env:NAME or credential:NAME. Left out, it is asked for.",
)


@click.command()
@state_dir_option
@passphrase_option
@click.option("--plain", is_flag=True, help="Encrypt nothing but keys of roots: whoever has FILE reads the rest.")
@file_argument
def backup(state_dir: Path, passphrase: str | None, plain: bool, file: Path) -> None:
    """Write store, roots and audit log of a control plane to FILE; it may run meanwhile.

    All of it is encrypted under a passphrase of 12 characters or more, and keys of roots under that of [authority],
    too. Keep both elsewhere: without them it is lost.
    """
    from meshwarden.controlplane.backup import BackupError, back_up

    if plain and passphrase is not None:
        raise Failure("--plain and --passphrase: one of them")
    try:
        about = back_up(
            state_dir,
            file,
            utc_now(),
            lambda: None if plain else _passphrase(passphrase, "or say --plain", is_new=True),
        )
    except BackupError as error:
        raise Failure(str(error)) from None
    click.echo(f"{file}: revision {about.revision} of {about.incarnation}, {about.roots} roots")
    if about.keys:
        click.echo(f"it holds {about.keys} keys of roots, encrypted under the passphrase of [authority]", err=True)


@click.command()
@state_dir_option
@passphrase_option
@file_argument
def restore(state_dir: Path, passphrase: str | None, file: Path) -> None:
    """Make a state directory, which must be new or empty, of a backup. Start the control plane on it then.

    It begins a history of its own: cursors of before are refused, and whoever watches reads everything anew.
    """
    from meshwarden.controlplane.backup import BackupError
    from meshwarden.controlplane.backup import restore as bring_back

    try:
        about = bring_back(file, state_dir, lambda: _passphrase(passphrase, "as it was made", is_new=False))
    except BackupError as error:
        raise Failure(str(error)) from None
    click.echo(f"{state_dir}: as of {about.time:%Y-%m-%d %H:%M:%S}Z, revision {about.revision} of {about.incarnation}")


def _passphrase(reference: str | None, otherwise: str, *, is_new: bool) -> SecretStr:
    """Reads the passphrase, or asks for it where somebody is who can answer."""
    from meshwarden.controlplane.secrets.port import SecretError
    from meshwarden.controlplane.secrets.resolver import Secrets

    if reference is not None:
        try:
            return anyio.run(Secrets().resolve, reference)
        except SecretError as error:
            raise Failure(str(error)) from None
    if not is_terminal():
        raise Failure(f"the backup needs a passphrase: give --passphrase file:PATH, {otherwise}")
    said: str = click.prompt("Passphrase of the backup", hide_input=True, confirmation_prompt=is_new, err=True)
    return SecretStr(said)


def is_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty()
