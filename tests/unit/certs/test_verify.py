from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import timedelta

import pytest
from certs_build import HOUR, NOW, WEB, authority, numbered
from certs_fault import ACCEPTED, BUNDLES, FAULTS, GOOD, OTHER, ROOT, UNNEEDED, chain_of, deep, leaf
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs import verify
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import PeerRefused, PeerVerifier, VerifiedPeer, verify_chain

# What a peer shows is read whatever it is; the library only warns.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")


def check(chain: list[bytes]) -> VerifiedPeer:
    return verify_chain(chain, BUNDLES, NOW)


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    assert check(chain_of(ACCEPTED[case]())).spiffe_id.trust_domain in BUNDLES


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(fault: str) -> None:
    chain = chain_of(FAULTS[fault]())
    with pytest.raises(PeerRefused) as caught:
        check(chain)
    assert str(caught.value)


def test_a_minute_of_skew_is_absorbed_and_more_is_refused_and_said_so() -> None:
    key = new_key()
    issuer = IssuerKey(key, (self_signed_root("a.test", key, NOW - timedelta(days=1)),))
    template = LeafTemplate(SpiffeId.parse(WEB), timedelta(hours=1))
    (issued, *_) = issue_leaf(template, new_key().public_key(), issuer, NOW)
    chain, bundles = [issued.public_bytes(Encoding.DER)], {"a.test": Bundle.of("a.test", [issuer.root])}
    behind = timedelta(minutes=1)
    assert verify_chain(chain, bundles, NOW - behind)
    with pytest.raises(PeerRefused, match=r"isn't valid yet .*a clock is off by more than what issuing allows for"):
        verify_chain(chain, bundles, NOW - behind - timedelta(seconds=1))
    # Nothing is taken past its end: there is no leeway there.
    assert verify_chain(chain, bundles, issued.not_valid_after_utc)
    with pytest.raises(PeerRefused, match="has expired"):
        verify_chain(chain, bundles, issued.not_valid_after_utc + timedelta(seconds=1))


def padded(size: int) -> list[bytes]:
    """A good chain whose leaf has exactly that size."""
    padding = size - 600
    while len((made := leaf(extra=((unknown(padding), False),))).der) != size:
        padding += size - len(made.der)  # a signature is a byte or two longer or shorter than another
    return made.chain


def unknown(size: int) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x" * size)


def test_a_certificate_has_a_largest_size() -> None:
    assert check(padded(16 * 1024))
    for size in (16 * 1024 + 1, 17 * 1024):
        with pytest.raises(PeerRefused, match="more than 16384 bytes"):
            check(padded(size))


def test_a_chain_has_a_longest() -> None:
    unneeded = [UNNEEDED.der] * 6
    assert check([*GOOD, *unneeded])
    with pytest.raises(PeerRefused, match="9 certificates: at most 8"):
        check([*GOOD, *unneeded, UNNEEDED.der])


def test_a_path_has_a_longest() -> None:
    assert check(leaf(deep(4)).chain)
    with pytest.raises(PeerRefused, match="no valid path"):
        check(leaf(deep(5)).chain)


@pytest.mark.parametrize("number", [b"\0", b"\xff"])
def test_a_serial_number_is_positive(number: bytes) -> None:
    with pytest.raises(PeerRefused, match="serial number isn't positive"):
        check(numbered(leaf(), number).chain)
    assert check(numbered(leaf(), b"\x01").chain).serial == "1"


@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_each_strong_hash_is_taken(digest: hashes.HashAlgorithm) -> None:
    assert check(leaf(hash=digest).chain)
    assert check(leaf(authority("x", hash=digest)(ROOT)).chain)


def test_an_authority_need_not_say_what_its_key_is_for() -> None:
    assert check(leaf(authority("x", usage=None)(ROOT)).chain)


def test_who_was_proved_stays_so() -> None:
    made = leaf()
    peer = check(made.chain)
    assert peer.serial == f"{made.certificate.serial_number:x}"
    with pytest.raises(FrozenInstanceError):
        peer.spiffe_id = peer.spiffe_id  # type: ignore[misc]


def test_bundles_are_never_pooled() -> None:
    pooled = leaf(OTHER).chain
    with pytest.raises(PeerRefused, match="no valid path"):
        check(pooled)


def test_the_bounds_of_its_time_are_in_it() -> None:
    chain = leaf(start=NOW, end=NOW + HOUR).chain
    for moment in (NOW, NOW + HOUR):
        verify_chain(chain, BUNDLES, moment)
    for moment in (NOW - timedelta(seconds=1), NOW + HOUR + timedelta(seconds=1)):
        with pytest.raises(PeerRefused):
            verify_chain(chain, BUNDLES, moment)


def test_begins_with_the_last_of_its_chain() -> None:
    issuing = authority("late", start=NOW - timedelta(seconds=10))(ROOT)
    assert check(leaf(issuing).chain).not_before == NOW - timedelta(seconds=10)
    assert check(leaf(start=NOW).chain).not_before == NOW


def test_ends_with_the_first_of_its_chain() -> None:
    issuing = authority("short", end=NOW + timedelta(minutes=5))(ROOT)
    assert check(leaf(issuing).chain).not_after == NOW + timedelta(minutes=5)
    assert check(leaf().chain).not_after == NOW + HOUR


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_noise_never_crashes(chain: list[bytes]) -> None:
    with pytest.raises(PeerRefused):
        check(chain)


@pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")
@given(st.integers(0, len(GOOD[0]) - 1), st.integers(1, 255))
def test_one_changed_byte_is_refused(place: int, change: int) -> None:
    changed = bytearray(GOOD[0])
    changed[place] ^= change
    with pytest.raises(PeerRefused):
        check([bytes(changed), *GOOD[1:]])


def test_a_certificate_is_written_in_one_way() -> None:
    while (other := bytearray(leaf().chain[0]))[-1] & 1:  # the last bit of its signature
        pass
    size = len(x509.load_der_x509_certificate(bytes(other)).signature)
    assert check([bytes(other), *GOOD[1:]])
    other[-size - 1] = 1  # that bit counts for nothing
    with pytest.raises(PeerRefused, match="whole bytes"):
        check([bytes(other), *GOOD[1:]])


class World:
    """What a verifier looks at."""

    def __init__(self) -> None:
        self.now = NOW
        self.bundles = dict(BUNDLES)
        self.banned: dict[SpiffeId, str] = {}
        self.verifier = PeerVerifier(
            lambda: self.bundles, lambda: self.now, lambda peer: self.banned.get(peer.spiffe_id), capacity=8
        )


def test_a_known_leaf_is_checked_again_at_each_call() -> None:
    world = World()
    known = world.verifier.check(GOOD)
    for moment in (NOW, known.not_before, known.not_after):
        world.now = moment
        assert world.verifier.check(GOOD) is known
    world.now = NOW + HOUR + timedelta(seconds=1)
    with pytest.raises(PeerRefused, match="expired"):
        world.verifier.check(GOOD)
    world.now = NOW - timedelta(days=1)
    with pytest.raises(PeerRefused, match="yet"):
        world.verifier.check(GOOD)


def test_a_known_leaf_ends_with_its_intermediate() -> None:
    world = World()
    short = leaf(authority("short", end=NOW + timedelta(minutes=5))(ROOT)).chain
    world.verifier.check(short)
    world.now = NOW + timedelta(minutes=6)
    with pytest.raises(PeerRefused, match="no valid path"):
        world.verifier.check(short)


def test_a_removed_root_is_felt_at_the_next_call() -> None:
    world = World()
    world.verifier.check(GOOD)
    world.bundles["a.test"] = Bundle.of("a.test", [OTHER.certificate], 2)
    with pytest.raises(PeerRefused):
        world.verifier.check(GOOD)
    del world.bundles["a.test"]
    with pytest.raises(PeerRefused, match="isn't trusted"):
        world.verifier.check(GOOD)


def test_a_ban_is_felt_at_the_next_call_and_lifted() -> None:
    world = World()
    peer = world.verifier.check(GOOD)
    world.banned[peer.spiffe_id] = "banned by ann"
    with pytest.raises(PeerRefused, match="banned by ann"):
        world.verifier.check(GOOD)
    world.banned.clear()
    assert world.verifier.check(GOOD) == peer


def test_without_a_hook_nobody_is_denied() -> None:
    verifier = PeerVerifier(lambda: BUNDLES, lambda: NOW)
    with pytest.raises(PeerRefused, match="no certificate"):
        verifier.check([])
    assert verifier.check(GOOD) is verifier.check(GOOD)


def test_who_is_refused_is_not_remembered() -> None:
    world = World()
    world.verifier.check(GOOD)
    world.now = NOW + 2 * HOUR
    with pytest.raises(PeerRefused):
        world.verifier.check(GOOD)
    assert not world.verifier._cache


def test_remembers_a_bounded_number() -> None:
    world = World()
    for _ in range(20):
        world.verifier.check(leaf().chain)
    assert len(world.verifier._cache) == 8
    last = [leaf().chain for _ in range(8)]
    for chain in last:
        world.verifier.check(chain)
    assert list(world.verifier._cache) == [chain[0] for chain in last]


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

    monkeypatch.setattr(verify, "PolicyBuilder", Library)
    with pytest.raises(PeerRefused, match="malformed"):
        check(GOOD)
