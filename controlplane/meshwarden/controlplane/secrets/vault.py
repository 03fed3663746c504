"""Secrets in a KV engine (version 2) of Vault or OpenBao: `vault:<mount>/<path>#<key>`."""

from collections.abc import Callable
from typing import Any

from pydantic import SecretStr

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.vault_client import VaultClient, VaultMissing
from meshwarden.controlplane.secrets.port import SecretAway, SecretEngine, SecretError, SecretGone, Version
from meshwarden.controlplane.secrets.reference import Reference


class VaultSecrets(SecretEngine):
    """Reads the newest version of a secret."""

    def __init__(self, client: VaultClient) -> None:
        self.client = client

    async def read(self, name: str) -> SecretStr:
        """Returns the value of one key."""
        reference = Reference.parse(name)
        version = await self.read_version(reference.mount, reference.path)
        return version.text(reference.key, str(reference))

    async def read_version(self, mount: str, path: str) -> Version:
        """Returns the newest version of a secret.

        Raises:
            SecretGone: there is none, or it is deleted.
            SecretAway: Vault can't be asked now.
            SecretError: we may not read it.
        """
        data = await self._ask(
            mount,
            "data",
            path,
            lambda client: client.secrets.kv.v2.read_secret_version(
                path=path, mount_point=mount, raise_on_deleted_version=True
            ),
        )
        return Version(int(data["metadata"]["version"]), data["data"])

    async def newest(self, mount: str, path: str) -> int:
        """Returns the number of the newest version, and reads nothing of what is in it.

        Raises:
            SecretGone: there is none, or it is deleted.
            SecretAway: Vault can't be asked now.
            SecretError: we may not read it.
        """
        data = await self._ask(
            mount,
            "metadata",
            path,
            lambda client: client.secrets.kv.v2.read_secret_metadata(path=path, mount_point=mount),
        )
        number = int(data["current_version"])
        told = data["versions"].get(str(number), {"destroyed": True})
        if told.get("destroyed") or told.get("deletion_time"):
            raise SecretGone(f"vault:{mount}/{path}: version {number} is deleted")
        return number

    async def _ask(self, mount: str, what: str, path: str, work: Callable[[Any], Any]) -> Any:
        """Has Vault asked for the data or the metadata of a secret; returns what it says of it."""
        try:
            return (await self.client.call(f"{mount}/{what}/{path}", work, "read"))["data"]
        except VaultMissing as error:
            raise SecretGone(f"vault:{mount}/{path}: {error}") from None
        except AuthorityUnavailable as error:
            raise SecretAway(f"vault:{mount}/{path}: {error}") from None
        except AuthorityError as error:
            raise SecretError(f"vault:{mount}/{path}: {error}") from None
