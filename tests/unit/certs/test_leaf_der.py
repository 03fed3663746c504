"""The bytes that we put together are those that `x509.CertificateBuilder` makes."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from certs_build import HOUR, NOW, rsa_key
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs.csr import spki
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issuer_identifier, key_usage, leaf_name, self_signed_root
from meshwarden.certs.leaf_der import key_digest, leaf_tbs, signature_algorithm, signed
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key

KEYS = [new_key(), ec.generate_private_key(ec.SECP384R1()), rsa_key(2048), rsa_key(3072)]
ISSUERS = [IssuerKey(key, (self_signed_root("a.test", key, NOW),)) for key in KEYS[:3]]
LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
TEMPLATES = st.builds(
    LeafTemplate,
    st.builds(SpiffeId.workload, NAMES, LABELS, LABELS),
    st.integers(1, 86400).map(lambda ttl_s: timedelta(seconds=ttl_s)),
    st.lists(NAMES, max_size=8, unique=True).map(tuple),
)
# Around the year from which times have four digits, too.
TIMES = st.datetimes(datetime(1951, 1, 1), datetime(2100, 1, 1)).map(lambda time: time.replace(microsecond=0))
SERIALS = st.integers(1, 2**159 - 1)


def built(template: LeafTemplate, key: Any, issuer: IssuerKey, start: datetime, serial: int) -> x509.Certificate:
    names = [x509.UniformResourceIdentifier(str(template.spiffe_id)), *map(x509.DNSName, template.dns_names)]
    subject = leaf_name(template)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(start + template.ttl)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=not subject.rdns)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(issuer_identifier(issuer.certificate), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


def ours(template: LeafTemplate, key: Any, issuer: IssuerKey, start: datetime, serial: int) -> bytes:
    return leaf_tbs(
        serial=serial,
        issuer=issuer.name,
        authority_key=issuer.identifier,
        validity=(start, start + template.ttl),
        subject=leaf_name(template).public_bytes(),
        spki=spki(key),
        uri=str(template.spiffe_id),
        dns_names=template.dns_names,
        signature=signature_algorithm(issuer.key),
    )


@given(TEMPLATES, st.sampled_from(KEYS), st.sampled_from(ISSUERS), TIMES, SERIALS)
def test_what_is_signed_is_what_the_library_builds(
    template: LeafTemplate, key: Any, issuer: IssuerKey, start: datetime, serial: int
) -> None:
    start = start.replace(tzinfo=UTC)
    asked = template, key.public_key(), issuer, start, serial
    tbs = ours(*asked)
    assert tbs == built(*asked).tbs_certificate_bytes
    leaf = x509.load_der_x509_certificate(signed(tbs, issuer.key))
    assert leaf.tbs_certificate_bytes == tbs
    leaf.verify_directly_issued_by(issuer.certificate)


@pytest.mark.parametrize("name_size", [98, 99, 100, 101, 110, 225, 226, 227, 250])
def test_lengths_around_where_their_encoding_grows(name_size: int) -> None:
    label = "a" * 60
    name = ".".join([label] * 5)[:name_size].rstrip(".")
    template = LeafTemplate(SpiffeId.workload("a.test", "t", "s"), HOUR, (name,))
    asked = template, KEYS[0].public_key(), ISSUERS[0], NOW, 1
    assert ours(*asked) == built(*asked).tbs_certificate_bytes


def test_times_of_another_zone_are_the_same_moments() -> None:
    template = LeafTemplate(SpiffeId.workload("a.test", "t", "s"), HOUR)
    key, elsewhere = KEYS[0].public_key(), NOW.astimezone(timezone(timedelta(hours=5)))
    assert ours(template, key, ISSUERS[0], elsewhere, 1) == ours(template, key, ISSUERS[0], NOW, 1)


@pytest.mark.parametrize("key", KEYS, ids=["P-256", "P-384", "RSA-2048", "RSA-3072"])
def test_a_key_is_named_as_the_library_names_it(key: Any) -> None:
    public_key = key.public_key()
    assert key_digest(spki(public_key)) == x509.SubjectKeyIdentifier.from_public_key(public_key).digest
