"""The port to secrets. An error names the reference, never what it leads to."""

from pathlib import Path
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


class AppRoleSettings(Protocol):
    """A role that logs in to Vault by itself."""

    @property
    def role_id(self) -> str:
        """Who it is."""
        ...

    @property
    def secret_id(self) -> str:
        """A reference to what proves it; not into Vault itself."""
        ...

    @property
    def mount(self) -> str:
        """The path of the auth method below auth/."""
        ...


class VaultSettings(Protocol):
    """Where Vault is and how to log in there."""

    @property
    def address(self) -> str:
        """Its URL."""
        ...

    @property
    def token(self) -> str | None:
        """A reference to a token; not into Vault itself."""
        ...

    @property
    def approle(self) -> AppRoleSettings | None:
        """The role, where there is no token."""
        ...

    @property
    def ca_file(self) -> Path | None:
        """PEM of the authorities of its TLS certificate."""
        ...

    @property
    def namespace(self) -> str | None:
        """Its namespace."""
        ...
