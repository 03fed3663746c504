"""Secrets that a transit key of Vault or OpenBao has encrypted: `transit:<mount>/<key>#<file>`.

What the file holds is of no use without Vault: the key stays there, and Vault says who may decrypt and logs each time.
"""

import base64
import binascii
import re
from typing import Final

from pydantic import SecretStr

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.controlplane.secrets.file import FileSecrets
from meshwarden.controlplane.secrets.port import SecretAway, SecretEngine, SecretError

_SEGMENT: Final = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_NAME: Final = re.compile(rf"({_SEGMENT}(?:/{_SEGMENT})*)/({_SEGMENT})#(/[^\0\n]+)")
_WRAPPED: Final = re.compile(r"vault:v[0-9]{1,9}:[A-Za-z0-9+/=]+")
MAX_LENGTH: Final = 1024


class TransitSecrets(SecretEngine):
    """Has Vault decrypt what lies in files."""

    def __init__(self, client: VaultClient) -> None:
        self._client = client

    async def read(self, name: str) -> SecretStr:
        """Returns what a file says when it is decrypted."""
        found = _NAME.fullmatch(name) if len(name) <= MAX_LENGTH else None
        if found is None:
            raise SecretError(f"transit:{name[:MAX_LENGTH]}: write it as transit:<mount>/<key>#<absolute path>")
        mount, key, path = found.groups()
        wrapped = (await FileSecrets().read(path)).get_secret_value().strip()
        # Not shown: whoever wrote the secret itself there would find it in a log, and send it to Vault.
        if _WRAPPED.fullmatch(wrapped) is None:
            raise SecretError(f"transit:{name}: the file holds nothing that transit has encrypted (vault:v1:…)")
        return _text(name, await self._decrypted(name, f"{mount}/decrypt/{key}", wrapped))

    async def _decrypted(self, name: str, path: str, wrapped: str) -> object:
        words = {"ciphertext": wrapped}
        try:
            answer = await self._client.call(path, lambda client: client.write_data(path, data=words))
        except AuthorityUnavailable as error:
            raise SecretAway(f"transit:{name}: {error}") from None
        except AuthorityError as error:
            raise SecretError(f"transit:{name}: {error}") from None
        return answer["data"].get("plaintext")


def _text(name: str, plaintext: object) -> SecretStr:
    try:
        text = base64.b64decode(str(plaintext), validate=True).decode().removesuffix("\n")
    except (binascii.Error, UnicodeDecodeError):
        # Without its cause: that one carries the content.
        text = ""
    if not text:
        raise SecretError(f"transit:{name}: what it decrypts to is no text in UTF-8")
    return SecretStr(text)
