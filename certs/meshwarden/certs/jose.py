"""JSON Web Signatures and keys, as far as JWT-SVIDs want them. Strict: one text has one meaning, or none.

Errors: `InvalidJose`, whose message names what is wrong and shows nothing of a token.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from meshwarden.certs.csr import PublicKey
from meshwarden.certs.error import UNREADABLE, CertsError

RSA_BITS: Final = range(2048, 8192 + 1)
_MAX_EXPONENT: Final = 1 << 32
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
# {alg: (its curve, the bytes of each half of a signature)}
_CURVE_OF: Final[Mapping[str, tuple[ec.EllipticCurve, int]]] = {
    "ES256": (ec.SECP256R1(), 32),
    "ES384": (ec.SECP384R1(), 48),
    "ES512": (ec.SECP521R1(), 66),
}
_CURVES: Final[Mapping[str, tuple[ec.EllipticCurve, int]]] = {
    "P-256": (ec.SECP256R1(), 32),
    "P-384": (ec.SECP384R1(), 48),
    "P-521": (ec.SECP521R1(), 66),
}
ALGORITHMS: Final = frozenset(f"{kind}{bits}" for kind in ("RS", "ES", "PS") for bits in ("256", "384", "512"))
"""What a JWT-SVID may be signed by. Source: JWT-SVID §2.1."""


class InvalidJose(CertsError):
    """A text is no JSON object, key or signature that we take."""


def encode(data: bytes) -> str:
    """Returns bytes in base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Reads base64url.

    Raises:
        InvalidJose: it has padding, another alphabet, or bits that count for nothing and aren't zero.
    Source:
        RFC 7515 §2, RFC 4648 §3.5.
    """
    if _BASE64URL.fullmatch(text) is None or len(text) % 4 == 1:
        raise InvalidJose("not base64url without padding")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode(data) != text:  # else one token could be written in several ways
        raise InvalidJose("base64url whose last bits aren't zero")
    return data


def read_object(data: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InvalidJose: it is no JSON in UTF-8, no object, too deep, has a name twice, or a number that is none.
    """
    try:
        found = json.loads(
            data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite
        )
    except (ValueError, RecursionError):
        raise InvalidJose("not one JSON object with each name once") from None
    if not isinstance(found, dict):
        raise InvalidJose("not a JSON object")
    return found


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("no number")
    return number


def _no_number(_: str) -> NoReturn:
    raise ValueError("no number")


# -- keys


def jwk(key: PublicKey) -> dict[str, str]:
    """Returns a public key as a JWK, without `use` and `kid`.

    Source: RFC 7518 §6.2, §6.3.
    """
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return {"kty": "RSA", "n": _unsigned(numbers.n), "e": _unsigned(numbers.e)}
    name, size = next((name, size) for name, (curve, size) in _CURVES.items() if curve.name == key.curve.name)
    point = key.public_numbers()
    return {
        "kty": "EC",
        "crv": name,
        "x": encode(point.x.to_bytes(size, "big")),
        "y": encode(point.y.to_bytes(size, "big")),
    }


def parse_jwk(said: Mapping[str, Any]) -> PublicKey | None:
    """Reads a public key; None if it is of a kind that we don't take, which isn't its publisher's fault.

    Raises:
        InvalidJose: it is of a kind that we take, and broken.
    """
    kind = said.get("kty")
    if kind == "RSA":
        modulus, exponent = _number(said, "n"), _number(said, "e")
        if modulus.bit_length() not in RSA_BITS or not exponent % 2 or not 3 <= exponent < _MAX_EXPONENT:
            raise InvalidJose(f"RSA key: give one of {RSA_BITS.start} to {RSA_BITS.stop - 1} bits")
        try:
            return rsa.RSAPublicNumbers(exponent, modulus).public_key()
        except UNREADABLE:
            raise InvalidJose("RSA key: no such key") from None
    curve = _CURVES.get(crv) if kind == "EC" and isinstance(crv := said.get("crv"), str) else None
    if curve is None:
        return None
    x, y = _bytes(said, "x"), _bytes(said, "y")
    if len(x) != curve[1] or len(y) != curve[1]:
        raise InvalidJose("EC key: coordinates of the wrong length")
    try:
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve[0]).public_key()
    except UNREADABLE:
        raise InvalidJose("EC key: not a point of its curve") from None


def thumbprint(key: PublicKey) -> str:
    """Returns a key's own name.

    Source: RFC 7638 §3.
    """
    return encode(hashlib.sha256(json.dumps(jwk(key), separators=(",", ":"), sort_keys=True).encode()).digest())


def _unsigned(number: int) -> str:
    return encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _bytes(said: Mapping[str, Any], name: str) -> bytes:
    text = said.get(name)
    if not isinstance(text, str) or not 0 < len(text) <= 2048:
        raise InvalidJose(f"key: {name!r} is missing, no text, or too long")
    return decode(text)


def _number(said: Mapping[str, Any], name: str) -> int:
    data = _bytes(said, name)
    if data[0] == 0:
        raise InvalidJose(f"key: {name!r} begins with zeros")
    return int.from_bytes(data, "big")


# -- signatures


def sign(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    """Returns the ES256 signature of bytes.

    Source: RFC 7518 §3.4.
    """
    r, s = decode_dss_signature(key.sign(content, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def is_signed(algorithm: str, key: PublicKey, content: bytes, signature: bytes) -> bool:
    """Says whether a signature is good. A key that isn't of the algorithm's kind signs nothing.

    Args:
        algorithm: one of `ALGORITHMS`.
        key: whose signature it should be.
        content: what is signed.
        signature: as JWS has it.
    """
    try:
        if isinstance(key, rsa.RSAPublicKey):
            return _is_signed_by_rsa(algorithm, key, content, signature)
        curve, size = _CURVE_OF.get(algorithm, (None, 0))
        if curve is None or key.curve.name != curve.name or len(signature) != 2 * size:
            return False
        r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
        key.verify(encode_dss_signature(r, s), content, ec.ECDSA(_HASHES[algorithm[2:]]))
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _is_signed_by_rsa(algorithm: str, key: rsa.RSAPublicKey, content: bytes, signature: bytes) -> bool:
    digest = _HASHES[algorithm[2:]]
    if algorithm.startswith("PS"):
        # RFC 7518 §3.5: the salt is as long as the hash.
        key.verify(signature, content, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    elif algorithm.startswith("RS"):
        key.verify(signature, content, padding.PKCS1v15(), digest)
    else:
        return False
    return True
