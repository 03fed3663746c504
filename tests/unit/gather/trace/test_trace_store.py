"""Recent traces: what is kept and for how long, who may find what, and what hostile spans do."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.resource import Checked
from meshwarden.controlplane.gather.tally import DROPPED, PASSED, RECEIVED, STORE, Tally
from meshwarden.controlplane.gather.trace import query as trace_query
from meshwarden.controlplane.gather.trace import store as trace_store
from meshwarden.controlplane.gather.trace.query import Place, Question, nanoseconds
from meshwarden.controlplane.gather.trace.store import Keep, TraceStore

NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)
NOW_NS = nanoseconds(NOW)
TRACE = bytes(range(1, 17))
ALL = Question("", False, 0, 0, NOW_NS)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Durable]:
    durable = Durable(tmp_path / "gather.sqlite")
    yield durable
    durable.close()


@pytest.fixture
def tally(durable: Durable) -> Tally:
    tally = Tally()
    durable.add(tally)
    return tally


@pytest.fixture
def store(durable: Durable, tally: Tally, clock: Clock) -> TraceStore:
    return TraceStore(durable, tally, clock, max_size_bytes=200_000)


def span(
    number: int, parent: int = 0, *, trace: bytes = TRACE, start_ms: int = 0, ms: int = 10, **more: object
) -> Span:
    start_ns = NOW_NS - 60 * 10**9 + start_ms * 10**6
    values: dict[str, object] = {
        "trace_id": trace,
        "span_id": number.to_bytes(8, "big"),
        "parent_span_id": parent.to_bytes(8, "big") if parent else b"",
        "name": f"do {number}",
        "start_time_unix_nano": start_ns,
        "end_time_unix_nano": start_ns + ms * 10**6,
        **more,
    }
    return Span(**values)  # type: ignore[arg-type]


def put(store: TraceStore, owner: str, *spans: Span) -> None:
    """Adds spans of "<tenant>/<service>" as `check_resource` leaves them; without a tenant the mesh's own."""
    tenant, _, service = owner.rpartition("/")
    said = {"mesh.tenant": tenant, "mesh.service": service} if tenant else {"service.name": service}
    said["mesh.node"] = "node-1"
    message = ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])
    for key, value in said.items():
        message.resource.attributes.append(KeyValue(key=key, value=AnyValue(string_value=value)))
    store.add(Checked("span", tenant, message, len(spans), message.SerializeToString()))


def everything(_: str) -> bool:
    return True


def only(tenant: str) -> Callable[[str], bool]:
    return lambda other: other == tenant


def counted(tally: Tally, kind: str, reason: str = "") -> int:
    return sum(
        n for (of, stage, _, _, why), n in tally.totals().items() if (of, stage) == (kind, STORE) and why == reason
    )


async def test_a_trace_crosses_tenants_and_each_sees_its_own(durable: Durable, store: TraceStore) -> None:
    put(store, "acme/web", span(1), span(2, 1, start_ms=1))
    put(store, "platform/orders", span(3, 2, start_ms=2, status=Status(code=Status.STATUS_CODE_ERROR, message="no")))
    await durable.flush()
    found = await store.find(TRACE, everything)
    assert found is not None
    assert [(item.service, item.name, item.parent_missing) for item in found.spans] == [
        ("acme/web", "do 1", False),
        ("acme/web", "do 2", False),
        ("platform/orders", "do 3", False),
    ]
    assert not found.incomplete
    assert (found.spans[2].status, found.spans[2].status_message, found.spans[2].node) == (2, "no", "node-1")
    theirs = await store.find(TRACE, only("platform"))
    assert theirs is not None
    assert [item.service for item in theirs.spans] == ["platform/orders"]
    assert theirs.incomplete
    assert theirs.spans[0].parent_missing
    assert await store.find(TRACE, only("globex")) is None
    ((summary,), _) = await store.search(ALL, only("acme"), 20)
    assert (summary.spans, summary.errors, list(summary.services)) == (2, 0, ["acme/web"])
    ((summary,), _) = await store.search(ALL, everything, 20)
    assert (summary.service, summary.name, summary.spans, summary.errors) == ("acme/web", "do 1", 3, 1)
    assert summary.duration.ToMilliseconds() == 12
    assert await store.search(ALL, only("globex"), 20) == ([], None)


async def test_the_mesh_itself_has_no_tenant(durable: Durable, store: TraceStore) -> None:
    put(store, "meshwarden-agent", span(1))
    await durable.flush()
    assert await store.find(TRACE, only("acme")) is None
    found = await store.find(TRACE, only(""))
    assert found is not None
    assert found.spans[0].service == "meshwarden-agent"


async def test_nobody_takes_the_id_of_anothers_span(durable: Durable, store: TraceStore, tally: Tally) -> None:
    # The one who is called knows the ids of its caller.
    put(store, "platform/orders", span(1, name="forged"))
    put(store, "acme/web", span(1, name="true"))
    put(store, "acme/other", span(1, name="forged by a neighbour"))
    await durable.flush()
    mine = await store.find(TRACE, only("acme"))
    assert mine is not None
    assert {(item.service, item.name) for item in mine.spans} == {
        ("acme/web", "true"),
        ("acme/other", "forged by a neighbour"),
    }
    assert counted(tally, DROPPED, "duplicate") == 0


async def test_a_span_that_comes_again_is_kept_once_and_counted(
    durable: Durable, store: TraceStore, tally: Tally
) -> None:
    put(store, "acme/web", span(1), span(1), span(2, 1))
    put(store, "acme/web", span(2, 1))
    await durable.flush()
    put(store, "acme/web", span(1, name="again"), span(3, 1))
    await durable.flush()
    put(store, "acme/web", span(1), span(2), span(3))
    await durable.flush()
    found = await store.find(TRACE, everything)
    assert found is not None
    assert sorted(item.name for item in found.spans) == ["do 1", "do 2", "do 3"]
    assert counted(tally, PASSED) == 3
    assert counted(tally, DROPPED, "duplicate") == 6
    assert counted(tally, RECEIVED) == 9


async def test_spans_without_ids_are_dropped_and_counted(durable: Durable, store: TraceStore, tally: Tally) -> None:
    put(
        store,
        "acme/web",
        span(1, trace=b""),
        span(1, trace=bytes(16)),
        span(1, trace=TRACE + b"x"),
        span(0),
        span(1, span_id=b"short"),
        span(7),
    )
    await durable.flush()
    assert (counted(tally, PASSED), counted(tally, DROPPED, "malformed")) == (1, 5)


async def test_hostile_times_and_values_are_bounded(durable: Durable, store: TraceStore) -> None:
    deep = AnyValue(string_value="core")
    for _ in range(20):
        deep = AnyValue(array_value=ArrayValue(values=[deep]))
    values = [
        KeyValue(key="deep", value=deep),
        KeyValue(key="map", value=AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="a")]))),
        KeyValue(key="bytes", value=AnyValue(bytes_value=b"\xff")),
        KeyValue(key="nan", value=AnyValue(double_value=float("nan"))),
        KeyValue(key="", value=AnyValue(bool_value=True)),
    ]
    last = 2**64 - 1
    put(
        store,
        "acme/web",
        span(1, start_time_unix_nano=last, end_time_unix_nano=last, attributes=values, kind=77),  # type: ignore[arg-type]
        span(2, 1, start_time_unix_nano=0, end_time_unix_nano=last),
        span(3, 2, start_time_unix_nano=last, end_time_unix_nano=0, status=Status(code=9)),  # type: ignore[arg-type]
        span(4, 4),
        span(5, 4, links=[Span.Link(trace_id=b"x" * 40)], events=[Span.Event(name="e", time_unix_nano=last)]),
    )
    await durable.flush()
    found = await store.find(TRACE, everything)
    assert found is not None
    assert len(found.spans) == 5
    first = next(item for item in found.spans if item.name == "do 1")
    assert (first.attributes["bytes"], first.attributes["map"], first.attributes[""]) == ("ff", '{"a": null}', "true")
    ((summary,), _) = await store.search(ALL, everything, 20)
    assert summary.spans == 5
    # A clock that is ahead puts nobody before the others for ever.
    other = bytes(15) + b"\x01"
    put(store, "acme/web", span(1, trace=other, start_time_unix_nano=last, end_time_unix_nano=last))
    await durable.flush()
    (found_, _) = await store.search(Question("", False, 0, NOW_NS, NOW_NS), everything, 20)
    assert [item.trace_id for item in found_] == [other.hex()]


async def test_one_service_fills_no_trace_beyond_reading(
    durable: Durable, store: TraceStore, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_store, "MAX_SPANS", 10)
    monkeypatch.setattr(trace_store, "MAX_BLOCKS", 3)
    put(store, "acme/web", *(span(number) for number in range(1, 20)))
    for number in range(1, 6):
        put(store, "acme/slow", span(number))
        await durable.flush()
    assert counted(tally, DROPPED, "trace_too_large") == 9 + 2
    found = await store.find(TRACE, everything)
    assert found is not None
    assert len(found.spans) == 13


async def test_an_answer_is_bounded_and_says_what_is_left_out(
    durable: Durable, store: TraceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "acme/web", *(span(number, start_ms=number) for number in range(1, 50)))
    await durable.flush()
    monkeypatch.setattr(trace_query, "MAX_ANSWER_BYTES", 1000)
    found = await store.find(TRACE, everything)
    assert found is not None
    assert 0 < found.ByteSize() <= 1100
    assert found.omitted == 49 - len(found.spans)
    assert found.incomplete


@pytest.mark.parametrize(("bound", "most"), [("MAX_LOOKED_AT", 3), ("MAX_BLOCKS", 2)])
async def test_a_page_looks_at_so_much_and_says_where_to_go_on(
    durable: Durable, store: TraceStore, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(trace_query, bound, most)
    failed = Status(code=Status.STATUS_CODE_ERROR)
    # Of each trace one service has failed, and another took long: no service has done both.
    for number in range(6):
        trace = os.urandom(16)
        put(store, "acme/web", span(1, trace=trace, ms=500, start_ms=number))
        put(store, "acme/orders", span(2, trace=trace, status=failed, ms=1, start_ms=number))
        await durable.flush()
    question, after, pages = Question("", True, 100 * 10**6, 0, NOW_NS), None, 0
    while pages == 0 or after is not None:
        page, after = await store.search(question, everything, 20, after)
        assert page == []
        after, pages = after and Place.parse(str(after)), pages + 1
    assert pages > 2
    found: list[str] = []
    while not found or after is not None:
        page, after = await store.search(Question("web", False, 0, 0, NOW_NS), everything, 20, after)
        assert len(page) <= most
        found += [item.trace_id for item in page]
    assert len(set(found)) == len(found) == 6


@pytest.mark.parametrize("is_root_last", [True, False])
async def test_what_is_asked_of_a_part_may_lie_in_different_blocks(
    durable: Durable, store: TraceStore, is_root_last: bool
) -> None:
    failed = Status(code=Status.STATUS_CODE_ERROR)
    for number in range(8):
        trace = bytes(15) + bytes([number + 1])
        spans = [span(1, trace=trace, ms=500, start_ms=number), span(2, 1, trace=trace, status=failed, start_ms=90)]
        for one in reversed(spans) if is_root_last else spans:
            put(store, "acme/web", one)
            await durable.flush()
    found: list[int] = []
    after: Place | None = None
    while not found or after is not None:
        page, after = await store.search(Question("web", True, 400 * 10**6, 0, NOW_NS), everything, 3, after)
        found += [int(item.trace_id, 16) for item in page]
    assert found == [8, 7, 6, 5, 4, 3, 2, 1]


async def test_what_is_asked_is_asked_of_one_service(durable: Durable, store: TraceStore) -> None:
    failed = Status(code=Status.STATUS_CODE_ERROR)
    other, third = os.urandom(16), os.urandom(16)
    put(store, "acme/web", span(1, ms=500), span(1, trace=other, ms=5, start_ms=1))
    put(store, "platform/orders", span(2, 1, status=failed), span(2, trace=third, start_ms=2))

    async def traces(service: str = "", failed: bool = False, ms: int = 0) -> list[str]:
        found, _ = await store.search(Question(service, failed, ms * 10**6, 0, NOW_NS), everything, 20)
        return [item.trace_id for item in found]

    await durable.flush()
    assert await traces() == [third.hex(), other.hex(), TRACE.hex()]
    assert await traces("web") == await traces("acme/web") == [other.hex(), TRACE.hex()]
    assert await traces("platform/web") == await traces("nobody") == []
    assert await traces(failed=True) == [TRACE.hex()]
    assert await traces("web", failed=True) == []
    assert await traces(ms=100) == [TRACE.hex()]


async def test_spans_are_forgotten_after_a_while(durable: Durable, store: TraceStore, clock: Clock) -> None:
    put(store, "acme/web", span(1))
    await durable.flush()
    clock.now = NOW + timedelta(hours=20)
    put(store, "acme/web", span(2, 1))
    old = os.urandom(16)
    put(store, "acme/web", span(1, trace=old))
    await durable.flush()
    size = store.size_bytes()
    clock.now = NOW + timedelta(hours=25)
    assert await durable.work(store.prune) == ({}, False)
    assert 0 < store.size_bytes() < size
    found = await store.find(TRACE, everything)
    assert found is not None
    assert [item.name for item in found.spans] == ["do 2"]
    assert found.incomplete
    clock.now = NOW + timedelta(hours=50)
    await durable.work(store.prune)
    assert await store.find(TRACE, everything) is None
    assert store.size_bytes() == 0
    rows = await durable.read(lambda db: db.execute("SELECT count(*) FROM trace_ids").get)
    assert rows == 0


async def test_a_flood_of_one_tenant_pushes_out_its_own_spans(durable: Durable, store: TraceStore) -> None:
    put(store, "platform/orders", span(1))
    await durable.flush()
    lost = 0
    for _ in range(40):
        noise = KeyValue(key="noise", value=AnyValue(string_value=os.urandom(5000).hex()))
        put(store, "acme/web", *(span(n, trace=os.urandom(16), attributes=[noise]) for n in range(1, 4)))
        await durable.flush()
        is_more = True
        while is_more:
            too_much, is_more = await durable.work(store.prune)
            assert set(too_much) <= {"acme"}
            lost += too_much["acme"]
    assert lost > 0
    assert store.size_bytes() <= 200_000
    assert await store.find(TRACE, everything) is not None


async def test_a_trace_that_looks_up_as_another_takes_nothing_from_it(durable: Durable, store: TraceStore) -> None:
    # Whoever has seen a trace id can make up others that are looked up by the same key.
    mine, made_up, unknown = (bytes(7) + bytes([number]) + bytes(7) + bytes([number]) for number in (1, 2, 3))
    put(store, "acme/web", span(1, trace=mine), span(2, 1, trace=mine))
    put(store, "globex/web", *(span(number, trace=made_up) for number in range(10, 20)))
    await durable.flush()
    found = await store.find(mine, everything)
    assert found is not None
    assert ([item.name for item in found.spans], found.omitted, found.incomplete) == (["do 1", "do 2"], 0, False)
    assert await store.find(unknown, everything) is None
    assert await store.find(mine, only("globex")) is None


async def prune(durable: Durable, store: TraceStore) -> None:
    is_more = True
    while is_more:
        _, is_more = await durable.work(store.prune)


async def test_a_tenant_may_have_bounds_of_its_own(durable: Durable, tally: Tally, clock: Clock) -> None:
    hour, most = timedelta(hours=1), 100_000
    own = {"acme": Keep(timedelta(days=2), most), "brief": Keep(hour, 1 << 30), "globex": Keep(hour, 0)}
    store = TraceStore(durable, tally, clock, retention=timedelta(hours=6), max_size_bytes=1 << 20, tenants=own)
    names = ("acme", "brief", "globex", "platform")
    traces = {tenant: os.urandom(16) for tenant in names}

    async def kept() -> set[str]:
        await prune(durable, store)
        return {tenant for tenant, trace in traces.items() if await store.find(trace, everything) is not None}

    for tenant, trace in traces.items():
        put(store, f"{tenant}/web", span(1, trace=trace))
    await durable.flush()
    assert await kept() == {"acme", "brief", "platform"}  # of globex nothing is kept
    clock.now = NOW + timedelta(hours=2)
    assert await kept() == {"acme", "platform"}
    clock.now = NOW + timedelta(hours=7)
    assert await kept() == {"acme"}
    # By size it loses its own oldest, though there is room enough for all.
    for _ in range(60):
        noise = KeyValue(key="noise", value=AnyValue(string_value=os.urandom(4000).hex()))
        for tenant in ("acme", "platform"):
            put(store, f"{tenant}/web", span(1, trace=os.urandom(16), attributes=[noise]))
        await durable.flush()
    await prune(durable, store)
    sizes = dict(
        await durable.read(lambda db: db.execute("SELECT tenant, sum(size) FROM trace_blocks GROUP BY 1").fetchall())
    )
    assert most / 2 < sizes["acme"] <= most < sizes["platform"]
    assert await kept() == set()


async def test_a_disk_that_refuses_loses_nothing_and_counts_the_rest(
    durable: Durable, store: TraceStore, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "acme/web", span(1))
    with monkeypatch.context() as patch:
        patch.setattr(tally, "write", lambda *_: (_ for _ in ()).throw(apsw.FullError("full")))
        with pytest.raises(apsw.FullError):
            await durable.flush()
    assert await store.find(TRACE, everything) is None
    monkeypatch.setattr("meshwarden.controlplane.gather.trace.store.WAITING_BYTES", 1000)
    for number in range(2, 30):
        put(store, "acme/web", span(number, 1))
    await durable.flush()
    kept, lost = counted(tally, PASSED), counted(tally, DROPPED, "disk_full")
    assert kept > 1
    assert lost > 1
    assert kept + lost == counted(tally, RECEIVED) == 29


async def test_a_store_goes_on_where_it_stopped(tmp_path: Path, clock: Clock) -> None:
    for number in (1, 2):
        durable, tally = Durable(tmp_path / "again.sqlite"), Tally()
        durable.add(tally)
        store = TraceStore(durable, tally, clock)
        put(store, "acme/web", span(1), span(number))
        await durable.flush()
        found = await store.find(TRACE, everything)
        assert found is not None
        assert len(found.spans) == number
        size = store.size_bytes()
        durable.close()
    durable, tally = Durable(tmp_path / "again.sqlite"), Tally()
    durable.add(tally)
    assert TraceStore(durable, tally, clock).size_bytes() == size
    assert counted(tally, RECEIVED) == counted(tally, PASSED) + counted(tally, DROPPED, "duplicate") == 4
    durable.close()


async def test_what_it_takes_is_what_the_file_grows_by(tmp_path: Path, clock: Clock) -> None:
    durable = Durable(tmp_path / "sized.sqlite")
    durable.add(tally := Tally())
    store = TraceStore(durable, tally, clock)

    async def used() -> int:
        return await durable.read(lambda db: (db.pragma("page_count") - db.pragma("freelist_count")) * 4096)

    before = await used()
    for number in range(40):
        for _ in range(200):
            trace = os.urandom(16)
            spans = [span(at, trace=trace, start_ms=number, trace_state=os.urandom(60).hex()) for at in range(1, 4)]
            put(store, "acme/web", *spans)
        await durable.flush()
    grown = await used() - before
    assert store.size_bytes() == pytest.approx(grown, rel=0.1)
    durable.close()


async def test_a_file_of_another_version_loses_its_traces_alone(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "older.sqlite"
    older = apsw.Connection(str(path))
    older.execute("CREATE TABLE trace_blocks (id INTEGER PRIMARY KEY, body BLOB); CREATE TABLE trace_parts (x)")
    older.execute("INSERT INTO trace_blocks (body) VALUES (x'00')")
    older.close()
    for life in (1, 2):
        durable, tally = Durable(path), Tally()
        durable.add(tally)
        store = TraceStore(durable, tally, clock)
        put(store, "acme/web", span(life))
        await durable.flush()
        found = await store.find(TRACE, everything)
        assert found is not None
        assert len(found.spans) == life
        durable.close()


async def test_ids_that_are_looked_up_alike_are_told_apart(durable: Durable, store: TraceStore, tally: Tally) -> None:
    # Whoever makes such ids up has one of two spans, and harms nobody else.
    ids = [bytes(8) + bytes([n] * 8) for n in range(1, 9)] + [bytes([n] * 8) + bytes(8) for n in range(1, 9)]
    for trace in ids:
        put(store, "acme/web", span(1, trace=trace, name=trace.hex()))
        put(store, "acme/other", span(1, trace=trace, name="other"))
    await durable.flush()
    for trace in ids:
        found = await store.find(trace, everything)
        assert found is not None
        assert [item.name for item in found.spans] == [trace.hex(), "other"]
        assert not found.omitted
    (page, _) = await store.search(ALL, everything, 20)
    assert {item.trace_id for item in page} == {trace.hex() for trace in ids}
    put(store, "acme/web", *(span(1, trace=trace) for trace in ids), span(2, trace=ids[0]))
    await durable.flush()
    assert (counted(tally, PASSED), counted(tally, DROPPED, "duplicate")) == (33, 16)


@given(
    spans=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(0, 9), st.integers(0, 5), st.integers(0, 50)),
        max_size=20,
    ),
    cuts=st.sets(st.integers(0, 20)),
)
@settings(max_examples=60, deadline=None)
async def test_a_trace_says_the_same_however_its_spans_came(
    tmp_path_factory: pytest.TempPathFactory,
    spans: list[tuple[int, int, int, int, int]],
    cuts: set[int],
) -> None:
    told = []
    for flushed in (set[int](), cuts):
        durable, tally = Durable(tmp_path_factory.mktemp("cut") / "db.sqlite"), Tally()
        durable.add(tally)
        store = TraceStore(durable, tally, lambda: NOW)
        for at, (trace, number, parent, start_ms, ms) in enumerate(spans):
            code = Status.STATUS_CODE_ERROR if ms > 40 else Status.STATUS_CODE_UNSET
            name = f"{number} of {at}"
            more = {"trace": trace.to_bytes(16, "big"), "start_ms": start_ms, "ms": ms, "name": name}
            put(store, "acme/web", span(number, parent, status=Status(code=code), **more))  # type: ignore[arg-type]
            if at in flushed:
                await durable.flush()
        await durable.flush()
        page, _ = await store.search(ALL, everything, 20)
        shown = []
        for summary in page:
            found = await store.find(bytes.fromhex(summary.trace_id), everything)
            assert found is not None
            shown.append(sorted((item.span_id, item.name) for item in found.spans))
            summary.name = ""  # of two that began at once either may name it
        told.append((page, shown, counted(tally, PASSED), counted(tally, DROPPED, "duplicate")))
        durable.close()
    assert told[0] == told[1]


@given(
    parts=st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from(["a/x", "a/y", "b/x"]), st.integers(0, 3), st.booleans()),
        max_size=20,
    ),
    most=st.integers(1, 4),
    failed=st.booleans(),
    service=st.sampled_from(["", "x", "a/x", "b/x"]),
)
@settings(max_examples=60, deadline=None)
async def test_pages_have_every_trace_once(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[tuple[int, str, int, bool]],
    most: int,
    failed: bool,
    service: str,
) -> None:
    durable, tally = Durable(tmp_path_factory.mktemp("pages") / "db.sqlite"), Tally()
    durable.add(tally)
    store = TraceStore(durable, tally, lambda: NOW)
    wanted: set[str] = set()
    failing: set[tuple[int, str]] = set()
    for number, (trace, owner, start_ms, is_bad) in enumerate(parts, 1):
        status = Status(code=Status.STATUS_CODE_ERROR if is_bad else 0)
        put(store, owner, span(number, trace=trace.to_bytes(16, "big"), start_ms=start_ms, status=status))
        if is_bad:
            failing.add((trace, owner))
    for trace, owner, _, _ in parts:
        if service in ("", owner, owner[2:]) and (not failed or (trace, owner) in failing):
            wanted.add(trace.to_bytes(16, "big").hex())
    await durable.flush()
    found: list[str] = []
    after: Place | None = None
    while True:
        page, after = await store.search(Question(service, failed, 0, 0, NOW_NS), everything, most, after)
        found += [item.trace_id for item in page]
        if after is None:
            break
        after = Place.parse(str(after))
    durable.close()
    assert len(found) == len(set(found))
    assert set(found) == wanted


@pytest.mark.parametrize("token", ["1.2", f"{2**63}.1.{TRACE.hex()}", f"1.{2**63}.{TRACE.hex()}", "a.b.c", "1.1.zz"])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="page token"):
        Place.parse(token)
