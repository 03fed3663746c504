"""The bytes of a leaf, put together from parts that are encoded already: what it costs is its signature. Pure.

They are what `x509.CertificateBuilder` makes of the same fields, byte for byte; a test holds the one against the other.

Source: RFC 5280 §4.1, X.690 (DER), RFC 5758 §3.2 and RFC 4055 §5 for the names of the signatures.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from meshwarden.certs.csr import PrivateKey

_SEQUENCE, _OCTETS, _BITS, _INTEGER = 0x30, 0x04, 0x03, 0x02
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_URI, _DNS = 0x86, 0x82
_V3 = bytes.fromhex("a003020102")
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_RSA_SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")
_ECDSA = ec.ECDSA(hashes.SHA256())
_SUBJECT_KEY = bytes.fromhex("0603551d0e")
_ALTERNATIVE_NAME = bytes.fromhex("0603551d11")
_CRITICAL = bytes.fromhex("0101ff")
# basicConstraints critical {}, keyUsage critical {digitalSignature}, extKeyUsage {serverAuth, clientAuth}
_FIXED = bytes.fromhex(
    "300c0603551d130101ff04023000"
    "300e0603551d0f0101ff040403020780"
    "301d0603551d250416301406082b0601050507030106082b06010505070302"
)
_AUTHORITY_KEY = bytes.fromhex("0603551d23")


def leaf_tbs(
    serial: int,
    issuer: bytes,
    authority_key: bytes,
    validity: tuple[datetime, datetime],
    subject: bytes,
    spki: bytes,
    uri: str,
    dns_names: Sequence[str],
    signature: bytes,
) -> bytes:
    """Returns what is signed of a leaf, its TBSCertificate in DER.

    Args:
        serial: its serial number, positive.
        issuer: the issuer's name, in DER.
        authority_key: the AuthorityKeyIdentifier, in DER.
        validity: from when until when, in whole seconds of UTC.
        subject: its own name, in DER; where that is empty the alternative name is critical (§4.2.1.6).
        spki: its SubjectPublicKeyInfo, in DER.
        uri: its SPIFFE ID.
        dns_names: the DNS names beside it.
        signature: the AlgorithmIdentifier of the signature, in DER.
    """
    names = _tlv(_URI, uri.encode("ascii")) + b"".join(_tlv(_DNS, name.encode("ascii")) for name in dns_names)
    no_subject = subject == b"\x30\x00"
    extensions = (
        _extension(_SUBJECT_KEY, _tlv(_OCTETS, key_digest(spki)))
        + _extension(_ALTERNATIVE_NAME + (_CRITICAL if no_subject else b""), _tlv(_SEQUENCE, names))
        + _FIXED
        + _extension(_AUTHORITY_KEY, authority_key)
    )
    fields = (
        _V3,
        _tlv(_INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1, "big")),
        signature,
        issuer,
        _tlv(_SEQUENCE, _time(validity[0]) + _time(validity[1])),
        subject,
        spki,
        _tlv(0xA3, _tlv(_SEQUENCE, extensions)),
    )
    return _tlv(_SEQUENCE, b"".join(fields))


def signature_algorithm(key: PrivateKey) -> bytes:
    """Returns the AlgorithmIdentifier of what `signed` makes with a key, in DER."""
    return _ECDSA_SHA256 if isinstance(key, ec.EllipticCurvePrivateKey) else _RSA_SHA256


def signed(tbs: bytes, key: PrivateKey) -> bytes:
    """Returns a certificate in DER: what is signed, and the signature, with SHA-256."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm, signature = _ECDSA_SHA256, key.sign(tbs, _ECDSA)
    else:
        algorithm, signature = _RSA_SHA256, key.sign(tbs, padding.PKCS1v15(), hashes.SHA256())
    return _tlv(_SEQUENCE, tbs + algorithm + _tlv(_BITS, b"\0" + signature))


def key_digest(spki: bytes) -> bytes:
    """Returns how certificates name a key: the SHA-1 of its bits, method 1 of RFC 5280 §4.2.1.2.

    Args:
        spki: a SubjectPublicKeyInfo in DER, as `cryptography` writes it.
    """
    inside, _ = _content(spki, 0)
    _, algorithm_end = _content(spki, inside)
    bits, end = _content(spki, algorithm_end)
    # The first byte of a bit string says how many of its last bits count for nothing.
    return hashlib.sha1(spki[bits + 1 : end], usedforsecurity=False).digest()


def _extension(head: bytes, value: bytes) -> bytes:
    return _tlv(_SEQUENCE, head + _tlv(_OCTETS, value))


@lru_cache(maxsize=64)  # those of a batch begin together, and mostly end so
def _time(time: datetime) -> bytes:
    """§4.1.2.5: until 2049 with two digits of the year."""
    time = time.astimezone(UTC)
    if time.year < 2050:
        return _tlv(_UTC_TIME, time.strftime("%y%m%d%H%M%SZ").encode())
    return _tlv(_GENERALIZED_TIME, time.strftime("%Y%m%d%H%M%SZ").encode())


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Returns where the content of the element at a place starts, and where it ends."""
    size, start = der[at + 1], at + 2
    if size >= 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[at + 2 : start], "big")
    return start, start + size
