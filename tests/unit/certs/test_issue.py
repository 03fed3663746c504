from datetime import timedelta
from typing import Any

import pytest
from certs_build import HOUR, NOW, rsa_key
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.issue import (
    IssueRefused,
    IssuerKey,
    LeafTemplate,
    control_plane_dns_name,
    is_reserved_dns_name,
    issue_leaf,
    self_signed_root,
    sign_intermediate,
    validity,
)
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import verify_chain

WEB = SpiffeId.workload("a.test", "acme", "web")
KEY = new_key()
ROOT_KEY = new_key()
ROOT = IssuerKey(ROOT_KEY, (self_signed_root("a.test", ROOT_KEY, NOW),))
ISSUING_KEY = new_key()
ISSUING = IssuerKey(ISSUING_KEY, sign_intermediate("a.test", ISSUING_KEY.public_key(), ROOT, NOW))


def issue(ttl: timedelta = HOUR, dns: tuple[str, ...] = (), issuer: IssuerKey = ISSUING, key: Any = KEY) -> Any:
    return issue_leaf(LeafTemplate(WEB, ttl, dns), key.public_key(), issuer, NOW)


def extension(certificate: x509.Certificate, kind: Any) -> Any:
    return certificate.extensions.get_extension_for_class(kind)


def test_a_leaf_without_a_dns_name_has_no_subject() -> None:
    """RFC 5280 §4.2.1.6: then its alternative name is critical."""
    for dns in ((), ("x" * 60 + ".test",)):  # X.520 has no room for the second
        leaf, _ = issue(dns=dns)
        assert extension(leaf, x509.SubjectAlternativeName).critical
        assert not leaf.subject.rdns


def test_a_leaf_to_the_letter() -> None:
    leaf, issuing = issue(dns=("web.example",))
    names = extension(leaf, x509.SubjectAlternativeName)
    assert not names.critical
    assert leaf.subject.rfc4514_string() == "CN=web.example"
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [str(WEB)]
    assert names.value.get_values_for_type(x509.DNSName) == ["web.example"]
    usage = extension(leaf, x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    purposes = extension(leaf, x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert extension(leaf, x509.BasicConstraints).value.ca is False
    above = extension(issuing, x509.SubjectKeyIdentifier).value.digest
    assert extension(leaf, x509.AuthorityKeyIdentifier).value.key_identifier == above
    assert extension(leaf, x509.SubjectKeyIdentifier)
    assert leaf.public_key() == KEY.public_key()
    assert leaf.version is x509.Version.v3


def test_authorities_to_the_letter() -> None:
    for certificate, length in ((ISSUING.certificate, 0), (ROOT.certificate, None)):
        constraints = extension(certificate, x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(True, length)
        usage = extension(certificate, x509.KeyUsage)
        assert usage.critical
        assert usage.value.key_cert_sign
        uris = extension(certificate, x509.SubjectAlternativeName).value.get_values_for_type(
            x509.UniformResourceIdentifier
        )
        assert uris == ["spiffe://a.test"]
    assert ISSUING.certificate.not_valid_after_utc - ISSUING.certificate.not_valid_before_utc == timedelta(days=7)


@given(st.integers(1, 86400), st.integers(0, 999_999))
def test_validity_is_the_ttl_exactly_and_covers_now(ttl_s: int, microsecond: int) -> None:
    ttl = timedelta(seconds=ttl_s)
    now = NOW.replace(microsecond=microsecond)
    start, end = validity(now, ttl)
    assert end - start == ttl
    assert start <= now
    assert now.replace(microsecond=0) < end
    if ttl >= timedelta(minutes=4):
        assert now.replace(microsecond=0) - start == timedelta(seconds=60)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa_key(2048)], ids=["P-384", "RSA"])
def test_other_keys(key: Any) -> None:
    assert issue(key=key)[0].public_key() == key.public_key()


def test_what_is_issued_verifies_against_the_root_alone() -> None:
    chain = [certificate.public_bytes(Encoding.DER) for certificate in issue()]
    assert len(chain) == 2
    peer = verify_chain(chain, {"a.test": Bundle.of("a.test", [ROOT.root])}, NOW)
    assert peer.spiffe_id == WEB
    assert peer.not_after - peer.leaf.not_valid_before_utc == HOUR


def test_a_root_may_sign_by_itself() -> None:
    assert len(issue(issuer=ROOT)) == 1


def test_never_beyond_the_issuer() -> None:
    short = IssuerKey(ISSUING_KEY, sign_intermediate("a.test", ISSUING_KEY.public_key(), ROOT, NOW, HOUR / 2))
    with pytest.raises(IssueRefused, match="outlive"):
        issue(issuer=short)
    assert issue(ttl=HOUR / 2, issuer=short)


def test_an_intermediate_ends_with_its_root() -> None:
    key = new_key()
    root = IssuerKey(key, (self_signed_root("a.test", key, NOW, timedelta(days=2)),))
    chain = sign_intermediate("a.test", KEY.public_key(), root, NOW)
    assert chain[0].not_valid_after_utc == root.not_after
    with pytest.raises(IssueRefused, match="root has ended"):
        sign_intermediate("a.test", KEY.public_key(), root, NOW + timedelta(days=3))


def test_an_issuer_that_is_none_is_found_out() -> None:
    stranger = IssuerKey(new_key(), ISSUING.chain)
    with pytest.raises(IssueRefused, match="doesn't verify"):
        issue(issuer=stranger)


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1), timedelta(days=2), timedelta(seconds=1.5)])
def test_ttl_out_of_range(ttl: timedelta) -> None:
    with pytest.raises(IssueRefused, match="TTL"):
        LeafTemplate(WEB, ttl)


@pytest.mark.parametrize(
    "name", ["", "*.example", "A.example", "a..b", "a\n", "a\0.b", "-a", "a_b", "x" * 64, "a." * 130]
)
def test_dns_names_are_checked(name: str) -> None:
    with pytest.raises(IssueRefused, match="DNS"):
        LeafTemplate(WEB, HOUR, (name,))


def test_the_control_planes_names_are_reserved() -> None:
    for name in (
        "a.test",
        control_plane_dns_name("a.test"),
        "Controlplane.a.test.",
        "x.controlplane.a.test",
        "localhost",
        "a.LocalHost.",
    ):
        assert is_reserved_dns_name(name, "a.test")
    for name in ("web.a.test", "controlplane.b.test", "xcontrolplane.a.test"):
        assert not is_reserved_dns_name(name, "a.test")


def test_keys_never_show() -> None:
    assert "key=" not in repr(ISSUING)
