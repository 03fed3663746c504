"""What the names of a PKI engine's issuers say of roots: whatever they are, and wherever a change was cut off."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs.authority.port import AuthorityError
from meshwarden.certs.authority.slot import MAX_ROOTS, SlotState
from meshwarden.certs.authority.vault_slots import NEXT, PREPARED, Issuer, Kept, name_of, read_issuer, read_slots
from meshwarden.certs.issue import self_signed_root
from meshwarden.certs.svid import new_key

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def _root(number: int) -> Issuer:
    certificate = self_signed_root("a.test", new_key(), NOW + number * HOUR, timedelta(days=3650))
    return Issuer(f"{number:08x}-0000", "", False, (certificate,))


ROOTS = [_root(number) for number in range(MAX_ROOTS + 2)]


def called(issuer: Issuer, name: str, *, default: bool = False) -> Issuer:
    return replace(issuer, name=name, is_default=default)


def marked(issuer: Issuer, what: str, since: datetime = NOW, *, default: bool = False) -> Issuer:
    return called(issuer, name_of(issuer, what, since), default=default)


def states(kept: Kept) -> list[tuple[str, str]]:
    return [(slot.state.state.value, slot.signer.id[:8]) for slot in kept.slots]


def test_at_first_the_default_signs_and_nothing_else_is_trusted() -> None:
    kept, call = read_slots([called(ROOTS[0], "root-2026", default=True), called(ROOTS[1], "payroll")])
    assert states(kept) == [("ACTIVE", "00000000")]
    assert call is not None
    assert call.name.startswith("meshwarden-active-")
    assert call.usage is None


@pytest.mark.parametrize(
    ("other", "wanted"), [(called(ROOTS[1], NEXT), False), (called(ROOTS[1], "theirs", default=True), True)]
)
def test_what_somebody_else_makes_is_prepared_first(other: Issuer, wanted: bool) -> None:
    issuers = [marked(ROOTS[0], "active", default=not wanted), other]
    kept, call = read_slots(issuers)
    assert states(kept) == [("ACTIVE", "00000000"), ("PREPARED", "00000001")]
    assert kept.slots[1].state.wanted is wanted
    assert call is None
    # One at a time.
    kept, call = read_slots([*issuers, called(ROOTS[2], PREPARED)])
    assert states(kept)[1] == ("PREPARED", "00000002")
    assert call is None


def test_a_change_that_was_cut_off_is_read_as_it_was_meant() -> None:
    """The new root is named first, then the old one, and then it becomes the default."""
    before, after = marked(ROOTS[0], "active", default=True), marked(ROOTS[1], "active", NOW + HOUR)
    for old in (before, marked(ROOTS[0], "old", NOW + HOUR, default=True)):
        kept, call = read_slots([old, after])
        assert states(kept) == [("OLD", "00000000"), ("ACTIVE", "00000001")]
        assert kept.slots[0].state.since == NOW + HOUR
        assert call is None


def test_a_tainted_or_revoked_root_comes_back_by_no_name() -> None:
    other = replace(ROOTS[1], id="ffffffff-0000")
    for what, expected in (("tainted", [("TAINTED", "00000001")]), ("revoked", [])):
        bad = marked(ROOTS[1], what)
        for again in (called(other, NEXT), called(other, "theirs", default=True), marked(other, "old")):
            kept, call = read_slots([marked(ROOTS[0], "active"), bad, again])
            found = [one for one in states(kept) if one[0] != "ACTIVE"]
            assert [state for state, _ in found] == [state for state, _ in expected]
            assert call is None


def test_none_signs_by_accident() -> None:
    for issuers in ([], [called(ROOTS[0], "x")], [marked(ROOTS[0], "revoked", default=True)]):
        with pytest.raises(AuthorityError, match="no issuer may sign"):
            read_slots(issuers)


def test_no_more_are_taken_than_a_node_reads() -> None:
    olds = [marked(root, "old") for root in ROOTS[1:MAX_ROOTS]]
    kept, call = read_slots([marked(ROOTS[0], "active"), *olds, called(ROOTS[MAX_ROOTS], NEXT)])
    assert len(kept.slots) == MAX_ROOTS
    assert call is None


def test_another_issuer_below_the_same_root_needs_no_rotation() -> None:
    other = called(replace(ROOTS[0], id="ffffffff-0000"), "", default=True)
    kept, call = read_slots([marked(ROOTS[0], "active"), other])
    assert states(kept) == [("ACTIVE", "ffffffff")]
    assert call is None


NAMES = st.one_of(
    st.text(max_size=80),
    st.sampled_from(["", NEXT, PREPARED, "meshwarden-active-99999999T999999Z-0", "meshwarden-active-"]),
    st.builds(
        lambda what, hours, root: name_of(root, what, NOW + hours * HOUR),
        st.sampled_from(["active", "old", "tainted", "revoked"]),
        st.integers(-9, 9),
        st.sampled_from(ROOTS),
    ),
)


@given(st.lists(NAMES, max_size=5), st.integers(0, 5))
def test_whatever_the_names_are_one_signs_or_it_is_refused(names: list[str], default: int) -> None:
    issuers = [called(ROOTS[i], name, default=i == default) for i, name in enumerate(names)]
    try:
        kept, call = read_slots(issuers)
    except AuthorityError:
        return
    by_state = [state.state for state in kept.states]
    assert by_state.count(SlotState.ACTIVE) == 1
    assert by_state.count(SlotState.PREPARED) <= 1
    revoked = {issuer.root for issuer in issuers if issuer.mark is not None and issuer.mark[0] == "revoked"}
    assert not revoked & {slot.signer.root for slot in kept.slots if slot != kept.active}
    # What is written down changes nothing else.
    if call is not None:
        again, more = read_slots([replace(one, name=call.name) if one == call.issuer else one for one in issuers])
        assert again.states == kept.states
        assert more is None


def test_a_root_that_peers_do_not_take_is_none() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key, name = ed25519.Ed25519PrivateKey.generate(), x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1).not_valid_before(NOW).not_valid_after(NOW + HOUR)
    odd = builder.add_extension(x509.BasicConstraints(True, None), True).sign(key, None)
    leaf = self_signed_root("a.test", new_key(), NOW, HOUR)
    assert read_issuer("1", "", True, (odd,)) is None
    assert read_issuer("1", "", True, (leaf,)) is not None
