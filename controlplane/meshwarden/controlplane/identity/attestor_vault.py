"""Attests by a token of Vault or OpenBao that the node has logged in for, by AppRole for one.

It counts only if it comes from the login of the auth method that is configured.
"""

from collections.abc import Sequence

from meshwarden.controlplane.identity.attestor import Attempt, Attested, Attestor
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.node_name import NameTemplate, NoName
from meshwarden.controlplane.identity.vault_token import Vault, VaultTokens

FIELDS = ("entity_name", "entity_metadata.", "alias_name", "metadata.")


class VaultAttestor(Attestor):
    """Knows the node by what Vault says of its token."""

    def __init__(
        self, vault: Vault, template: NameTemplate, *, mount: str, policy: str, tenants: Sequence[str] = ()
    ) -> None:
        """Says which tokens are nodes'.

        Args:
            vault: asks Vault, logged in as the control plane.
            template: makes the node's name, of `FIELDS`.
            mount: the auth method that nodes log in by, "approle".
            policy: the policy that a node's token has.
            tenants: whose entries such nodes may serve; empty for any tenant's.
        """
        self._tokens = VaultTokens(vault, "nodes")
        self._template, self._tenants = template, tuple(tenants)
        self._login, self._policy = f"auth/{mount}/", policy

    async def run(self) -> None:
        """Keeps the login at Vault good until it is cancelled."""
        await self._tokens.run()

    async def attest(self, attempt: Attempt) -> Attested:
        """Looks the token up."""
        found = await self._tokens.look_up(attempt.request.vault.token, self._of_login)
        if self._policy not in found.policies:
            raise Denied(f"vault: the token has no policy {self._policy!r}, which makes it a node's")
        try:
            name = self._template.name(found.values)
        except NoName as error:
            raise Denied(f"vault: the token names no node: {error}") from None
        return Attested(name, self._tenants, {"accessor": found.accessor})

    def _of_login(self, path: str) -> str:
        """Returns the login that a token comes from.

        Raises:
            Denied: nodes log in elsewhere.
        """
        if not path.startswith(self._login):
            raise Denied(f"vault: the token comes from {path[:100]!r}; nodes log in at {self._login}login")
        return self._login
