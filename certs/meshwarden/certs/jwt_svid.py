"""JWT-SVIDs: a bearer's word on who it is, for an audience, for minutes.

A certificate is proved by a key at each connection; a token is proved by whoever holds it. So it lives minutes and
names for whom it is, and an X.509-SVID is better wherever TLS reaches from end to end.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from meshwarden.certs import jose
from meshwarden.certs.error import CertsError
from meshwarden.certs.jose import InvalidJose
from meshwarden.certs.jwt_bundle import JwtBundle, is_kid
from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId

TTL: Final = timedelta(minutes=5)
"""How long a token of ours lasts."""
MAX_TTL: Final = timedelta(days=1)
"""A token that ends later than so far ahead is refused, whoever made it: the standard sets no bound."""
MAX_SIZE_BYTES: Final = 8192
MAX_AUDIENCES: Final = 16
MAX_AUDIENCE: Final = 512
# JWT-SVID §2: "Any header not described here, registered or private, MUST NOT be included".
_HEADERS: Final = frozenset({"alg", "kid", "typ"})
_TYPES: Final = ("JWT", "JOSE")
_TOKEN_ID: Final = re.compile(r"([0-9a-f]{1,40})\.[0-9a-f]{16}")


class InvalidJwtSvid(CertsError):
    """A token proves nothing; the message is the reason, and shows nothing of the token but whose it says to be."""


@dataclass(frozen=True)
class JwtSvid:
    """A token that is proved. It is never shown."""

    spiffe_id: SpiffeId
    audience: tuple[str, ...]
    # Aware, in UTC.
    expire_time: datetime
    # Whole, as signed.
    claims: Mapping[str, Any] = field(repr=False)
    token: str = field(repr=False)

    @property
    def node_serial(self) -> int:
        """The serial number of the certificate that its node joined with, by which a banned node's tokens are denied.

        0 if it doesn't say.
        """
        said = self.claims.get("jti")
        found = _TOKEN_ID.fullmatch(said) if isinstance(said, str) else None
        return int(found[1], 16) if found is not None else 0


@dataclass(frozen=True)
class JwtTemplate:
    """What a token shall say. It comes from a registration; the audience alone is the caller's."""

    spiffe_id: SpiffeId
    audience: tuple[str, ...]
    ttl: timedelta = TTL
    # The `iss` claim: where OpenID Connect finds our keys; empty for none.
    issuer: str = ""
    # The `jti` claim, see `token_id`; empty for none.
    token_id: str = ""

    def __post_init__(self) -> None:
        check_audience(self.audience)
        if self.ttl % timedelta(seconds=1) or not timedelta(0) < self.ttl <= MAX_TTL:
            raise InvalidJwtSvid(f"{self.spiffe_id}: TTL {self.ttl}: give whole seconds, at most {MAX_TTL}")


def check_audience(audience: Sequence[str]) -> tuple[str, ...]:
    """Returns an audience if a token may have it.

    Raises:
        InvalidJwtSvid: it is empty, too long, or one of it isn't printable or there twice.
    """
    if not 0 < len(audience) <= MAX_AUDIENCES:
        raise InvalidJwtSvid(f"audience: {len(audience)} values; give 1 to {MAX_AUDIENCES}")
    for value in audience:
        if not 0 < len(value) <= MAX_AUDIENCE or not value.isprintable():
            raise InvalidJwtSvid(f"audience: {value[:64]!r}: give 1 to {MAX_AUDIENCE} printable characters")
    if len(set(audience)) != len(audience):
        raise InvalidJwtSvid("audience: a value is there twice")
    return tuple(audience)


def token_id(node_serial: str, unique: bytes) -> str:
    """Returns the `jti` of a token.

    Args:
        node_serial: the serial number, in hexadecimal, of the certificate that its node joined with; empty for no
            node's.
        unique: eight random bytes.
    """
    return f"{node_serial}.{unique.hex()}" if node_serial else unique.hex()


def sign_jwt_svid(template: JwtTemplate, key: ec.EllipticCurvePrivateKey, kid: str, now: datetime) -> JwtSvid:
    """Makes a token, and reads it again before it leaves.

    Args:
        template: what it says.
        key: who signs, P-256.
        kid: the key's name in the trust domain's bundle.
        now: the present, aware.

    Raises:
        InvalidJwtSvid: what was signed isn't sound.
    Source:
        JWT-SVID §2, §3; RFC 7515 §3.1.
    """
    issued = int(now.timestamp())
    claims: dict[str, Any] = {
        "sub": str(template.spiffe_id),
        "aud": list(template.audience),
        "exp": issued + int(template.ttl.total_seconds()),
        "iat": issued,
    }
    if template.issuer:
        claims["iss"] = template.issuer
    if template.token_id:
        claims["jti"] = template.token_id
    header = {"alg": "ES256", "kid": kid, "typ": "JWT"}
    content = f"{_part(header)}.{_part(claims)}"
    token = f"{content}.{jose.encode(jose.sign(key, content.encode()))}"
    trust_domain = template.spiffe_id.trust_domain
    bundle = JwtBundle(trust_domain, {kid: key.public_key()})
    svid = validate(token, template.audience[0], {trust_domain: bundle}, now)
    if svid.spiffe_id != template.spiffe_id or svid.audience != template.audience:
        raise InvalidJwtSvid(f"{template.spiffe_id}: what was signed isn't what was asked for")
    return svid


def validate(token: str, audience: str, bundles: Mapping[str, JwtBundle], now: datetime) -> JwtSvid:
    """Proves a token against the bundle of the trust domain that its subject names, and no other.

    Args:
        token: the text that was shown.
        audience: who is asking: the token must be for it.
        bundles: {trust domain: bundle}.
        now: the moment to prove it for, aware.

    Raises:
        InvalidJwtSvid: it isn't one, isn't for this audience, has ended, or wasn't signed by its trust domain.
    Source:
        JWT-SVID §2 to §4, appendix A; no leeway is given past its end.
    """
    header, claims, content, signature = _split(token)
    algorithm, kid = _check_header(header)
    spiffe_id = _subject(claims)
    found = _audience(claims)
    if audience not in found:  # where none is empty
        raise InvalidJwtSvid(f"{spiffe_id}: the token isn't for {audience[:64]!r}")
    expire_time = _window(spiffe_id, claims, now)
    bundle = bundles.get(spiffe_id.trust_domain)
    if bundle is None:
        raise InvalidJwtSvid(f"{spiffe_id}: trust domain {spiffe_id.trust_domain!r} isn't trusted here")
    key = bundle.keys.get(kid)
    if key is None or not jose.is_signed(algorithm, key, content, signature):
        raise InvalidJwtSvid(f"{spiffe_id}: not signed by a key of its trust domain")
    return JwtSvid(spiffe_id, found, expire_time, claims, token)


def _part(said: Mapping[str, Any]) -> str:
    return jose.encode(json.dumps(said, separators=(",", ":")).encode())


def _split(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    if len(token) > MAX_SIZE_BYTES:
        raise InvalidJwtSvid(f"token of more than {MAX_SIZE_BYTES} bytes")
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise InvalidJwtSvid("token: not a signed one in compact form")
    try:
        header, claims = (jose.read_object(jose.decode(part)) for part in parts[:2])
        signature = jose.decode(parts[2])
    except InvalidJose as error:
        raise InvalidJwtSvid(f"token: {error}") from None
    return header, claims, f"{parts[0]}.{parts[1]}".encode("ascii"), signature


def _check_header(header: Mapping[str, Any]) -> tuple[str, str]:
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in jose.ALGORITHMS:
        raise InvalidJwtSvid(f"token: alg {str(algorithm)[:16]!r} isn't one that a JWT-SVID may have")
    if "typ" in header and header["typ"] not in _TYPES:
        raise InvalidJwtSvid("token: typ is neither JWT nor JOSE")
    if not isinstance(kid, str) or not is_kid(kid):
        raise InvalidJwtSvid("token: it doesn't say by which key it is signed")
    if not header.keys() <= _HEADERS:
        raise InvalidJwtSvid("token: it has a header that no JWT-SVID has")
    return algorithm, kid


def _subject(claims: Mapping[str, Any]) -> SpiffeId:
    subject = claims.get("sub")
    if not isinstance(subject, str):
        raise InvalidJwtSvid("token: no sub")
    try:
        return SpiffeId.parse(subject)
    except InvalidSpiffeId as error:
        raise InvalidJwtSvid(f"token: sub: {error}") from None


def _audience(claims: Mapping[str, Any]) -> tuple[str, ...]:
    said = claims.get("aud")
    values: Iterable[Any] = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    found = tuple(values)
    if not found or not all(isinstance(value, str) and value for value in found):
        raise InvalidJwtSvid("token: no aud")
    return found


def _window(spiffe_id: SpiffeId, claims: Mapping[str, Any], now: datetime) -> datetime:
    present, end, begin = now.timestamp(), _seconds(claims, "exp"), _seconds(claims, "nbf")
    _seconds(claims, "iat")
    if end is None:
        raise InvalidJwtSvid(f"{spiffe_id}: the token never ends")
    if present >= end:
        raise InvalidJwtSvid(f"{spiffe_id}: the token has ended")
    if end - present > MAX_TTL.total_seconds():
        raise InvalidJwtSvid(f"{spiffe_id}: the token ends more than {MAX_TTL} from now")
    if begin is not None and present < begin:
        raise InvalidJwtSvid(f"{spiffe_id}: the token isn't valid yet")
    return datetime.fromtimestamp(end, UTC)


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    # `true` is an int to Python, and beyond this no float is exact.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise InvalidJwtSvid(f"token: {name} is no number of seconds")
    return float(value)
