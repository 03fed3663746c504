"""Resolves references: `vault:…#…`, `transit:…#…`, `credential:<name>`, `file:<path>` and `env:<NAME>`."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from meshwarden.certs.authority.port import AuthorityError
from meshwarden.controlplane.secrets.credential import CredentialSecrets
from meshwarden.controlplane.secrets.env import EnvSecrets
from meshwarden.controlplane.secrets.file import FileSecrets
from meshwarden.controlplane.secrets.port import SecretAway, SecretEngine, SecretError, VaultSettings

if TYPE_CHECKING:
    from meshwarden.controlplane.secrets.vault import VaultSecrets

LOOK: Final = timedelta(seconds=10)
# Whoever asks within so long after one who found Vault away is told so at once: a start asks for several.
PAUSE_S: Final = 3.0


class Secrets:
    """Resolves references."""

    def __init__(self, vault: VaultSettings | None = None) -> None:
        """Takes where `vault:` references lead; without it they are refused."""
        self._vault_settings = vault
        self._engines: dict[str, SecretEngine] = {
            "credential": CredentialSecrets(),
            "env": EnvSecrets(),
            "file": FileSecrets(),
        }
        self._vault: VaultSecrets | None = None
        # How Vault was found away last, and when on the loop's clock.
        self._away: tuple[float, str] | None = None

    async def resolve(self, reference: str) -> SecretStr:
        """Returns the secret that a reference leads to.

        Raises:
            SecretAway: it leads to Vault, which is away.
            SecretError: the reference is of no kind that we know, or leads nowhere.
        """
        scheme, colon, name = reference.partition(":")
        if not colon or scheme not in ("vault", "transit", *self._engines):
            # Not shown: whoever wrote the secret itself in its place would find it in a log.
            raise SecretError(
                "not a reference to a secret: write vault:<mount>/<path>#<key>, credential:<name>, file:<path>, "
                "env:<NAME> or transit:<mount>/<key>#<path>"
            )
        if scheme in self._engines:
            return await self._engines[scheme].read(name)
        if not self.has_vault:
            raise SecretError(f"{reference}: no Vault is configured; say where it is under [vault]")
        loop = asyncio.get_running_loop()
        if self._away is not None and loop.time() - self._away[0] < PAUSE_S:
            raise SecretAway(f"{reference}: Vault was away just now: {self._away[1]}")
        try:
            return await self._read(scheme, name)
        except SecretAway as error:
            self._away = loop.time(), str(error)
            raise

    async def _read(self, scheme: str, name: str) -> SecretStr:
        if scheme == "transit":
            from meshwarden.controlplane.secrets.transit import TransitSecrets

            return await TransitSecrets(self.vault().client).read(name)
        return await self.vault().read(name)

    @property
    def has_vault(self) -> bool:
        """Whether `vault:` references lead anywhere."""
        return self._vault_settings is not None

    def vault(self) -> "VaultSecrets":
        """Returns where `vault:` references lead, which logs in when it is first asked.

        Raises:
            SecretError: there is no such place, or its address can't be used.
        """
        if self._vault is None:
            if self._vault_settings is None:
                raise SecretError("no Vault is configured; say where it is under [vault]")
            # Most control planes start without Vault, and the sooner.
            from meshwarden.controlplane.secrets.vault import VaultSecrets
            from meshwarden.controlplane.secrets.vault_login import client_of

            try:
                self._vault = VaultSecrets(client_of(self._vault_settings, self.resolve))
            except AuthorityError as error:
                raise SecretError(f"vault: {error}") from None
        return self._vault

    async def run(self) -> None:
        """Keeps the login to Vault alive, once there is one, until it is cancelled."""
        while True:
            wait = LOOK if self._vault is None else await self._vault.client.tend()
            await asyncio.sleep(wait.total_seconds())
