"""Chunks of an amount for a period at a server: used up, asked for in time, given back, never more than was given."""

import itertools
from typing import Any

import pytest
from google.protobuf import json_format

from meshwarden.sdk.quota import chunk as module
from meshwarden.sdk.quota.chunk import IDLE_S, LONGEST_WAIT_S, WAIT_S, Chunks
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.node_service_pb2 import PolicyLimits
from meshwarden.v1.resources_pb2 import RatePolicySpec

POLICY, ASK, OTHER = "platform/models", "/llm.v1.Models/Ask", "/llm.v1.Models/List"
SPEC: dict[str, Any] = {
    "period": "DAY",
    "limits": [{"tenant": "acme", "requests": 100, "methods": [{"method": ASK, "requests": 10}]}],
}
_TURN = 5


class World:
    """A server, and whoever gives it chunks."""

    def __init__(self, **spec: Any) -> None:
        self.pressed, self.now_s = 0, 1000.0
        numbers = itertools.count(1)
        self.chunks = Chunks(self.press, lambda: next(numbers))
        self.apply(**spec)
        self.chunks.prolong(self.now_s + 3, self.now_s)

    def press(self) -> None:
        self.pressed += 1

    def apply(self, **spec: Any) -> None:
        parsed = json_format.ParseDict({**SPEC, **spec}, RatePolicySpec())
        self.chunks.update(PolicyLimits(policy=POLICY, spec=parsed), self.now_s)

    def take(self, amount: float = 1, method: str = OTHER, tenant: str = "acme") -> bool:
        return self.chunks.take(tenant, method, amount, self.now_s).allowed

    def said(self, method: str = "") -> pb.Chunks:
        report = self.chunks.report(self.now_s, full=True)
        return next(usage.chunks for usage in report.usages if usage.bucket.method == method)

    def give(self, amount: float, method: str = "", turn: int = _TURN, until_s: int = 3600, spent: str = "") -> None:
        """Tells it that it was given so much in all."""
        made = pb.Chunk(series=self.said(method).series, turn=turn, amount=amount, spent=spent)
        made.until.FromSeconds(until_s)
        named = pb.Bucket(policy=POLICY, tenant="acme", method=method)
        self.chunks.grant([pb.Share(bucket=named, chunk=made)], self.now_s, self.now_s)


@pytest.fixture
def world() -> World:
    made = World()
    assert not made.take(), "nothing is there before it was given"
    made.give(10)
    return made


def test_what_was_given_is_used_up_and_no_more(world: World) -> None:
    assert [world.take() for _ in range(11)] == [True] * 10 + [False]
    world.give(10)
    assert not world.take(), "said again"
    world.give(9)
    assert not world.take(), "an older word"
    world.give(12)
    assert [world.take() for _ in range(3)] == [True, True, False]


def test_more_is_asked_for_while_half_is_left(world: World) -> None:
    world.said()
    world.pressed = 0
    for _ in range(5):
        world.take()
    assert (world.pressed, world.chunks.presses) == (0, False)
    world.take()
    assert (world.pressed, world.chunks.presses) == (1, True)
    said = world.said()
    assert (said.amount, said.left, said.asks) == (10, 4, True)
    world.take()
    assert world.pressed == 1, "once for a chunk"


def test_a_call_of_a_method_that_has_a_part_takes_from_that_alone(world: World) -> None:
    assert not world.take(method=ASK)
    world.give(1, ASK)
    assert [world.take(method=ASK) for _ in range(2)] == [True, False]
    assert world.take()


def test_a_chunk_ends_with_its_period_and_the_next_begins_anew(world: World) -> None:
    world.now_s += 3601
    world.chunks.prolong(world.now_s + 3, world.now_s)
    assert not world.take()
    world.give(4, turn=6)
    assert [world.take() for _ in range(5)] == [True] * 4 + [False]
    said = world.said()
    assert (said.turn, said.amount, said.left, said.returned) == (6, 4, 0, 0)


def test_a_period_that_was_over_by_mistake_goes_on_with_what_is_left(world: World) -> None:
    world.now_s += 3601
    assert not world.take()
    world.give(10)
    assert [world.take() for _ in range(11)] == [True] * 10 + [False]


def test_who_is_refused_learns_when_there_is_more() -> None:
    world = World()
    assert world.chunks.take("acme", OTHER, 1, world.now_s).retry_after_s == 0.5
    world.give(0, until_s=3600, spent="total")
    decision = world.chunks.take("acme", OTHER, 1, world.now_s)
    assert (decision.allowed, decision.level, decision.policy, decision.retry_after_s) == (False, "total", POLICY, 3600)
    world.give(0, until_s=40 * 86_400, spent="method")
    assert world.chunks.take("acme", OTHER, 1, world.now_s).retry_after_s == LONGEST_WAIT_S
    world.said()
    world.pressed = 0
    world.take()
    assert world.pressed == 0, "where nothing is left it asks at its leisure"
    world.give(5)
    assert world.take(), "a limit was raised"


def test_a_call_says_how_much_it_needs() -> None:
    world = World()
    world.take(30)
    world.take(20)
    said = world.said()
    assert (said.wanted, said.asks) == (50, True), "both wait for theirs"
    assert world.said().wanted == 0, "once"
    world.now_s += WAIT_S
    world.take(30)
    world.take(20)
    assert world.said().wanted == 30, "nobody waits: either comes again"


def test_away_it_goes_on_with_what_it_has_or_stops_at_once(world: World) -> None:
    world.now_s += 100
    assert world.take()
    world.apply(whenAway="DENY")
    assert not world.take()
    world.chunks.prolong(world.now_s + 3, world.now_s)
    assert world.take()


def test_in_shadow_nothing_is_refused_and_what_would_have_been_is_counted() -> None:
    world = World(shadow=True)
    world.take()
    world.give(1)
    assert all(world.take() for _ in range(3))
    (usage,) = world.chunks.report(world.now_s).usages
    assert (usage.allowed, usage.denied, usage.shadowed) == (3, 0, 2)
    assert usage.chunks.left == 0


def test_what_is_put_back_is_there_again_but_not_in_another_period(world: World) -> None:
    taken_s = world.now_s
    assert world.take(6)
    world.chunks.give_back("acme", OTHER, 2, taken_s)
    assert world.said().left == 6
    world.chunks.give_back("acme", OTHER, 1e9, taken_s)
    assert world.said().left == 10, "never more than was given"
    assert world.take(6)
    world.now_s += 10
    world.give(3, turn=6)
    assert world.take(2)
    world.chunks.give_back("acme", OTHER, 6, taken_s)
    assert world.said().left == 1


def test_what_costs_more_than_it_took_counts(world: World) -> None:
    assert world.take(10)
    assert world.chunks.charge("acme", OTHER, 0, world.now_s) == 0
    assert world.chunks.charge("acme", OTHER, 5, world.now_s) > 0, "a stream waits with its next message"
    assert world.chunks.presses
    world.chunks.charge("acme", OTHER, -5, world.now_s)
    assert world.said().left == -5
    world.now_s += IDLE_S + 1
    assert world.chunks.charge("acme", OTHER, 0, world.now_s) > 0
    assert len(world.chunks.report(world.now_s).usages) == 1, "it is in use, though no call came for long"
    world.give(14)
    assert not world.take()
    world.give(16)
    assert world.take()


def test_what_nobody_uses_is_given_back_and_forgotten(world: World) -> None:
    world.take()
    world.now_s += IDLE_S
    said = world.said()
    assert (said.amount, said.left, said.returned) == (10, 0, 9)
    assert not world.take()
    world.now_s += 2 * IDLE_S
    world.said()
    assert not world.chunks.report(world.now_s, full=True).usages
    world.take()
    assert world.said().series != said.series, "what it had is nothing to the new count"


def test_at_the_end_all_is_given_back_and_nothing_let_in(world: World) -> None:
    world.take(4)
    world.chunks.close()
    assert world.said().returned == 6
    assert not world.take()
    world.give(50)
    assert not world.take()


def test_chunks_of_others_are_let_go(world: World) -> None:
    before = world.said()
    for series, tenant, method, amount in (
        (before.series + 1, "acme", "", 50),
        (before.series, "globex", "", 50),
        (before.series, "acme", ASK, 50),
        (before.series, "acme", "", float("nan")),
        (before.series, "acme", "", float("inf")),
        (before.series, "acme", "", -5),
    ):
        named, made = pb.Bucket(tenant=tenant, method=method), pb.Chunk(series=series, turn=_TURN, amount=amount)
        world.chunks.grant([pb.Share(bucket=named, chunk=made)], world.now_s, world.now_s)
    assert world.said().left == before.left == 10


def test_other_limits_leave_what_was_given(world: World) -> None:
    world.take(3)
    world.apply(limits=[{"tenant": "*", "requests": 5}])
    assert world.said().left == 7
    assert not world.take(tenant="globex")
    world.apply(limits=[{"tenant": "globex", "requests": 5}])
    assert all(world.take() for _ in range(99)), "no limit names it any more"


def test_tenants_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TENANTS", 3)
    world = World(limits=[{"tenant": "*", "requests": 5}])
    for number in range(50):
        assert not world.take(tenant=f"t{number}")
    assert len(world.chunks.report(world.now_s, full=True).usages) <= 4


def test_a_call_that_was_silent_until_its_bucket_was_forgotten_counts(world: World) -> None:
    assert world.take()
    for _ in range(3):
        world.now_s += IDLE_S
        world.chunks.report(world.now_s)
    assert not world.chunks._tenants
    assert world.chunks.charge("acme", OTHER, 7, world.now_s) > 0
    world.give(5)
    assert not world.take(), "2 are owed"
    world.give(10)
    said = world.said()
    assert (said.amount, said.left) == (10, 3)
    assert world.take(3)


def test_a_call_that_finds_nothing_may_wait_for_what_comes_and_is_not_refused_yet() -> None:
    world = World()
    first, second = (world.chunks.take("acme", OTHER, 1, world.now_s).coming for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.arrived, first.until_s) == (second.arrived, world.now_s + WAIT_S)
    (usage,) = world.chunks.report(world.now_s, full=True).usages
    assert (usage.denied, usage.chunks.asks) == (0, True)
    world.give(1)
    assert first.arrived.done()
    assert world.take()
    assert not first.refuse().allowed
    (usage,) = world.chunks.report(world.now_s, full=True).usages
    assert (usage.allowed, usage.denied) == (1, 1)


def test_who_has_waited_in_vain_is_the_last_until_something_comes() -> None:
    world = World()
    coming = world.chunks.take("acme", OTHER, 1, world.now_s).coming
    assert coming is not None
    world.now_s = coming.until_s
    assert world.chunks.take("acme", OTHER, 1, world.now_s).coming is None
    world.give(1)
    assert world.take()
    assert world.chunks.take("acme", OTHER, 1, world.now_s).coming is not None


@pytest.mark.parametrize("away", ["silent", "closed", "spent", "shadow", "dear"])
def test_nobody_waits_for_what_does_not_come(away: str) -> None:
    world, amount = World(shadow=away == "shadow"), 1
    if away == "silent":
        world.now_s += 4
    elif away == "closed":
        world.chunks.close()
    elif away == "spent":
        world.take()
        world.give(0, spent="tenant")
    elif away == "dear":
        amount = 101
    assert world.chunks.take("acme", OTHER, amount, world.now_s).coming is None


def test_who_waits_is_let_go_when_the_server_ends() -> None:
    world = World()
    coming = world.chunks.take("acme", OTHER, 1, world.now_s).coming
    assert coming is not None
    world.chunks.close()
    assert coming.arrived.done()
