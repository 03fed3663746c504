"""[vault]: a server, and how we log in there."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from meshwarden.controlplane.config.value import VAULT_PATH, VAULT_REFERENCE, Frozen


class AppRoleConfig(Frozen):
    """A role that logs in by itself."""

    role_id: str = Field(min_length=1)
    secret_id: str = Field(pattern=VAULT_REFERENCE)
    # The path of the auth method below auth/.
    mount: str = Field(default="approle", pattern=VAULT_PATH)


class VaultConfig(Frozen):
    """A Vault or OpenBao server and how we log in there: by a token that somebody has made, or as an AppRole."""

    # "https://vault.example:8200".
    address: str = Field(pattern=r"^https?://.+$")
    # A reference to a token that somebody else keeps fresh.
    token: str | None = Field(default=None, pattern=VAULT_REFERENCE)
    # A role that we log in as.
    approle: AppRoleConfig | None = None
    # The authorities of its certificate, PEM; left out, the system's.
    ca_file: Path | None = None
    # Where in it all of this is.
    namespace: str | None = None

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        if (self.token is None) == (self.approle is None):
            raise ValueError("say how to log in: by token or by approle, and not by both")
        return self
