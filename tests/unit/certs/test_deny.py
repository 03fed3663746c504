"""Denies: what is read as one, and whom they refuse."""

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from certs_build import NOW as GOOD_NOW
from certs_build import WEB
from certs_fault import BUNDLES, GOOD
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs.deny import MAX_DENIES, Denied, Deny, DenyList, InvalidDeny, last_end, parse_serial
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.verify import PeerRefused, PeerVerifier
from meshwarden.v1 import node_service_pb2

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


@pytest.mark.parametrize("text", ["1f", "1F", "00:1F", "001f", " 1f\n"])
def test_a_serial_number_is_read_as_tools_write_it(text: str) -> None:
    assert parse_serial(text) == "1f"


@pytest.mark.parametrize("text", ["", "0", "00:00", "-1", "0x1f", "1g", "1 f", "1\x00", "a" * 41, "0" * 200 + "1", "١"])
def test_what_is_no_serial_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidDeny):
        parse_serial(text)


@given(st.text(max_size=60))
def test_a_serial_number_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidDeny):
        assert 0 < int(parse_serial(text), 16) < 1 << 160


@pytest.mark.parametrize(
    ("denies", "refused"),
    [
        ([Deny(WEB, "", LATER)], True),
        ([Deny("", "1f", LATER)], True),
        ([Deny(WEB, "1f", LATER)], True),
        ([Deny(WEB, "", NOW)], True),
        ([], False),
        ([Deny(WEB, "1e", LATER)], False),
        ([Deny("", "f1", LATER)], False),
        ([Deny(WEB + "x", "1f", LATER)], False),
        ([Deny(WEB[:-1], "", LATER)], False),
        ([Deny(WEB, "", NOW - timedelta(seconds=1))], False),
        # One that has ended hides no other.
        ([Deny(WEB, "", LATER), Deny(WEB, "", NOW - timedelta(days=1))], True),
        ([Deny(WEB, "1f", NOW - timedelta(days=1)), Deny("", "1f", LATER)], True),
    ],
    ids=str,
)
def test_whom_a_list_refuses(denies: list[Deny], refused: bool) -> None:
    assert bool(DenyList(denies).names(WEB, 0x1F, NOW.timestamp())) is refused


def test_an_identity_as_such_is_refused_for_no_certificate() -> None:
    assert not DenyList([Deny(WEB, "1f", LATER), Deny("", "1f", LATER)]).names(WEB, 0, NOW.timestamp())
    assert DenyList([Deny(WEB, "", LATER)]).names(WEB, 0, NOW.timestamp())


def test_a_verifier_refuses_whom_the_list_of_the_moment_names() -> None:
    now = [GOOD_NOW]
    denied = Denied(lambda: now[0])
    verifier = PeerVerifier(lambda: BUNDLES, lambda: now[0], denied)
    peer = verifier.check(GOOD)
    end = now[0] + timedelta(seconds=30)
    for deny in (Deny(WEB, "", end), Deny("", peer.serial, end), Deny(WEB, peer.serial, end)):
        denied.present = DenyList([deny])
        with pytest.raises(PeerRefused, match="revoked"):
            verifier.check(GOOD)
        now[0] = end + timedelta(seconds=1)
        verifier.check(GOOD)
        now[0] = GOOD_NOW
    denied.present = DenyList()
    verifier.check(GOOD)


def test_a_list_goes_over_the_wire_whole() -> None:
    deny_list = DenyList([Deny(WEB, "", LATER), Deny("", "1f", LATER), Deny(WEB, "1f", LATER)], 7)
    assert DenyList.from_proto(deny_list.to_proto()) == deny_list


def list_of(**deny: Any) -> node_service_pb2.DenyList:
    return node_service_pb2.DenyList(denies=[node_service_pb2.Deny(**deny)])


@pytest.mark.parametrize(
    "message",
    [
        list_of(),
        list_of(spiffe_id="spiffe://a.test"),
        list_of(spiffe_id="spiffe://a.test/x\0"),
        list_of(serial="zz"),
        list_of(spiffe_id=WEB, serial="-1"),
        list_of(spiffe_id=WEB, not_after={"seconds": 1 << 62}),
        node_service_pb2.DenyList(denies=[node_service_pb2.Deny(serial="1")] * (MAX_DENIES + 1)),
    ],
    ids=lambda message: str(message)[:60],
)
def test_a_list_that_cannot_be_read_is_refused_as_a_whole(message: node_service_pb2.DenyList) -> None:
    with pytest.raises(InvalidDeny):
        DenyList.from_proto(message)


@given(st.text(max_size=40), st.text(max_size=40), st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-5, 1 << 30))
def test_any_list_is_read_or_refused(spiffe_id: str, serial: str, seconds: int, nanos: int) -> None:
    message = list_of(spiffe_id=spiffe_id, serial=serial, not_after={"seconds": seconds, "nanos": nanos})
    with contextlib.suppress(InvalidDeny):
        DenyList.from_proto(message).names(spiffe_id, 1, 0.0)


def test_the_last_certificate_has_ended_by_then() -> None:
    assert last_end(timedelta(hours=1), NOW + timedelta(microseconds=5)) > LATER


def test_the_bounds_are_in_it() -> None:
    full = [node_service_pb2.Deny(serial="1")] * 10_000
    assert len(DenyList.from_proto(node_service_pb2.DenyList(denies=full))) == 10_000
    with pytest.raises(InvalidDeny, match="10001 denies: at most 10000 are taken"):
        DenyList.from_proto(node_service_pb2.DenyList(denies=[*full, node_service_pb2.Deny(serial="1")]))
    assert parse_serial("0" * 127 + "1") == "1"
    with pytest.raises(InvalidDeny) as caught:
        parse_serial("0" * 128 + "1")
    assert str(caught.value) == f"serial number {'0' * 100!r}: give 1 to 40 hexadecimal digits, not all zero"
    assert parse_serial("f" * 40) == "f" * 40


def test_a_deny_says_what_it_denies() -> None:
    said = [str(Deny(WEB, "", LATER)), str(Deny("", "1f", LATER)), str(Deny(WEB, "1f", LATER))]
    assert said == [WEB, "serial 1f", f"serial 1f of {WEB}"]
    assert Deny.of(WEB, "1F", LATER) == Deny(WEB, "1f", LATER)
    assert Deny.of("", "1F", LATER) == Deny("", "1f", LATER)
    assert Deny.of(WEB, "", LATER) == Deny(WEB, "", LATER)
    with pytest.raises(InvalidDeny, match="a deny names a SPIFFE ID, a serial number, or both"):
        Deny.of("", "", LATER)


def test_a_list_is_its_denies_and_its_revision() -> None:
    one, other = Deny(WEB, "", LATER), Deny("", "1f", LATER)
    made = DenyList([one, other], 7)
    assert (made.revision, len(made), list(made), bool(made)) == (7, 2, [one, other], True)
    assert (DenyList().revision, len(DenyList()), bool(DenyList())) == (0, 0, False)
    assert made == DenyList([one, other], 7)
    assert hash(made) == hash(DenyList([one, other], 7))
    assert hash(made) not in (hash(DenyList([one, other], 8)), hash(DenyList([one], 7)))
    assert made not in (DenyList([one, other], 8), DenyList([one], 7), (7, (one, other)))
    assert len({made, DenyList([one, other], 8), DenyList([one], 7)}) == 3


def test_who_is_refused_is_told_which_it_is() -> None:
    now_s = NOW.timestamp()
    assert DenyList([Deny(WEB, "", LATER)]).names(WEB, 1, now_s) == "this identity was revoked"
    assert DenyList([Deny(WEB, "1", LATER)]).names(WEB, 1, now_s) == "this certificate was revoked; renew it"
    listed = DenyList([Deny(WEB, "1f", LATER)])
    assert listed.of_serial(WEB, 0x1F, now_s)
    assert listed.of_serial(WEB, 0x1F, LATER.timestamp())  # to the last moment
    assert not listed.of_serial(WEB, 0x1F, LATER.timestamp() + 1)
    assert not DenyList([Deny(WEB, "", LATER)]).of_serial(WEB, 0, now_s)
    assert DenyList([Deny(WEB, "1", LATER)]).of_serial(WEB, 1, now_s)


def test_what_has_ended_when_time_began_has_ended() -> None:
    early = datetime.fromtimestamp(0.25, UTC)
    assert DenyList([Deny(WEB, "", early)]).names(WEB, 1, 0.5) == ""
    assert DenyList([Deny("", "1", early)]).names(WEB, 1, 0.5) == ""
    assert DenyList([Deny("", "2", LATER)]).names(WEB, 1, 0.5) == ""


def test_an_identity_that_is_denied_is_given_nothing() -> None:
    web = SpiffeId.parse(WEB)
    denied = Denied(lambda: NOW, DenyList([Deny(WEB, "", LATER)]))
    assert denied.identity(web) == "this identity was revoked"
    assert Denied(lambda: NOW).present == DenyList()
    assert Denied(lambda: NOW).identity(web) == ""
    assert Denied(lambda: NOW, DenyList([Deny(WEB, "1", LATER)])).identity(web) == ""


def test_the_last_end_is_a_whole_second_later() -> None:
    assert last_end(timedelta(hours=1), NOW + timedelta(microseconds=5)) == LATER + timedelta(seconds=1)
