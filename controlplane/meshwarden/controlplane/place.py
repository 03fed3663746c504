"""Where a control plane runs: alone in its state directory, at its addresses, and so that others find it there."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class AlreadyRunning(Exception):
    """Another control plane holds the state directory."""


class CannotListen(Exception):
    """An address is taken, or is none of this machine's."""


@contextmanager
def listening(setting: str, address: str) -> Iterator[None]:
    """Names the setting whose address can't be listened on.

    Raises:
        CannotListen: in place of the error of the socket.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
        raise CannotListen(f"{setting} = {address}: {reason}") from None


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8443" or "[::1]:8443"."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds a lock on the state directory for as long as the process lives.

    Raises:
        AlreadyRunning: another process has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunning(f"{path.parent}: another control plane runs on this state directory") from None
    try:
        yield
    finally:
        os.close(descriptor)


def announce_roots(state_dir: Path, roots_pem: bytes) -> None:
    """Writes the roots for whoever is to join."""
    draft = state_dir / "ca.pem.draft"
    draft.write_bytes(roots_pem)
    draft.rename(state_dir / "ca.pem")


def announce(state_dir: Path, address: str, urls: Mapping[str, str], roots_pem: bytes) -> None:
    """Writes the roots and, last, `server.json`: who waits for it finds all that it names.

    Args:
        state_dir: where.
        address: the control plane's.
        urls: what else it serves, by name.
        roots_pem: what leads to it.
    """
    announce_roots(state_dir, roots_pem)
    said = {"address": address, **urls, "ca_file": str(state_dir / "ca.pem"), "pid": os.getpid()}
    draft = state_dir / "server.json.draft"
    draft.write_text(json.dumps(said))
    draft.rename(state_dir / "server.json")
