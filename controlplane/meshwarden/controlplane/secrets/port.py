"""The port to secrets. An error names the reference, never what it leads to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

MAX_SIZE_BYTES = 64 * 1024


class SecretError(Exception):
    """A reference leads nowhere; the message says why and what to do."""


class SecretAway(SecretError):
    """The place of secrets doesn't answer now; others of it can't be read either."""


class SecretGone(SecretError):
    """There is no such secret, or no more: what was read of it before must not be used any longer."""


@dataclass(frozen=True)
class Version:
    """A version of a secret with several keys."""

    number: int
    values: Mapping[str, object] = field(repr=False)

    def text(self, key: str, reference: str) -> SecretStr:
        """Returns the text under a key.

        Raises:
            SecretGone: there is none, or it is too large.
        """
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            raise SecretGone(f"{reference}: the secret has no text under {key!r}")
        if len(value.encode()) > MAX_SIZE_BYTES:
            raise SecretGone(f"{reference}: is larger than {MAX_SIZE_BYTES} bytes")
        return SecretStr(value)


class VersionedSecrets(Protocol):
    """A place whose secrets have versions."""

    async def read_version(self, mount: str, path: str) -> Version:
        """Returns the newest version of a secret.

        Raises:
            SecretGone: there is none, or it is deleted.
            SecretError: it can't be read now.
        """
        ...

    async def newest(self, mount: str, path: str) -> int:
        """Returns the number of the newest version, and reads nothing of what is in it.

        Raises:
            SecretGone: there is none, or it is deleted.
            SecretError: it can't be read now.
        """
        ...


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
