"""Secrets that systemd hands to a unit: `credential:NAME`, a file in `$CREDENTIALS_DIRECTORY`."""

import os
from pathlib import Path

from pydantic import SecretStr

from meshwarden.controlplane.secrets.file import FileSecrets
from meshwarden.controlplane.secrets.port import SecretEngine, SecretError

DIRECTORY = "CREDENTIALS_DIRECTORY"


class CredentialSecrets(SecretEngine):
    """Reads the unit's credentials (`LoadCredential=`, `LoadCredentialEncrypted=`), which no other unit can."""

    async def read(self, name: str) -> SecretStr:
        """Returns a credential.

        Source:
            systemd.exec(5), "Credentials": a name has no slash and isn't "." or "..".
        """
        directory = os.environ.get(DIRECTORY)
        if not directory:
            raise SecretError(
                f"credential:{name}: systemd gives none: add LoadCredentialEncrypted={name}:… to the unit"
            )
        if "/" in name or "\0" in name or name in ("", ".", ".."):
            raise SecretError(f"credential:{name[:255]!r}: is no name of a credential")
        try:
            return await FileSecrets().read(str(Path(directory) / name))
        except SecretError as error:
            raise SecretError(f"credential:{name}: {error}; see LoadCredentialEncrypted= of the unit") from None
