"""Certificates that machines have already, and the possession of their keys: what is taken, and how little it costs."""

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshwarden.certs import possession
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.possession import NotPossessed, parse_chain, prove, verify_issued, verify_possession

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
YEAR = timedelta(days=365)
SIGNING = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
ISSUING = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
HUGE = rsa.RSAPublicNumbers(65537, (1 << 16383) | 1).public_key()  # nobody's: making one of 16384 bits takes a minute


def certify(
    name: str,
    key: Any,
    issuer: tuple[x509.Certificate, Any] | None,
    *,
    ca: bool = False,
    usage: x509.KeyUsage | None = None,
    has_usage: bool = True,
    purposes: Sequence[x509.ObjectIdentifier] = (),
    dns: Sequence[str] = (),
    begin: datetime = NOW - YEAR,
    end: datetime = NOW + YEAR,
    digest: hashes.HashAlgorithm | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    public = key if isinstance(key, rsa.RSAPublicKey) else key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, None), True)
    )
    if has_usage:
        builder = builder.add_extension(usage or (ISSUING if ca else SIGNING), True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
    if dns:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(item) for item in dns]), False)
    signer = issuer[1] if issuer else key
    return builder.sign(signer, digest or (None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()))


CA_KEY = ec.generate_private_key(ec.SECP256R1())
CA = certify("machines", CA_KEY, None, ca=True)
KEY = ec.generate_private_key(ec.SECP256R1())
LEAF = certify("node-a", KEY, (CA, CA_KEY))


def ders(*certificates: x509.Certificate) -> list[bytes]:
    return [certificate.public_bytes(Encoding.DER) for certificate in certificates]


def issued(leaf: x509.Certificate, *rest: x509.Certificate, now: datetime = NOW) -> None:
    verify_issued(parse_chain(ders(leaf, *rest)), [CA], now)


@pytest.mark.parametrize(
    "key",
    [KEY, ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)],
    ids=["P-256", "P-384", "RSA"],
)
def test_a_key_proves_itself_for_one_challenge_and_one_request(key: Any) -> None:
    leaf = certify("node-a", key, (CA, CA_KEY))
    signature = prove(key, b"challenge", b"csr")
    verify_possession(leaf, b"challenge", b"csr", signature)
    other = certify("node-a", ec.generate_private_key(ec.SECP256R1()), (CA, CA_KEY))
    for subject, challenge, csr, shown in (
        (leaf, b"challenge!", b"csr", signature),
        (leaf, b"challenge", b"csr!", signature),
        (leaf, b"csr", b"challenge", signature),
        (leaf, b"challengec", b"sr", signature),
        (other, b"challenge", b"csr", signature),
        (leaf, b"challenge", b"csr", b""),
        (leaf, b"challenge", b"csr", signature[:-1]),
        (leaf, b"challenge", b"csr", bytes(513)),
    ):
        with pytest.raises(NotPossessed, match="isn't signed with"):
            verify_possession(subject, challenge, csr, shown)


@pytest.mark.parametrize(
    ("curve", "digest"), [(ec.SECP256R1(), hashes.SHA256()), (ec.SECP384R1(), hashes.SHA384())], ids=["P-256", "P-384"]
)
def test_what_is_signed_is_what_the_schema_describes(curve: ec.EllipticCurve, digest: Any) -> None:
    key = ec.generate_private_key(curve)
    said = b"meshwarden attestation by possession, version 1\0"
    said += hashlib.sha256(b"challenge").digest() + hashlib.sha256(b"csr").digest()
    key.public_key().verify(prove(key, b"challenge", b"csr"), said, ec.ECDSA(digest))
    leaf = certify("node-a", key, (CA, CA_KEY))
    verify_possession(leaf, b"challenge", b"csr", key.sign(said, ec.ECDSA(digest)))


def test_a_key_of_another_kind_proves_nothing() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(NotPossessed, match="isn't signed with"):
        verify_possession(certify("node-a", key, (CA, CA_KEY)), b"challenge", b"csr", key.sign(b"x"))


def test_a_chain_has_a_longest_and_a_certificate_a_largest_size() -> None:
    assert len(parse_chain(ders(LEAF) * 4)) == 4
    with pytest.raises(NotPossessed, match="not X"):
        parse_chain([bytes(8192)])
    with pytest.raises(NotPossessed, match="more than 8192"):
        parse_chain([*ders(LEAF), bytes(8193)])


@pytest.mark.parametrize("digest", [hashes.SHA384(), hashes.SHA512()])
def test_each_strong_hash_is_taken(digest: hashes.HashAlgorithm) -> None:
    issued(certify("node-a", KEY, (CA, CA_KEY), digest=digest))


def test_an_issuer_may_sign_certificates_or_not_say_what_for_its_key_is() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    silent = certify("between", key, (CA, CA_KEY), ca=True, has_usage=False)
    issued(certify("node-a", KEY, (silent, key)), silent)
    other = certify("between", key, (CA, CA_KEY), ca=True, usage=SIGNING)
    with pytest.raises(NotPossessed, match="no valid path"):
        issued(certify("node-a", KEY, (other, key)), other)


@pytest.mark.parametrize("kind", [x509.ExtensionNotFound, *UNREADABLE])
def test_whatever_the_library_raises_for_a_chain_is_a_refusal(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No chain is known for which it raises these; one that it can't read must not become a defect of ours."""

    class Library:
        def __getattr__(self, name: str) -> Callable[..., "Library"]:
            return lambda *_, **__: self

        def verify(self, *_: object) -> None:
            raise kind.__new__(kind, "x")

    monkeypatch.setattr(possession, "PolicyBuilder", Library)
    with pytest.raises(NotPossessed, match="malformed"):
        issued(LEAF)


def test_a_chain_over_intermediates_leads_to_the_authority() -> None:
    issuer, between = (CA, CA_KEY), []
    for number in range(2):
        key = ec.generate_private_key(ec.SECP256R1())
        between.insert(0, certify(f"between {number}", key, issuer, ca=True))
        issuer = (between[0], key)
    issued(certify("node-a", KEY, issuer), *between)
    with pytest.raises(NotPossessed, match="no valid path"):
        issued(certify("node-a", KEY, issuer), between[1])


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (certify("node-a", KEY, None), "no valid path"),
        (certify("node-a", KEY, (certify("machines", KEY, None, ca=True), KEY)), "no valid path"),
        (certify("node-a", KEY, (CA, CA_KEY), ca=True), "authority's"),
        (CA, "authority's"),
        (certify("node-a", KEY, (CA, CA_KEY), usage=ISSUING), "digitalSignature"),
        (certify("node-a", KEY, (CA, CA_KEY), has_usage=False), "has no key usage"),
        (certify("node-a", KEY, (CA, CA_KEY), purposes=[ExtendedKeyUsageOID.SERVER_AUTH]), "clientAuth"),
        (certify("node-a", KEY, (CA, CA_KEY), end=NOW - timedelta(seconds=1)), "no valid path"),
        (certify("node-a", KEY, (CA, CA_KEY), begin=NOW + timedelta(seconds=1)), "no valid path"),
        (certify("node-a", KEY, (LEAF, KEY)), "no valid path"),
    ],
    ids=[
        "self-signed", "of an authority of that name", "an authority", "the authority itself", "no signing",
        "no usage", "a server's", "ended", "not begun", "issued by a machine",
    ],
)  # fmt: skip
def test_other_certificates_are_no_machines(leaf: x509.Certificate, reason: str) -> None:
    with pytest.raises(NotPossessed, match=reason):
        issued(leaf, LEAF)


def test_one_for_clients_and_servers_is_taken() -> None:
    issued(certify("a", KEY, (CA, CA_KEY), purposes=[ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]))


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        ([], "chain of 0"),
        (ders(LEAF) * 5, "chain of 5"),
        ([bytes(8193)], "more than 8192 bytes"),
        ([b""], "not X.509"),
        ([b"noise"], "not X.509"),
        ([ders(LEAF)[0] + b"\0"], "not X.509"),
        (ders(certify("node-a", HUGE, (CA, CA_KEY))), "every key must be"),
        (ders(LEAF, certify("between", HUGE, (CA, CA_KEY), ca=True)), "every key must be"),
        (ders(certify("node-a", ed25519.Ed25519PrivateKey.generate(), (CA, CA_KEY))), "every key must be"),
        (ders(certify("a", KEY, (CA, CA_KEY), dns=[f"n{number}.example" for number in range(1000)])), "more than 8192"),
    ],
    ids=[
        "none",
        "deep",
        "large",
        "empty",
        "noise",
        "more behind",
        "RSA-16384",
        "RSA-16384 issuer",
        "Ed25519",
        "many SANs",
    ],
)
def test_what_would_cost_much_is_refused_before_anything_is_computed(chain: list[bytes], reason: str) -> None:
    """SPIRE 1.14.2: x509pop could be made to burn a processor by the key that a stranger's certificate names."""
    with pytest.raises(NotPossessed, match=reason):
        parse_chain(chain)
