"""The rules of both variants, one by one, on the state machines alone."""

import pytest
from xds_client import C, Delta, E, L, R, Sotw, item, snapshot

from meshwarden.xds.stream import Bounds, Misuse


class TestSotw:
    def test_an_empty_first_request_asks_for_all_listeners(self) -> None:
        client = Sotw()
        client.ask(L)
        assert client.next(snapshot(item(L, "a"), item(L, "b")))[:2] == (L, {"a", "b"})

    def test_an_empty_list_of_endpoints_asks_for_nothing(self) -> None:
        client = Sotw()
        client.ask(E)
        assert client.next(snapshot(item(E, "a"))) is None

    def test_dropping_the_last_endpoint_is_no_wildcard(self) -> None:
        client, snap = Sotw(), snapshot(item(E, "a"), item(E, "b"))
        client.ask(E, "a")
        *_, nonce = client.next(snap)
        client.ask(E, nonce=nonce)
        assert client.next(snap) is None

    def test_dropping_the_last_named_cluster_is_no_wildcard(self) -> None:
        client, snap = Sotw(), snapshot(item(C, "a"), item(C, "b"))
        client.ask(C, "a")
        *_, nonce = client.next(snap)
        client.ask(C, nonce=nonce)
        assert client.next(snap) is None

    def test_a_star_is_a_wildcard_until_it_is_left_out(self) -> None:
        client, snap = Sotw(), snapshot(item(C, "a"), item(C, "b"))
        client.ask(C, "*")
        _, names, nonce = client.next(snap)
        assert names == {"a", "b"}
        client.ask(C, "a", nonce=nonce)
        assert client.next(snapshot(item(C, "a", 1), item(C, "b", 1)))[1] == {"a"}

    def test_an_unchanged_snapshot_is_not_sent_again(self) -> None:
        client, snap = Sotw(), snapshot(item(L, "a"))
        client.ask(L)
        *_, nonce = client.next(snap)
        assert client.ask(L, nonce=nonce).message is None
        assert client.next(snap) is None
        assert client.next(snapshot(item(L, "a"))) is None

    def test_added_names_are_answered_although_nothing_changed(self) -> None:
        client, snap = Sotw(), snapshot(item(E, "a"), item(E, "b"))
        client.ask(E, "a")
        *_, nonce = client.next(snap)
        client.ask(E, "a", "b", nonce=nonce)
        assert client.next(snap)[1] == {"b"}

    def test_a_name_dropped_and_asked_for_again_is_sent_again(self) -> None:
        client, snap = Sotw(), snapshot(item(E, "a"), item(E, "b"))
        client.ask(E, "a", "b")
        *_, nonce = client.next(snap)
        client.ask(E, "b", nonce=nonce)
        client.ask(E, "a", "b", nonce=nonce)
        assert client.next(snap)[1] == {"a"}

    def test_an_unknown_name_is_answered_without_it(self) -> None:
        client = Sotw()
        client.ask(L, "nowhere")
        assert client.next(snapshot())[:2] == (L, set())

    def test_a_stale_nonce_tells_of_its_own_push_and_changes_no_names(self) -> None:
        client, snap = Sotw(), snapshot(item(E, "a"), item(E, "b"))
        client.ask(E, "a")
        *_, stale = client.next(snap)
        client.next(snapshot(item(E, "a", 1)))
        assert client.ask(E, "a", "b", nonce=stale).version == snap.version(E)
        assert client.ask(E, "a", "b", nonce=stale) is None
        assert client.next(snapshot(item(E, "a", 1), item(E, "b"))) is None

    def test_a_nack_is_told_by_its_error_alone_and_only_once(self) -> None:
        client, snap = Sotw(), snapshot(item(L, "a"))
        client.ask(L)
        *_, nonce = client.next(snap)
        verdict = client.ask(L, nonce=nonce, error="bad listener")
        assert (verdict.type_url, verdict.message) == (L, "bad listener")
        assert client.ask(L, nonce=nonce, error="bad listener") is None
        assert client.next(snap) is None  # sending it again would be a loop

    def test_what_is_left_out_of_endpoints_is_not_deleted(self) -> None:
        client = Sotw()
        client.ask(E, "a", "b")
        client.next(snapshot(item(E, "a"), item(E, "b")))
        assert client.next(snapshot(item(E, "a"))) is None

    def test_only_changed_endpoints_are_sent(self) -> None:
        client = Sotw()
        client.ask(E, "a", "b")
        client.next(snapshot(item(E, "a"), item(E, "b")))
        assert client.next(snapshot(item(E, "a", 1), item(E, "b")))[1] == {"a"}

    def test_targets_go_out_before_what_points_to_them(self) -> None:
        client = Sotw()
        snap = snapshot(item(R, "r"), item(L, "l"), item(E, "c"), item(C, "c"))
        client.ask(R, "r"), client.ask(L), client.ask(E, "c"), client.ask(C)
        *_, nonce = first = client.next(snap)
        assert [first[0], client.next(snap)[0], client.next(snap)] == [C, E, None]
        client.ask(C, nonce=nonce)
        assert [client.next(snap)[0] for _ in range(2)] == [L, R]

    def test_routes_wait_for_the_endpoints_of_a_new_cluster(self) -> None:
        client = Sotw()
        client.ask(C), client.ask(R, "r")
        snap = snapshot(item(C, "c"), item(E, "c"), item(R, "r"))
        client.ask(C, nonce=client.next(snap)[2])
        assert client.next(snap) is None
        client.ask(E, "c")
        assert [client.next(snap)[0] for _ in range(2)] == [E, R]

    def test_a_rejected_cluster_holds_up_no_route(self) -> None:
        client = Sotw()
        client.ask(C), client.ask(R, "r")
        snap = snapshot(item(C, "c"), item(E, "c"), item(R, "r"))
        client.ask(C, nonce=client.next(snap)[2], error="no")
        assert client.next(snap)[0] == R

    def test_a_cluster_is_deleted_after_the_routes_have_moved(self) -> None:
        client = Sotw()
        client.ask(C), client.ask(R, "r")
        before = snapshot(item(C, "old"), item(R, "r"))
        client.ask(C, nonce=client.next(before)[2])
        client.ask(R, "r", nonce=client.next(before)[2])
        after = snapshot(item(C, "new"), item(R, "r", 1))
        type_url, names, nonce = client.next(after)
        assert (type_url, names) == (C, {"old", "new"})
        client.ask(C, nonce=nonce)
        type_url, names, nonce = client.next(after)
        assert (type_url, names) == (R, {"r"})
        assert client.next(after) is None
        client.ask(R, "r", nonce=nonce)
        assert client.next(after)[:2] == (C, {"new"})
        assert client.next(after) is None

    def test_rejected_routes_keep_the_cluster_they_lead_to(self) -> None:
        client = Sotw()
        client.ask(C), client.ask(R, "r")
        before = snapshot(item(C, "old"), item(R, "r"))
        client.ask(C, nonce=client.next(before)[2])
        client.ask(R, "r", nonce=client.next(before)[2])
        after = snapshot(item(C, "new"), item(R, "r", 1))
        client.ask(C, nonce=client.next(after)[2])
        client.ask(R, "r", nonce=client.next(after)[2], error="no")
        assert client.next(after) is None

    def test_endpoints_of_a_changed_cluster_are_sent_again_to_an_envoy(self) -> None:
        client = Sotw()
        client.ask(C), client.ask(E, "c")
        before = snapshot(item(C, "c"), item(E, "c"))
        client.next(before), client.next(before)
        after = snapshot(item(C, "c", 1), item(E, "c"))
        assert client.next(after)[0] == C
        assert client.next(after)[:2] == (E, {"c"})
        assert client.next(after) is None

    def test_an_unknown_type_is_left_unanswered(self) -> None:
        client = Sotw()
        client.ask("type.googleapis.com/no.such.Type")
        client.ask("")
        assert client.next(snapshot(item(L, "a"))) is None

    @pytest.mark.parametrize("names", [["n"] * 1 + [str(n) for n in range(10)], ["x" * 100]])
    def test_too_many_and_too_long_names_are_refused(self, names: list[str]) -> None:
        with pytest.raises(Misuse, match=r"names|characters"):
            Sotw(Bounds(names=10, name_length=99)).ask(E, *names)

    def test_too_many_types_are_refused(self) -> None:
        client = Sotw(Bounds(types=2))
        client.ask("a"), client.ask("b")
        with pytest.raises(Misuse, match="2 types"):
            client.ask("c")


class TestDelta:
    def test_an_empty_first_request_asks_for_all_clusters(self) -> None:
        client = Delta()
        client.ask(C)
        assert client.next(snapshot(item(C, "a"), item(C, "b")))[:3] == (C, {"a", "b"}, set())

    def test_all_of_nothing_is_answered(self) -> None:
        client = Delta()
        client.ask(C)
        assert client.next(snapshot())[:3] == (C, set(), set())

    def test_only_changes_are_sent_and_removals_said(self) -> None:
        client = Delta()
        client.ask(C)
        client.next(snapshot(item(C, "a"), item(C, "b"), item(C, "c")))
        assert client.next(snapshot(item(C, "a"), item(C, "b", 1)))[1:3] == ({"b"}, {"c"})

    def test_what_the_client_holds_is_not_sent_again(self) -> None:
        client, snap = Delta(), snapshot(item(C, "a"), item(C, "b", 1))
        client.ask(C, held={"a": item(C, "a").version, "b": item(C, "b").version, "gone": "1"})
        assert client.next(snap)[1:3] == ({"b"}, {"gone"})

    def test_a_name_that_is_not_there_is_said_to_be_removed_and_sent_when_it_comes(self) -> None:
        client = Delta()
        client.ask(E, "a")
        assert client.next(snapshot())[1:3] == (set(), {"a"})
        assert client.next(snapshot()) is None
        assert client.next(snapshot(item(E, "a")))[1:3] == ({"a"}, set())

    def test_asking_again_is_answered(self) -> None:
        client, snap = Delta(), snapshot(item(E, "a"))
        client.ask(E, "a")
        client.next(snap)
        client.ask(E, "a")
        assert client.next(snap)[1] == {"a"}

    def test_unsubscribed_names_are_not_sent(self) -> None:
        client = Delta()
        client.ask(E, "a", "b")
        client.next(snapshot(item(E, "a"), item(E, "b")))
        client.ask(E, drop=["a"])
        assert client.next(snapshot(item(E, "a", 1), item(E, "b"))) is None

    def test_unsubscribing_a_part_of_all_is_answered_with_it(self) -> None:
        client, snap = Delta(), snapshot(item(C, "a"))
        client.ask(C, "*", "a")
        client.next(snap)
        client.ask(C, drop=["a"])
        assert client.next(snap)[1] == {"a"}

    def test_a_star_unsubscribed_leaves_the_names(self) -> None:
        client = Delta()
        client.ask(C, "*", "a")
        client.next(snapshot(item(C, "a"), item(C, "b")))
        client.ask(C, drop=["*"])
        assert client.next(snapshot(item(C, "a", 1), item(C, "b", 1)))[1] == {"a"}

    def test_verdicts_name_the_version_of_their_push(self) -> None:
        client = Delta()
        client.ask(C)
        one, two = snapshot(item(C, "a")), snapshot(item(C, "a", 1))
        first, second = client.next(one)[3], client.next(two)[3]
        verdict = client.ask(C, nonce=second, error="no")
        assert (verdict.version, verdict.message) == (two.version(C), "no")
        assert client.ask(C, nonce=first).version == one.version(C)
        assert client.ask(C, nonce=first) is None
        assert client.ask(C, nonce="forged", error="x") is None

    def test_a_cluster_is_removed_after_the_routes_have_moved(self) -> None:
        client = Delta()
        client.ask(C), client.ask(R, "r")
        before = snapshot(item(C, "old"), item(R, "r"))
        client.ask(C, nonce=client.next(before)[3])
        client.ask(R, nonce=client.next(before)[3])
        after = snapshot(item(C, "new"), item(R, "r", 1))
        *said, nonce = client.next(after)
        assert said == [C, {"new"}, set()]
        assert client.next(after) is None
        client.ask(C, nonce=nonce)
        type_url, _, _, nonce = client.next(after)
        assert type_url == R
        assert client.next(after) is None
        client.ask(R, nonce=nonce)
        assert client.next(after)[:3] == (C, set(), {"old"})

    def test_endpoints_of_a_changed_cluster_are_sent_again(self) -> None:
        client = Delta()
        client.ask(C), client.ask(E, "c")
        before = snapshot(item(C, "c"), item(E, "c"))
        client.next(before), client.next(before)
        after = snapshot(item(C, "c", 1), item(E, "c"))
        assert [client.next(after)[:2], client.next(after)[:2]] == [(C, {"c"}), (E, {"c"})]
        assert client.next(after) is None

    def test_too_much_is_refused(self) -> None:
        with pytest.raises(Misuse):
            Delta(Bounds(names=2)).ask(E, "a", "b", "c")
        with pytest.raises(Misuse):
            Delta(Bounds(names=2)).ask(E, held={"a": "1", "b": "1", "c": "1"})
