"""Secrets in the environment: `env:NAME`."""

import os

from pydantic import SecretStr

from meshwarden.controlplane.secrets.port import SecretEngine, SecretError


class EnvSecrets(SecretEngine):
    """Reads variables."""

    async def read(self, name: str) -> SecretStr:
        """Returns the value of a variable."""
        value = os.environ.get(name)
        if not value:
            raise SecretError(f"env:{name}: the variable isn't set, or is empty")
        return SecretStr(value)
