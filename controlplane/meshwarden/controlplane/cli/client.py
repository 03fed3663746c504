"""A connection to the mesh that a command is about."""

import contextlib
from collections.abc import Iterator

import click

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.local.client import TIMEOUT_S, Client, connect, read_certificate
from meshwarden.controlplane.local.context import get

__all__ = ["TIMEOUT_S", "Client", "connect", "connect_current", "read_certificate"]


@contextlib.contextmanager
def connect_current() -> Iterator[Client]:
    """Opens a connection to the mesh of `--context`, or of the current context."""
    _, context = get(click.get_current_context().find_root().obj)
    with connect(context, utc_now()) as client:
        yield client
