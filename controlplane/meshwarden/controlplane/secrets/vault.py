"""Secrets in a KV engine (version 2) of Vault or OpenBao: `vault:<mount>/<path>#<key>`."""

import re

from pydantic import SecretStr

from meshwarden.certs.authority.port import AuthorityError
from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.controlplane.secrets.port import MAX_SIZE_BYTES, SecretEngine, SecretError

_NAME = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9._-]*)/([A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*)#([A-Za-z0-9._-]+)")


class VaultSecrets(SecretEngine):
    """Reads the newest version of a secret."""

    def __init__(self, client: VaultClient) -> None:
        self._client = client

    async def read(self, name: str) -> SecretStr:
        """Returns the value of one key."""
        found = _NAME.fullmatch(name)
        if found is None or {".", ".."} & set(found[2].split("/")):
            raise SecretError(f"vault:{name}: write it as vault:<mount>/<path>#<key>")
        mount, path, key = found.groups()
        try:
            answer = await self._client.call(
                f"{mount}/data/{path}",
                lambda client: client.secrets.kv.v2.read_secret_version(
                    path=path, mount_point=mount, raise_on_deleted_version=True
                ),
                "read",
            )
        except AuthorityError as error:
            raise SecretError(f"vault:{name}: {error}") from None
        value = answer["data"]["data"].get(key)
        if not isinstance(value, str) or not value:
            raise SecretError(f"vault:{name}: the secret has no text under {key!r}")
        if len(value) > MAX_SIZE_BYTES:
            raise SecretError(f"vault:{name}: is larger than {MAX_SIZE_BYTES} bytes")
        return SecretStr(value)
