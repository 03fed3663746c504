"""[authority]: who signs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from meshwarden.controlplane.config.value import REFERENCE, VAULT_PATH, VAULT_REFERENCE, Frozen
from meshwarden.controlplane.config.vault import VaultConfig


class DiskAuthorityConfig(Frozen):
    """A root of our own: its key lies on disk, encrypted under a passphrase."""

    kind: Literal["disk"] = "disk"
    # A reference (`credential:`, `file:`, `env:`, `vault:`, `transit:`), never the passphrase itself.
    passphrase: str = Field(pattern=REFERENCE)
    # Left out, <state_dir>/ca. Control planes of one store share it.
    directory: Path | None = None
    # Make a new root if there is none. Without it a missing key is an error: a typo must not found a new mesh.
    create: bool = False
    # The life of each root that is made; the next is prepared at a half and activated at five sixths of it.
    root_ttl_days: int = Field(default=3650, ge=180, le=7300)


class VaultAuthorityConfig(VaultConfig):
    """A root in Vault or OpenBao."""

    kind: Literal["vault"]
    # "upstream": it signs our issuing certificate, with which we go on while it is away. "direct": it signs each leaf.
    form: Literal["upstream", "direct"] = "upstream"
    # The path of the PKI engine.
    mount: str = Field(default="pki", pattern=VAULT_PATH)
    # The role of that engine which leaves are signed under; for "direct".
    role: str = Field(default="meshwarden", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    # What is kept for a start without Vault is encrypted under this: a reference, not into Vault itself. With it, the
    # issuing key of "upstream" is kept, too; left out, that ends with the process.
    passphrase: str | None = Field(default=None, pattern=VAULT_REFERENCE)


class MemoryAuthorityConfig(Frozen):
    """A root that ends with the process: for tests."""

    kind: Literal["memory"]


AuthorityConfig = Annotated[
    DiskAuthorityConfig | VaultAuthorityConfig | MemoryAuthorityConfig, Field(discriminator="kind")
]
