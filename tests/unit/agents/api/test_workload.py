"""Reports of programs: bounded, and stamped with who sent them."""

import math
from pathlib import Path
from typing import Any

import pytest

from meshwarden.agents.api.workload import InvalidReport, lost_of, stamped
from meshwarden.agents.workload.workload import Workload
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.v1 import report_pb2 as report_pb
from meshwarden.v1 import resources_pb2 as resources
from meshwarden.v1 import workload_service_pb2 as pb


def workload() -> Workload:
    return Workload(
        id="acme/web#1",
        entry=resources.WorkloadEntry(metadata=resources.Metadata(tenant="acme", name="web")),
        service=resources.Service(),
        spiffe_id=SpiffeId.workload("mesh.test", "acme", "web"),
        pid=1,
        start_time=1,
        pidfd=-1,
        uid=0,
        gid=0,
        port=0,
        directory=Path("/nowhere"),
        number=1,
    )


def call(**values: Any) -> report_pb.CallStat:
    return report_pb.CallStat(**{"reporter": report_pb.CallStat.SOURCE, "count": 1, **values})


def test_a_reporter_is_believed_for_its_own_side_only() -> None:
    mine = call(source="spiffe://mesh.test/tenant/globex/service/web", destination="platform/orders")
    theirs = call(
        reporter=report_pb.CallStat.DESTINATION,
        source="spiffe://mesh.test/tenant/globex/service/web",
        destination="globex/bank",
    )
    first, second = stamped(pb.ReportCallsRequest(calls=[mine, theirs]), workload())
    assert (first.source, first.destination) == ("spiffe://mesh.test/tenant/acme/service/web", "platform/orders")
    assert (second.source, second.destination) == ("spiffe://mesh.test/tenant/globex/service/web", "acme/web")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", "s" * 2049),
        ("destination", "d" * 128),
        ("method", "m" * 513),
        ("status", "s" * 33),
        ("reporter", report_pb.CallStat.REPORTER_UNSPECIFIED),
        ("decision", 99),
        ("durations", report_pb.Histogram(buckets=[1, 1], counts=[1, 1])),
        ("durations", report_pb.Histogram(buckets=[2**31], counts=[1])),
        ("durations", report_pb.Histogram(buckets=[1])),
        ("count", 2**40),
        ("duration_sum_s", math.nan),
        ("duration_sum_s", math.inf),
        ("duration_sum_s", -1.0),
    ],
)
def test_a_report_out_of_bounds_is_refused_whole(field: str, value: Any) -> None:
    with pytest.raises(InvalidReport, match=rf"calls\[1\]\.{field}"):
        stamped(pb.ReportCallsRequest(calls=[call(), call(**{field: value})]), workload())


def test_a_report_has_an_end() -> None:
    with pytest.raises(InvalidReport, match="calls: 4097"):
        stamped(pb.ReportCallsRequest(calls=[call()] * 4097), workload())


def test_what_a_program_has_lost_is_its_own_tenants_and_of_the_sdk() -> None:
    said = [
        report_pb.Drop(signal="span", reason="queue_full", count=5),
        report_pb.Drop(signal="span", reason="queue_full", tenant="globex", stage="agent.spool", count=2),
        report_pb.Drop(signal="call", reason="refused"),
    ]
    lost = lost_of(pb.ReportCallsRequest(drops=said), "acme")
    assert lost == {("sdk", "span", "queue_full", "acme"): 7, ("sdk", "call", "refused", "acme"): 0}


@pytest.mark.parametrize("count", [10**9 + 1, 2**63, 2**64 - 1])
def test_an_absurd_loss_is_cut_and_its_words_are_ours(count: int) -> None:
    drop = report_pb.Drop(signal="\n" * 32, reason="password=hunter2", count=count)
    assert lost_of(pb.ReportCallsRequest(drops=[drop]), "acme") == {("sdk", "other", "other", "acme"): 10**9}


def test_losses_have_an_end() -> None:
    with pytest.raises(InvalidReport, match="drops: 33"):
        lost_of(pb.ReportCallsRequest(drops=[report_pb.Drop()] * 33), "acme")
