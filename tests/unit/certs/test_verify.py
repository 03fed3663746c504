from datetime import timedelta

import pytest
from certs_build import HOUR, NOW, authority
from certs_fault import ACCEPTED, BUNDLES, FAULTS, GOOD, OTHER, ROOT, chain_of, leaf
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.verify import PeerRefused, PeerVerifier, VerifiedPeer, verify_chain


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
    assert caught.value.reason


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
    assert world.verifier.check(GOOD) is world.verifier.check(GOOD)
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


def test_remembers_a_bounded_number() -> None:
    world = World()
    for _ in range(20):
        world.verifier.check(leaf().chain)
    assert len(world.verifier._cache) == 8
