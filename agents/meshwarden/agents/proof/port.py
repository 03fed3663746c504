"""The port to proofs: what the node shows to the control plane when it attests.

IdentityError   the node has no identity, and trying again will not give it one
ProofMissing  there is nothing to prove it with
ProofAway       there is not at present; try again
"""

import os
import stat
from pathlib import Path
from typing import Final, Protocol

from meshwarden.v1 import node_service_pb2 as node_pb

MAX_FILE_BYTES: Final = 64 * 1024


class IdentityError(Exception):
    """The node has no identity, and trying again will not give it one."""


class ProofMissing(IdentityError):
    """There is nothing to prove with which node this is; the message says what to do."""


class ProofAway(Exception):
    """Who is to give the proof (Vault) does not answer; try again."""


class Proof(Protocol):
    """One way to prove it."""

    async def request(self) -> node_pb.AttestRequest:
        """Returns a request with the proof; the certificate request is still missing.

        Raises:
            ProofMissing: there is none.
            ProofAway: there is none at present.
        """
        ...

    async def answer(self, challenge: bytes, csr: bytes) -> bytes:
        """Answers a challenge that came for a request with this certificate request.

        Raises:
            ProofMissing: it can't be answered.
        """
        ...

    def fix(self, node: str) -> str:
        """What to do when the control plane refuses it."""
        ...

    async def end(self) -> None:
        """The node is attested, or was refused: nothing that was obtained for it is needed any more."""


def read_file(path: Path, what: str) -> bytes:
    """Reads a file.

    Args:
        path: the file.
        what: what it holds, for errors.

    Raises:
        ProofMissing: it can't be read, or is too large.
    """
    return _read(path, what)[0]


def read_private(path: Path, what: str) -> bytes:
    """Reads a file with a secret; see `read_file`.

    Raises:
        ProofMissing: it can't be read, is too large, or is open to every user.
    """
    content, mode = _read(path, what)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ProofMissing(f"{what} in {path} is open to every user; chmod 600 it, and replace the secret")
    return content


def _read(path: Path, what: str) -> tuple[bytes, int]:
    try:
        # Non-blocking: opening a pipe must not wait for who writes it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            content, mode = file.read(MAX_FILE_BYTES + 1), os.fstat(file.fileno()).st_mode
    except (OSError, ValueError) as error:
        raise ProofMissing(f"{what} in {path} cannot be read ({error})") from None
    if len(content) > MAX_FILE_BYTES:
        raise ProofMissing(f"{what} in {path} is larger than {MAX_FILE_BYTES} bytes")
    return content, mode
