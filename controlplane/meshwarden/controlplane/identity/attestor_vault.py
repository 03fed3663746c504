"""Attests by a token of Vault or OpenBao that the node has logged in for, by AppRole for one.

The token is looked up at the Vault that is configured, with the control plane's own login: nothing in a request says
where to ask. It counts only if it comes from the login of the auth method that is configured, since whoever holds a
token may make others with whatever metadata.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from hvac.exceptions import Forbidden, InvalidRequest

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.controlplane.identity.attestor import Attempt, Attested, Attestor
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.node_name import NameTemplate, NoName

FIELDS = ("entity_name", "entity_metadata.", "alias_name", "metadata.")
# How many may be looked up at one time, and how many may wait for that: strangers must not queue before all others.
LOOKUPS = 4
WAITING = 64
T = TypeVar("T")


class Vault(Protocol):
    """What asks Vault: `VaultClient`."""

    async def call(self, path: str, work: Callable[[Any], T], capability: str = "update") -> T:
        """Runs `work(hvac client)` in a thread."""
        ...

    async def tend(self) -> timedelta:
        """Keeps the login good; returns how long until it should be done again."""
        ...


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
        self._vault, self._template, self._tenants = vault, template, tuple(tenants)
        self._login, self._policy = f"auth/{mount}/", policy
        self._turns = asyncio.Semaphore(LOOKUPS)
        self._waiting = 0

    async def run(self) -> None:
        """Keeps the login at Vault good until it is cancelled."""
        while True:
            wait = await self._vault.tend()
            await asyncio.sleep(wait.total_seconds())

    async def attest(self, attempt: Attempt) -> Attested:
        """Looks the token up."""
        if self._waiting >= WAITING:
            raise AuthorityUnavailable(f"{WAITING} nodes wait for Vault to look up their tokens: try again")
        self._waiting += 1
        try:
            async with self._turns:
                return await self._attest(attempt.request.vault.token)
        finally:
            self._waiting -= 1

    async def _attest(self, token: str) -> Attested:
        try:
            found = await self._vault.call("auth/token/lookup", lambda client: _lookup(client, token))
            if found is None:
                raise Denied("vault: the token is unknown or has ended: log in again")
            entity = await self._entity(self._checked(found))
        except AuthorityUnavailable:
            raise
        except AuthorityError as error:
            # It's our login that Vault refuses, not the node's.
            raise AuthorityUnavailable(f"nodes' tokens can't be looked up: {error}") from None
        try:
            name = self._template.name(_values(found, entity, self._login))
        except NoName as error:
            raise Denied(f"vault: the token names no node: {error}") from None
        return Attested(name, self._tenants, {"accessor": str(found.get("accessor", ""))})

    def _checked(self, found: dict[str, Any]) -> str:
        """Returns whose token it is.

        Raises:
            Denied: it is no node's.
        """
        path, entity = str(found.get("path", "")), found.get("entity_id")
        if not path.startswith(self._login) or not isinstance(entity, str) or not entity:
            raise Denied(f"vault: the token comes from {path[:100]!r}; nodes log in at {self._login}login")
        policies = {*(found.get("policies") or ()), *(found.get("identity_policies") or ())}
        if self._policy not in policies:
            raise Denied(f"vault: the token has no policy {self._policy!r}, which makes it a node's")
        return entity

    async def _entity(self, entity_id: str) -> dict[str, Any]:
        path = f"identity/entity/id/{entity_id}"
        answer = await self._vault.call(path, lambda client: client.secrets.identity.read_entity(entity_id), "read")
        entity: dict[str, Any] = answer["data"]
        if entity.get("disabled"):
            raise Denied("vault: the token's entity is disabled")
        return entity


def _lookup(client: Any, token: str) -> dict[str, Any] | None:
    """What Vault says of a token; None if there is no such one. Our own login's faults are raised."""
    try:
        found: dict[str, Any] = client.auth.token.lookup(token)["data"]
    except (Forbidden, InvalidRequest) as error:
        # The one word by which Vault tells a token that it does not know from a caller that may not ask.
        if any("bad token" in text for text in error.errors or ()):
            return None
        raise
    return found


def _values(found: dict[str, Any], entity: dict[str, Any], login: str) -> dict[str, str]:
    """What Vault says of a node, by field."""
    values = {"entity_name": entity.get("name")}
    values |= {f"metadata.{key}": value for key, value in (found.get("meta") or {}).items()}
    values |= {f"entity_metadata.{key}": value for key, value in (entity.get("metadata") or {}).items()}
    names = [alias.get("name") for alias in entity.get("aliases") or () if alias.get("mount_path") == login]
    if len(names) == 1:
        values["alias_name"] = names[0]
    return {key: value for key, value in values.items() if isinstance(value, str)}
