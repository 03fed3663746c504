"""Counts, spans and batches on their way up: what adds up stays, what is too much is bounded, and nothing is silent."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from tests.counted import stats_of

from meshwarden.agents.telemetry.access_log import (
    Call,
    attributes_of,
    call_of,
    decision_of,
    is_relayed,
    service_of_cluster,
)
from meshwarden.agents.telemetry.aggregate import OTHER, UNKNOWN, Aggregator
from meshwarden.agents.telemetry.attribute import Bounded
from meshwarden.agents.telemetry.sieve import are_plain, sift
from meshwarden.sdk.backpressure.allowance import Allowance, Share
from meshwarden.sdk.red.histogram import bucket_of, from_proto, to_proto
from meshwarden.sdk.tracing.wire import framed
from meshwarden.v1 import report_pb2 as pb
from meshwarden.xds import telemetry_names as names

WEB = "spiffe://mesh.test/tenant/acme/service/web"
NOW = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)
SOURCE, DESTINATION = pb.CallStat.SOURCE, pb.CallStat.DESTINATION


def resolve(tenant: str, said: str) -> str | None:
    return {"orders": "platform/orders", "orders.platform": "platform/orders"}.get(said) if tenant == "acme" else None


def stat(**fields: object) -> pb.CallStat:
    plain = {
        "source": WEB,
        "destination": "orders",
        "method": "/o.Orders/Get",
        "status": "OK",
        "decision": pb.CallStat.ALLOWED,
        "reporter": SOURCE,
        "count": 2,
        "duration_sum_s": 0.08,
        "durations": to_proto({bucket_of(0.04): 2}),
    }
    return pb.CallStat(**{**plain, **fields})  # type: ignore[arg-type]


def take(counts: Aggregator) -> list[pb.CallStat]:
    return stats_of(table.message() for table in counts.take()[0])


def seen(**fields: object) -> Call:
    plain = {
        "source": WEB,
        "destination": "orders",
        "method": "/o.Orders/Get",
        "status": "OK",
        "decision": pb.CallStat.ALLOWED,
        "reporter": SOURCE,
        "duration_s": 0.05,
        "upstream": "",
        "trace": None,
    }
    return Call(**{**plain, **fields})  # type: ignore[arg-type]


def aggregator() -> Aggregator:
    return Aggregator(lambda: NOW, resolve)


def test_counts_of_one_kind_add_up_under_the_minute_of_the_agent() -> None:
    counts = aggregator()
    counts.add([stat()])
    counts.add([stat(destination="orders.platform")])
    counts.add_call(seen(duration_s=0.06), 0)
    (total,) = take(counts)
    assert (total.destination, total.count, total.minute.seconds % 60) == ("platform/orders", 5, 0)
    assert total.duration_sum_s == pytest.approx(0.22)
    assert from_proto(total.durations) == {bucket_of(0.04): 4, bucket_of(0.06): 1}
    assert not take(counts)


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 0},
        {"count": 3},
        {"count": 2_000_000_000},
        {"durations": pb.Histogram(buckets=[5, 5], counts=[1, 1])},
        {"durations": pb.Histogram(buckets=[5000], counts=[2])},
        {"durations": pb.Histogram()},
        {"duration_sum_s": float("nan")},
        {"duration_sum_s": float("inf")},
        {"duration_sum_s": -1.0},
        {"duration_sum_s": 1e9},
        {"revision": 2**63},
        {"decision": 0},
        {"decision": 9},
        {"reporter": 0},
        {"source": "somebody"},
        {"source": WEB + "/" + "x" * 3000},
        {"source": ""},
    ],
)
def test_counts_that_cannot_be_are_dropped_and_counted(fields: dict[str, object]) -> None:
    counts = aggregator()
    counts.add([stat(**fields)])
    found, malformed = counts.take()
    assert not found
    assert malformed > 0


@pytest.mark.parametrize("said", ["", "nowhere", "platform/secret", "a/b/c", "\x1b[2J", "x" * 127])
def test_a_name_that_leads_nowhere_is_counted_as_unknown(said: str) -> None:
    counts = aggregator()
    counts.add([stat(destination=said)])
    (total,) = take(counts)
    assert (total.destination, total.method) == (UNKNOWN, OTHER)


def test_methods_beyond_the_bound_are_counted_together() -> None:
    counts = aggregator()
    for number in range(500):
        counts.add([stat(method=f"/o.Orders/M{number}")])
    found = take(counts)
    assert len(found) == 201
    assert sum(item.count for item in found) == 1000
    assert {item.count for item in found if item.method == OTHER} == {600}


def known(counts: Aggregator, **fields: object) -> bool:
    """Whether a method that nobody has used before is counted by its name."""
    counts.add([stat(method="/o.Orders/New", **fields)])
    return "/o.Orders/New" in {item.method for item in take(counts)}


@pytest.mark.parametrize(
    "made_up",
    [
        {"decision": pb.CallStat.DENIED, "status": "403"},
        {"decision": pb.CallStat.DENIED, "status": "PERMISSION_DENIED"},
        {"status": "404"},
        {"status": "UNIMPLEMENTED"},
    ],
)
def test_methods_that_were_not_served_take_no_room_of_those_that_were(made_up: dict[str, object]) -> None:
    counts = aggregator()
    for number in range(1000):
        counts.add([stat(destination="acme/web", reporter=DESTINATION, method=f"GET /{number}", **made_up)])
    assert sum(item.count for item in take(counts)) == 2000
    assert known(counts, destination="acme/web", reporter=DESTINATION)
    assert known(counts, destination="acme/web", reporter=DESTINATION, **made_up)


def test_methods_that_a_callers_program_makes_up_take_no_room_of_the_callee() -> None:
    counts = Aggregator(lambda: NOW)
    for number in range(1000):
        counts.add([stat(destination="platform/orders", method=f"/made.Up/{number}")])
    take(counts)
    assert not known(counts, destination="platform/orders")
    assert known(counts, destination="platform/orders", reporter=DESTINATION)


def test_the_room_for_methods_is_there_again_in_the_next_hour() -> None:
    now = NOW
    counts = Aggregator(lambda: now, resolve)
    for number in range(1000):
        counts.add([stat(method=f"/o.Orders/M{number}")])
    take(counts)
    assert not known(counts)
    now += timedelta(hours=1)
    assert known(counts)


def test_callers_beyond_the_bound_are_unknown() -> None:
    counts = aggregator()
    for number in range(2100):
        source = f"spiffe://mesh.test/tenant/t{number}/service/s"
        counts.add([stat(source=source, destination="acme/web", reporter=DESTINATION)])
    found = take(counts)
    assert sum(item.count for item in found) == 4200
    assert {item.count for item in found if not item.source} == {200}


def test_what_a_name_stands_for_now_counts_not_what_it_stood_for() -> None:
    means: dict[str, str] = {"orders": "platform/orders"}
    regions = {"platform/orders": "eu"}
    counts = Aggregator(
        lambda: NOW, lambda tenant, said: means.get(said), lambda tenant, said, _: regions.get(said, "")
    )
    found = []
    for now_means, where in ({"orders": "globex/orders"}, "us"), ({}, "us"), ({"orders": "platform/orders"}, "moon"):
        counts.add([stat()])
        found += [(item.destination, item.destination_region, item.count) for item in take(counts)]
        means.clear()
        means.update(now_means)
        regions["platform/orders"] = where
    counts.add([stat()])
    found += [(item.destination, item.destination_region, item.count) for item in take(counts)]
    assert found == [
        ("platform/orders", "eu", 2),
        ("globex/orders", "", 2),
        (UNKNOWN, "", 2),
        ("platform/orders", "moon", 2),
    ]


def test_nothing_unknown_of_a_report_goes_up() -> None:
    counts = aggregator()
    told = pb.CallStat.FromString(stat(region="moon").SerializeToString() + framed(999, b"x" * 500))
    counts.add([told])
    (found,) = take(counts)
    assert found.ByteSize() < 200
    assert not found.region


def test_a_made_up_status_is_other() -> None:
    counts = aggregator()
    counts.add([stat(status="GREAT")])
    counts.add([stat(status="PERMISSION_DENIED")])
    counts.add([stat(status="503")])
    assert {item.status for item in take(counts)} == {OTHER, "PERMISSION_DENIED", "503"}


# -- Envoys' access logs


def record(**fields: str) -> dict[str, str]:
    return {names.REPORTER: names.SOURCE_SIDE, names.UPSTREAM_CLUSTER: "orders.platform|v1", **fields}


def test_an_envoys_own_side_is_the_agents_word() -> None:
    call = call_of(record(**{names.PEER: "spiffe://mesh.test/tenant/globex/service/x"}), WEB, "acme/web")
    assert call is not None
    assert (call.source, call.destination) == (WEB, "platform/orders")
    inbound = {names.REPORTER: names.DESTINATION_SIDE, names.SERVICE: "platform/orders", names.PEER: WEB}
    call = call_of(inbound, WEB, "acme/web")
    assert call is not None
    assert (call.source, call.destination) == (WEB, "acme/web")


@pytest.mark.parametrize(
    ("flags", "details", "status", "decision"),
    [
        ("-", "-", "200", pb.CallStat.ALLOWED),
        ("DC", "-", "200", pb.CallStat.ALLOWED),
        ("UF", "-", "503", pb.CallStat.ALLOWED),
        ("UF,URX", "-", "503", pb.CallStat.ALLOWED),
        ("-", "rbac_access_denied_matched_policy[none]", "403", pb.CallStat.DENIED),
    ],
)
def test_a_connection_out_of_the_mesh_is_told_as_a_call(flags: str, details: str, status: str, decision: int) -> None:
    said = {
        names.REPORTER: names.SOURCE_SIDE,
        names.UPSTREAM_CLUSTER: "db.platform",
        names.METHOD: "CONNECT",
        names.RESPONSE_FLAGS: flags,
        names.RESPONSE_CODE_DETAILS: details,
        names.DURATION_MS: "1500",
    }
    call = call_of(said, WEB, "acme/web")
    assert call is not None
    assert (call.source, call.destination, call.method) == (WEB, "platform/db", "CONNECT")
    assert (call.status, call.decision, call.duration_s) == (status, decision, 1.5)


def test_who_calls_in_the_clear_is_told_by_its_address() -> None:
    said = {names.REPORTER: names.DESTINATION_SIDE, names.SERVICE: "x/y", names.PEER_ADDRESS: "192.0.2.1"}
    call = call_of(said, WEB, "acme/web")
    assert call is not None
    assert (call.source, call.destination, call.clear_from) == ("", "acme/web", "192.0.2.1")
    table = Aggregator(lambda: NOW)
    table.add_call(call, 1)
    assert [(service, address, seen.count, seen.last) for service, address, seen in table.clear.rows()] == [
        ("acme/web", "192.0.2.1", 1, NOW)
    ]
    outbound = call_of(record(**{names.PEER_ADDRESS: "192.0.2.1"}), WEB, "acme/web")
    assert outbound is not None
    assert outbound.clear_from == "", "a program's Envoy tells of its own side alone"


def test_the_first_half_of_a_way_out_is_told_by_the_second() -> None:
    assert is_relayed(record(**{names.UPSTREAM_CLUSTER: "egress|model.platform"}))
    assert not is_relayed(record(**{names.UPSTREAM_CLUSTER: "model.platform"}))
    assert not is_relayed({})


def test_other_records_are_none_of_ours() -> None:
    assert call_of({}, WEB, "acme/web") is None
    assert call_of({names.REPORTER: "both"}, WEB, "acme/web") is None


@pytest.mark.parametrize(
    ("flags", "details", "decision"),
    [
        ("-", "via_upstream", pb.CallStat.ALLOWED),
        ("-", "rbac_access_denied_matched_policy[none]", pb.CallStat.DENIED),
        ("RL", "local_rate_limited", pb.CallStat.LIMITED),
        ("UF,RL", "-", pb.CallStat.LIMITED),
        ("URX", "-", pb.CallStat.ALLOWED),
    ],
)
def test_decisions(flags: str, details: str, decision: int) -> None:
    assert decision_of({names.RESPONSE_FLAGS: flags, names.RESPONSE_CODE_DETAILS: details}) == decision


@pytest.mark.parametrize("cluster", ["", "-", "app", "orders.", ".platform", "|v1"])
def test_a_cluster_that_is_no_service(cluster: str) -> None:
    assert service_of_cluster(cluster) == ""


def test_a_record_says_which_endpoint_took_the_call_and_where_it_is_recorded() -> None:
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    call = call_of(record(**{names.UPSTREAM_HOST: "10.0.0.1:7001", names.TRACEPARENT: parent}), WEB, "acme/web")
    assert call is not None
    assert (call.upstream, call.trace) == ("10.0.0.1:7001", (b"\xaa" * 16, b"\xbb" * 8))
    unsampled = call_of(record(**{names.TRACEPARENT: f"{parent[:-1]}0"}), WEB, "acme/web")
    assert unsampled is not None
    assert unsampled.trace is None


def test_counts_are_told_apart_by_the_region_called_and_carry_exemplars() -> None:
    regions = {"10.0.0.1:1": "eu", "10.0.0.2:1": "us"}
    counts = Aggregator(lambda: NOW, resolve, lambda tenant, service, address: regions.get(address, ""))
    for address in ("10.0.0.1:1", "10.0.0.1:1", "10.0.0.2:1", ""):
        counts.add_call(seen(upstream=address, trace=(b"\x01" * 16, b"\x02" * 8)), 1)
    counts.add([stat(reporter=DESTINATION, destination="acme/web", destination_region="moon")])
    stats = take(counts)
    assert [(one.destination_region, one.count) for one in stats] == [("eu", 2), ("us", 1), ("", 1), ("", 2)]
    (exemplar,) = stats[0].exemplars
    assert (exemplar.trace_id, exemplar.span_id, exemplar.duration_s) == (b"\x01" * 16, b"\x02" * 8, 0.05)
    assert exemplar.time.ToDatetime(tzinfo=UTC) == NOW


@given(st.dictionaries(st.sampled_from([getattr(names, n) for n in dir(names) if n.isupper()]), st.text(max_size=200)))
def test_no_record_breaks_the_reading(attributes: dict[str, str]) -> None:
    pairs = [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in attributes.items()]
    counts = aggregator()
    call = call_of(attributes_of(pairs), WEB, "acme/web")
    if call is not None:
        counts.add_call(call, 1)
        found, malformed = counts.take()
        assert sum(table.calls for table in found) + malformed == 1


# -- spans


def span(**fields: object) -> Span:
    return Span(**{"trace_id": b"\x01" * 16, "span_id": b"\x02" * 8, "name": "call", **fields})  # type: ignore[arg-type]


LINK = Span.Link(trace_id=b"\x01" * 16, span_id=b"\x02" * 8)


def spans(*items: Span) -> ResourceSpans:
    return ResourceSpans(scope_spans=[ScopeSpans(spans=items)])


def bounded(message: ResourceSpans, most: int = 100, is_late: Callable[[], bool] = lambda: False) -> Bounded:
    """Sifts a message in place."""
    request = ExportTraceServiceRequest(resource_spans=[message]).SerializeToString()
    scopes = [scope.SerializeToString() for scope in message.scope_spans]
    kept, found = sift(scopes, most, is_late, is_plain=are_plain(request))
    del message.scope_spans[:]
    message.scope_spans.extend(map(ScopeSpans.FromString, kept))
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"trace_id": b""},
        {"trace_id": b"\x00" * 16},
        {"trace_id": b"\x01" * 17},
        {"span_id": b""},
        {"span_id": b"\x00" * 8},
        {"parent_span_id": b"\x01"},
    ],
)
def test_what_is_no_span_is_removed(fields: dict[str, object]) -> None:
    message = spans(span(), span(**fields), span(name="last"))
    assert bounded(message) == Bounded(kept=2, malformed=1)
    assert [kept.name for kept in message.scope_spans[0].spans] == ["call", "last"]


def nested(depth: int) -> AnyValue:
    value = AnyValue(string_value="deep")
    for _ in range(depth):
        value = AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=value)]))
    return value


def test_a_span_is_cut_to_its_bounds() -> None:
    many = [KeyValue(key=f"k{n}", value=AnyValue(string_value="" if n else "é" * 5000)) for n in range(200)]
    message = spans(
        span(
            name="n" * 5000,
            trace_state="t" * 5000,
            attributes=many,
            events=[Span.Event(name="e" * 500, attributes=many[1:41])] * 300,
            links=[Span.Link(trace_id=b"\x01" * 16, span_id=b"\x02" * 8, attributes=many[1:41])] * 200,
        )
    )
    assert bounded(message) == Bounded(kept=1)
    cut = message.scope_spans[0].spans[0]
    assert (len(cut.name), cut.trace_state) == (1024, "")
    assert (len(cut.attributes), cut.dropped_attributes_count) == (128, 72)
    assert len(cut.attributes[0].value.string_value.encode()) <= 4096
    assert (len(cut.events), cut.dropped_events_count) == (128, 172)
    assert (len(cut.links), cut.dropped_links_count) == (128, 72)
    assert len(cut.events[0].attributes) == len(cut.links[0].attributes) == 32


def test_what_is_too_much_goes_and_is_counted() -> None:
    prompt = span(attributes=[KeyValue(key="prompt", value=AnyValue(string_value="x" * 3_000_000))])
    array = AnyValue(array_value=ArrayValue(values=[AnyValue()] * 200_000))
    message = spans(prompt, span(attributes=[KeyValue(key="a", value=array)]), *[span()] * 200)
    message.scope_spans.extend([ScopeSpans()] * 100_000)
    assert bounded(message) == Bounded(kept=99, too_many=102 + 1 + 100_001 - 128)
    assert len(message.scope_spans[0].spans[0].attributes[0].value.string_value) == 4096


def test_what_is_not_read_in_time_goes_and_is_counted() -> None:
    asked = iter([False, False, True])
    message = spans(*[span(links=[LINK])] * 10)
    assert bounded(message, is_late=lambda: next(asked)) == Bounded(kept=2, too_many=8)
    assert len(message.scope_spans[0].spans) == 2


def test_a_share_of_the_processor_is_spent_and_comes_back() -> None:
    now, used = 0.0, 0.0
    allowance = Allowance(Share(part=0.1, burst_s=1.0), lambda: now, lambda: used)
    with allowance.spend("greedy") as used_s:
        used += 1.5
        assert used_s() == 1.5
    assert not allowance.has("greedy")
    assert allowance.has("modest")
    now += 4.0
    assert not allowance.has("greedy")  # 1.1 s are still spent
    now += 2.0
    assert allowance.has("greedy")
    for number in range(5000):
        now += 1.0
        with allowance.spend(str(number)):
            used += 0.01
    assert len(allowance._spent) <= 1024


def test_what_is_nested_too_deeply_goes() -> None:
    message = spans(span(attributes=[KeyValue(key="a", value=nested(4)), KeyValue(key="b", value=nested(5))]))
    bounded(message)
    cut = message.scope_spans[0].spans[0]
    assert [pair.key for pair in cut.attributes] == ["a"]
    assert cut.dropped_attributes_count == 1


def test_a_link_to_nowhere_goes() -> None:
    message = spans(span(links=[Span.Link(trace_id=b"x", span_id=b"y")]))
    bounded(message)
    assert not message.scope_spans[0].spans[0].links
