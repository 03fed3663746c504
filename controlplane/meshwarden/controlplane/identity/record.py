"""What identity keeps in the store: tokens and nodes, as JSON.

/identity/token/<SHA-256 of the token>   TokenRecord
/identity/node/<name>                    NodeRecord
/identity/node-ban/<name>                BanRecord
"""

import base64
import binascii
import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

TOKENS = "/identity/token/"
NODES = "/identity/node/"
BANS = "/identity/node-ban/"
# Of its certificates a node's record knows so many: more than there can be in use at a time.
MAX_SERIALS = 16


class RecordError(Exception):
    """A stored record can't be read."""


@dataclass(frozen=True)
class Use:
    """How a token was used up."""

    time: datetime
    # SHA-256 of the public key that it was used for, in hexadecimal.
    key_hash: str
    # The certificates that were given, in DER, the leaf first.
    chain: tuple[bytes, ...]


@dataclass(frozen=True)
class TokenRecord:
    """A join token, known by its hash."""

    token_hash: str
    node: str
    expire_time: datetime
    use: Use | None = None
    # Whose entries the node may serve; empty for any tenant's.
    tenants: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The store key."""
        return TOKENS + self.token_hash

    def used(self, use: Use) -> "TokenRecord":
        """Returns the record of the token used up."""
        return replace(self, use=use)

    def encode(self) -> bytes:
        """Returns the bytes to store."""
        value: dict[str, Any] = {"v": 1, "node": self.node, "expire_time": self.expire_time.isoformat()}
        if self.tenants:
            value["tenants"] = list(self.tenants)
        if self.use is not None:
            chain = [base64.b64encode(der).decode() for der in self.use.chain]
            value["use"] = {"time": self.use.time.isoformat(), "key_hash": self.use.key_hash, "chain": chain}
        return json.dumps(value).encode()

    @classmethod
    def decode(cls, key: str, value: bytes) -> "TokenRecord":
        """Reads stored bytes.

        Raises:
            RecordError: they are no token's.
        """
        try:
            words = json.loads(value)
            use = words.get("use")
            if use is not None:
                chain = tuple(base64.b64decode(der, validate=True) for der in use["chain"])
                use = Use(datetime.fromisoformat(use["time"]), use["key_hash"], chain)
            expire_time = datetime.fromisoformat(words["expire_time"])
            return cls(key.removeprefix(TOKENS), words["node"], expire_time, use, _tenants(words))
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
            raise RecordError(f"store key {key}: not a join token") from None


@dataclass(frozen=True)
class NodeRecord:
    """A node that has joined."""

    node: str
    join_time: datetime
    # Where it joined from, as the connection said.
    address: str
    # The serial number of the certificate that it joined with, in hexadecimal.
    serial: str
    # Whose entries it may serve; empty for any tenant's.
    tenants: tuple[str, ...] = ()
    # What it was attested by: a proof of AttestRequest.
    attestor: str = "join_token"
    # The serial numbers of those of its certificates that are good, the newest last; others of the same name are of
    # before it joined, or before it was evicted. Empty, as older records are: not known.
    serials: tuple[str, ...] = ()
    # Where the store has it; no part of the record.
    revision: int = field(default=0, compare=False)

    @property
    def key(self) -> str:
        """The store key."""
        return node_key(self.node)

    def renewed(self, present: str, serial: str) -> "NodeRecord":
        """Returns the record with one more certificate, asked for with the present one."""
        return replace(self, serials=(*(self.serials or (present,)), serial)[-MAX_SERIALS:])

    def serves(self, tenant: str) -> bool:
        """Says whether it may have anything of a tenant's."""
        return not self.tenants or tenant in self.tenants

    def encode(self) -> bytes:
        """Returns the bytes to store."""
        value: dict[str, Any] = {
            "v": 1,
            "join_time": self.join_time.isoformat(),
            "address": self.address,
            "serial": self.serial,
            "attestor": self.attestor,
            "serials": list(self.serials),
        }
        if self.tenants:
            value["tenants"] = list(self.tenants)
        return json.dumps(value).encode()

    @classmethod
    def decode(cls, key: str, value: bytes) -> "NodeRecord":
        """Reads stored bytes.

        Raises:
            RecordError: they are no node's.
        """
        try:
            words = json.loads(value)
            join_time = datetime.fromisoformat(words["join_time"])
            return cls(
                key.removeprefix(NODES),
                join_time,
                words["address"],
                words["serial"],
                _tenants(words),
                str(words.get("attestor", "join_token")),
                tuple(str(serial) for serial in words.get("serials", ())),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RecordError(f"store key {key}: not a node") from None


@dataclass(frozen=True)
class BanRecord:
    """A node that is banned, whether it has joined or not."""

    node: str
    time: datetime
    # Who has banned it, and why.
    by: str
    reason: str
    # The serial number, in hexadecimal, of the certificate that it had joined with; empty if it had not.
    serial: str = ""

    @property
    def key(self) -> str:
        """The store key."""
        return ban_key(self.node)

    def encode(self) -> bytes:
        """Returns the bytes to store."""
        value = {"v": 1, "time": self.time.isoformat(), "by": self.by, "reason": self.reason, "serial": self.serial}
        return json.dumps(value).encode()

    @classmethod
    def decode(cls, key: str, value: bytes) -> "BanRecord":
        """Reads stored bytes.

        Raises:
            RecordError: they are no ban's.
        """
        try:
            words = json.loads(value)
            time = datetime.fromisoformat(words["time"])
            serial = str(words.get("serial", ""))
            return cls(key.removeprefix(BANS), time, str(words["by"]), str(words["reason"]), serial)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RecordError(f"store key {key}: not a ban") from None


def _tenants(words: dict[str, Any]) -> tuple[str, ...]:
    """Reads a scope.

    Raises:
        ValueError: it is none; what can't be read must not become "any tenant's".
    """
    tenants = words.get("tenants", [])
    if not isinstance(tenants, list) or not all(isinstance(tenant, str) and tenant for tenant in tenants):
        raise ValueError("tenants")
    return tuple(tenants)


def node_key(node: str) -> str:
    """Returns the store key of a node."""
    return NODES + node


def ban_key(node: str) -> str:
    """Returns the store key of a node's ban."""
    return BANS + node
