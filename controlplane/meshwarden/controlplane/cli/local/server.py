"""`meshwarden server`."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from meshwarden.controlplane.cli.failure import Failure
from meshwarden.controlplane.local.error import leaves


@click.command()
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file.")
def server(file: Path | None) -> None:
    """Run a control plane, told by a TOML file and then by MESHWARDEN_… in the environment."""
    with _loading():
        from meshwarden.controlplane.app import run_server
        from meshwarden.controlplane.config.config import ConfigError, load

    try:
        config = load(file)
    except ConfigError as error:
        fix = "set each in the file of --config, or in the environment: MESHWARDEN_TRUST_DOMAIN for one"
        raise Failure(str(error), fix) from None
    try:
        run_server(config)
    except Exception as error:
        found = next((leaf for leaf in leaves(error) if isinstance(leaf, _expected())), None)
        if found is None:
            raise
        raise Failure(_text(found)) from None


@contextmanager
def _loading() -> Iterator[None]:
    """Looks for no garbage among what is loaded, then or ever: there is none, and it is most of what there will be."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _expected() -> tuple[type[Exception], ...]:
    """What can go wrong in the world around it; all else is a defect, and its traceback is wanted."""
    from meshwarden.certs.authority.port import AuthorityError
    from meshwarden.controlplane.audit.port import AuditError
    from meshwarden.controlplane.place import AlreadyRunning, CannotListen
    from meshwarden.controlplane.secrets.port import SecretError
    from meshwarden.controlplane.store.port import StoreError

    return AlreadyRunning, CannotListen, AuditError, AuthorityError, SecretError, StoreError, OSError


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
