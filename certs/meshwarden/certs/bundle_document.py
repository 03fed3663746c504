"""A trust domain's whole bundle as one JSON document, as trust domains give it to each other.

Source: SPIFFE Trust Domain and Bundle §4; X509-SVID §6; JWT-SVID §6.
"""

import base64
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshwarden.certs import jose
from meshwarden.certs.bundle import MAX_ROOT_SIZE_BYTES, MAX_ROOTS, Bundle, InvalidBundle, is_authority
from meshwarden.certs.csr import PublicKey
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.jwt_bundle import MAX_KEYS, JwtBundle, is_kid

MAX_SIZE_BYTES: Final = 1 << 20
MAX_ELEMENTS: Final = 256
MAX_HINT: Final = timedelta(days=7)
_X509: Final = "x509-svid"
_JWT: Final = "jwt-svid"


@dataclass(frozen=True)
class TrustBundle:
    """All that proves identities of one trust domain.

    Attributes:
        trust_domain: its name.
        x509: the roots of its X.509-SVIDs; None if it has none: no certificate of it is taken.
        jwt: the keys of its JWT-SVIDs.
        sequence: grows with each change; None if it doesn't say.
        refresh: how often to look again; None if it doesn't say.
    """

    trust_domain: str
    x509: Bundle | None
    jwt: JwtBundle
    sequence: int | None = None
    refresh: timedelta | None = None


def format_document(bundle: TrustBundle) -> bytes:
    """Writes the document."""
    keys: list[dict[str, Any]] = []
    roots = () if bundle.x509 is None else bundle.x509.roots
    ders = () if bundle.x509 is None else bundle.x509.ders
    for root, der in zip(roots, ders, strict=True):
        # X509-SVID §6.1: one certificate, no kid.
        keys.append({**_key_of(root), "use": _X509, "x5c": [base64.b64encode(der).decode()]})
    for kid, key in sorted(bundle.jwt.keys.items()):
        keys.append({**jose.jwk(key), "use": _JWT, "kid": kid})
    document: dict[str, Any] = {"keys": keys}
    if bundle.sequence is not None:
        document["spiffe_sequence"] = bundle.sequence
    if bundle.refresh is not None:
        document["spiffe_refresh_hint"] = int(bundle.refresh.total_seconds())
    return json.dumps(document).encode()


def parse_document(trust_domain: str, data: bytes) -> TrustBundle:
    """Reads the document of a trust domain. What the standard has us ignore is ignored; what is broken is refused.

    Raises:
        InvalidBundle: it is too large, no JWK Set, or an element of a use that we know can't be used.
    """
    where = f"bundle of {trust_domain[:255]!r}"
    if len(data) > MAX_SIZE_BYTES:
        raise InvalidBundle(f"{where}: more than {MAX_SIZE_BYTES} bytes")
    try:
        document = jose.read_object(data)
    except jose.InvalidJose as error:
        raise InvalidBundle(f"{where}: {error}") from None
    elements = document.get("keys")
    if not isinstance(elements, list) or len(elements) > MAX_ELEMENTS:
        raise InvalidBundle(f"{where}: `keys` is missing, no array, or longer than {MAX_ELEMENTS}")
    roots: list[x509.Certificate] = []
    keys: list[tuple[str, PublicKey]] = []
    for element in elements:
        if not isinstance(element, dict):
            raise InvalidBundle(f"{where}: an element of `keys` is no object")
        if element.get("use") == _X509:
            roots += _roots(where, element)
        elif element.get("use") == _JWT:
            keys += _keys(where, element)
    if len(roots) > MAX_ROOTS or len(keys) > MAX_KEYS:
        raise InvalidBundle(f"{where}: more than {MAX_ROOTS} roots or {MAX_KEYS} keys")
    sequence = _integer(where, document, "spiffe_sequence", 2**63 - 1)
    hint = _integer(where, document, "spiffe_refresh_hint", 2**53)
    return TrustBundle(
        trust_domain,
        Bundle.of(trust_domain, roots, sequence or 0) if roots else None,
        JwtBundle.of(trust_domain, keys),
        sequence,
        min(timedelta(seconds=min(hint, 10**9)), MAX_HINT) if hint else None,
    )


def _roots(where: str, element: dict[str, Any]) -> list[x509.Certificate]:
    chain = element.get("x5c")
    if not isinstance(chain, list) or not chain:
        return []  # X509-SVID §6.2: ignored
    first = chain[0]
    if not isinstance(first, str) or len(first) > MAX_ROOT_SIZE_BYTES * 4 // 3 + 4:
        raise InvalidBundle(f"{where}: x5c holds no certificate, or too large a one")
    try:
        root = x509.load_der_x509_certificate(base64.b64decode(first, validate=True))
    except UNREADABLE:
        raise InvalidBundle(f"{where}: x5c holds no certificate in base64") from None
    if not is_authority(root):
        raise InvalidBundle(f"{where}: a certificate in it is no certificate authority")
    return [root]


def _keys(where: str, element: dict[str, Any]) -> list[tuple[str, PublicKey]]:
    kid = element.get("kid")
    if not isinstance(kid, str) or not is_kid(kid):
        raise InvalidBundle(f"{where}: a JWT key without an id")
    try:
        key = jose.parse_jwk(element)
    except jose.InvalidJose as error:
        raise InvalidBundle(f"{where}: {error}") from None
    return [] if key is None else [(kid, key)]  # §4.1.3: a kind that we don't know is ignored


def _integer(where: str, document: dict[str, Any], name: str, most: int) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidBundle(f"{where}: {name} is no integer that it may be")
    return value


def _key_of(root: x509.Certificate) -> dict[str, str]:
    key = root.public_key()
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return jose.jwk(key)
    raise InvalidBundle("a root's key is neither an EC nor an RSA key")
