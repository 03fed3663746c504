"""Revocation lists: what stands in them, for how long, and by whom they are signed."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from meshwarden.certs.crl import CRL_LIFE, sign_crl
from meshwarden.certs.issue import IssuerKey, self_signed_root, sign_intermediate
from meshwarden.certs.svid import new_key

NOW = datetime(2026, 11, 26, 12, 0, 0, 500_000, tzinfo=UTC)
START = NOW.replace(microsecond=0)
ROOT_KEY, KEY = new_key(), new_key()
ROOT = IssuerKey(ROOT_KEY, (self_signed_root("a.test", ROOT_KEY, NOW),))


def issuer(ttl: timedelta = timedelta(days=7)) -> IssuerKey:
    return IssuerKey(KEY, sign_intermediate("a.test", KEY.public_key(), ROOT, NOW, ttl))


def crl(revoked: dict[int, datetime], by: IssuerKey, number: int = 3) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(sign_crl(revoked, by, number, NOW))


def test_it_names_what_was_revoked_and_when() -> None:
    hour_ago = START - timedelta(hours=1) + timedelta(microseconds=3)
    found = crl({9: hour_ago, 7: START, 8: START - timedelta(days=1)}, issuer())
    assert [(each.serial_number, each.revocation_date_utc) for each in found] == [
        (7, START),
        (8, START - timedelta(days=1)),
        (9, START - timedelta(hours=1)),
    ]
    assert len(crl({}, issuer())) == 0


def test_it_is_signed_by_the_issuer_and_says_so() -> None:
    by = issuer()
    found = crl({7: START}, by)
    assert found.is_signature_valid(KEY.public_key())
    assert not found.is_signature_valid(ROOT_KEY.public_key())
    assert isinstance(found.signature_hash_algorithm, hashes.SHA256)
    assert found.issuer == by.certificate.subject
    identifier = found.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    ours = by.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert identifier.value.key_identifier == ours.digest
    assert not identifier.critical


def test_it_has_its_number() -> None:
    number = crl({}, issuer(), 41).extensions.get_extension_for_class(x509.CRLNumber)
    assert (number.value.crl_number, number.critical) == (41, False)


def test_it_lasts_ten_minutes_and_no_longer_than_who_signed_it() -> None:
    found = crl({}, issuer())
    assert timedelta(minutes=10) == CRL_LIFE
    assert found.last_update_utc == START - timedelta(minutes=1)
    assert found.next_update_utc == START + timedelta(minutes=10)
    short = issuer(timedelta(minutes=5))
    assert crl({}, short).next_update_utc == short.not_after < START + timedelta(minutes=10)
