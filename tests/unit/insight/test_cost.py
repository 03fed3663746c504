"""What calls of models cost: counted once, by whose they are, bounded, and there after a crash."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.model_call import Told
from meshwarden.controlplane.insight import cost_span, cost_table
from meshwarden.controlplane.insight.cost import MAX_TOKENS, OTHER, RETENTION, UNKNOWN, Costs
from meshwarden.controlplane.insight.cost_table import DAY_S, HOUR_S, Amount, Question, Sum
from meshwarden.controlplane.insight.price import Tokens
from meshwarden.v1.report_pb2 import ModelCall

NOW = datetime(2026, 11, 26, 12, 30, 15, tzinfo=UTC)


class TwoPrices:
    """One model costs a dollar a token, one nothing; nobody knows of others."""

    source = "a test"

    def usd(self, provider: str, model: str, tokens: Tokens, time_s: int) -> float | None:
        return {"dear": float(tokens.input + tokens.output), "free": 0.0}.get(model)

    def newest(self, today: date) -> date | None:
        return today - timedelta(days=3)


class World:
    def __init__(self, path: Path) -> None:
        self.now, self.path, self.ids = NOW, path, 0
        self.start()

    def start(self, **bounds: int) -> None:
        self.durable, self.costs = Durable(self.path), Costs(TwoPrices(), lambda: self.now, **bounds)
        self.durable.add(self.costs)

    def restart(self, **bounds: int) -> None:
        self.durable.close()
        self.start(**bounds)

    def call(self, model: str = "dear", **changes: Any) -> ModelCall:
        self.ids += 1
        values = {"provider": "p", "model": model, "id": self.ids, "input_tokens": 10, "output_tokens": 2, **changes}
        return ModelCall(**values)

    def tell(self, *calls: ModelCall, tenant: str = "acme", service: str = "web") -> None:
        self.costs.add(Told(tenant, service, int(self.now.timestamp()), calls))

    async def read(self, **asked: Any) -> tuple[list[Sum], Amount, int]:
        await self.durable.flush()
        start_s = int((self.now - timedelta(days=500)).timestamp())
        question = Question(start_s=start_s, end_s=int(self.now.timestamp()) + 1)
        return await self.durable.read(lambda db: cost_table.read(db, replace(question, **asked)))

    async def whole(self, **asked: Any) -> Amount:
        return (await self.read(**asked))[1]

    def shown(self, name: str) -> dict[tuple[str, ...], float]:
        samples = [sample for family in self.costs.collect() for sample in family.samples if sample.name == name]
        return {tuple(sample.labels.values()): sample.value for sample in samples}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "gather.sqlite")
    yield world
    world.durable.close()


async def test_tokens_and_money_are_added_up_by_what_one_asks_for(world: World) -> None:
    world.tell(world.call(), world.call(input_tokens=30, cached_tokens=20, cache_write_tokens=4), world.call("free"))
    world.tell(world.call(), tenant="globex", service="shop")
    sums, whole, omitted = await world.read(by=("tenant",))
    assert [(one.of, one.amount.calls, one.amount.usd) for one in sums] == [
        ({"tenant": "acme"}, 3, 44.0),
        ({"tenant": "globex"}, 1, 12.0),
    ]
    assert (whole.calls, whole.input_tokens, whole.cached_tokens, whole.cache_write_tokens) == (4, 60, 20, 4)
    assert (whole.output_tokens, whole.usd, whole.unpriced_tokens, omitted) == (8, 56.0, 0, 0)
    assert (await world.whole(tenant="acme", model="free"))[:2] == (1, 10)
    (first,), _, omitted = await world.read(limit=1)
    assert (first.of["model"], omitted) == ("dear", 2)
    assert (await world.whole(service="web")).calls == 3
    assert (await world.read(tenant="nobody"))[0] == []


async def test_a_price_that_nobody_knows_is_never_nothing(world: World) -> None:
    world.tell(world.call("new"), world.call("free"), world.call("new"))
    world.tell(world.call("new", unmetered=True, input_tokens=0, output_tokens=0))
    sums, whole, _ = await world.read(by=("model",))
    found = {one.of["model"]: one.amount for one in sums}
    assert (found["new"].is_priced, found["new"].unpriced_tokens, found["new"].unpriced_calls) == (False, 24, 2)
    assert (found["new"].unmetered_calls, found["new"].calls) == (1, 3)
    assert (found["free"].is_priced, found["free"].usd) == (True, 0.0)
    assert (whole.is_priced, whole.unpriced_tokens) == (True, 24), "at least"
    assert world.shown("meshwarden_llm_cost_usd_total") == {("acme", "web", "p", "free"): 0.0}
    assert world.shown("meshwarden_llm_unpriced_tokens_total")["acme", "web", "p", "new"] == 24


async def test_metrics_say_each_token_once_and_outlive_a_restart(world: World) -> None:
    world.tell(world.call(input_tokens=30, cached_tokens=20, cache_write_tokens=4))
    await world.durable.flush()
    tokens = {"input": 6, "cached_input": 20, "cache_write": 4, "output": 2}
    for _ in range(2):
        shown = world.shown("meshwarden_llm_tokens_total")
        assert {labels[-1]: value for labels, value in shown.items()} == tokens
        assert world.shown("meshwarden_llm_cost_usd_total") == {("acme", "web", "p", "dear"): 32.0}
        assert world.shown("meshwarden_llm_calls_total") == {("acme", "web", "p", "dear", "priced"): 1}
        assert world.shown("meshwarden_llm_prices_age_seconds") == {(): 3 * DAY_S + 12.5 * HOUR_S + 15}
        world.restart()
    world.tell(world.call())
    await world.durable.flush()
    assert world.shown("meshwarden_llm_cost_usd_total") == {("acme", "web", "p", "dear"): 44.0}
    # A series that ends takes nothing of the sums with it.
    world.now += RETENTION + timedelta(hours=2)
    world.tell(world.call("free"))
    await world.durable.flush()
    assert world.shown("meshwarden_llm_cost_usd_total") == {("acme", "web", "p", "free"): 0.0}
    assert (await world.whole()).usd == 44.0


async def test_a_span_that_comes_again_counts_once(world: World) -> None:
    call = world.call()
    world.tell(call, call)
    await world.durable.flush()
    world.tell(call)
    assert (await world.whole()).calls == 1
    world.restart()
    world.tell(call)
    assert (await world.whole()).calls == 1
    world.tell(call, service="other-service")
    world.tell(call, tenant="globex")
    assert (await world.whole()).calls == 3, "another workload's ids are its own"


@pytest.mark.parametrize("is_reversed", [False, True])
async def test_of_a_call_within_a_call_one_counts(world: World, is_reversed: bool) -> None:
    # A client below a framework below another: one call, of which three spans tell; the innermost ends first.
    inner = world.call(parent_id=102)
    middle, outer = world.call(id=102, parent_id=103), world.call(id=103, parent_id=104)
    told = [inner, middle, outer]
    for call in reversed(told) if is_reversed else told:
        world.tell(call)
    assert (await world.whole()).calls == 1
    # Two calls below the same span that is none are two.
    world.tell(world.call(parent_id=200), world.call(parent_id=200))
    assert (await world.whole()).calls == 3


async def test_of_each_tenant_the_last_spans_are_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_span, "KNOWN", 4)
    calls = [world.call() for _ in range(6)]
    world.tell(*calls)
    world.tell(other := world.call(), tenant="globex")
    assert (await world.whole()).calls == 7
    world.restart()
    rows = await world.durable.read(lambda db: db.execute("SELECT count(*) FROM cost_span").get)
    assert rows == 5
    world.tell(*calls[2:])
    world.tell(other, tenant="globex")
    assert (await world.whole()).calls == 7
    world.tell(*calls[:2])
    assert (await world.whole()).calls == 9


async def test_tokens_count_wherever_in_a_call_they_are_told(world: World) -> None:
    silent = {"unmetered": True, "input_tokens": 0, "output_tokens": 0}
    world.tell(world.call(id=101, parent_id=102, **silent), world.call(id=102))
    world.tell(world.call(id=202, **silent), world.call(id=201, parent_id=202))
    whole = await world.whole()
    assert (whole.input_tokens, whole.unmetered_calls) == (20, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"refused": True},
        {"input_tokens": 2**64 - 1},
        {"output_tokens": MAX_TOKENS + 1},
        {"cached_tokens": 11},
        {"cached_tokens": 6, "cache_write_tokens": 5},
        {"cache_write_tokens": 2**64 - 1},
    ],
)
async def test_what_cannot_be_counts_as_refused_alone(world: World, changes: dict[str, Any]) -> None:
    world.tell(world.call(**changes), world.call())
    whole = await world.whole()
    assert (whole.refused_calls, whole.calls, whole.usd) == (1, 1, 12.0)


async def test_names_are_bounded_and_what_is_beyond_has_no_price(world: World) -> None:
    world.restart(models_per_tenant=3)
    for number in range(10):
        world.tell(world.call(f"model-{number}"))
    world.tell(world.call("x" * 129), world.call("\x1b[2J"), world.call("", provider=""))
    world.tell(world.call(), tenant="globex")
    for _ in range(2):
        sums, whole, _ = await world.read(by=("tenant", "model"))
        models = {one.of["model"] for one in sums if one.of["tenant"] == "acme"}
        assert models == {"model-0", "model-1", "model-2", OTHER}
        assert (whole.calls, whole.usd) == (14, 12.0)
        world.restart(models_per_tenant=3)
    world.tell(world.call("model-1"), world.call("model-9"))
    assert {one.of["model"]: one.amount.calls for one in (await world.read(by=("model",)))[0]}["model-1"] == 2


async def test_what_a_span_does_not_say_is_unknown(world: World) -> None:
    world.tell(world.call("", provider=""))
    ((one,), *_) = await world.read()
    assert (one.of["model"], one.of["provider"]) == (UNKNOWN, UNKNOWN)


async def test_series_are_bounded_by_tenant(world: World) -> None:
    world.restart(series_per_tenant=4)
    for number in range(10):
        world.tell(world.call(), service=f"s-{number}")
    world.tell(world.call(), tenant="globex")
    sums, whole, _ = await world.read(by=("tenant", "service"))
    assert {one.of["service"] for one in sums} == {"s-0", "s-1", "s-2", "s-3", OTHER, "web"}
    assert whole.calls == 11


async def test_what_cannot_be_written_waits_and_counts_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.tell(world.call())

    def full(*_: object) -> None:
        raise apsw.FullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(cost_table, "add_totals", full)
        with pytest.raises(apsw.FullError):
            await world.durable.flush()
    again = world.call()
    world.tell(again)
    await world.durable.flush()
    world.restart()
    world.tell(again)
    assert (await world.whole()).calls == 2
    assert world.shown("meshwarden_llm_calls_total") == {("acme", "web", "p", "dear", "priced"): 2}


async def test_rows_become_coarser_with_age_and_lose_nothing(world: World) -> None:
    for _ in range(90):
        world.tell(world.call())
        await world.durable.flush()
        world.now += timedelta(minutes=1)
    hours = (await world.read(by=(), step_s=HOUR_S))[0]
    assert [(datetime.fromtimestamp(one.start_s, UTC).hour, one.amount.calls) for one in hours] == [(12, 30), (13, 60)]
    within = await world.whole(start_s=int(NOW.timestamp()), end_s=int(NOW.timestamp()) + 600)
    assert within.calls == 11, "the minute that it begins in, too"
    for days, rows in ((3, 2), (70, 1)):
        world.now = NOW + timedelta(days=days)
        world.tell(world.call("free"))
        assert (await world.whole(model="dear")).calls == 90
        assert await world.durable.read(cost_table.count) == rows + (1 if days == 3 else 2)
    (day,) = (await world.read(by=(), step_s=DAY_S, model="dear"))[0]
    assert day.start_s == int(NOW.timestamp()) // DAY_S * DAY_S
    world.now = NOW + timedelta(days=402)
    world.tell(world.call("free"))
    assert (await world.whole(model="dear")).calls == 0


async def test_too_many_rows_become_coarser_for_who_has_most(world: World) -> None:
    world.restart(max_rows=40)
    world.now -= timedelta(hours=3)
    for number in range(90):
        world.tell(world.call(f"m-{number % 3}"))
        if number % 30 == 0:
            world.tell(world.call(), tenant="globex")
        await world.durable.flush()
        world.now += timedelta(minutes=1)
    world.now += timedelta(hours=2)
    world.tell(world.call("free"))
    await world.durable.flush()
    await world.read()
    assert await world.durable.read(cost_table.count) <= 40
    assert (await world.whole(tenant="acme")).calls == 91
    assert world.costs.size_bytes() <= 40 * cost_table.ROW_BYTES
    # Beyond that the oldest go, of whoever has most.
    world.restart(max_rows=5)
    world.now += timedelta(hours=2)
    world.tell(*(world.call(f"n-{number}") for number in range(20)))
    await world.durable.flush()
    assert await world.durable.read(cost_table.count) <= 5
    assert (await world.whole(tenant="globex")).calls == 3


async def test_a_sum_beyond_what_integers_hold_is_no_error(world: World) -> None:
    row = Amount(calls=2**62, input_tokens=2**62, usd=1e300)
    await world.durable.work(
        lambda db: [
            cost_table.add(db, {(int(NOW.timestamp()), cost_table.Series("acme", f"s-{number}", "p", "m")): row})
            for number in range(4)
        ]
    )
    assert (await world.whole()).calls == 2**64
