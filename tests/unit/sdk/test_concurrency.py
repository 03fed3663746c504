"""The limit that a server finds by itself, against a model of a server; and whose calls have the places."""

import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meshwarden.sdk.backpressure import concurrency
from meshwarden.sdk.backpressure.concurrency import Concurrency, Part, Place
from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.sdk.backpressure.gradient import MAX_METHODS, Gradient

PLUS, CRITICAL, SHEDDABLE_PLUS, SHEDDABLE = Criticality
GET = "/o.Orders/Get"
Takes = Callable[[random.Random, float], float]


def about(mean_s: float) -> Takes:
    return lambda rng, _: mean_s * rng.uniform(0.8, 1.2)


def memoryless(mean_s: float) -> Takes:
    return lambda rng, _: rng.expovariate(1 / mean_s)


@dataclass
class Load:
    """Calls of one tenant, by chance, so many a second."""

    rate: float
    takes: Takes
    tenant: str = "acme"
    method: str = GET
    level: Criticality = CRITICAL
    from_s: float = 0.0
    until_s: float = 60.0


@dataclass
class Model:
    """A server that serves so many calls at a time and lets others wait in a row. Its time is made up."""

    workers: int
    limiter: Concurrency | None
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    now_s: float = 0.0
    shed: list[tuple[float, str, Criticality]] = field(default_factory=list)
    # (when it ended, what it took since it came, whose it was, which level)
    served: list[tuple[float, float, str, Criticality]] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)
    _events: list[Any] = field(default_factory=list)
    _row: deque[Any] = field(default_factory=deque)
    _ids: Any = field(default_factory=itertools.count)
    _busy: int = 0

    def run(self, *loads: Load, until_s: float) -> "Model":
        for load in loads:
            self._at(load.from_s + self.rng.expovariate(load.rate), load)
        while self._events and self._events[0][0] < until_s:
            self.now_s, _, what = heapq.heappop(self._events)
            self._come(what) if isinstance(what, Load) else self._end(*what)
            while self._busy < self.workers and self._row:
                load, place, came_s = self._row.popleft()
                self._busy += 1
                self._at(self.now_s + load.takes(self.rng, self.now_s), (load, place, came_s))
        return self

    def rate(self, from_s: float, until_s: float, **of: Any) -> float:
        return len(self.took(from_s, until_s, **of)) / (until_s - from_s)

    def took(self, from_s: float, until_s: float, **of: Any) -> list[float]:
        calls = (call for call in self.served if from_s <= call[0] < until_s)
        return [took for _, took, tenant, level in calls if of.get("tenant", tenant) == tenant and
                of.get("level", level) == level]  # fmt: skip

    def limit(self, from_s: float, until_s: float) -> float:
        return statistics.mean(limit for at_s, limit in self.limits if from_s <= at_s < until_s)

    def _at(self, at_s: float, what: Any) -> None:
        heapq.heappush(self._events, (at_s, next(self._ids), what))

    def _come(self, load: Load) -> None:
        again_s = self.now_s + self.rng.expovariate(load.rate)
        if again_s < load.until_s:
            self._at(again_s, load)
        place = None
        if self.limiter is not None:
            place = self.limiter.enter(load.tenant, load.method, load.level, self.now_s)
            if place is None:
                self.shed.append((self.now_s, load.tenant, load.level))
                return
        self._row.append((load, place, self.now_s))

    def _end(self, load: Load, place: Place | None, came_s: float) -> None:
        self._busy -= 1
        if self.limiter is not None and place is not None:
            self.limiter.leave(place, self.now_s, is_measured=True)
            self.limits.append((self.now_s, self.limiter.usage.limit))
        self.served.append((self.now_s, self.now_s - came_s, load.tenant, load.level))


def limiter(least: int = 2, most: int = 400, **parts: float) -> Concurrency:
    made = Concurrency(least, most, 0.0, random.Random(7).random)
    made.update(least, most, {name: Part(weight) for name, weight in parts.items()}, 0.0)
    return made


@pytest.mark.parametrize("shape", [about, memoryless])
@pytest.mark.parametrize(("workers", "mean_s"), [(1, 0.01), (4, 0.02), (16, 0.04), (48, 0.2)])
def test_at_ten_times_its_capacity_a_server_goes_on_serving(
    workers: int, mean_s: float, shape: Callable[[float], Takes]
) -> None:
    capacity = workers / mean_s
    load = Load(10 * capacity, shape(mean_s), until_s=40)
    model = Model(workers, limiter()).run(load, until_s=40)
    assert model.rate(20, 40) > 0.9 * capacity
    # Near the knee: twice the workers, and for one worker a handful.
    assert workers * 0.75 < model.limit(20, 40) < 2 * workers + 6
    assert statistics.mean(model.took(20, 40)) < (2 + 4 / workers) * mean_s

    # Without a limit everything is served, and nothing in time: the row is as long as the load has lasted.
    reference = Model(workers, None).run(Load(10 * capacity, shape(mean_s), until_s=10), until_s=10)
    assert statistics.mean(reference.took(5, 10)) > 5


def test_nobody_is_refused_at_half_the_capacity() -> None:
    model = Model(16, limiter()).run(Load(400, about(0.02)), until_s=30)
    assert not model.shed


def test_what_calls_take_alone_does_not_drift_in_a_long_overload() -> None:
    model = Model(8, limiter()).run(Load(400, memoryless(0.05), until_s=300), until_s=300)
    assert model.limit(260, 300) < 1.5 * model.limit(20, 60)
    assert model.rate(260, 300) > 0.9 * 160


def test_work_that_becomes_slower_for_another_reason_does_not_pin_the_limit_below() -> None:
    """From the twentieth second on each call takes four times as long, and the same number can be served at once."""
    load = Load(800, lambda rng, now_s: about(0.2 if now_s > 20 else 0.05)(rng, now_s), until_s=80)
    model = Model(16, limiter()).run(load, until_s=80)
    assert model.rate(60, 80) > 0.9 * 80
    load = Load(800, lambda rng, now_s: about(0.05 if now_s > 20 else 0.2)(rng, now_s), until_s=60)
    model = Model(16, limiter()).run(load, until_s=60)
    assert model.rate(40, 60) > 0.9 * 320


def test_a_mix_of_fast_and_slow_methods_that_changes_does_not_look_like_load() -> None:
    def run(shift_s: float) -> Model:
        slow, fast = about(0.2), about(0.002)
        return Model(32, limiter()).run(
            Load(20, slow, method="/o.Orders/List", until_s=60),
            Load(1000, fast, until_s=shift_s),
            Load(200, slow, method="/o.Orders/List", from_s=shift_s, until_s=60),
            until_s=60,
        )

    model = run(30)
    assert model.rate(40, 60) > 0.9 * 160


def test_methods_that_callers_make_up_take_no_more_room() -> None:
    gradient = Gradient(2, 10, 0.0, lambda: 0.5)
    for number in range(10_000):
        cohort = gradient.begin(f"/x/{number}", 1, 0.0)
        gradient.end(cohort, f"/x/{number}", 0.0, 0.01, is_measured=True)
    assert len(gradient._methods) <= MAX_METHODS + 1


def test_calls_that_never_end_do_not_stop_the_clock() -> None:
    gradient = Gradient(2, 100, 0.0, lambda: 0.5)
    before = gradient.limit
    for number in range(40):
        gradient.begin(GET, number + 1, 0.01)
    cohort = gradient.begin(GET, 41, 0.01)
    assert not gradient.end(cohort, GET, 0.01, 0.2, is_measured=True)
    cohort = gradient.begin(GET, 41, 50.0)
    gradient.end(cohort, GET, 50.0, 50.1, is_measured=True)
    assert gradient.limit != before or gradient._cohort > 1


# -- whose calls


def test_who_floods_does_not_push_out_who_calls_now_and_then() -> None:
    flood = Load(4000, about(0.04), tenant="noisy", until_s=30)
    quiet = Load(50, about(0.04), tenant="quiet", until_s=30)
    model = Model(16, limiter()).run(flood, quiet, until_s=30)
    lost = [tenant for at_s, tenant, _ in model.shed if at_s > 5].count("quiet")
    assert lost < 0.02 * 1250
    assert model.rate(10, 30) > 0.9 * 400  # what the quiet one leaves is used


def test_two_floods_share_by_weight_and_one_alone_has_it_all() -> None:
    model = Model(16, limiter(gold=3, bronze=1)).run(
        Load(1600, about(0.04), tenant="gold", from_s=20),
        Load(1600, about(0.04), tenant="bronze"),
        until_s=60,
    )
    assert model.rate(10, 20, tenant="bronze") > 0.9 * 400
    gold, bronze = model.rate(30, 60, tenant="gold"), model.rate(30, 60, tenant="bronze")
    assert gold + bronze > 0.9 * 400
    assert gold / bronze == pytest.approx(3, rel=0.25)


def test_the_least_critical_is_shed_first() -> None:
    loads = [Load(200, about(0.04), level=level, until_s=40) for level in Criticality]
    model = Model(16, limiter()).run(*loads, until_s=40)
    served = [model.rate(20, 40, level=level) for level in Criticality]
    assert served[0] > 0.9 * 200
    assert served[1] > 0.8 * 200
    assert served[3] < 0.05 * 200
    assert sum(served) > 0.9 * 400


def test_what_one_tenant_calls_critical_takes_nothing_from_another() -> None:
    model = Model(16, limiter()).run(
        Load(1600, about(0.04), tenant="loud", level=PLUS, until_s=40),
        Load(1600, about(0.04), tenant="meek", level=SHEDDABLE, until_s=40),
        until_s=40,
    )
    # Of its half the meek one leaves half free, as SHEDDABLE does; nobody takes the rest of its part from it.
    assert model.rate(20, 40, tenant="meek") > 0.2 * 400


def test_a_tenant_that_comes_back_has_its_part_as_soon_as_calls_have_ended() -> None:
    made = limiter(least=20, most=20)
    held = [made.enter("noisy", GET, PLUS, 0.0) for _ in range(20)]
    assert all(held)
    assert made.enter("quiet", GET, PLUS, 0.01) is None
    for place in held[:10]:
        assert place is not None
        made.leave(place, 0.02, is_measured=False)
        assert made.enter("noisy", GET, PLUS, 0.02) is None  # it is over its part, and somebody goes short
        assert made.enter("quiet", GET, PLUS, 0.02) is not None
    assert made.enter("quiet", GET, PLUS, 0.03) is None


def test_a_ceiling_holds_whatever_is_free() -> None:
    made = limiter(least=20, most=20)
    made.update(20, 20, {"acme": Part(1, 3), concurrency.ANY_TENANT: Part(1, 2)}, 0.0)
    assert [made.enter("acme", GET, PLUS, 0.0) is not None for _ in range(5)] == [True] * 3 + [False] * 2
    assert [made.enter("globex", GET, PLUS, 0.0) is not None for _ in range(3)] == [True] * 2 + [False]


def test_a_place_is_given_back_once() -> None:
    made = limiter(least=1, most=1)
    place = made.enter("acme", GET, CRITICAL, 0.0)
    assert place is not None
    made.leave(place, 0.1, is_measured=True)
    made.leave(place, 0.2, is_measured=True)
    assert made.usage.in_flight == 0
    assert made.enter("acme", GET, CRITICAL, 0.3) is not None
    assert made.enter("acme", GET, CRITICAL, 0.3) is None


def test_what_was_shed_is_counted() -> None:
    made = limiter(least=1, most=1)
    made.enter("acme", GET, CRITICAL, 0.0)
    made.enter("acme", GET, SHEDDABLE, 0.0)
    made.enter("globex", GET, CRITICAL, 0.0)
    assert made.usage.shed == {("acme", SHEDDABLE): 1, ("globex", CRITICAL): 1}


def test_tenants_without_number_take_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "MAX_TENANTS", 50)
    made = limiter(least=20, most=20)
    for number in range(1000):
        made.enter(f"t{number}", GET, CRITICAL, 0.0)
    assert len(made._tenants) <= 51
    assert made.usage.in_flight == 20
    # Those that are gone make room.
    made = limiter()
    for number in range(1000):
        place = made.enter(f"t{number}", GET, CRITICAL, number)
        assert place is not None
        made.leave(place, number, is_measured=False)
    assert len(made._tenants) < 10


TENANTS = ["a", "b", "c", "d"]


class Random(RuleBasedStateMachine):
    """Any calls, ends, ranges, weights and times: what must hold always."""

    @initialize(least=st.integers(1, 10), more=st.integers(0, 40))
    def begin(self, least: int, more: int) -> None:
        self.now_s, self.least, self.most = 0.0, least, least + more
        self.made = Concurrency(least, least + more, 0.0, random.Random(3).random)
        self.held: list[Place] = []

    @rule(tenant=st.sampled_from(TENANTS), level=st.sampled_from(Criticality))
    def enter(self, tenant: str, level: Criticality) -> None:
        made, one = self.made, self.made._tenants.get(tenant)
        before, limit = made._in_flight, made._limit
        was = (one.in_flight, one.part) if one is not None else (0, 1)
        others_short = {
            other.name: other.reserved for other in made._tenants.values() if other.name != tenant and other.reserved
        }
        due = self.now_s >= made._next_s
        place = made.enter(tenant, GET, level, self.now_s)
        if place is not None:
            self.held.append(place)
            assert due or before < limit
            if not due and was[0] >= was[1]:  # over its part: only of what nobody goes short of
                assert made._in_flight + sum(others_short.values()) <= limit
        elif level is PLUS and not due and was[0] < was[1]:
            assert before >= limit  # below one's part one is refused only where there is no place at all
            assert made._tenants[tenant].reserved > 0  # and the next one is kept

    @rule(data=st.data(), is_measured=st.booleans(), twice=st.booleans())
    def leave(self, data: st.DataObject, is_measured: bool, twice: bool) -> None:
        if self.held:
            place = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            for _ in range(1 + twice):
                self.made.leave(place, self.now_s, is_measured)

    @rule(by_s=st.floats(0, 3))
    def wait(self, by_s: float) -> None:
        self.now_s += by_s

    @rule(weights=st.dictionaries(st.sampled_from([*TENANTS, "*"]), st.floats(0.1, 100)), most=st.integers(1, 60))
    def update(self, weights: dict[str, float], most: int) -> None:
        self.least, self.most = min(self.least, most), most
        self.made.update(self.least, most, {name: Part(weight) for name, weight in weights.items()}, self.now_s)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "made"):
            return
        made = self.made
        tenants = made._tenants.values()
        assert made._in_flight == len(self.held) == sum(one.in_flight for one in tenants)
        assert self.least <= made._gradient._limit <= self.most
        assert self.least <= made._limit <= self.most
        assert made._reserved == sum(one.reserved for one in tenants)
        assert all(0 <= one.reserved == max(0, one.claim - one.in_flight) for one in tenants)
        assert all(one.claim <= one.part for one in tenants)
        assert sum(one.part for one in tenants) <= made._limit + len(tenants) or not made._weights


TestRandom = Random.TestCase


@given(st.data())
def test_when_all_has_ended_nothing_is_left(data: st.DataObject) -> None:
    made, held, now_s = limiter(least=3, most=30), [], 0.0
    for _ in range(data.draw(st.integers(1, 60))):
        now_s += data.draw(st.floats(0, 0.5))
        place = made.enter(data.draw(st.sampled_from(TENANTS)), GET, data.draw(st.sampled_from(Criticality)), now_s)
        held += [place] if place is not None else []
    for place in held:
        made.leave(place, now_s, is_measured=False)
    assert made.usage.in_flight == 0
    for _ in range(300):
        now_s += 1
        made.enter("last", GET, PLUS, now_s)
    assert set(made._tenants) == {"last"} or len(made._tenants) <= 1 + len(TENANTS)
