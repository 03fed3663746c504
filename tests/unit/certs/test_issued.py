from datetime import timedelta

import pytest
from certs_build import HOUR, NOW, Made, authority
from certs_fault import FAULTS, ISSUING, OTHER, ROOT, chain_of, leaf, named, uri
from cryptography import x509

from meshwarden.certs.issued import IssuedVerifier
from meshwarden.certs.verify import PeerRefused, VerifiedPeer

# What is signed is read whatever it is; the library only warns.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")
# Without what is above it its leaf is as good as any.
OF_LEAVES = [fault for fault in FAULTS if fault != "missing intermediate"]


def verifier(issuer: Made, *above: Made) -> IssuedVerifier:
    return IssuedVerifier([made.certificate for made in (issuer, *(above or issuer.above))])


def check(held: IssuedVerifier, made: Made, at: timedelta = timedelta(0)) -> VerifiedPeer:
    return held.verify(made.der, "a.test", NOW + at)


@pytest.fixture(scope="module")
def known() -> IssuedVerifier:
    """Of an issuer of which the root was seen."""
    held = verifier(ISSUING)
    check(held, leaf())
    return held


def test_each_good_leaf_is_taken(known: IssuedVerifier) -> None:
    for made in (leaf(), leaf(), named(uri("spiffe://a.test/x"), x509.DNSName("web.example"))):
        assert check(known, made).leaf == made.certificate
    assert check(verifier(ROOT), leaf(ROOT))
    two = authority("issuing", path_length=0)(authority("above")(ROOT))
    held = verifier(two)
    for _ in range(2):
        assert check(held, leaf(two))


@pytest.mark.parametrize("fault", OF_LEAVES)
def test_each_fault_is_found_where_the_root_was_seen(fault: str, known: IssuedVerifier) -> None:
    der = (chain_of(FAULTS[fault]()) or [b""])[0]
    with pytest.raises(PeerRefused):
        known.verify(der, "a.test", NOW)


def test_an_issuer_that_does_not_lead_to_its_root_signs_for_nobody() -> None:
    held = verifier(ISSUING, OTHER)
    for _ in range(2):
        with pytest.raises(PeerRefused, match="no valid path"):
            check(held, leaf())


def test_a_leaf_of_another_trust_domain_is_none(known: IssuedVerifier) -> None:
    with pytest.raises(PeerRefused, match="isn't trusted here"):
        known.verify(leaf().der, "b.test", NOW)


@pytest.mark.parametrize("begins", [timedelta(0), timedelta(hours=2)], ids=["has ended", "has not begun"])
def test_no_longer_than_all_of_its_chain_is_valid(begins: timedelta) -> None:
    """The root's own end as well, though the issuer lasts."""
    root = authority("short", start=NOW + begins, end=NOW + begins + HOUR)()
    issuing = authority("issuing", start=NOW - 3 * HOUR, end=NOW + 9 * HOUR)(root)
    made = leaf(issuing, start=NOW - 3 * HOUR, end=NOW + 9 * HOUR)
    held = verifier(issuing)
    assert check(held, made, begins)
    assert check(held, made, begins + HOUR)
    second = timedelta(seconds=1)
    for moment in (begins - second, begins + HOUR + second):
        with pytest.raises(PeerRefused, match="no valid path"):
            check(held, made, moment)
    assert check(held, made, begins)


def test_names_that_an_authority_above_constrains() -> None:
    """They are about the leaf, so that the first one proves nothing of the others."""
    allowed = x509.NameConstraints([x509.DNSName("a.example")], None)
    root = authority("constrained", extra=((allowed, True),))()
    for issuing in (authority("issuing")(root), authority("issuing")(authority("between")(root))):
        held = verifier(issuing)
        assert check(held, named(uri("spiffe://a.test/x"), x509.DNSName("web.a.example"), issuer=issuing))
        with pytest.raises(PeerRefused, match="no valid path"):
            check(held, named(uri("spiffe://a.test/x"), x509.DNSName("web.b.example"), issuer=issuing))
