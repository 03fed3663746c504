import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.mtls.crowd import ANONYMOUS, Crowd, Crowded


def filled(places: int, anonymous: int, *owners: str) -> Crowd[str]:
    """Each owner's items are called a0, a1 and so on."""
    crowd: Crowd[str] = Crowd(places, anonymous)
    for owner in owners:
        crowd.add(owner, f"{owner}{crowd.count(owner)}")
    return crowd


def test_there_is_room() -> None:
    assert filled(3, 1, "a", "a").make_room("a") is None


def test_the_oldest_of_whoever_has_the_most_makes_room() -> None:
    assert filled(4, 1, "b", "a", "a", "a").make_room("b") == "a0"
    assert filled(4, 1, "b", "a", "a", "a").make_room("c") == "a0"


def test_nobody_makes_room_for_more_of_ones_own() -> None:
    with pytest.raises(Crowded):
        filled(3, 1, "a", "a", "a").make_room("a")


def test_nobody_makes_room_for_who_would_have_as_many() -> None:
    crowd = filled(4, 1, "a", "a", "b", "b")
    for owner in ("a", "b"):
        with pytest.raises(Crowded):
            crowd.make_room(owner)
    assert crowd.make_room("c") in ("a0", "b0")
    with pytest.raises(Crowded):
        filled(2, 1, "a", "b").make_room("c")


def test_the_anonymous_make_room_among_themselves() -> None:
    crowd = filled(9, 2, "a", ANONYMOUS, ANONYMOUS)
    assert crowd.make_room(ANONYMOUS) == "0"
    assert crowd.make_room("a") is None


@given(st.lists(st.sampled_from([ANONYMOUS, "a", "b", "c", "d"]), max_size=60))
def test_the_bounds_hold_whoever_comes(owners: list[str]) -> None:
    crowd: Crowd[int] = Crowd(8, 3)
    held: dict[int, str] = {}
    for number, owner in enumerate(owners):
        before = crowd.count(owner)
        try:
            loser = crowd.make_room(owner)
        except Crowded:
            assert max(crowd.count(each) for each in crowd.owners()) <= before + 1
            continue
        if loser is not None:
            crowd.remove(held.pop(loser), loser)
        crowd.add(owner, number)
        held[number] = owner
        assert len(held) == sum(crowd.count(each) for each in crowd.owners()) <= 8
        assert crowd.count(ANONYMOUS) <= 3
