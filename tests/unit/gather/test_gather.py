"""Reports: what is believed, what is refused and counted, and what comes out as metrics, rates and ledger rows."""

import contextlib
import random
import re
import stat as file_mode
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from prometheus_client import generate_latest

from meshwarden.controlplane.gather.agent_drop import REASONS
from meshwarden.controlplane.gather.call import Call, parse
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.forward.backend import parse_endpoint
from meshwarden.controlplane.gather.gather import Gather, Unwritten
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.mark import CHAINS_PER_NODE, Marks
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.reporter import Found, Reporter
from meshwarden.controlplane.gather.tally import AGENT_STAGES, INGEST
from meshwarden.sdk.red.histogram import bucket_of, to_proto
from meshwarden.v1.report_pb2 import CallStat, Drop, Exemplar, ExportRequest, Histogram, PackedSpans

NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)
MINUTE = int(NOW.timestamp()) - 30
WEB = "spiffe://mesh.test/tenant/acme/service/web"
ENTRIES = {("a", "acme", "web"), ("b", "platform", "orders")}
NODES = {node: service for node, _, service in ENTRIES}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(series_per_tenant=20)


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Durable]:
    durable = Durable(tmp_path / "gather.sqlite")
    yield durable
    durable.close()


@pytest.fixture
def gather(durable: Durable, metrics: Metrics, clock: Clock) -> Gather:
    return Gather(
        durable,
        Ledger(durable, "mesh.test", clock, rows_per_tenant=50),
        metrics,
        [],
        clock,
        random.Random(1),
        owns=lambda node, tenant, service: (node, tenant, service or NODES[node]) in ENTRIES,
        trust_domain="mesh.test",
        region="eu",
    )


def call(**changes: object) -> CallStat:
    values: dict[str, object] = {
        "source": WEB,
        "destination": "platform/orders",
        "method": "/shop.Orders/List",
        "status": "OK",
        "decision": CallStat.ALLOWED,
        "reporter": CallStat.SOURCE,
        "revision": 7,
        "count": 3,
        "duration_sum_s": 0.03,
        "durations": to_proto({bucket_of(0.02): 3}),
    }
    result = CallStat(**{**values, **changes})  # type: ignore[arg-type]
    result.minute.seconds = MINUTE
    return result


def make(durable: Durable, clock: Clock, *, traces_max_bytes: int = 1 << 20, **limits: int) -> Gather:
    """A gather that believes everybody."""
    ledger = Ledger(durable, "mesh.test", clock, **limits)  # type: ignore[arg-type]
    mesh = {"owns": lambda *_: True, "trust_domain": "mesh.test", "region": "eu", "traces_max_bytes": traces_max_bytes}
    return Gather(durable, ledger, Metrics(), [], clock, random.Random(1), **mesh)  # type: ignore[arg-type]


def batch(sequence: int, *calls: CallStat, **changes: object) -> ExportRequest:
    values: dict[str, object] = {"first_sequence": sequence, "sequence": sequence, "run_id": "run", **changes}
    return ExportRequest(calls=calls, **values)  # type: ignore[arg-type]


def shown(metrics: Metrics, name: str) -> float:
    return sum(
        sample.value for family in metrics.registry.collect() for sample in family.samples if sample.name == name
    )


async def listed(durable: Durable, gather: Gather) -> list[CallStat]:
    await durable.flush()
    return await gather.ledger.list(NOW - timedelta(hours=1), NOW)


async def prune(durable: Durable, gather: Gather) -> Counter[str]:
    return await durable.work(lambda db: gather.ledger.prune(db, 0))


async def test_counts_reach_metrics_ledger_and_rates(
    durable: Durable, gather: Gather, metrics: Metrics, clock: Clock
) -> None:
    assert gather.ingest("a", batch(1, call()))
    text = generate_latest(metrics.registry).decode()
    assert (
        'meshwarden_requests_total{decision="allowed",destination_region="unknown",destination_service="orders",'
        'destination_tenant="platform",method="/shop.Orders/List",reporter="source",source_region="eu",'
        'source_service="web",source_tenant="acme",status="OK",status_class="ok",tenant="acme"} 3.0'
    ) in text
    assert shown(metrics, "rpc_client_call_duration_seconds_count") == 3
    assert shown(metrics, "rpc_client_call_duration_seconds_sum") == pytest.approx(0.03)
    assert gather.rates() == {"acme": (3.0, 0.0, 0.0)}
    (row,) = await listed(durable, gather)
    assert (row.source, row.destination, row.count, row.revision) == (WEB, "platform/orders", 3, 7)


async def test_a_repeated_batch_counts_once(durable: Durable, gather: Gather, metrics: Metrics) -> None:
    assert gather.ingest("a", batch(1, call()))
    assert not gather.ingest("a", batch(1, call()))
    assert gather.ingest("a", batch(2, call()))
    assert shown(metrics, "meshwarden_requests_total") == 6
    rows = await listed(durable, gather)
    assert [row.count for row in rows] == [6]


def test_another_node_or_run_has_numbers_of_its_own(gather: Gather) -> None:
    assert gather.ingest("a", batch(1))
    assert gather.ingest("b", batch(1))
    assert gather.ingest("a", batch(1, run_id="after a restart"))


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=50))
def test_no_record_counts_twice(batches: list[tuple[int, int]]) -> None:
    marks, taken = Marks(), 0
    for first, last in batches:
        if marks.first("a", "chain", first, last):
            assert taken < first <= last
            taken = last
        assert marks.get("a", "chain") == taken


def test_a_node_that_makes_up_chains_forgets_its_own_alone() -> None:
    marks = Marks()
    assert marks.first("b", "chain", 1, 1)
    assert marks.first("a", "first", 1, 1)
    for number in range(CHAINS_PER_NODE):
        assert marks.first("a", f"chain {number}", 1, 1)
    assert (marks.get("b", "chain"), marks.get("a", "first")) == (1, 0)


@pytest.mark.parametrize("path", ["/tenant/acme/service/web", "/x", "/region/eu/node/a", "/operator/root"])
def test_callers_of_another_trust_domain_are_one_and_no_tenant_of_ours(path: str) -> None:
    stat = call(source=f"spiffe://other.test{path}", reporter=CallStat.DESTINATION)
    read = parse(stat, "mesh.test", "eu")
    assert (read.source, read.tenant, read.owner) == ("spiffe://other.test/*", "spiffe://other.test", "platform")


@pytest.mark.parametrize(
    ("stat", "reason"),
    [
        (call(source="spiffe://mesh.test/tenant/globex/service/web"), "not_owned"),
        (call(reporter=CallStat.DESTINATION), "not_owned"),
        (call(source="spiffe://other.test/tenant/acme/service/web"), "unidentified"),
        (call(source="spiffe://mesh.test/region/eu/node/a"), "unidentified"),
        (call(source="acme/web"), "malformed"),
        (call(source=""), "malformed"),
        (call(destination="orders"), "malformed"),
        (call(destination="platform/orders/x"), "malformed"),
        (call(destination="platform/\x1b[31m"), "malformed"),
        (call(method="/a\n/b"), "malformed"),
        (call(method=""), "malformed"),
        (call(status="\x00"), "malformed"),
        (call(decision=CallStat.DECISION_UNSPECIFIED), "malformed"),
        (call(reporter=CallStat.REPORTER_UNSPECIFIED), "malformed"),
        (call(count=0), "malformed"),
        (call(count=2**63, durations=Histogram()), "malformed"),
        (call(revision=2**63), "malformed"),
        (call(duration_sum_s=float("nan")), "malformed"),
        (call(duration_sum_s=float("inf")), "malformed"),
        (call(duration_sum_s=-1.0), "malformed"),
        (call(duration_sum_s=1e9), "malformed"),
        (call(durations=Histogram(buckets=[3], counts=[2])), "malformed"),
        (call(durations=Histogram(buckets=[3, 3], counts=[1, 2])), "malformed"),
        (call(durations=Histogram(buckets=[2**32 - 1], counts=[3])), "malformed"),
    ],
)
def test_what_cannot_be_believed_is_refused_and_the_rest_taken(
    gather: Gather, metrics: Metrics, stat: CallStat, reason: str
) -> None:
    gather.ingest("a", batch(1, stat, call()))
    assert [key[1:3] for key in gather.tally.drops()] == [("call", reason)]
    assert shown(metrics, "meshwarden_requests_total") == 3


# -- counts as a table


def tabled(request: ExportRequest) -> ExportRequest:
    """The same batch with each count in a table of its own."""
    made = ExportRequest()
    made.CopyFrom(request)
    del made.calls[:]
    for stat in request.calls:
        kind = CallStat()
        kind.CopyFrom(stat)
        for field in ("minute", "count", "duration_sum_s", "durations", "exemplars"):
            kind.ClearField(field)  # type: ignore[arg-type]
        made.call_tables.add(
            kinds=[kind.SerializeToString()],
            minute_s=stat.minute.seconds,
            counts=[stat.count],
            duration_sums_s=[stat.duration_sum_s],
            sizes=[len(stat.durations.buckets)],
            buckets=stat.durations.buckets,
            bucket_counts=stat.durations.counts,
            exemplars=stat.exemplars,
            exemplar_rows=[0] * len(stat.exemplars),
        )
    return made


some_calls = st.lists(
    st.builds(
        call,
        source=st.sampled_from([WEB, "", "nobody", "spiffe://mesh.test/tenant/globex/service/x"]),
        destination=st.sampled_from(["platform/orders", "acme/web", "none"]),
        destination_region=st.sampled_from(["", "us", "\x1b"]),
        method=st.sampled_from(["/a/B", "", "\n"]),
        decision=st.integers(0, 5),
        reporter=st.integers(0, 3),
        revision=st.sampled_from([7, 2**63]),
        count=st.sampled_from([0, 3, 2**40]),
        duration_sum_s=st.sampled_from([0.03, float("nan"), -1.0]),
        durations=st.sampled_from(
            [Histogram(), to_proto({5: 3}), to_proto({5: 2, 9: 1}), to_proto({5: 2}), Histogram(buckets=[9999])]
        ),
        exemplars=st.lists(
            st.sampled_from([Exemplar(), Exemplar(trace_id=b"t" * 16, span_id=b"s" * 8, duration_s=1)]), max_size=5
        ),
    ),
    max_size=6,
)


@given(some_calls)
def test_a_table_is_believed_as_counts_are(calls: list[CallStat]) -> None:
    reporter = Reporter("a", lambda *entry: entry in ENTRIES, "mesh.test", "eu", NOW)
    told = batch(1, *calls)
    in_table, by_count = Found(reporter), Found(reporter)
    in_table.add(tabled(told))
    by_count.add(told)
    assert in_table.refused == by_count.refused
    assert added_up(in_table.calls()) == added_up(by_count.calls())


def added_up(calls: list[Call]) -> dict[tuple[object, ...], tuple[int, Counter[int], int]]:
    """How many there are of each kind; a row may say more than counts."""
    found: dict[tuple[object, ...], tuple[int, Counter[int], int]] = {}
    for one in calls:
        plain = replace(one, count=0, sum_s=0.0, durations={}, exemplars=())
        key = (str(plain), bool(one.durations))
        count, durations, exemplars = found.get(key, (0, Counter(), 0))
        found[key] = (count + one.count, durations + Counter(one.durations), exemplars + len(one.exemplars))
    return found


def test_what_was_packed_is_taken_whole_or_not_at_all(gather: Gather, metrics: Metrics) -> None:
    def broken() -> Iterator[ExportRequest]:
        yield ExportRequest(calls=[call(count=2, durations=to_proto({5: 2}))], resource_spans=[b"\xff"])
        raise ValueError("the next can't be read")

    with pytest.raises(ValueError, match="read"):
        gather.ingest("a", batch(1, call()), broken())
    assert not gather.tally.totals()
    two = call(count=2, durations=to_proto({5: 2}))
    assert gather.ingest("a", batch(1, call()), [ExportRequest(calls=[two], resource_spans=[b"\xff"])])
    assert shown(metrics, "meshwarden_requests_total") == 5
    assert gather.tally.drops() == {(INGEST, "span", "malformed", ""): 1}


@pytest.mark.parametrize("kind", [b"\xff", CallStat(source="s" * 3000).SerializeToString(), b"k" * 4096])
def test_a_row_of_no_kind_is_refused_and_the_rest_taken(gather: Gather, metrics: Metrics, kind: bytes) -> None:
    odd = tabled(batch(1, call(count=2, durations=to_proto({5: 2})), call()))
    odd.call_tables[0].kinds[0] = kind
    gather.ingest("a", odd)
    assert gather.tally.drops() == {(INGEST, "call", "malformed", ""): 2}
    assert shown(metrics, "meshwarden_requests_total") == 3


def test_a_table_that_is_none_is_refused_with_all_its_calls(gather: Gather, metrics: Metrics) -> None:
    odd = tabled(batch(1, call(), call(count=5, durations=to_proto({5: 5}))))
    odd.call_tables[1].counts.append(6)
    gather.ingest("a", odd)
    assert gather.tally.drops() == {(INGEST, "call", "malformed", ""): 11}
    assert shown(metrics, "meshwarden_requests_total") == 3


def test_more_rows_than_a_batch_may_have_are_refused(gather: Gather, metrics: Metrics) -> None:
    told = tabled(batch(1, call()))
    for column in (told.call_tables[0].kinds, told.call_tables[0].counts, told.call_tables[0].duration_sums_s):
        column.extend(column[:] * 8191)  # type: ignore[arg-type]
    told.call_tables[0].sizes.extend([0] * 8191)
    told.call_tables.add().CopyFrom(tabled(batch(1, call())).call_tables[0])
    gather.ingest("a", told)
    assert gather.tally.drops() == {(INGEST, "call", "malformed", ""): 3}
    assert shown(metrics, "meshwarden_requests_total") == 3 * 8192


@pytest.mark.parametrize("offset", [timedelta(days=-2), timedelta(minutes=10)])
def test_a_minute_far_from_now_is_refused(gather: Gather, metrics: Metrics, offset: timedelta) -> None:
    stat = call()
    stat.minute.seconds += int(offset.total_seconds())
    gather.ingest("a", batch(1, stat))
    assert [key[1:3] for key in gather.tally.drops()] == [("call", "out_of_time")]


def test_an_edge_that_both_sides_report_counts_once_in_the_rates(gather: Gather) -> None:
    gather.ingest("a", batch(1, call(count=4, durations=Histogram())))
    gather.ingest("b", batch(1, call(count=5, durations=Histogram(), reporter=CallStat.DESTINATION)))
    gather.ingest("a", batch(2, call(count=2, durations=Histogram(), decision=CallStat.DENIED)))
    assert gather.rates() == {"acme": (5.0, 0.0, 2.0)}


def test_rates_forget(gather: Gather, clock: Clock) -> None:
    gather.ingest("a", batch(1, call()))
    clock.now += timedelta(seconds=60)
    assert gather.rates() == {}


async def test_series_and_rows_of_a_tenant_are_bounded_and_totals_stay_right(
    durable: Durable, gather: Gather, metrics: Metrics
) -> None:
    gather.ingest("a", batch(1, *(call(method=f"/random/{n}") for n in range(200))))
    gather.ingest("b", batch(1, call(reporter=CallStat.DESTINATION)))
    assert shown(metrics, "meshwarden_requests_total") == 603
    assert shown(metrics, "meshwarden_series_overflow_total") == 180 * 3
    rows = await listed(durable, gather)
    assert len(rows) == 52
    assert sum(row.count for row in rows) == 603
    assert {row.method for row in rows if row.reporter == CallStat.DESTINATION} == {"/shop.Orders/List"}


def test_what_the_agent_dropped_is_shown(gather: Gather, metrics: Metrics) -> None:
    drops = [
        Drop(stage="agent.spool", signal="span", reason="queue_full", tenant="acme", count=5),
        Drop(stage="sdk", signal="span", reason="queue_full", tenant="acme", count=4),
        Drop(signal="\n", reason="a b", count=1),
    ]
    gather.ingest("a", batch(1, drops=drops))
    assert gather.tally.drops() == {
        ("sdk", "span", "queue_full", "acme"): 4,
        ("agent.spool", "span", "queue_full", "acme"): 5,
        ("agent.receive", "other", "other", ""): 1,
    }
    counts = {key[:2]: count for key, count in gather.tally.totals().items() if key[2:4] == ("span", "acme")}
    assert counts == {
        ("received", "sdk"): 9,
        ("dropped", "sdk"): 4,
        ("passed", "sdk"): 5,
        ("received", "agent.receive"): 5,
        ("passed", "agent.receive"): 5,
        ("received", "agent.spool"): 5,
        ("dropped", "agent.spool"): 5,
    }


def test_what_a_node_makes_up_of_drops_takes_no_room(gather: Gather) -> None:
    for number in range(50):
        made_up = [
            Drop(stage="agent.spool", signal="span", reason=f"r{number}", tenant="acme", count=1),
            Drop(stage="agent.spool", signal="span", reason="queue_full", tenant=f"t{number}", count=1),
            Drop(stage=f"s{number}", signal=f"x{number}", reason="queue_full", tenant="platform", count=1),
        ]
        gather.ingest("a", batch(number + 1, drops=made_up))
    assert gather.tally.drops() == {
        ("agent.spool", "span", "other", "acme"): 50,
        ("agent.spool", "span", "queue_full", ""): 50,
        ("agent.receive", "other", "queue_full", ""): 50,
    }


def test_every_reason_that_the_documentation_has_of_agents_is_known() -> None:
    page = (Path(__file__).parents[3] / "docs/observability.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith(("| `sdk` (", "| `agent."))]
    assert [re.findall(r"`([a-z.]+)`", row[1])[0] for row in rows] == list(AGENT_STAGES)
    assert {reason for row in rows for reason in re.findall(r"`([a-z_]+)`", row[2])} == REASONS


def spans(name: str | None) -> bytes:
    result = ResourceSpans(scope_spans=[ScopeSpans(spans=[Span(name="call")])])
    if name is not None:
        pair = KeyValue(key="service.name")
        pair.value.string_value = name
        result.resource.attributes.append(pair)
    return result.SerializeToString()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff\xff\xff", "malformed"),
        (spans(None), "unidentified"),
        (spans("web.globex"), "not_owned"),
        (spans("web"), "not_owned"),
    ],
)
def test_spans_are_believed_for_the_own_workloads_alone(
    gather: Gather, metrics: Metrics, body: bytes, reason: str
) -> None:
    gather.ingest("a", batch(1, resource_spans=[body]))
    assert [key[1:3] for key in gather.tally.drops()] == [("span", reason)]


async def test_the_greatest_of_everything_fits_into_the_ledger(durable: Durable, gather: Gather) -> None:
    stat = call(revision=2**63 - 1, count=10**9, duration_sum_s=8.64e13, durations=to_proto({0: 10**9}))
    gather.ingest("a", batch(1, stat))
    gather.ingest("a", batch(2**63 - 1, stat))
    (row,) = await listed(durable, gather)
    assert (row.count, row.revision) == (2 * 10**9, 2**63 - 1)


async def test_the_ledger_adds_up_forgets_and_is_private(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "gather.sqlite"
    durable = Durable(path)
    gather = make(durable, clock)
    gather.ingest("a", batch(1, call()))
    await durable.flush()
    gather.ingest("a", batch(2, call()))
    assert [row.count for row in await listed(durable, gather)] == [6]
    assert await gather.ledger.list(NOW - timedelta(hours=1), NOW, tenant="plat") == []
    assert len(await gather.ledger.list(NOW - timedelta(hours=1), NOW, tenant="platform")) == 1
    assert len(await gather.ledger.list(NOW - timedelta(hours=1), NOW, tenant="acme")) == 1
    assert file_mode.S_IMODE(path.stat().st_mode) == 0o600
    clock.now += timedelta(days=8)
    stat = call()
    stat.minute.seconds += 8 * 86400
    gather.ingest("a", batch(3, stat))
    await durable.flush()
    assert not await prune(durable, gather)
    rows = await gather.ledger.list(NOW - timedelta(hours=1), clock.now)
    assert [row.minute.seconds for row in rows] == [MINUTE + 8 * 86400]
    durable.close()


async def test_the_ledger_keeps_to_its_size(tmp_path: Path, clock: Clock) -> None:
    limit_bytes = 200_000
    durable = Durable(tmp_path / "gather.sqlite")
    gather = make(durable, clock, max_size_bytes=limit_bytes)
    for sequence in range(30):
        stats = [call(method=f"/{'x' * 400}/{n}") for n in range(40)]
        for stat in stats:
            stat.minute.seconds -= 60 * (30 - sequence)
        gather.ingest("a", batch(sequence + 1, *stats))
        await durable.flush()
        await prune(durable, gather)
    rows = await listed(durable, gather)
    assert rows[-1].minute.seconds == MINUTE - 60
    assert 40 <= len(rows) < 30 * 40
    durable.close()


async def test_whoever_fills_the_ledger_pushes_out_nobody_else(tmp_path: Path, clock: Clock) -> None:
    durable = Durable(tmp_path / "gather.sqlite")
    gather = make(durable, clock, max_size_bytes=200_000)
    globex = call(source="spiffe://mesh.test/tenant/globex/service/web")
    globex.minute.seconds -= 1800
    gather.ingest("a", batch(1, globex))
    forgotten: Counter[str] = Counter()
    for sequence in range(2, 32):
        stats = [call(method=f"/{'x' * 400}/{n}") for n in range(40)]
        for stat in stats:
            stat.minute.seconds -= 60 * (32 - sequence)
        gather.ingest("a", batch(sequence, *stats))
        await durable.flush()
        forgotten += await prune(durable, gather)
    assert set(forgotten) == {"acme"}
    assert globex.source in {row.source for row in await listed(durable, gather)}
    durable.close()


async def test_rows_of_a_tenant_are_bounded_per_minute_whatever_varies(
    durable: Durable, gather: Gather, clock: Clock
) -> None:
    for number in range(200):
        gather.ingest("a", batch(number + 1, call(revision=number)))
        await durable.flush()
    rows = await listed(durable, gather)
    assert len(rows) == 51
    assert sum(row.count for row in rows) == 600
    clock.now += timedelta(minutes=1)
    gather.ingest("a", batch(201, call(revision=300)))
    assert len(await listed(durable, gather)) == 52


async def test_a_full_disk_costs_no_count_and_bounded_memory(durable: Durable, gather: Gather, clock: Clock) -> None:
    await durable.flush()
    durable._db.pragma("max_page_count", 8)
    for number in range(100):
        clock.now += timedelta(minutes=1)
        stats = [call(method=f"/{'x' * 400}/{n}") for n in range(40)]
        for stat in stats:
            stat.minute.seconds = int(clock.now.timestamp())
        gather.ingest("a", batch(number + 1, *stats))
        with contextlib.suppress(apsw.Error):
            await durable.flush()
    # What has no room of its own waits under one row a minute.
    assert len(gather.ledger._waiting) <= 50 + 100
    durable._db.pragma("max_page_count", 100_000)
    await durable.flush()
    rows = await gather.ledger.list(NOW - timedelta(hours=1), clock.now + timedelta(hours=1), limit=100_000)
    assert sum(row.count for row in rows) == 100 * 40 * 3
    gather.ingest("a", batch(1, call()))
    await durable.flush()
    assert rows == await gather.ledger.list(NOW - timedelta(hours=1), clock.now + timedelta(hours=1), limit=100_000)


async def test_a_batch_that_is_sent_again_after_a_crash_counts_once(tmp_path: Path, clock: Clock) -> None:
    def start() -> tuple[Durable, Gather]:
        durable = Durable(tmp_path / "gather.sqlite")
        return durable, make(durable, clock)

    before, gather = start()
    assert gather.ingest("a", batch(2**62, call()))
    assert gather.ingest("b", batch(1, call()))
    await before.flush()
    assert gather.ingest("a", batch(2**62 + 1, call()))  # taken, but not written
    durable, gather = start()  # as after kill -9
    assert not gather.ingest("a", batch(2**62, call()))
    assert gather.ingest("a", batch(2**62 + 1, call()))
    assert not gather.ingest("b", batch(1, call()))
    assert gather.ingest("b", batch(2, call()))
    assert sum(row.count for row in await listed(durable, gather)) == 12
    assert gather.tally.totals()["passed", "control.ingest", "call", "acme", ""] == 12
    before.close()
    durable.close()


async def test_what_cannot_be_written_is_not_acknowledged_and_counts_once(durable: Durable, gather: Gather) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(gather.run)
        gather.ingest("a", batch(1, call()))
        await gather.settle()
        durable._db.pragma("max_page_count", 1)
        large = [call(method=f"/{'x' * 400}/{n}") for n in range(40)]
        assert gather.ingest("a", batch(2, *large))
        with pytest.raises(Unwritten, match="Full"):
            await gather.settle()
        assert not gather.ingest("a", batch(2, *large))  # the agent comes again
        with pytest.raises(Unwritten, match="Full"):
            await gather.settle()
        durable._db.pragma("max_page_count", 100_000)
        await gather.settle()
        rows = await gather.ledger.list(NOW - timedelta(hours=1), NOW)
        assert sum(row.count for row in rows) == 41 * 3
        group.cancel_scope.cancel()


async def test_who_waits_for_the_ledger_finds_it_written(gather: Gather) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(gather.run)

        async def send(number: int) -> None:
            gather.ingest("a", batch(number, call()))
            await gather.settle()
            rows = await gather.ledger.list(NOW - timedelta(hours=1), NOW)
            assert rows
            assert rows[0].count >= 3

        async with anyio.create_task_group() as senders:
            for number in range(1, 51):
                senders.start_soon(send, number)
        rows = await gather.ledger.list(NOW - timedelta(hours=1), NOW)
        assert [row.count for row in rows] == [150]
        group.cancel_scope.cancel()


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4317", "ftp://h:1", "http://h:1/v1/traces"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="no OTLP gRPC endpoint"):
        parse_endpoint(endpoint)


async def test_spans_alone_are_kept_as_traces(durable: Durable, clock: Clock) -> None:
    gather = make(durable, clock)
    spans, logs = ResourceSpans(), ResourceLogs(scope_logs=[ScopeLogs(log_records=[LogRecord(trace_id=b"t" * 16)])])
    spans.scope_spans.append(ScopeSpans(spans=[Span(trace_id=b"t" * 16, span_id=b"s" * 8)]))
    for message in (spans, logs):
        message.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value="web.acme")))
    gather.ingest("a", batch(1, resource_spans=[spans.SerializeToString()], resource_logs=[logs.SerializeToString()]))
    await durable.flush()
    found = await gather.traces.find(b"t" * 16, lambda tenant: tenant == "acme")
    assert found is not None
    assert [span.service for span in found.spans] == ["acme/web"]
    totals = gather.tally.totals()
    assert totals["passed", "control.store", "span", "acme", ""] == 1
    assert {signal for (_, stage, signal, _, _) in totals if stage == "control.store"} == {"span"}


async def test_where_none_are_kept_spans_are_counted_all_the_same(durable: Durable, clock: Clock) -> None:
    gather = make(durable, clock, traces_max_bytes=0)
    spans = ResourceSpans(scope_spans=[ScopeSpans(spans=[Span(trace_id=b"t" * 16, span_id=b"s" * 8)])])
    spans.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value="web.acme")))
    gather.ingest("a", batch(1, resource_spans=[spans.SerializeToString()]))
    await durable.flush()
    assert await gather.traces.find(b"t" * 16, lambda _: True) is None
    totals = gather.tally.totals()
    assert totals["passed", "control.ingest", "span", "acme", ""] == 1
    assert not [key for key in totals if key[1] == "control.store"]


async def test_where_none_are_kept_packed_spans_are_counted_by_the_word_of_whose_node_it_is(
    durable: Durable, metrics: Metrics, clock: Clock
) -> None:
    owns = lambda node, tenant, service: (node, tenant, service) == ("a", "acme", "web")  # noqa: E731
    ledger = Ledger(durable, "mesh.test", clock)
    mesh = {"owns": owns, "trust_domain": "mesh.test", "region": "eu", "traces_max_bytes": 0}
    gather = Gather(durable, ledger, metrics, [], clock, random.Random(1), **mesh)  # type: ignore[arg-type]
    assert not gather.reads_spans
    said = {"web.acme": 500, "meshwarden-agent": 3, "orders.platform": 7, "web": 11, "": 13}
    packed = [PackedSpans(spans=b"never read", reporter=name, count=count) for name, count in said.items()]
    gather.ingest("a", batch(1, packed_spans=packed))
    assert not gather.ingest("a", batch(1, packed_spans=packed)), "a repeated one"
    totals = gather.tally.totals()
    assert {tenant: totals["passed", INGEST, "span", tenant, ""] for tenant in ("acme", "", "platform")} == {
        "acme": 500, "": 3, "platform": 0
    }  # fmt: skip
    assert totals["dropped", INGEST, "span", "", "not_owned"] == 7 + 11 + 13
