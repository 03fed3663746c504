"""Bugs that other xDS servers have had, each with where it was reported: none of them is ours."""

import pytest
from xds_client import C, Delta, E, L, R, Sotw, item, snapshot

from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource

SECRET = api.SECRET
BOTH = pytest.mark.parametrize("kind", [Sotw, Delta])
Kind = type[Sotw | Delta]


def secret(name: str, note: int = 0) -> Resource:
    return Resource(SECRET, name, str(note), api.build(SECRET.rpartition("/")[2], {"name": name}).SerializeToString())


def again(kind: Kind, *names: str) -> tuple[str, ...]:
    """What an answer repeats: in the state-of-the-world variant all names."""
    return names if kind is Sotw else ()


@BOTH
def test_a_change_after_an_ack_is_sent(kind: Kind) -> None:
    """go-control-plane#458: the watch was lost with the ACK."""
    client = kind()
    client.ask(E, "a")
    for note in range(4):
        type_url, names, *_, nonce = client.next(snapshot(item(E, "a", note)))
        assert (type_url, names) == (E, {"a"})
        client.ask(E, *again(kind, "a"), nonce=nonce)
        assert client.next(snapshot(item(E, "a", note))) is None


@BOTH
@pytest.mark.parametrize("answered", [True, False])
def test_what_was_absent_is_sent_when_it_comes(kind: Kind, answered: bool) -> None:
    """go-control-plane#488, kgateway#14688: endpoints that were asked for before they were there were never sent."""
    client = kind()
    client.ask(E, "a", "b")
    *_, nonce = client.next(snapshot(item(E, "a")))
    if answered:
        client.ask(E, *again(kind, "a", "b"), nonce=nonce)
    assert client.next(snapshot(item(E, "a"), item(E, "b")))[1] == {"b"}


@BOTH
def test_secrets_that_are_asked_for_one_after_the_other_all_come_and_all_rotate(kind: Kind) -> None:
    """go-control-plane#615: of two secrets only the one asked for last was kept up."""
    client, snap = kind(), snapshot(secret("leaf"), secret("roots"))
    client.ask(SECRET, "leaf")
    *_, nonce = client.next(snap)
    client.ask(SECRET, *(("leaf", "roots") if kind is Sotw else ("roots",)), nonce=nonce)
    _, names, *_, nonce = client.next(snap)
    assert names == {"roots"}
    client.ask(SECRET, *again(kind, "leaf", "roots"), nonce=nonce)
    assert client.next(snapshot(secret("leaf", 1), secret("roots")))[1] == {"leaf"}
    assert client.next(snapshot(secret("leaf", 1), secret("roots", 1)))[1] == {"roots"}


@BOTH
def test_what_is_pointed_to_goes_first_whatever_was_asked_for_first(kind: Kind) -> None:
    """go-control-plane#752, #526: responses went out in the order of the requests, or of a map."""
    client = kind()
    client.ask(R, "r"), client.ask(L), client.ask(E, "c"), client.ask(C)
    snap = snapshot(item(R, "r"), item(L, "l"), item(E, "c"), item(C, "c"))
    order = []
    while (said := client.next(snap)) is not None:
        order.append(said[0])
        client.ask(said[0], *again(kind, *{R: ["r"], E: ["c"]}.get(said[0], [])), nonce=said[-1])
    assert order == [C, E, L, R]


def test_a_deleted_route_that_is_asked_for_again_and_again_is_answered_once_each_time() -> None:
    """envoy#17980: Envoy asks again for routes that are gone; neither silence nor a loop will do."""
    client, gone = Delta(), snapshot(item(R, "other"))
    client.ask(R, "r")
    client.next(snapshot(item(R, "r")))
    assert client.next(gone)[1:3] == (set(), {"r"})
    assert client.next(gone) is None
    for _ in range(3):
        client.ask(R, "r")
        assert client.next(gone)[1:3] == (set(), {"r"})
        assert client.next(gone) is None


@BOTH
def test_who_asks_for_one_of_many_is_answered(kind: Kind) -> None:
    """go-control-plane#426, grpc-go#5131: silence until all names of a snapshot were asked for."""
    client = kind()
    client.ask(E, "a")
    assert client.next(snapshot(*(item(E, name) for name in "abc")))[1] == {"a"}


def test_a_client_that_loses_its_nonces_gets_what_it_asks_for() -> None:
    """grpc-java#11232, #11796: requests came without the nonce of the stream's last response."""
    client, snap = Sotw(), snapshot(item(E, "a"), item(E, "b"))
    client.ask(E, "a")
    client.next(snap)
    assert client.ask(E, "a", "b") is None
    _, names, nonce = client.next(snap)
    assert names == {"b"}
    assert client.next(snap) is None
    assert client.ask(E, "a", "b", nonce=nonce).message is None
    assert not client.machine.unanswered


def test_a_nack_of_the_version_that_was_acknowledged_is_one() -> None:
    """Seen with gRPC: a NACK's version is that of the last ACK, which may be the one refused."""
    client = Sotw()
    client.ask(E, "a")
    snap = snapshot(item(E, "a"))
    *_, nonce = client.next(snap)
    assert client.ask(E, "a", nonce=nonce).message is None
    client.ask(E, "a", "b", nonce=nonce)
    both = snapshot(item(E, "a"), item(E, "b"))
    *_, nonce = client.next(both)
    assert client.ask(E, "a", "b", nonce=nonce, error="b: no").message == "b: no"


def test_the_same_name_said_twice_counts_once() -> None:
    client, snap = Sotw(), snapshot(item(E, "a"), item(E, "b"))
    client.ask(E, "a", "b")
    *_, nonce = client.next(snap)
    client.ask(E, "a", "a", nonce=nonce)
    assert client.next(snapshot(item(E, "a"), item(E, "b", 1))) is None


@BOTH
def test_an_unsubscription_sent_first_is_no_wildcard(kind: Kind) -> None:
    """Seen with gRPC: an empty list of endpoints when the last cluster went."""
    client = kind()
    if kind is Sotw:
        client.ask(R)
    else:
        client.ask(R, drop=["r"])
    assert client.next(snapshot(item(R, "r"))) is None


@BOTH
def test_endpoints_that_are_known_are_answered_though_there_are_none(kind: Kind) -> None:
    """A gRPC client gives up on what is not answered within 15 s; a service without endpoints is answered too."""
    client = kind()
    client.ask(E, "a")
    assert client.next(snapshot(item(E, "a")))[1] == {"a"}
