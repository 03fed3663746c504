"""What regions tell each other: numbered changes, pages that replace, and how far and how old it is."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.gather.call import Call, parse
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.graph.graph import Graph
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.graph.remote import Remote
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.regions.inbox import Inbox
from meshwarden.sdk.red.histogram import bucket_of, from_proto
from meshwarden.v1.report_pb2 import CallStat

NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)
MINUTE = int(NOW.timestamp()) - 30
EVERYTHING = (NOW - timedelta(days=1), NOW + timedelta(days=1))
Show = Callable[[str], bool]


def everyone(tenant: str) -> bool:
    return True


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class Region:
    """A ledger, what it knows of region `us`, and their file."""

    def __init__(self, name: str, path: Path, clock: Clock, **limits: int) -> None:
        self.clock = clock
        self.durable = Durable(path)
        self.ledger = Ledger(self.durable, "mesh.test", clock, region=name, **limits)  # type: ignore[arg-type]
        self.remote = Remote(["us"], clock)
        self.remote.recall(self.ledger.totals_told())
        self.inbox = Inbox(self.ledger, self.remote)
        self.durable.add(self.inbox)

    async def count(self, *calls: Call) -> None:
        self.ledger.add(calls)
        await self.durable.flush()

    async def rows(self, region: str) -> list[CallStat]:
        """What is listed of a region, with no word on which it is."""
        found = [row for row in await self.ledger.list(*EVERYTHING, limit=100_000) if row.region == region]
        for row in found:
            row.ClearField("region")
        return found

    async def pull(self, other: "Region", page_rows: int = 500, pages: int = 1000) -> int:
        """Takes what has changed at another region; returns how many rows that were."""
        cursor = self.inbox.cursor("us")
        after = cursor.sequence if cursor.incarnation == other.ledger.incarnation else 0
        taken = 0
        for _ in range(pages):
            page = await other.ledger.changed(after, page_rows)
            calls = [parse(row, "mesh.test", "us") for row in page.rows]
            self.inbox.put("us", other.ledger.incarnation, page.sequence, calls)
            await self.durable.flush()
            taken, after = taken + len(calls), page.sequence
            if len(page.rows) < page_rows:
                self.inbox.caught_up("us", self.clock())
                break
        return taken

    def shown(self, name: str) -> float:
        return sum(sample.value for family in self.remote.collect() for sample in family.samples if sample.name == name)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Region]]:
    made: list[Region] = []

    def making(name: str, file: str = "", **limits: int) -> Region:
        made.append(Region(name, tmp_path / f"{file or name}.sqlite", clock, **limits))
        return made[-1]

    yield making
    for region in made:
        region.durable.close()


def call(**changes: object) -> Call:
    values: dict[str, object] = {
        "source_tenant": "acme",
        "source_service": "web",
        "destination_tenant": "platform",
        "destination_service": "orders",
        "method": "/a.B/C",
        "status": "OK",
        "decision": CallStat.ALLOWED,
        "reporter": CallStat.SOURCE,
        "revision": 1,
        "minute": MINUTE,
        "count": 1,
        "sum_s": 0.25,
        "durations": {bucket_of(0.25): 1},
    }
    return Call(**{**values, **changes})  # type: ignore[arg-type]


Make = Callable[..., Region]


async def test_what_is_pulled_is_what_was_counted_to_the_call_and_its_duration(make: Make) -> None:
    eu, us = make("eu"), make("us")
    await us.count(call(), call(status="INTERNAL"), call(destination_region="asia"))
    await us.count(call(count=2, sum_s=1.0, durations={bucket_of(0.5): 2}))
    await eu.count(call(count=7))
    assert await eu.pull(us) == 3
    assert await eu.rows("us") == await us.rows("us")
    assert sum(row.count for row in await eu.rows("eu")) == 7
    page = await us.ledger.changed(0, 100)
    durations = {row.status: from_proto(row.durations) for row in page.rows if not row.destination_region}
    assert durations == {"OK": {bucket_of(0.25): 1, bucket_of(0.5): 2}, "INTERNAL": {bucket_of(0.25): 1}}
    assert all(not row.region for row in page.rows)


async def test_only_what_has_changed_is_told_again_and_replaces(make: Make) -> None:
    eu, us = make("eu"), make("us")
    await us.count(call(), call(method="/a.B/D"))
    assert await eu.pull(us) == 2
    assert await eu.pull(us) == 0
    await us.count(call(count=5, durations={bucket_of(0.25): 5}))
    assert await eu.pull(us) == 1
    assert await eu.rows("us") == await us.rows("us")
    (edge,) = eu.remote.graphs()["us"].edges(timedelta(minutes=5), everyone)
    assert edge.outcomes == {"ok": 7}
    assert edge.p99_s == pytest.approx(0.25, rel=0.01)
    assert eu.shown("meshwarden_remote_requests_total") == 7
    assert eu.shown("meshwarden_remote_rpc_client_call_duration_seconds_count") == 7


async def test_the_same_page_twice_changes_nothing(make: Make) -> None:
    eu, us = make("eu"), make("us")
    await us.count(call(count=3, durations={bucket_of(0.25): 3}))
    page = await us.ledger.changed(0, 100)
    calls = [parse(row, "mesh.test", "us") for row in page.rows]
    for _ in range(3):
        eu.inbox.put("us", us.ledger.incarnation, page.sequence, calls)
        await eu.durable.flush()
    assert await eu.rows("us") == await us.rows("us")
    assert eu.shown("meshwarden_remote_requests_total") == 3


COUNTS = st.lists(
    st.builds(
        lambda method, reporter, status, late, count: call(
            method=f"/a.B/{method}",
            reporter=reporter,
            status=status,
            destination_region="us" if reporter == CallStat.DESTINATION else "unknown",
            decision=CallStat.DENIED if status == "403" and reporter == CallStat.DESTINATION else CallStat.ALLOWED,
            minute=MINUTE - 60 * late,
            count=count,
            durations={bucket_of(0.25): count},
        ),
        st.integers(0, 1),
        st.sampled_from([CallStat.SOURCE, CallStat.DESTINATION]),
        st.sampled_from(["OK", "UNAVAILABLE", "403"]),
        st.integers(0, 1),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=2,
)
STEPS = st.one_of(
    st.tuples(st.just("count"), COUNTS),
    st.tuples(st.just("pull"), st.tuples(st.integers(1, 3), st.integers(0, 3))),  # rows a page, pages
    st.tuples(st.sampled_from(["again eu", "again us"]), st.none()),
    st.tuples(st.just("pass"), st.integers(1, 90)),  # seconds
)


class Both:
    """Region us, which counts, and region eu, which asks it."""

    def __init__(self, path: Path) -> None:
        self._path, self._clock = path, Clock()
        self.regions = {name: Region(name, path / f"{name}.sqlite", self._clock) for name in ("eu", "us")}
        self._own = Graph(self._clock, region="us")
        self._told = 0.0

    async def do(self, step: str, what: Any) -> None:
        """Does a step of STEPS."""
        verb, _, name = step.partition(" ")
        if verb == "count":
            self._own.add(what)
            await self.regions["us"].count(*what)
        elif verb == "pull":
            await self.regions["eu"].pull(self.regions["us"], *what)
        elif verb == "again":  # the process ends, and the next begins with the file
            self._told = self.told() if name == "eu" else self._told
            self.regions[name].durable.close()
            self.regions[name] = Region(name, self._path / f"{name}.sqlite", self._clock)
            if name == "us":
                self._own = Graph(self._clock, region="us")
                self._own.recall(self.regions["us"].ledger.totals())
        else:  # time passes
            self._clock.now += timedelta(seconds=what)

    def edges(self, name: str) -> dict[tuple[str, str], dict[str, int]]:
        """What calls of us came to, as the graph of a region says: `{(source, destination): {outcome: calls}}`."""
        graph = self._own if name == "us" else self.regions["eu"].remote.graphs()["us"]
        found = graph.edges(timedelta(minutes=5), everyone)
        return {(edge.source, edge.destination): dict(edge.outcomes) for edge in found}

    def told(self) -> float:
        """How many calls of us the metrics of eu have counted, those of processes that have ended as well."""
        return self._told + self.regions["eu"].shown("meshwarden_remote_requests_total")

    async def seen(self) -> dict[tuple[str, str], int]:
        """How many calls the ledger of us has of an edge, of the side that saw more."""
        sides: dict[tuple[str, str], Counter[int]] = {}
        for row in await self.regions["us"].rows("us"):
            counted = parse(row, "mesh.test", "us")
            sides.setdefault((counted.source, counted.destination), Counter())[counted.reporter] += counted.count
        return {edge: max(of_sides.values()) for edge, of_sides in sides.items()}

    def close(self) -> None:
        for region in self.regions.values():
            region.durable.close()


@given(steps=st.lists(st.tuples(STEPS, st.sampled_from(["", "eu", "us"])), max_size=20))
async def test_however_counts_pulls_and_questions_alternate_both_regions_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[tuple[str, Any], str]]
) -> None:
    with closing(Both(tmp_path_factory.mktemp("regions"))) as both:
        for step, asked in [*steps, (("pull", (500,)), "")]:
            await both.do(*step)
            if asked:
                both.edges(asked)
        rows = await both.regions["us"].rows("us")
        assert await both.regions["eu"].rows("us") == rows
        assert both.told() == sum(row.count for row in rows)
        assert both.edges("eu") == both.edges("us")
        assert {edge: sum(outcomes.values()) for edge, outcomes in both.edges("us").items()} == await both.seen()


async def test_changes_are_numbered_on_after_a_restart_even_where_rows_are_gone(make: Make, clock: Clock) -> None:
    us = make("us")
    await us.count(call(), call(method="/a.B/D"))
    last = us.ledger.sequence
    clock.now += timedelta(days=8)
    await us.durable.work(lambda db: us.ledger.prune(db, 0))
    us.durable.close()
    again = make("us")
    assert (again.ledger.sequence, again.ledger.incarnation) == (last, us.ledger.incarnation)
    await again.count(call(minute=int(clock.now.timestamp())))
    assert (await again.ledger.changed(last, 10)).sequence > last


async def test_a_lost_ledger_is_another_incarnation_and_stands_beside(make: Make) -> None:
    eu, us = make("eu"), make("us")
    await us.count(call(count=3))
    await eu.pull(us)
    new = make("us", "new")
    assert new.ledger.incarnation != us.ledger.incarnation
    await new.count(call(count=2))
    await eu.pull(new)
    assert sorted(row.count for row in await eu.rows("us")) == [2, 3]
    assert eu.shown("meshwarden_remote_requests_total") == 5
    cursor = eu.inbox.cursor("us")
    assert (cursor.incarnation, cursor.sequence) == (new.ledger.incarnation, new.ledger.sequence)


async def test_rows_and_how_far_they_go_are_one_transaction(make: Make) -> None:
    eu, us = make("eu"), make("us")
    await us.count(call())
    eu.durable._db.execute("CREATE TRIGGER full BEFORE INSERT ON regions BEGIN SELECT RAISE(ABORT, 'full'); END")
    with pytest.raises(apsw.ConstraintError):
        await eu.pull(us)
    assert eu.inbox.cursor("us").sequence == 0
    assert await eu.rows("us") == []
    assert eu.shown("meshwarden_remote_requests_total") == 0
    assert eu.inbox.take() is None  # a full disk costs no memory
    eu.durable._db.execute("DROP TRIGGER full")
    await eu.pull(us)
    assert await eu.rows("us") == await us.rows("us")
    assert eu.inbox.cursor("us").sequence == us.ledger.sequence


async def test_how_old_it_is_is_known_after_a_restart(make: Make, clock: Clock) -> None:
    eu, us = make("eu"), make("us")
    assert eu.inbox.cursor("us").heard is None
    await us.count(call())
    await eu.pull(us)
    await eu.durable.flush()
    eu.durable.close()
    clock.now += timedelta(minutes=3)
    again = make("eu")
    assert again.inbox.cursor("us").heard == NOW
    (edge,) = again.remote.graphs()["us"].edges(timedelta(minutes=5), everyone)
    assert edge.outcomes == {"ok": 1}


async def test_what_a_region_did_while_it_was_cut_off_lies_in_its_own_minutes(make: Make, clock: Clock) -> None:
    eu, us = make("eu"), make("us")
    await eu.pull(us)
    for minute in range(10):
        await us.count(call(minute=MINUTE + 60 * minute, count=60, durations={bucket_of(0.25): 60}))
    clock.now += timedelta(minutes=10)
    await eu.pull(us)
    (edge,) = eu.remote.graphs()["us"].edges(timedelta(minutes=5), everyone)
    assert edge.outcomes == {"ok": 600}
    assert edge.calls_per_s == pytest.approx(1, rel=0.2)


async def test_a_silent_region_is_shown_as_of_its_last_word(make: Make, clock: Clock) -> None:
    eu, us = make("eu"), make("us")
    await us.count(call(count=30, durations={bucket_of(0.25): 30}))
    await eu.pull(us)
    (edge,) = eu.remote.graphs()["us"].edges(timedelta(minutes=5), everyone)
    before = edge.SerializeToString(deterministic=True)
    clock.now += timedelta(hours=3)
    (edge,) = eu.remote.graphs()["us"].edges(timedelta(minutes=5), everyone)
    assert edge.SerializeToString(deterministic=True) == before


async def test_a_flood_of_another_region_pushes_out_its_own_alone(make: Make) -> None:
    eu = make("eu", max_size_bytes=1 << 20)
    await eu.count(*(call(method=f"/a.B/{number}") for number in range(500)))
    tenants = (
        call(source_tenant=f"t{number}", method=f"/{'x' * 100}/{number}", minute=MINUTE + number % 3 * 60)
        for number in range(10_000)
    )
    eu.inbox.put("us", "0a", 1, list(tenants))
    await eu.durable.flush()
    forgotten = await eu.durable.work(lambda db: eu.ledger.prune(db, 0))
    assert forgotten.total() > 0
    assert len(await eu.rows("eu")) == 500
    assert "acme" not in forgotten


async def test_a_flood_of_one_minute_is_forgotten_too(make: Make) -> None:
    eu = make("eu", max_size_bytes=1 << 20)
    eu.inbox.put("us", "0a", 1, [call(source_tenant=f"t{number}", method="/" + "x" * 300) for number in range(6_000)])
    await eu.durable.flush()
    await eu.durable.work(lambda db: eu.ledger.prune(db, 0))
    assert await eu.rows("us") == []


def test_edges_and_series_of_a_region_are_bounded_whatever_tenants_it_makes_up(clock: Clock) -> None:
    graph, metrics = Graph(clock, max_edges=10), Metrics(max_series=10)
    made_up = [call(source_tenant=f"t{number}") for number in range(100)]
    graph.add(made_up)
    metrics.add(made_up)
    edges = list(graph.edges(timedelta(minutes=5), everyone))
    assert len(edges) == 11
    assert sum(edge.outcomes["ok"] for edge in edges) == 100
    counts = [
        sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == "meshwarden_requests_total"
    ]
    assert (len(counts), sum(counts)) == (11, 100)


async def test_a_region_that_goes_back_on_its_word_takes_nothing_from_metrics(make: Make) -> None:
    eu = make("eu")
    for count in (5, 3, 6):
        eu.inbox.put("us", "0a", 1, [call(count=count, durations={})])
        await eu.durable.flush()
    assert [row.count for row in await eu.rows("us")] == [6]
    assert eu.shown("meshwarden_remote_requests_total") == 5 + 3


def test_a_tenant_sees_its_own_edges_alone(clock: Clock) -> None:
    remote = Remote(["us"], clock)
    remote.add("us", [call(), replace(call(), source_tenant="globex")])
    edges = remote.graphs()["us"].edges(timedelta(minutes=5), lambda tenant: tenant == "acme")
    assert [edge.source for edge in edges] == ["acme/web"]


def test_an_older_file_without_regions_is_opened(tmp_path: Path, clock: Clock) -> None:
    with closing(apsw.Connection(str(tmp_path / "eu.sqlite"))) as db:
        db.execute("CREATE TABLE calls (minute INTEGER)")
    region = Region("eu", tmp_path / "eu.sqlite", clock)
    region.durable.close()
