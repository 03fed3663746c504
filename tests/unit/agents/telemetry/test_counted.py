"""Tables of counts that programs report: whole or refused, and of nobody but who sends them."""

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.counted import stats_of

from meshwarden.agents.telemetry.aggregate import OTHER, UNKNOWN, Aggregator
from meshwarden.agents.telemetry.counted import Counts, InvalidTable
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.red.call_table import Row, Table
from meshwarden.sdk.red.histogram import LIMITS_S
from meshwarden.v1 import report_pb2 as pb

NOW = datetime(2026, 11, 26, 12, 0, 30, tzinfo=UTC)
WEB, BANK = SpiffeId.workload("mesh.test", "acme", "web"), SpiffeId.workload("mesh.test", "globex", "bank")
TRACE = pb.Exemplar(trace_id=b"t" * 16, span_id=b"s" * 8, duration_s=0.1)


def kind(**said: Any) -> bytes:
    plain = {
        "destination": "orders",
        "method": "/o.Orders/Get",
        "status": "OK",
        "decision": pb.CallStat.ALLOWED,
        "reporter": pb.CallStat.SOURCE,
    }
    return pb.CallStat(**{**plain, **said}).SerializeToString()


def row(calls: int = 3, **said: Any) -> Row:
    return Row(kind(**said), calls, 0.3, {5: calls - 1, 9: 1} if calls > 1 else {5: 1}, (TRACE,))


def table(*rows: Row) -> pb.CallTable:
    made = Table(7)
    for one in rows:
        made.add(one)
    return made.message()


class Agent:
    def __init__(self) -> None:
        self.now = NOW
        self.names = {"orders": "platform/orders"}
        resolve = lambda tenant, said: self.names.get(said) if tenant == "acme" else None  # noqa: E731
        self.counts = Counts(Aggregator(lambda: self.now, resolve, lambda tenant, service, address: "eu"))

    def told(self, *tables: pb.CallTable, by: SpiffeId = WEB) -> list[pb.CallStat]:
        """What goes up of tables."""
        counted = self.counts.stamp(tables, by)
        request = pb.ExportRequest.FromString(b"".join(one.payload for one in counted))
        found = stats_of(request.call_tables)
        assert sum(one.calls for one in counted) == sum(stat.count for stat in found)
        assert sum(one.rows for one in counted) == len(found)
        return found


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_the_numbers_stay_and_the_minute_is_the_agents(agent: Agent) -> None:
    first, second = agent.told(table(row(3), row(1, status="UNKNOWN")))
    assert (first.count, first.duration_sum_s, list(first.durations.counts), list(first.exemplars)) == (
        3, 0.3, [2, 1], [TRACE]
    )  # fmt: skip
    assert first.minute.seconds == second.minute.seconds == NOW.replace(second=0).timestamp()
    assert (first.destination, first.destination_region, second.status) == ("platform/orders", "eu", "UNKNOWN")


def test_a_reporter_is_believed_for_its_own_side_only(agent: Agent) -> None:
    theirs = "spiffe://mesh.test/tenant/globex/service/web"
    mine = table(row(source=theirs), row(reporter=pb.CallStat.DESTINATION, source=theirs, destination="globex/bank"))
    again = pb.CallTable.FromString(mine.SerializeToString())
    for found in (agent.told(mine), agent.told(again)):  # the second time it is known by its bytes
        assert [(stat.source, stat.destination) for stat in found] == [
            (str(WEB), "platform/orders"),
            (theirs, "acme/web"),
        ]
    (other,) = agent.told(table(row(reporter=pb.CallStat.DESTINATION, source=theirs, destination="acme/web")), by=BANK)
    assert other.destination == "globex/bank"


def test_what_a_name_stands_for_is_asked_each_time(agent: Agent) -> None:
    agent.told(table(row()))
    agent.names = {"orders": "acme/orders"}
    assert agent.told(table(row()))[0].destination == "acme/orders"
    agent.names = {}
    assert [(stat.destination, stat.method) for stat in agent.told(table(row()))] == [(UNKNOWN, OTHER)]


def test_what_is_said_besides_does_not_go_up(agent: Agent) -> None:
    said = pb.CallStat.FromString(kind(count=9, destination_region="us", region="us", revision=4))
    (found,) = agent.told(table(Row(said.SerializeToString() + b"\xfa\x7f\x02hi", 1, 0.1, {5: 1})))
    assert (found.revision, found.destination_region, found.region) == (4, "eu", "")
    strange = pb.CallTable.FromString(table(row()).SerializeToString() + b"\xfa\x7f\x02hi")
    (counted,) = agent.counts.stamp([strange], WEB)
    assert b"hi" not in counted.payload


def test_methods_beyond_the_bound_are_counted_together(agent: Agent) -> None:
    found = agent.told(table(*(row(method=f"/o.Orders/M{number}") for number in range(500))))
    methods = {stat.method for stat in found}
    assert len(methods) == 201
    assert sum(stat.count for stat in found if stat.method == OTHER) == 300 * 3


@pytest.mark.parametrize(
    "said",
    [
        {"source": "s" * 2049},
        {"destination": "d" * 128},
        {"method": "m" * 513},
        {"status": "s" * 33},
        {"reporter": pb.CallStat.REPORTER_UNSPECIFIED},
        {"decision": pb.CallStat.DECISION_UNSPECIFIED},
        {"decision": 99},
        {"revision": 2**63},
        {"reporter": pb.CallStat.DESTINATION, "source": "somebody"},
    ],
)
def test_calls_that_cannot_be_are_refused(agent: Agent, said: dict[str, Any]) -> None:
    with pytest.raises(InvalidTable, match=r"call_tables\.kinds"):
        agent.told(table(row(), row(**said)))


def test_so_is_what_cannot_be_read(agent: Agent) -> None:
    for body in (b"\xff", b"\x0a\x02\xff\xff"):
        with pytest.raises(InvalidTable):
            agent.told(table(row(), Row(body, 1, 0.1, {5: 1})))


FITS = table(row(3), row(2))


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": [3]},
        {"counts": [3, 0]},
        {"counts": [3, 1]},
        {"counts": [3, 10**9 + 1]},
        {"counts": [2**64 - 1, 2]},
        {"duration_sums_s": [0.1]},
        {"duration_sums_s": [0.1, float("nan")]},
        {"duration_sums_s": [float("inf"), 0.1]},
        {"duration_sums_s": [-0.1, 0.1]},
        {"duration_sums_s": [1e9, 0.1]},
        {"sizes": [2]},
        {"sizes": [2, 1]},
        {"sizes": [4, 0]},
        {"sizes": [2**32 - 1, 2]},
        {"buckets": [5, 9, 5]},
        {"buckets": [5, 5, 5, 9]},
        {"buckets": [5, 9, 5, len(LIMITS_S) + 1]},
        {"bucket_counts": [2, 1, 1]},
        {"bucket_counts": [2, 1, 2, 0]},
        {"bucket_counts": [1, 2, 0, 2]},
        {"bucket_counts": [2**63, 2**63, 1, 1]},
        {"sizes": [0, 0], "buckets": [], "bucket_counts": []},
        {"exemplar_rows": [0]},
        {"exemplar_rows": [0, 2]},
        {"exemplars": [TRACE, pb.Exemplar(trace_id=b"t", span_id=b"s" * 8)]},
        {"exemplars": [TRACE] * 5, "exemplar_rows": [0] * 5},
    ],
)
def test_columns_that_do_not_fit_are_refused(agent: Agent, changes: dict[str, list[Any]]) -> None:
    broken = pb.CallTable()
    broken.CopyFrom(FITS)
    for field, values in changes.items():
        broken.ClearField(field)  # type: ignore[arg-type]
        getattr(broken, field).extend(values)
    with pytest.raises(InvalidTable):
        agent.told(broken)


def test_what_is_too_much_is_refused(agent: Agent) -> None:
    many = Table(0)
    for _ in range(4097):
        many.add(row(1))
    for tables in (
        [many.message()],
        [table(row())] * 4097,
        [table(Row(kind() + b"\xfa\x7f\x80\x80\x50" + bytes(5 << 18), 1, 0, {5: 1}))],
    ):
        with pytest.raises(InvalidTable, match="more than"):
            agent.told(*tables)


def test_who_makes_words_up_takes_no_more_memory(agent: Agent) -> None:
    for number in range(3):
        agent.told(table(*(row(1, method=f"/{number}/{at}") for at in range(4000))))
    assert sum(map(len, agent.counts._known.values())) <= 4096
    assert agent.told(table(row()))[0].count == 3


@given(st.binary(max_size=200))
def test_no_bytes_end_it(body: bytes) -> None:
    try:
        read = pb.CallTable.FromString(body)
    except Exception:  # not for us to say: gRPC refuses it
        return
    with contextlib.suppress(InvalidTable):
        Agent().told(read)
