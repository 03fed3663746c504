"""What Vault or OpenBao says of a token that somebody shows: looked up with the control plane's own login.

Nothing in a request says where to ask. A token counts only by the login that it comes from, since whoever holds a token
may make others with whatever metadata.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from hvac.exceptions import Forbidden, InvalidRequest

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.controlplane.identity.authorize import Denied

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


@dataclass(frozen=True)
class VaultToken:
    """A token that is good, and whose it is."""

    # Of the login, "auth/userpass/login/ann".
    path: str
    accessor: str
    policies: frozenset[str]
    # What Vault says of its holder, by field: entity_name, entity_metadata.*, alias_name, metadata.*
    values: dict[str, str] = field(repr=False)


class VaultTokens:
    """Looks tokens up."""

    def __init__(self, vault: Vault, whose: str) -> None:
        """Asks `vault`; `whose` says for people whose tokens they are, "nodes"."""
        self._vault, self._whose = vault, whose
        self._turns = asyncio.Semaphore(LOOKUPS)
        self._waiting = 0

    async def run(self) -> None:
        """Keeps the login at Vault good until it is cancelled."""
        while True:
            wait = await self._vault.tend()
            await asyncio.sleep(wait.total_seconds())

    async def look_up(self, token: str, login_of: Callable[[str], str]) -> VaultToken:
        """Returns what a token is.

        Args:
            token: the token.
            login_of: returns, of the path that a token comes from, the login, "auth/userpass/"; or refuses it.

        Raises:
            Denied: it is unknown, has ended, is nobody's, or its holder is disabled; or as `login_of` says.
            AuthorityUnavailable: Vault can't be asked now.
        """
        if self._waiting >= WAITING:
            raise AuthorityUnavailable(f"{WAITING} {self._whose} wait for Vault to look up their tokens: try again")
        self._waiting += 1
        try:
            async with self._turns:
                return await self._look_up(token, login_of)
        except AuthorityUnavailable:
            raise
        except AuthorityError as error:
            # It's our login that Vault refuses, not theirs.
            raise AuthorityUnavailable(f"{self._whose}' tokens can't be looked up: {error}") from None
        finally:
            self._waiting -= 1

    async def _look_up(self, token: str, login_of: Callable[[str], str]) -> VaultToken:
        found = await self._vault.call("auth/token/lookup", lambda client: _lookup(client, token))
        if found is None:
            raise Denied("vault: the token is unknown or has ended: log in again")
        path, entity_id = str(found.get("path", "")), found.get("entity_id")
        login = login_of(path)
        if not isinstance(entity_id, str) or not entity_id:
            raise Denied("vault: the token is nobody's: it has no entity")
        entity = await self._entity(entity_id)
        policies = frozenset({*(found.get("policies") or ()), *(found.get("identity_policies") or ())})
        return VaultToken(path, str(found.get("accessor", "")), policies, _values(found, entity, login))

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
    """What Vault says of whoever holds a token, by field."""
    values = {"entity_name": entity.get("name")}
    values |= {f"metadata.{key}": value for key, value in (found.get("meta") or {}).items()}
    values |= {f"entity_metadata.{key}": value for key, value in (entity.get("metadata") or {}).items()}
    names = [alias.get("name") for alias in entity.get("aliases") or () if alias.get("mount_path") == login]
    if len(names) == 1:
        values["alias_name"] = names[0]
    return {key: value for key, value in values.items() if isinstance(value, str)}
