"""Resolves references: `vault:<mount>/<path>#<key>`, `file:<path>` and `env:<NAME>`."""

import asyncio
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from meshwarden.certs.authority.port import AuthorityError
from meshwarden.controlplane.secrets.env import EnvSecrets
from meshwarden.controlplane.secrets.file import FileSecrets
from meshwarden.controlplane.secrets.port import SecretEngine, SecretError


class VaultSettings(Protocol):
    """Where Vault is and how to log in there."""

    @property
    def address(self) -> str:
        """Its URL."""
        ...

    @property
    def token(self) -> str:
        """A reference to the login; not into Vault itself."""
        ...

    @property
    def ca_file(self) -> Path | None:
        """PEM of the authorities of its TLS certificate."""
        ...

    @property
    def namespace(self) -> str | None:
        """Its namespace."""
        ...


class Secrets:
    """Resolves references."""

    def __init__(self, vault: VaultSettings | None = None) -> None:
        """Takes where `vault:` references lead; without it they are refused."""
        self._vault_settings = vault
        self._engines: dict[str, SecretEngine] = {"env": EnvSecrets(), "file": FileSecrets()}
        self._lock = asyncio.Lock()

    async def resolve(self, reference: str) -> SecretStr:
        """Returns the secret that a reference leads to.

        Raises:
            SecretError: the reference is of no kind that we know, or leads nowhere.
        """
        scheme, colon, name = reference.partition(":")
        if not colon or scheme not in ("env", "file", "vault"):
            # Not shown: whoever wrote the secret itself in its place would find it in a log.
            raise SecretError(
                "not a reference to a secret: write vault:<mount>/<path>#<key>, file:<path> or env:<NAME>"
            )
        if scheme == "vault" and scheme not in self._engines:
            async with self._lock:
                self._engines.setdefault(scheme, await self._vault(reference))
        return await self._engines[scheme].read(name)

    async def _vault(self, reference: str) -> SecretEngine:
        settings = self._vault_settings
        if settings is None:
            raise SecretError(f"{reference}: no Vault is configured; say where it is under [vault]")
        if settings.token.startswith("vault:"):
            raise SecretError("vault.token: what opens Vault can't lie in Vault; use file: or env:")
        # Most control planes start without Vault, and the sooner.
        from meshwarden.certs.authority.vault_client import VaultClient
        from meshwarden.controlplane.secrets.vault import VaultSecrets

        token = await self.resolve(settings.token)
        try:
            client = VaultClient(settings.address, token, ca_file=settings.ca_file, namespace=settings.namespace)
        except AuthorityError as error:
            raise SecretError(f"vault: {error}") from None
        return VaultSecrets(client)
