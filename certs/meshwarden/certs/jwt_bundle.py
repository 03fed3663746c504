"""The keys that a trust domain's JWT-SVIDs are signed by."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives.serialization import load_der_public_key

from meshwarden.certs.bundle import InvalidBundle
from meshwarden.certs.csr import PublicKey, spki
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.jose import InvalidJose, jwk, parse_jwk
from meshwarden.certs.spiffe_id import InvalidSpiffeId, check_trust_domain
from meshwarden.v1 import node_service_pb2

MAX_KEYS: Final = 64
MAX_KID: Final = 255


@dataclass(frozen=True)
class JwtBundle:
    """The JWT authorities of one trust domain, `{kid: key}`. It is compared by content."""

    trust_domain: str
    keys: Mapping[str, PublicKey] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.trust_domain, frozenset(self.keys)))

    @classmethod
    def of(cls, trust_domain: str, keys: Iterable[tuple[str, PublicKey]]) -> "JwtBundle":
        """Checks keys, `(kid, key)`, and returns their bundle.

        Raises:
            InvalidBundle: they are too many, one has no name or another's, or is no key that we take.
        """
        try:
            check_trust_domain(trust_domain)
        except InvalidSpiffeId as error:
            raise InvalidBundle(f"JWT bundle: {error}") from None
        found: dict[str, PublicKey] = {}
        for kid, key in keys:
            if not is_kid(kid):
                raise InvalidBundle(f"JWT bundle of {trust_domain!r}: a key's id is empty, too long or not printable")
            if kid in found:
                raise InvalidBundle(f"JWT bundle of {trust_domain!r}: two keys have one id, {kid!r}")
            try:
                taken = parse_jwk(jwk(key))
            except (InvalidJose, StopIteration):
                taken = None
            if taken is None:
                raise InvalidBundle(f"JWT bundle of {trust_domain!r}: key {kid!r} is of a kind that isn't taken")
            found[kid] = key
        if len(found) > MAX_KEYS:
            raise InvalidBundle(f"JWT bundle of {trust_domain!r}: {len(found)} keys; at most {MAX_KEYS} are taken")
        return cls(trust_domain, MappingProxyType(found))

    def jwks(self) -> bytes:
        """Returns them as a JWK Set for JWT validators that know nothing of SPIFFE, and for the Workload API.

        Source: RFC 7517 §5.
        """
        keys = [{**jwk(key), "kid": kid} for kid, key in sorted(self.keys.items())]
        return json.dumps({"keys": keys}).encode()

    def to_proto(self) -> list[node_service_pb2.JwtKey]:
        """Returns the messages that carry them, in the order of their ids."""
        return [node_service_pb2.JwtKey(kid=kid, public_key=spki(key)) for kid, key in sorted(self.keys.items())]

    @classmethod
    def from_proto(cls, trust_domain: str, keys: Iterable[node_service_pb2.JwtKey]) -> "JwtBundle":
        """Reads a bundle.

        Raises:
            InvalidBundle: it holds what is no key.
        """
        return cls.of(trust_domain, [(item.kid, _load(trust_domain, item.public_key)) for item in keys])


def is_kid(kid: str) -> bool:
    """Says whether a text may name a key."""
    return 0 < len(kid) <= MAX_KID and kid.isascii() and kid.isprintable()


def _load(trust_domain: str, der: bytes) -> PublicKey:
    try:
        key = load_der_public_key(der)
        if jwk(key):  # type: ignore[arg-type]  # it is one, or else
            return key  # type: ignore[return-value]
    except (AttributeError, StopIteration, *UNREADABLE):
        pass
    raise InvalidBundle(f"JWT bundle of {trust_domain[:255]!r}: not an EC or RSA key in DER")
