"""The service graph: what edges add up to, who sees them, what is bounded."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.graph import query as graph_query
from meshwarden.controlplane.gather.graph.edge import HORIZON
from meshwarden.controlplane.gather.graph.graph import RETENTION, Graph
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.sdk.red.histogram import bucket_of, quantiles
from meshwarden.v1.admin_service_pb2 import GetGraphResponse, GraphEdge
from meshwarden.v1.report_pb2 import CallStat

NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)
FIVE = timedelta(minutes=5)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def graph(clock: Clock) -> Graph:
    graph = Graph(clock, edges_per_tenant=3)
    clock.now += timedelta(hours=1)
    return graph


def call(count: int = 1, duration_s: float = 0.02, **changes: object) -> Call:
    plain = Call(
        source_tenant="acme",
        source_service="web",
        destination_tenant="platform",
        destination_service="orders",
        method="/o.Orders/Get",
        status="OK",
        decision=CallStat.ALLOWED,
        reporter=CallStat.SOURCE,
        revision=7,
        minute=int(NOW.timestamp()) - 30,
        count=count,
        sum_s=count * duration_s,
        durations={bucket_of(duration_s): count},
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def everything(_: str) -> bool:
    return True


def only_edge(graph: Graph, window: timedelta = FIVE) -> GraphEdge:
    (edge,) = graph.edges(window, everything)
    return edge


def test_an_edge_has_rates_percentiles_and_what_its_calls_came_to(graph: Graph) -> None:
    graph.add([call(count=98), call(duration_s=2.0), call(status="INTERNAL", duration_s=2.0)])
    graph.add([call(status="PERMISSION_DENIED", decision=CallStat.DENIED), call(status="NOT_FOUND")])
    edge = only_edge(graph)
    assert (edge.source, edge.destination) == ("acme/web", "platform/orders")
    assert dict(edge.outcomes) == {"ok": 99, "server_error": 1, "denied": 1, "client_error": 1}
    assert edge.calls_per_s == pytest.approx(102 / 300, rel=0.06)
    assert edge.errors_per_s == pytest.approx(edge.calls_per_s / 102)
    assert edge.denied_per_s == pytest.approx(edge.calls_per_s / 102)
    assert edge.p50_s == pytest.approx(0.02, rel=0.01)
    assert edge.p99_s == pytest.approx(2.0, rel=0.01)


def test_an_edge_says_which_sides_tell_of_it_and_what_they_proved(graph: Graph) -> None:
    graph.add([call(count=5)])
    edge = only_edge(graph)
    assert (edge.source_reports, edge.destination_reports, edge.mutual_tls) == (True, False, GraphEdge.SAID)
    graph.add([call(count=4, reporter=CallStat.DESTINATION)])
    edge = only_edge(graph)
    assert (edge.source_reports, edge.destination_reports, edge.mutual_tls) == (True, True, GraphEdge.PROVEN)
    assert edge.outcomes["ok"] == 5, "each call once: the side that saw more"


def test_the_side_that_refused_knows_why(graph: Graph) -> None:
    refused = {"status": "403", "reporter": CallStat.DESTINATION, "decision": CallStat.DENIED}
    graph.add([call(count=5), call(count=4, status="403"), call(count=2, status="404")])
    graph.add([call(count=5, reporter=CallStat.DESTINATION), call(count=3, **refused)])
    assert dict(only_edge(graph).outcomes) == {"ok": 5, "client_error": 3, "denied": 3}


def test_what_the_other_side_told_while_it_had_seen_more_is_not_told_on(graph: Graph) -> None:
    graph.add([call(count=5), call(count=3, status="UNAVAILABLE")])
    graph.add([call(count=5, reporter=CallStat.DESTINATION)])
    assert dict(only_edge(graph).outcomes) == {"ok": 5, "server_error": 3}
    graph.add([call(count=4, reporter=CallStat.DESTINATION)])
    assert dict(only_edge(graph).outcomes) == {"ok": 9}


def test_of_sides_that_saw_as_many_it_does_not_matter_who_told_first(graph: Graph, clock: Clock) -> None:
    told = [call(count=2, status="UNAVAILABLE"), call(count=2, reporter=CallStat.DESTINATION)]
    graph.add(told)
    other = Graph(clock)
    other.add(reversed(told))
    assert dict(only_edge(graph).outcomes) == dict(only_edge(other).outcomes)
    assert only_edge(graph).errors_per_s == only_edge(graph).calls_per_s
    assert only_edge(other).errors_per_s == only_edge(other).calls_per_s


def test_a_caller_that_nobody_knows_has_proved_nothing(graph: Graph) -> None:
    unknown = {"source_tenant": "unknown", "source_service": "unknown", "reporter": CallStat.DESTINATION}
    graph.add([call(**unknown)])
    assert only_edge(graph).mutual_tls == GraphEdge.NONE


def test_rates_forget_and_totals_do_not(graph: Graph, clock: Clock) -> None:
    graph.add([call(count=600)])
    clock.now += timedelta(minutes=6)
    edge = only_edge(graph)
    assert (edge.calls_per_s, edge.p50_s, edge.outcomes["ok"]) == (0, 0, 600)
    assert only_edge(graph, HORIZON).calls_per_s > 0
    clock.now += HORIZON
    assert only_edge(graph, HORIZON).calls_per_s == 0
    assert edge.last_seen.ToDatetime(tzinfo=UTC) == NOW + timedelta(hours=1)


def test_a_young_process_has_no_slow_rates(clock: Clock) -> None:
    graph = Graph(clock)
    clock.now += timedelta(seconds=10)
    graph.add([call(count=100)])
    assert only_edge(graph).calls_per_s > 3


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 50)), min_size=1, max_size=30))
def test_no_call_is_lost_or_counted_twice_within_the_window(arrivals: list[tuple[int, int]]) -> None:
    clock = Clock()
    graph = Graph(clock)
    start = clock.now
    for offset_s, count in sorted(arrivals):
        clock.now = start + timedelta(seconds=offset_s)
        graph.add([call(count=count)])
    edge = only_edge(graph, HORIZON)
    assert edge.outcomes["ok"] == sum(count for _, count in arrivals)
    # The window ends now and begins with a slot, so at most one slot's worth of time is left out.
    recent = sum(count for offset_s, count in arrivals if offset_s >= max(at for at, _ in arrivals) - 885 + 15)
    span_s = max(1, (clock.now - start).total_seconds() + 30)
    assert edge.calls_per_s * span_s >= recent * 0.99


def test_a_tenant_sees_the_edges_that_it_has_an_end_of(graph: Graph) -> None:
    graph.add([call(), call(source_tenant="globex"), call(destination_tenant="acme", destination_service="web")])
    seen = list(graph.edges(FIVE, lambda tenant: tenant == "globex"))
    assert [edge.source for edge in seen] == ["globex/web"]
    assert len(list(graph.edges(FIVE, lambda tenant: tenant == "acme"))) == 2


def test_one_tenant_cannot_fill_the_graph(graph: Graph) -> None:
    for number in range(50):
        graph.add([call(destination_service=f"made-up-{number}")])
    graph.add([call(source_tenant="globex")])
    edges = list(graph.edges(FIVE, everything))
    assert len(edges) == 5
    assert sum(edge.outcomes["ok"] for edge in edges) == 51, "what has no room is counted together"
    assert ("globex/web", "platform/orders") in {(edge.source, edge.destination) for edge in edges}


def test_an_edge_that_nobody_uses_ends(graph: Graph, clock: Clock) -> None:
    graph.add([call()])
    clock.now += RETENTION + timedelta(seconds=1)
    assert list(graph.edges(FIVE, everything)) == []
    graph.add([call(destination_service=f"s{number}") for number in range(3)])
    assert "overflow/overflow" not in {edge.destination for edge in graph.edges(FIVE, everything)}


def test_edges_that_nobody_uses_give_their_room_back_though_nobody_asks(graph: Graph, clock: Clock) -> None:
    graph.add([call(source_service=f"old-{number}") for number in range(3)])
    clock.now += RETENTION + timedelta(minutes=2)
    first = graph.add([call(source_service="new")])
    assert [one.source for one in first] == ["acme/new"]  # and not one under overflow
    clock.now += timedelta(seconds=1)
    assert [edge.source for edge in graph.edges(FIVE, lambda _: True)] == ["acme/new"]


async def test_a_graph_begins_with_what_the_ledger_holds(tmp_path: Path, clock: Clock) -> None:
    durable = Durable(tmp_path / "gather.sqlite")
    ledger = Ledger(durable, "mesh.test", clock)
    ledger.add([call(count=3), call(minute=int(NOW.timestamp()) - 90, status="INTERNAL")])
    ledger.add([call(count=2, reporter=CallStat.DESTINATION)])
    await durable.flush()
    durable.close()
    durable = Durable(tmp_path / "gather.sqlite")
    graph = Graph(clock)
    graph.recall(Ledger(durable, "mesh.test", clock).totals())
    durable.close()
    edge = only_edge(graph)
    assert dict(edge.outcomes) == {"ok": 3, "server_error": 1}
    assert (edge.calls_per_s, edge.mutual_tls) == (0, GraphEdge.PROVEN)
    assert edge.first_seen.seconds == int(NOW.timestamp()) - 90
    graph.add([call()])
    assert only_edge(graph).outcomes["ok"] == 4


@given(
    st.lists(
        st.tuples(
            st.integers(0, 400),  # seconds that pass
            st.integers(0, 1200),  # how late it is told of
            st.sampled_from(list(CallStat.Reporter.values())[1:]),
            st.sampled_from([0.001, 0.02, 0.5, 4.0]),
            st.sampled_from(["OK", "INTERNAL"]),
            st.sampled_from([None, 60, 300, 900]),  # what is asked then
        ),
        max_size=40,
    )
)
def test_what_is_kept_up_to_date_is_what_a_count_from_the_start_would_give(
    events: list[tuple[int, int, int, float, str, int | None]],
) -> None:
    clock = Clock()
    graph = Graph(clock)
    start_s = int(clock.now.timestamp())
    told: list[tuple[int, Call]] = []
    for passed_s, late_s, reporter, duration_s, status, asked_s in events:
        clock.now += timedelta(seconds=passed_s)
        now_s = int(clock.now.timestamp())
        made = call(reporter=reporter, duration_s=duration_s, status=status, minute=now_s - late_s)
        graph.add_late([made])
        told.append((min(now_s, made.minute + 59), made))
        if asked_s is None:
            continue
        from_s = max(now_s - now_s % 15 - asked_s + 15, start_s - start_s % 15)
        sides = [
            [one for at_s, one in told if at_s - at_s % 15 >= from_s and one.reporter == side]
            for side in sorted({one.reporter for _, one in told})
        ]
        most = max(sides, key=len)
        edge = only_edge(graph, timedelta(seconds=asked_s))
        ever = [Counter(one.outcome for _, one in told if one.reporter == side) for side in CallStat.Reporter.values()]
        assert dict(edge.outcomes) == max(ever, key=Counter.total)
        span_s = max(1, now_s - from_s)
        assert edge.calls_per_s == pytest.approx(len(most) / span_s)
        assert edge.errors_per_s == pytest.approx(sum(one.status == "INTERNAL" for one in most) / span_s)
        durations = Counter(bucket for one in most for bucket in one.durations)
        assert [edge.p50_s, edge.p95_s, edge.p99_s] == quantiles(durations, [0.5, 0.95, 0.99])


async def test_an_answer_holds_those_edges_that_matter_most_and_counts_the_rest(clock: Clock) -> None:
    graph = Graph(clock)
    graph.add([call(count=number + 1, destination_service=f"s{number:03}") for number in range(700)])
    graph.add([call(destination_service="s005", status="INTERNAL")])
    graph.add([call(destination_service="s009", status="403", decision=CallStat.DENIED)])
    other = Graph(clock, region="us")
    other.add([call(count=5000)])
    answer = GetGraphResponse()
    await graph_query.fill(answer, [graph, other], graph_query.Question(FIVE, limit=4), everything)
    assert [edge.destination for edge in answer.edges] == [
        "platform/s005",
        "platform/s009",
        "platform/s699",
        "platform/orders",
    ]
    assert answer.omitted == 697
    assert answer.edges[3].region == "us"
    answer.edges[0].calls_per_s = 0
    assert next(graph.edges(FIVE, everything, "platform/s005")).calls_per_s > 0, "an answer is a copy"


async def test_an_answer_passes_through_grpc_however_long_names_are(clock: Clock) -> None:
    graph = Graph(clock, edges_per_tenant=20_000)
    graph.add([call(destination_service=f"{'s' * 600}{number}") for number in range(10_000)])
    answer = GetGraphResponse()
    await graph_query.fill(answer, [graph], graph_query.Question(FIVE), everything)
    assert answer.ByteSize() < 4 << 20
    assert len(answer.edges) + answer.omitted == 10_000


async def test_others_have_their_turn_while_a_large_graph_is_gone_through(clock: Clock) -> None:
    graph = Graph(clock, edges_per_tenant=20_000)
    graph.add([call(destination_service=f"s{number}") for number in range(5_000)])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        await graph_query.fill(GetGraphResponse(), [graph], graph_query.Question(FIVE), everything)
        group.cancel_scope.cancel()
    assert turns >= 10


def test_what_another_region_makes_up_of_times_and_counts_breaks_nothing(graph: Graph, clock: Clock) -> None:
    now_s = int(clock.now.timestamp())
    for minute in (now_s, -(2**63), 2**63 - 1, now_s - 120, 0, now_s - 120):
        graph.add_late([call(count=2**60, minute=minute, durations={0: 2**64 - 1, 300: 2**64 - 1})])
    clock.now += timedelta(minutes=1)
    graph.add_late([call(minute=int(clock.now.timestamp()))])
    for minutes in (1, 15, 5):
        edge = only_edge(graph, timedelta(minutes=minutes))
        assert edge.outcomes["ok"] == 6 * 2**60 + 1
