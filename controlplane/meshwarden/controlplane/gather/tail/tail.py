"""Tail sampling: which spans go on to backends, decided by trace, as early as it can be.

A trace is kept as a whole from the first span on that gives a reason (`tail_policy`). One that gives none is decided on
by chance, by the randomness of its id: once its root is there, no span lacks its parent and a short grace for the late
is over; or when it was waited for long enough; or, where too much waits, the oldest of the tenant that has most of it
first. Spans that come later follow the decision, and a reason that comes later has the rest of its trace kept.

Messages with spans of undecided traces lie in the file, in the transaction that takes what has brought them. A message
stays as it came until all its traces are decided on: what of it went on is told by the decisions.

`tracestate` bears how likely each span was to get here (`trace_state`): a reason makes it certain. Which of the two it
is does not hang on the randomness, so that counts adjusted by it are right.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import apsw
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meshwarden.controlplane.gather.pack import pack, unpack
from meshwarden.controlplane.gather.resource import Checked
from meshwarden.controlplane.gather.tail.memory import TRACES, Decided, TailMemory
from meshwarden.controlplane.gather.tail.policy import MESH, TailPolicy, reason
from meshwarden.controlplane.gather.tail.trace import SPAN_BYTES, Cut, Row, Trace, cut_out
from meshwarden.controlplane.gather.tail.word import Word
from meshwarden.controlplane.gather.tally import SAMPLE, Tally
from meshwarden.controlplane.gather.trace.part import is_sound, owner_of
from meshwarden.controlplane.gather.trace.state import randomness

COMPLETE: Final = "complete"
WAITED: Final = "waited"
FULL: Final = "full"
REGION: Final = "region"
"""Another region keeps it."""
# Each region knows these of its own.
_NOT_TOLD: Final = frozenset({MESH, REGION})
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tail_waiting (id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, body BLOB NOT NULL)
"""
_READ: Final = "SELECT id, tenant, body FROM tail_waiting ORDER BY id"
_ADD: Final = "INSERT INTO tail_waiting VALUES (?, ?, ?)"

Forward = Callable[[str, int, bytes], None]
"""Takes what goes on: (tenant, how many spans, a serialised `ResourceSpans`)."""


@dataclass
class _Waiting:
    added: dict[int, Row]
    removed: list[int]
    decided: Decided


class TailSampler(Collector):
    """Decides. A part of `Durable`, and shown to Prometheus. Without a policy all goes on as it came."""

    def __init__(
        self,
        policy: TailPolicy | None,
        tally: Tally,
        forward: Forward,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        remembered: int = TRACES,
    ) -> None:
        """Starts empty.

        Args:
            policy: what to keep.
            tally: counts what becomes of spans; a part of the file before this one.
            forward: takes what goes on; what it makes of it is written with the rest.
            monotonic: a clock that never goes back, in seconds.
            remembered: how many decisions are, at least; more where more may wait.
        """
        self.is_on: Final = policy is not None
        """Whether anything is kept back."""
        self.policy: Final = policy or TailPolicy(ratio=1.0)
        """What is kept; all, without one."""
        self._tally, self._forward, self._monotonic = tally, forward, monotonic
        self._memory = TailMemory(max(remembered, self.policy.max_waiting_bytes // SPAN_BYTES))
        self._traces: dict[bytes, Trace] = {}
        self._rows: dict[str, dict[int, Row]] = {}
        self._sizes: Counter[str] = Counter()
        self._spans: Counter[str] = Counter()
        self._complete: deque[tuple[float, bytes]] = deque()
        self._cuts: dict[Row, Cut] = {}
        self._last_id = 0
        self._waiting = _Waiting({}, [], {})
        self._decided: Counter[str] = Counter()
        self.word: Final = Word(monotonic)
        """What regions tell each other of what they keep."""

    def add(self, checked: Checked, *, is_mesh: bool = False) -> None:
        """Takes spans, and hands on those that are decided on.

        Args:
            checked: the spans; only read.
            is_mesh: whether the mesh itself tells of what it did.
        """
        tenant, spans, count = checked.tenant, checked.message, checked.items
        if not self.is_on:
            self._forward(tenant, count, checked.body)
            return
        self._tally.received(SAMPLE, "span", tenant, count)
        generation, sound = self._memory.generation, self._look(spans, is_mesh)
        self._tally.drop(SAMPLE, "span", "malformed", tenant, count - len(sound))
        # Asked only now: looking may have had other traces decided on.
        decisions = {trace_id: self._memory.find(trace_id) for trace_id in {span.trace_id for span in sound}}
        settled = {trace_id: is_kept for trace_id, is_kept in decisions.items() if is_kept is not None}
        waiting = [span for span in sound if span.trace_id not in settled] if settled else sound
        if settled:
            self._pass(tenant, spans, Cut(settled, len(sound) - len(waiting)))
        if waiting:
            self._last_id += 1
            row = Row(self._last_id, tenant, checked.body, len(checked.body), generation, Counter())
            self._waiting.added[row.id] = row
            self._wait(row, waiting)
        self._hurry()
        self._cut()

    def keep(self, trace_id: bytes, why: str) -> None:
        """Has a trace kept as a whole from now on, whether or not anything of it is here."""
        if self.is_on and not self._known(trace_id):
            self._settle(trace_id, True, why)
            self._cut()

    def hear(self, trace_ids: Iterable[bytes]) -> None:
        """Takes note of traces that another region keeps: what is here of them, or comes, is kept as well."""
        if not self.is_on:
            return
        for trace_id in trace_ids:
            self.word.hear(trace_id)
            if trace_id in self._traces or self._known(trace_id) is False:
                self._settle(trace_id, True, REGION)
        self._cut()

    def decide(self) -> None:
        """Decides on what is complete or was waited for long enough."""
        now_s = self._monotonic()
        while self._complete and self._complete[0][0] <= now_s:
            _, trace_id = self._complete.popleft()
            trace = self._traces.get(trace_id)
            if trace is not None and trace.is_complete:
                self._settle(trace_id, False, COMPLETE)
        while self._traces:  # the oldest first
            trace_id, trace = next(iter(self._traces.items()))
            if trace.since_s + self.policy.wait_s > now_s:
                break
            self._settle(trace_id, False, WAITED)
        self._cut()

    def next_s(self) -> float:
        """How many seconds from now there may be something to decide; infinite if nothing waits."""
        if not self._traces:
            return float("inf")
        due_s = next(iter(self._traces.values())).since_s + self.policy.wait_s
        if self._complete:
            due_s = min(due_s, self._complete[0][0])
        return max(0.0, due_s - self._monotonic())

    def load(self) -> tuple[int, int]:
        """How much waits: (spans, bytes that they take, about)."""
        return self._spans.total(), self._sizes.total()

    def decided(self) -> dict[str, int]:
        """On how many traces was decided since this process began, `{why: traces}`."""
        return dict(self._decided)

    # -- deciding

    def _look(self, spans: ResourceSpans, is_mesh: bool) -> list[Span]:
        """The spans that have ids; what they give a reason to keep is kept from now on."""
        limits = self.policy.limits(*owner_of(spans))
        sound = []
        for scope in spans.scope_spans:
            for span in scope.spans:
                trace_id = span.trace_id
                if is_sound(trace_id, span.span_id):
                    sound.append(span)
                    if not self._known(trace_id) and (why := MESH if is_mesh else self._reason(span, limits)):
                        self._settle(trace_id, True, why)
        return sound

    def _reason(self, span: Span, limits: tuple[int | None, int | None]) -> str:
        return reason(span, limits) or (REGION if self.word.has_heard(span.trace_id) else "")

    def _known(self, trace_id: bytes) -> bool | None:
        found = self._memory.find(trace_id)
        if found is not None and not self._memory.is_new(trace_id):
            self._remember(trace_id, found)
        return found

    def _remember(self, trace_id: bytes, is_kept: bool) -> None:
        if self._memory.is_full:
            self._memory.turn()
            # What is forgotten now can't tell any more what of older messages went on.
            for row in [row for rows in self._rows.values() for row in rows.values()]:
                if row.generation < self._memory.generation - 1:
                    self._settle_row(row)
        self._memory.put(trace_id, is_kept)

    def _settle_row(self, row: Row) -> None:
        for trace_id in list(row.waiting):
            self._settle(trace_id, False, FULL)

    def _settle(self, trace_id: bytes, is_kept: bool, why: str) -> None:
        trace = self._traces.pop(trace_id, None)
        if trace is None and not is_kept:
            return
        self._remember(trace_id, is_kept)
        self._decided[why] += 1
        if is_kept and why not in _NOT_TOLD:
            self.word.tell(trace_id)
        for row in trace.rows if trace is not None else ():
            self._settle_in(row, trace_id, is_kept, trace is not None and trace.has_randomness)

    def _settle_in(self, row: Row, trace_id: bytes, is_kept: bool, has_randomness: bool) -> None:
        count = row.waiting.pop(trace_id)
        self._spans[row.tenant] -= count
        if is_kept or has_randomness or randomness(trace_id) >= self.policy.threshold(row.tenant):
            cut = self._cuts.setdefault(row, Cut())
            cut.settled[trace_id] = is_kept
            cut.count += count
        else:  # by far the most, and nothing of them is read again
            self._tally.drop(SAMPLE, "span", "sampled", row.tenant, count)
        if not row.waiting:
            del self._rows[row.tenant][row.id]
            self._sizes[row.tenant] -= row.size
            self._waiting.removed.append(row.id)

    def _cut(self) -> None:
        cuts, self._cuts = self._cuts, {}
        for row, cut in cuts.items():
            self._pass(row.tenant, ResourceSpans.FromString(row.body), cut)

    def _pass(self, tenant: str, spans: ResourceSpans, cut: Cut) -> None:
        """Hands on what passes of a message's spans."""
        going, kept = cut_out(spans, cut.settled, self.policy.threshold(tenant))
        if kept:
            self._tally.passed(SAMPLE, "span", tenant, kept)
            self._forward(tenant, kept, going.SerializeToString())
        self._tally.drop(SAMPLE, "span", "sampled", tenant, cut.count - kept)

    # -- waiting

    def _wait(self, row: Row, spans: Iterable[Span]) -> None:
        now_s = self._monotonic()
        touched: dict[bytes, Trace] = {}
        for span in spans:
            trace = self._traces.get(span.trace_id)
            if trace is None:
                trace = self._traces[span.trace_id] = Trace(now_s)
            if span.trace_id not in touched:
                touched[span.trace_id] = trace
                trace.rows.append(row)
            trace.add(span)
            row.waiting[span.trace_id] += 1
        row.size += SPAN_BYTES * row.waiting.total()
        self._rows.setdefault(row.tenant, {})[row.id] = row
        self._sizes[row.tenant] += row.size
        self._spans[row.tenant] += row.waiting.total()
        for trace_id, trace in touched.items():
            if trace.is_complete:
                self._complete.append((now_s + self.policy.grace_s, trace_id))

    def _hurry(self) -> None:
        """Decides on the oldest of whoever has most, until no more waits than may."""
        while self._sizes.total() > self.policy.max_waiting_bytes:
            tenant = max(self._sizes, key=self._sizes.__getitem__)
            self._settle_row(next(iter(self._rows[tenant].values())))

    # -- on disk

    def create(self, db: apsw.Connection) -> None:
        """See `durable.Part`."""
        db.execute(_SCHEMA)
        self._memory.create(db)
        for number, tenant, packed in db.execute(_READ):
            self._last_id = max(self._last_id, number)
            body = unpack(packed)
            message = ResourceSpans.FromString(body)
            spans = [span for scope in message.scope_spans for span in scope.spans]
            spans = [span for span in spans if is_sound(span.trace_id, span.span_id)]
            spans = [span for span in spans if self._memory.find(span.trace_id) is None]
            if self.is_on and spans:
                # Older than anything that comes now.
                self._wait(Row(number, tenant, body, len(body), self._memory.generation - 1, Counter()), spans)
            else:  # tail sampling was still on when they came
                self._pass(tenant, message, Cut({span.trace_id: False for span in spans}, len(spans)))
                self._waiting.removed.append(number)

    def take(self) -> Any:
        """See `durable.Part`."""
        waiting, self._waiting = self._waiting, _Waiting({}, [], {})
        waiting.decided = self._memory.take()
        return waiting if waiting.added or waiting.removed or waiting.decided else None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `durable.Part`."""
        gone = set(waiting.removed)
        added = (row for row in waiting.added.values() if row.id not in gone)
        db.executemany(_ADD, ((row.id, row.tenant, pack(row.body)) for row in added))
        db.executemany("DELETE FROM tail_waiting WHERE id = ?", ((number,) for number in waiting.removed))
        self._memory.write(db, waiting.decided)

    def written(self, waiting: Any) -> None:
        """See `durable.Part`."""

    def give_back(self, waiting: Any) -> None:
        """See `durable.Part`."""
        # What has gone before it could be written need not be: a full disk costs no more memory than may wait.
        gone = {*waiting.removed, *self._waiting.removed}
        added = {**waiting.added, **self._waiting.added}
        self._waiting.added = {number: row for number, row in added.items() if number not in gone}
        self._waiting.removed = [number for number in gone if number not in added]
        self._memory.give_back(waiting.decided)

    def collect(self) -> Iterable[Metric]:
        """Shows what waits and what was decided, to Prometheus."""
        if not self.is_on:
            return
        spans = GaugeMetricFamily(
            "meshwarden_tail_waiting_spans", "Spans whose traces nobody has decided on.", labels=["tenant"]
        )
        for tenant, count in list(self._spans.items()):
            spans.add_metric([tenant], count)
        yield spans
        yield GaugeMetricFamily(
            "meshwarden_tail_waiting_bytes", "What they take, about.", value=sum(list(self._sizes.values()))
        )
        traces = CounterMetricFamily("meshwarden_tail_traces", "Traces decided on, by what decided.", labels=["reason"])
        for why, count in list(self._decided.items()):
            traces.add_metric([why], count)
        yield traces
