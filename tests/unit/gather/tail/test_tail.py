"""Tail sampling: what goes on, when that is decided, and that nothing is lost, doubled or miscounted on the way."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from meshwarden.controlplane.gather.durable import transaction
from meshwarden.controlplane.gather.resource import Checked
from meshwarden.controlplane.gather.tail.policy import TailPolicy
from meshwarden.controlplane.gather.tail.tail import TailSampler
from meshwarden.controlplane.gather.tally import SAMPLE, Tally

NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)
HALF = TailPolicy(ratio=0.5, wait_s=10, grace_s=1)
LUCKY, UNLUCKY = b"\x01" * 9 + b"\xff" * 7, b"\x01" * 9 + b"\x00" * 6 + b"\x01"
Sent = tuple[bytes, bytes]


def span(trace_id: bytes, number: int, parent: int = 0, *, error: bool = False, state: str = "") -> Span:
    made = Span(trace_id=trace_id, span_id=number.to_bytes(8, "big"), name="work", trace_state=state)
    if parent:
        made.parent_span_id = parent.to_bytes(8, "big")
    if error:
        made.status.code = Status.STATUS_CODE_ERROR
    return made


class World:
    """A file, what reached backends, and the process of now."""

    def __init__(self, policy: TailPolicy | None = HALF, **more: int) -> None:
        self.db = apsw.Connection(":memory:")
        self.now_s = 0.0
        self.policy, self._more = policy, more
        self.forwarded: list[tuple[str, Span]] = []
        self.start()

    def start(self) -> None:
        """A process begins; what another had not written is gone."""
        self._going: list[tuple[str, Span]] = []
        self.tally = Tally(lambda: NOW)
        self.tally.create(self.db)
        self.tail = TailSampler(self.policy, self.tally, self._forward, monotonic=lambda: self.now_s, **self._more)
        self.tail.create(self.db)

    def add(self, *spans: Span, tenant: str = "acme", is_mesh: bool = False) -> None:
        pairs = {"mesh.tenant": tenant, "mesh.service": "web"}
        message = ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])
        for key, text in pairs.items():
            message.resource.attributes.append(KeyValue(key=key, value=AnyValue(string_value=text)))
        checked = Checked("span", tenant, message, len(spans), message.SerializeToString())
        self.tail.add(checked, is_mesh=is_mesh)

    def flush(self, *, fails: bool = False) -> None:
        parts: list[Any] = [self.tally, self.tail]
        taken = [(part, waiting) for part in parts if (waiting := part.take()) is not None]
        if fails:
            for part, waiting in taken:
                part.give_back(waiting)
            return
        with transaction(self.db):
            for part, waiting in taken:
                part.write(self.db, waiting)
        self.forwarded += self._going
        self._going = []

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.tail.decide()

    def names(self) -> list[Sent]:
        """What has gone on, written or not."""
        return [(span.trace_id, span.span_id) for _, span in [*self.forwarded, *self._going]]

    def states(self) -> list[str]:
        return [span.trace_state for _, span in [*self.forwarded, *self._going]]

    def counts(self) -> Counter[str]:
        """What was counted: received, passed, and by reason what was dropped."""
        found: Counter[str] = Counter()
        for (kind, stage, *_, reason), count in self.tally.totals().items():
            assert stage == SAMPLE
            found[reason or kind] += count
        return found

    def rows(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM tail_waiting").get)

    def _forward(self, tenant: str, items: int, body: bytes) -> None:
        message = ResourceSpans.FromString(body)
        spans = [span for scope in message.scope_spans for span in scope.spans]
        assert len(spans) == items > 0
        assert message.resource.attributes[0].value.string_value == tenant
        self._going += [(tenant, span) for span in spans]


def test_a_reason_is_acted_on_at_once_and_takes_all_of_the_trace_along() -> None:
    world = World()
    world.add(span(UNLUCKY, 2, 1), span(LUCKY, 2, 1))
    assert world.names() == []
    world.add(span(UNLUCKY, 3, 1, error=True))
    assert sorted(world.names()) == [(UNLUCKY, bytes(7) + b"\2"), (UNLUCKY, bytes(7) + b"\3")]
    world.add(span(UNLUCKY, 1))
    assert len(world.names()) == 3
    assert set(world.states()) == {"ot=th:0"}
    assert world.counts() == {"received": 4, "passed": 3}
    assert world.tail.load()[0] == 1
    assert world.tail.decided() == {"error": 1}


def test_what_another_region_keeps_is_kept_here_whether_it_waits_comes_or_was_left_to_chance() -> None:
    world = World()
    waits, comes, late = (bytes([number]) + UNLUCKY[1:] for number in (1, 2, 3))
    world.add(span(late, 1))
    world.wait(1.1)
    world.add(span(waits, 2, 1))
    world.tail.hear([waits, comes, late])
    assert world.names() == [(waits, bytes(7) + b"\2")]
    world.add(span(comes, 2, 1), span(late, 2, 1))
    assert len(world.names()) == 3
    assert set(world.states()) == {"ot=th:0"}
    assert world.counts() == {"received": 4, "passed": 3, "sampled": 1}
    assert world.tail.decided() == {"complete": 1, "region": 3}
    # Nobody is told of what others have said, and what never comes here takes no room among decisions.
    assert world.tail.word.told("", 0).trace_ids == ()
    world.tail.hear(number.to_bytes(16, "big") for number in range(1000, 1100))
    assert world.tail.decided() == {"complete": 1, "region": 3}
    world.now_s += 61
    world.add(span((1000).to_bytes(16, "big"), 2, 1))
    assert len(world.names()) == 3, "it was heard too long ago"


def test_others_are_told_of_what_is_kept_here_and_nobody_hears_where_all_is() -> None:
    world = World()
    world.add(span(UNLUCKY, 2, 1, error=True))
    world.tail.keep(LUCKY, "denied")
    world.add(span(bytes([9]) + UNLUCKY[1:], 1), is_mesh=True)
    assert world.tail.word.told("", 0).trace_ids == (UNLUCKY, LUCKY)
    everything = World(None)
    everything.tail.hear([UNLUCKY])
    assert not everything.tail.word.has_heard(UNLUCKY)


def test_chance_decides_once_a_trace_is_complete_and_the_grace_is_over() -> None:
    world = World()
    world.add(span(LUCKY, 1), span(UNLUCKY, 1), span(LUCKY, 2, 1))
    world.wait(0.9)
    assert world.names() == []
    assert world.tail.next_s() == pytest.approx(0.1)
    world.wait(0.2)
    assert len(world.names()) == 2
    assert set(world.states()) == {"ot=th:8"}
    assert world.counts() == {"received": 3, "passed": 2, "sampled": 1}
    assert world.tail.decided() == {"complete": 2}
    world.add(span(LUCKY, 3, 1), span(UNLUCKY, 3, 1))  # the late follow
    assert world.counts() == {"received": 5, "passed": 3, "sampled": 2}
    assert world.tail.load() == (0, 0)
    assert world.tail.next_s() == float("inf")


def test_a_root_does_not_end_the_wait_for_parents_that_are_missing() -> None:
    """Nobody may cut another's trace short by sending a root of his own into it."""
    world = World()
    world.add(span(UNLUCKY, 9), span(UNLUCKY, 3, 2))
    world.wait(5)
    assert world.tail.load()[0] == 2
    world.add(span(UNLUCKY, 2, 9, error=True), tenant="globex")
    assert len(world.names()) == 3


def test_a_trace_that_does_not_become_complete_is_waited_for_no_longer_than_it_may() -> None:
    world = World()
    world.add(span(LUCKY, 3, 2))
    world.wait(5)
    world.add(span(LUCKY, 4, 2))
    assert world.tail.next_s() == 5
    world.wait(5)
    assert len(world.names()) == 2
    assert world.tail.decided() == {"waited": 1}


def test_a_reason_that_comes_late_has_the_rest_of_the_trace_kept() -> None:
    world = World()
    world.add(span(UNLUCKY, 1))
    world.wait(2)
    world.add(span(UNLUCKY, 2, 1, error=True))
    world.add(span(UNLUCKY, 3, 1))
    assert [name[1][-1] for name in world.names()] == [2, 3]
    assert set(world.states()) == {"ot=th:0"}
    assert world.counts() == {"received": 3, "passed": 2, "sampled": 1}


def test_a_trace_may_be_kept_before_anything_of_it_is_there() -> None:
    world = World()
    world.tail.keep(UNLUCKY, "new_edge")
    world.flush()
    world.start()
    world.add(span(UNLUCKY, 1))
    assert len(world.names()) == 1


def test_what_the_mesh_did_goes_on() -> None:
    world = World(TailPolicy(ratio=0))
    world.add(span(UNLUCKY, 1), tenant="", is_mesh=True)
    world.add(span(LUCKY, 1))
    assert [name[0] for name in world.names()] == [UNLUCKY]


def test_tenants_have_shares_of_their_own_in_one_trace() -> None:
    world = World(TailPolicy(ratio=0.5, tenants={"globex": 1.0, "initech": 0.0}))
    for tenant, number in (("acme", 1), ("globex", 2), ("initech", 3)):
        world.add(span(UNLUCKY, number, number - 1), tenant=tenant)
        world.add(span(LUCKY, number, number - 1), tenant=tenant)
    world.wait(1)
    told = sorted((tenant, span.trace_id, span.trace_state) for tenant, span in world._going)
    assert told == [("acme", LUCKY, "ot=th:8"), ("globex", UNLUCKY, "ot=th:0"), ("globex", LUCKY, "ot=th:0")]


def test_what_head_sampling_said_stays_and_hostile_states_harm_their_span_alone() -> None:
    world = World()
    world.add(
        span(LUCKY, 1, state="ot=th:c"),
        span(LUCKY, 2, 1, state="ot=th:zz,a=b"),
        span(LUCKY, 3, 1, state="ot=rv:00000000000000"),
        span(UNLUCKY, 4, state="ot=rv:ffffffffffffff"),
        span(UNLUCKY, 5, 4),
    )
    world.wait(1)
    assert {span.span_id[-1]: span.trace_state for _, span in world._going} == {
        1: "ot=th:c",
        2: "a=b",
        4: "ot=th:8;rv:ffffffffffffff",
    }
    assert world.counts() == {"received": 5, "passed": 3, "sampled": 2}


def test_spans_without_ids_are_dropped_and_counted() -> None:
    world = World()
    good, bad = span(UNLUCKY, 1, error=True), span(UNLUCKY, 2)
    bad.span_id = b"short"
    nobody = span(b"\0" * 16, 3, error=True)
    short = span(b"x", 4, error=True)
    waits = span(LUCKY, 5)
    world.add(good, bad, nobody, short, waits)
    world.wait(1)
    assert sorted(world.names()) == [(UNLUCKY, good.span_id), (LUCKY, waits.span_id)]
    assert world.counts() == {"received": 5, "passed": 2, "malformed": 3}


def test_where_too_much_waits_whoever_has_most_is_decided_on_first() -> None:
    world = World(TailPolicy(ratio=0.5, max_waiting_bytes=64 << 10))
    world.add(span(LUCKY, 7, 6), tenant="globex")
    for number in range(1, 101):
        world.add(span(number.to_bytes(16, "big"), 2, 1))
        assert world.tail.load()[1] <= 64 << 10
    counts = world.counts()
    assert world.tail.load()[0] == counts["received"] - counts["sampled"] < 64
    assert world.tail.decided() == {"full": counts["sampled"]}
    world.add(span(LUCKY, 8, 6, error=True), tenant="globex")
    assert len(world.names()) == 2  # globex's had waited on


def test_decisions_are_remembered_up_to_a_bound_and_forgotten_from_the_file_too() -> None:
    world = World(TailPolicy(ratio=0.5, max_waiting_bytes=1 << 14), remembered=16)
    world.add(span(LUCKY, 2, 1))
    for number in range(1, 1001):
        world.add(span(number.to_bytes(16, "big"), 1, error=True))
        world.flush()
        assert world.db.execute("SELECT sum(length(trace_ids)) FROM tail_decisions").get <= 32 * 16
    assert world.tail.decided() == {"error": 1000, "full": 1}
    assert world.rows() == 0


@pytest.mark.parametrize("before", [1, 15, 16, 17, 31])
@pytest.mark.parametrize("within", [0, 15, 16, 17])
def test_what_an_old_message_has_passed_on_stays_known_while_the_message_waits(before: int, within: int) -> None:
    """It lies in the file as a whole: forgotten, its spans would go on again after a restart."""
    world = World(TailPolicy(ratio=1.0, max_waiting_bytes=1 << 14), remembered=16)
    numbers = iter(range(2, 1000))

    def errors(many: int) -> list[Span]:
        return [span(next(numbers).to_bytes(16, "big"), 1, error=True) for _ in range(many)]

    world.add(span(UNLUCKY, 1, error=True))
    for error in errors(before - 1):
        world.add(error)
    world.add(span(UNLUCKY, 2, 1), span(LUCKY, 3, 2), *errors(within))
    for error in errors(16):
        world.add(error)
        world.flush()
        world.start()
    world.wait(100)
    world.flush()
    assert Counter(world.names()).most_common(1)[0][1] == 1
    assert len(world.names()) == world.counts()["passed"] == world.counts()["received"]


def test_off_all_goes_on_as_it_came() -> None:
    world = World(None)
    world.add(span(UNLUCKY, 1, state="x=y"), span(b"x", 1))
    assert [span.trace_state for _, span in world._going] == ["x=y", ""]
    assert world.counts() == {}
    assert list(world.tail.collect()) == []


def test_what_waits_when_it_is_turned_off_goes_on() -> None:
    world = World()
    world.add(span(UNLUCKY, 2, 1), span(LUCKY, 1, error=True))
    world.flush()
    world.policy = None
    world.start()
    world.flush()
    assert sorted(world.names()) == [(UNLUCKY, bytes(7) + b"\2"), (LUCKY, bytes(7) + b"\1")]
    assert world.counts() == {"received": 2, "passed": 2}
    assert world.rows() == 0
    world.start()
    world.flush()
    assert len(world.names()) == 2


# -- any order, any split, duplicates and restarts

TRACES = [LUCKY, UNLUCKY, LUCKY[::-1], b"\x02" * 16, b"\xf2" * 16]


@st.composite
def spans(draw: Callable[..., Any]) -> Span:
    number = draw(st.integers(1, 6))
    parent = draw(st.integers(0, number - 1))
    return span(draw(st.sampled_from(TRACES)), number, parent, error=draw(st.integers(0, 9)) == 0)


MESSAGES = st.lists(spans(), min_size=1, max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), MESSAGES, st.sampled_from(["acme", "globex"])),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.5, 1.0, 4.0])),
        st.tuples(st.just("keep"), st.sampled_from(TRACES)),
        st.sampled_from([("flush",), ("fail",), ("kill",)]),
    ),
    max_size=40,
)


class Run:
    """Steps done to a world, as an agent does: what was not written before a crash is sent again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.written: list[tuple[str, list[Span]]] = []
        self.unwritten: list[tuple[str, list[Span]]] = []
        self.kept: list[bytes] = []

    def step(self, kind: str, *args: Any) -> None:
        world = self.world
        if kind == "add":
            self._add(args[1], args[0])
        elif kind == "wait":
            world.wait(args[0])
        elif kind == "keep":
            self.kept.append(args[0])
            world.tail.keep(args[0], "new_edge")
        elif kind == "fail":
            world.flush(fails=True)
        elif kind == "flush":
            world.flush()
            self.written += self.unwritten
            self.unwritten, self.kept = [], []
        else:
            again, self.unwritten = self.unwritten, []
            world.start()
            for trace_id in self.kept:
                world.tail.keep(trace_id, "new_edge")
            for tenant, message in again:
                self._add(tenant, message)

    def end(self) -> None:
        self.world.wait(1000)
        self.step("flush")

    def _add(self, tenant: str, message: list[Span]) -> None:
        self.unwritten.append((tenant, message))
        self.world.add(*message, tenant=tenant)

    def came(self) -> Counter[tuple[str, bytes, bytes]]:
        return Counter((tenant, span.trace_id, span.span_id) for tenant, message in self.written for span in message)

    def went(self) -> Counter[tuple[str, bytes, bytes]]:
        return Counter((tenant, span.trace_id, span.span_id) for tenant, span in self.world.forwarded)


def is_lucky(trace_id: bytes) -> bool:
    return trace_id[9] >= 0x80


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_while_all_of_a_trace_comes_before_it_is_decided_on_the_policy_holds_to_the_span(steps: list[Any]) -> None:
    run = Run(World(TailPolicy(ratio=0.5, wait_s=500, grace_s=500)))
    kept = set()
    for step in steps:
        run.step(*step)
        kept |= {step[1]} if step[0] == "keep" else set()
    run.end()
    came = run.came()
    kept |= {span.trace_id for _, message in run.written for span in message if span.status.code}
    assert run.went() == Counter({key: n for key, n in came.items() if key[1] in kept or is_lucky(key[1])})
    states = {span.trace_id: span.trace_state for _, span in run.world.forwarded}
    assert states == {trace_id: "ot=th:0" if trace_id in kept else "ot=th:8" for trace_id in states}


@settings(deadline=None, max_examples=150)
@given(STEPS, st.sampled_from([1 << 14, 1 << 20]), st.sampled_from([2, 1000]))
def test_whatever_is_decided_when_nothing_is_lost_doubled_or_miscounted(steps: list[Any], most: int, few: int) -> None:
    world = World(TailPolicy(ratio=0.5, wait_s=3, grace_s=1, max_waiting_bytes=most), remembered=few)
    run = Run(world)
    for step in steps:
        run.step(*step)
        counts = world.counts()
        waiting, size = world.tail.load()
        assert counts["received"] == counts["passed"] + counts["sampled"] + waiting
        assert size <= most
    run.end()
    came, went = run.came(), run.went()
    counts = world.counts()
    assert (counts["received"], counts["passed"]) == (came.total(), went.total())
    assert counts["sampled"] == came.total() - went.total()
    assert went <= came
    assert all(went[key] == count for key, count in came.items() if is_lucky(key[1]))
    reasons = {(span.trace_id, span.span_id) for _, message in run.written for span in message if span.status.code}
    told = {(span.trace_id, span.span_id) for _, span in world.forwarded if span.status.code}
    assert told == reasons
    for _, forwarded in world.forwarded:
        assert forwarded.trace_state == "ot=th:0" or (
            forwarded.trace_state == "ot=th:8" and is_lucky(forwarded.trace_id)
        )
    assert world.rows() == 0
