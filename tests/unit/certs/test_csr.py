from typing import Any

import pytest
from certs_build import rsa_key
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs.csr import InvalidCsr, check_key, make_csr, parse_csr, spki
from meshwarden.certs.svid import new_key

KEY = new_key()
GOOD = make_csr(KEY)


def csr(key: Any, hash_: Any = hashes.SHA256(), extension: Any = None, subject: str = "") -> bytes:  # noqa: B008
    # A description, since a common name has at most 64 characters.
    names = [x509.NameAttribute(x509.ObjectIdentifier("2.5.4.13"), subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    if extension is not None:
        builder = builder.add_extension(extension, False)
    return builder.sign(key, hash_).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "key", [KEY, ec.generate_private_key(ec.SECP384R1()), rsa_key(2048)], ids=lambda key: type(key)
)
def test_gives_the_key(key: Any) -> None:
    assert parse_csr(csr(key)) == key.public_key()


@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_each_strong_hash_is_taken(digest: Any) -> None:
    assert parse_csr(csr(KEY, digest)) == KEY.public_key()


def test_it_has_a_largest_size() -> None:
    for size, taken in ((8192, True), (8193, False)):
        padding = size - 300
        # A signature is a byte or two longer or shorter than another.
        while len(made := csr(KEY, subject="x" * padding)) != size:
            padding += size - len(made)
        if taken:
            assert parse_csr(made)
            continue
        with pytest.raises(InvalidCsr, match="at most 8192"):
            parse_csr(made)


@pytest.mark.parametrize(
    ("bits", "exponent", "taken"),
    [(2048, 65537, True), (4096, 65537, True), (2047, 65537, False), (4097, 65537, False), (2048, 3, False)],
)
def test_rsa_has_a_smallest_and_a_largest_size_and_one_exponent(bits: int, exponent: int, taken: bool) -> None:
    key = rsa.RSAPublicNumbers(exponent, (1 << (bits - 1)) | 1).public_key()  # nobody's
    assert check_key(key) is (key if taken else None)


def test_two_keys_are_the_same_by_their_info() -> None:
    assert load_der_public_key(spki(KEY.public_key())) == KEY.public_key()


def test_a_subject_is_ignored() -> None:
    assert parse_csr(csr(KEY, subject="controlplane.a.test")) == KEY.public_key()


FAULTS = {
    "empty": lambda: b"",
    "not DER": lambda: b"-----BEGIN CERTIFICATE REQUEST-----",
    "oversized": lambda: GOOD + b"\0" * 8192,
    "trailing bytes": lambda: GOOD + b"\0",
    "cut short": lambda: GOOD[:-1],
    "signature of nobody": lambda: GOOD[:-4] + bytes([GOOD[-4] ^ 1]) + GOOD[-3:],
    "another's key": lambda: GOOD.replace(point(KEY), point(new_key())),
    "P-224": lambda: csr(ec.generate_private_key(ec.SECP224R1())),
    "P-521": lambda: csr(ec.generate_private_key(ec.SECP521R1())),
    "secp256k1": lambda: csr(ec.generate_private_key(ec.SECP256K1())),
    "Ed25519": lambda: csr(ed25519.Ed25519PrivateKey.generate(), None),
    "RSA-1024": lambda: csr(rsa_key(1024)),
    "SHA-224": lambda: csr(KEY, hashes.SHA224()),
    "asks for a name": lambda: csr(
        KEY, extension=x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://a.test/operator/me")])
    ),
    "asks to be an authority": lambda: csr(KEY, extension=x509.BasicConstraints(True, None)),
}


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import PublicFormat

    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(fault: str) -> None:
    with pytest.raises(InvalidCsr):
        parse_csr(FAULTS[fault]())


@given(st.binary(max_size=300))
def test_noise_never_crashes(noise: bytes) -> None:
    with pytest.raises(InvalidCsr):
        parse_csr(noise)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_one_changed_byte_is_refused(place: int, change: int) -> None:
    changed = bytearray(GOOD)
    changed[place] ^= change
    with pytest.raises(InvalidCsr):
        parse_csr(bytes(changed))
