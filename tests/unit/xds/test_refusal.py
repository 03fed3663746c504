"""A NACK, resource by resource: who is named, what stands refused until when, and that nothing refused comes twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xds_client import C, Delta, E, L, R, Sotw, item, snapshot

from meshwarden.xds.refusal import Refused, named

NAMES = ["orders.platform", "grpc/server?xds.resource.listening_address=[::]:7022", "a", "b"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "xDS response validation errors: [resource index 0: orders.platform: INVALID_ARGUMENT: no b; "
            "resource index 2: a: INVALID_ARGUMENT: bad]",
            {
                "orders.platform": "resource index 0: orders.platform: INVALID_ARGUMENT: no b",
                "a": "resource index 2: a: INVALID_ARGUMENT: bad",
            },
        ),
        ("[resource index 1: could not be parsed]", {NAMES[1]: "[resource index 1: could not be parsed]"}),
        ("Error adding/updating cluster(s) a: too bad, b: worse", {"a": "a: too bad", "b": "b: worse"}),
        ("CDS response Cluster 'orders.platform' validation error: a route", None),
        ('resource "a": no such thing', None),
        (f"listener {NAMES[1]}: address in use", {NAMES[1]: f"listener {NAMES[1]}: address in use"}),
        ("the resource a is bad", {"a": "the resource a is bad"}),
        ("resource index 9: nobody", {}),
        ("resource index 99999999999999999999: nobody", {}),
        ("it is bad", {}),
        ("", {}),
    ],
)
def test_a_text_for_people_is_read_with_care(message: str, expected: dict[str, str] | None) -> None:
    if expected is None:
        expected = {"orders.platform" if "orders" in message else "a": message}
    assert named(message, NAMES) == expected


@given(st.text(), st.lists(st.text(max_size=8), unique=True, max_size=8))
def test_any_text_names_only_what_was_sent(message: str, names: list[str]) -> None:
    assert named(message, names).keys() <= set(names)


def test_a_huge_explanation_is_read_in_part() -> None:
    assert named("x" * 10_000_000 + " a: bad", ["a", "b"]) == {}


def test_of_an_unknown_one_among_several_the_rest_is_not_forgotten_before_all_were_taken() -> None:
    refused = Refused(R)
    items = {name: item(R, name) for name in ("a", "b", "c")}
    assert refused.refuse(items, "7", "no") == {"a", "b", "c"}
    assert [(one.names, one.version) for one in refused.all()] == [(("a", "b", "c"), "7")]
    assert refused.among(["b"]) == {"a", "b", "c"}
    refused.take(["a", "b"])
    assert [one.names for one in refused.all()] == [("c",)]
    refused.forget(["c"])
    assert not refused


def test_a_refusal_of_nothing_that_is_known_stands_until_the_next_ack() -> None:
    refused = Refused(R)
    refused.refuse({}, "7", "no")
    assert [(one.names, one.message) for one in refused.all()] == [((), "no")]
    refused.take(["a"])
    assert not refused


def text(client: Sotw | Delta) -> list[tuple[str, tuple[str, ...], str]]:
    return [(one.type_url, one.names, one.message) for one in client.machine.refusals()]


@pytest.mark.parametrize("kind", [Sotw, Delta])
@pytest.mark.parametrize("type_url", [E, R])
class TestBoth:
    def test_the_good_sibling_applies_and_the_bad_one_stays_named_while_others_are_taken(
        self, kind: type[Sotw | Delta], type_url: str
    ) -> None:
        client = kind()
        client.ask(type_url, "good", "bad")
        *_, nonce = client.next(snapshot(item(type_url, "good"), item(type_url, "bad")))
        client.ask(type_url, *self.again(kind), nonce=nonce, error="bad: no")
        assert text(client) == [(type_url, ("bad",), "bad: no")]
        # A change of the good one is sent without the bad one, and its ACK says nothing of that.
        snap = snapshot(item(type_url, "good", 1), item(type_url, "bad"))
        said = client.next(snap)
        assert said[1] == {"good"}
        client.ask(type_url, *self.again(kind), nonce=said[-1])
        assert text(client) == [(type_url, ("bad",), "bad: no")]
        assert client.next(snap) is None
        # Only its own change is tried.
        said = client.next(snapshot(item(type_url, "good", 1), item(type_url, "bad", 1)))
        assert said[1] == {"bad"}
        client.ask(type_url, *self.again(kind), nonce=said[-1])
        assert text(client) == []

    def test_who_names_nobody_is_sent_all_of_them_again_when_one_changes(
        self, kind: type[Sotw | Delta], type_url: str
    ) -> None:
        client = kind()
        client.ask(type_url, "good", "bad")
        *_, nonce = client.next(snapshot(item(type_url, "good"), item(type_url, "bad")))
        client.ask(type_url, *self.again(kind), nonce=nonce, error="I don't like it")
        assert [set(names) for _, names, _ in text(client)] == [{"good", "bad"}]
        assert client.next(snapshot(item(type_url, "good"), item(type_url, "bad"))) is None
        snap = snapshot(item(type_url, "good"), item(type_url, "bad", 1))
        said = client.next(snap)
        assert said[1] == {"good", "bad"}
        client.ask(type_url, *self.again(kind), nonce=said[-1])
        assert text(client) == []
        assert client.next(snap) is None

    def test_what_is_given_up_is_refused_no_more(self, kind: type[Sotw | Delta], type_url: str) -> None:
        client = kind()
        client.ask(type_url, "good", "bad")
        *_, nonce = client.next(snapshot(item(type_url, "good"), item(type_url, "bad")))
        client.ask(type_url, *self.again(kind), nonce=nonce, error="bad: no")
        if kind is Sotw:
            client.ask(type_url, "good", nonce=nonce)
        else:
            client.ask(type_url, drop=["bad"])
        assert text(client) == []

    @staticmethod
    def again(kind: type[Sotw | Delta]) -> tuple[str, ...]:
        """What an answer repeats: in the state-of-the-world variant all names."""
        return ("good", "bad") if kind is Sotw else ()


class TestSotw:
    def test_in_place_of_what_is_refused_comes_what_was_taken_before(self) -> None:
        client = Sotw()
        client.ask(C, "good", "bad")
        first = snapshot(item(C, "good"), item(C, "bad"))
        client.ask(C, "good", "bad", nonce=client.next(first)[2])
        client.ask(C, "good", "bad", nonce=client.next(snapshot(item(C, "good"), item(C, "bad", 1)))[2], error="bad: x")
        snap = snapshot(item(C, "good", 2), item(C, "bad", 1))
        push = client.machine.push(C, snap)
        assert item(C, "bad").sotw_entry in push.payload
        assert item(C, "bad", 1).sotw_entry not in push.payload
        client.ask(C, "good", "bad", nonce=push.nonce)
        assert text(client) == [(C, ("bad",), "bad: x")]
        assert client.next(snap) is None

    def test_what_was_never_taken_stays_part_of_all_or_it_would_be_deleted(self) -> None:
        client = Sotw()
        client.ask(L)
        client.ask(L, nonce=client.next(snapshot(item(L, "good"), item(L, "bad")))[2], error="'bad' is bad")
        snap = snapshot(item(L, "good", 1), item(L, "bad"))
        _, names, nonce = client.next(snap)
        assert names == {"good", "bad"}
        client.ask(L, nonce=nonce, error="'bad' is bad")
        assert client.next(snap) is None

    def test_what_a_client_refuses_even_in_its_old_form_is_not_sent_in_that_any_more(self) -> None:
        client = Sotw()
        client.ask(L)
        client.ask(L, nonce=client.next(snapshot(item(L, "a")))[2])
        client.ask(L, nonce=client.next(snapshot(item(L, "a", 1)))[2], error="a: x")
        for note in (1, 2):
            snap = snapshot(item(L, "a", 1), item(L, "b", note))
            _, _, nonce = client.next(snap)
            client.ask(L, nonce=nonce, error="a: not even that")
            assert client.next(snap) is None
        assert text(client) == [(L, ("a",), "a: not even that")]

    def test_a_deleted_one_is_refused_no_more(self) -> None:
        client = Sotw()
        client.ask(L)
        client.ask(L, nonce=client.next(snapshot(item(L, "a"), item(L, "b")))[2], error="b: x")
        client.next(snapshot(item(L, "a")))
        assert text(client) == []


class TestDelta:
    def test_a_removed_one_is_refused_no_more(self) -> None:
        client = Delta()
        client.ask(C)
        client.ask(C, nonce=client.next(snapshot(item(C, "a"), item(C, "b")))[3], error="b: x")
        client.next(snapshot(item(C, "a")))
        assert text(client) == []

    def test_an_answer_to_an_older_push_tells_of_what_that_held(self) -> None:
        client = Delta()
        client.ask(E, "a", "b")
        first = client.next(snapshot(item(E, "a"), item(E, "b")))[3]
        second = client.next(snapshot(item(E, "a", 1), item(E, "b")))[3]
        client.ask(E, nonce=first, error="b: x")
        client.ask(E, nonce=second)
        assert text(client) == [(E, ("b",), "b: x")]

    def test_what_was_in_very_old_pushes_is_forgotten_but_not_that_something_was_refused(self) -> None:
        client = Delta()
        client.ask(E, "a")
        nonces = [client.next(snapshot(item(E, "a", note)))[3] for note in range(200)]
        assert client.ask(E, nonce=nonces[0], error="a: x") is None
        assert client.ask(E, nonce=nonces[-1], error="a: x").message == "a: x"
