"""References to secrets in Vault, `vault:<mount>/<path>#<key>`, and which of them a tenant may make.

A reference is taken to the letter: no segment begins with a dot or is empty, nothing is decoded, and what isn't a
letter, a digit, `.`, `_` or `-` is refused. So a path means the same to us, to who grants it and to Vault.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from meshwarden.controlplane.secrets.port import SecretError

SCHEME: Final = "vault:"
_SEGMENT: Final = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_NAME: Final = re.compile(rf"({_SEGMENT})/({_SEGMENT}(?:/{_SEGMENT})*)#({_SEGMENT})")
MAX_LENGTH: Final = 512


@dataclass(frozen=True)
class Reference:
    """A key of a secret in a KV engine."""

    mount: str
    path: str
    key: str

    @classmethod
    def parse(cls, name: str) -> "Reference":
        """Reads a reference without its scheme.

        Raises:
            SecretError: it is none.
        """
        found = _NAME.fullmatch(name) if len(name) <= MAX_LENGTH else None
        if found is None:
            raise SecretError(f"vault:{name[:MAX_LENGTH]}: write it as vault:<mount>/<path>#<key>")
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"{SCHEME}{self.mount}/{self.path}#{self.key}"


class Grants:
    """Which secrets a tenant's entries may name: `<mount>/meshwarden/<tenant>/…`, or what the operator has said."""

    def __init__(self, prefixes: Mapping[str, Sequence[str]]) -> None:
        """Takes {tenant: prefixes}, each "<mount>/<path>"; a tenant that isn't there has its own place."""
        self._prefixes = {tenant: [tuple(prefix.split("/")) for prefix in said] for tenant, said in prefixes.items()}

    def fault(self, tenant: str, said: str) -> str:
        """Why a tenant may not name what a reference says; empty if it may, or if the schema refuses it."""
        if _NAME.fullmatch(said.removeprefix(SCHEME)) is None:
            return ""
        try:
            self.check(tenant, Reference.parse(said.removeprefix(SCHEME)))
        except SecretError as error:
            return str(error)
        return ""

    def check(self, tenant: str, reference: Reference) -> None:
        """Returns if a tenant may name this secret.

        Raises:
            SecretError: it may not; the message says what it may.
        """
        segments = (reference.mount, *reference.path.split("/"))
        prefixes = self._prefixes.get(tenant)
        if prefixes is None:
            prefixes = [(reference.mount, "meshwarden", tenant)]
        # Something below a prefix: by whole segments, so that acme's isn't acme-two's too.
        if any(len(segments) > len(prefix) and segments[: len(prefix)] == prefix for prefix in prefixes):
            return
        places = " or ".join(f"vault:{'/'.join(prefix)}/…" for prefix in prefixes) or "none"
        raise SecretError(f"{reference}: tenant {tenant} may name {places}; the mesh's operator grants more")
