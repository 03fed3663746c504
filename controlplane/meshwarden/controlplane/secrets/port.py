"""The port to secrets. An error names the reference, never what it leads to."""

from typing import Protocol

from pydantic import SecretStr

MAX_SIZE_BYTES = 64 * 1024


class SecretError(Exception):
    """A reference leads nowhere; the message says why and what to do."""


class SecretEngine(Protocol):
    """One kind of place."""

    async def read(self, name: str) -> SecretStr:
        """Returns the secret.

        Args:
            name: the reference without its scheme.

        Raises:
            SecretError: there is none, or it can't be read.
        """
        ...
