"""Resolves references: `vault:<mount>/<path>#<key>`, `file:<path>` and `env:<NAME>`."""

from pydantic import SecretStr

from meshwarden.certs.authority.port import AuthorityError
from meshwarden.controlplane.secrets.env import EnvSecrets
from meshwarden.controlplane.secrets.file import FileSecrets
from meshwarden.controlplane.secrets.port import SecretEngine, SecretError, VaultSettings


class Secrets:
    """Resolves references."""

    def __init__(self, vault: VaultSettings | None = None) -> None:
        """Takes where `vault:` references lead; without it they are refused."""
        self._vault_settings = vault
        self._engines: dict[str, SecretEngine] = {"env": EnvSecrets(), "file": FileSecrets()}

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
            self._engines[scheme] = self._vault(reference)
        return await self._engines[scheme].read(name)

    def _vault(self, reference: str) -> SecretEngine:
        settings = self._vault_settings
        if settings is None:
            raise SecretError(f"{reference}: no Vault is configured; say where it is under [vault]")
        # Most control planes start without Vault, and the sooner.
        from meshwarden.controlplane.secrets.vault import VaultSecrets
        from meshwarden.controlplane.secrets.vault_login import client_of

        try:
            return VaultSecrets(client_of(settings, self.resolve))
        except AuthorityError as error:
            raise SecretError(f"vault: {error}") from None
