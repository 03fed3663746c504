"""Where reports come in: each is checked against who sends it, counted once, and handed on."""

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache

import anyio
import apsw
import structlog

from meshwarden.controlplane.gather.agent_drop import AgentDrop
from meshwarden.controlplane.gather.call import Call, Owns, Refused
from meshwarden.controlplane.gather.change import Changes
from meshwarden.controlplane.gather.dry_run import DryRuns
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.forward.backend import Backend
from meshwarden.controlplane.gather.forward.forward import FIRST_BACKOFF_S, Forwarder
from meshwarden.controlplane.gather.forward.queue import Lane, Queue
from meshwarden.controlplane.gather.graph.graph import Graph
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.mark import Marks
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.metrics.workload_metrics import WorkloadMetrics
from meshwarden.controlplane.gather.model_call import SIGNAL, Meter, told_of
from meshwarden.controlplane.gather.rate import Rates
from meshwarden.controlplane.gather.reporter import Found, Reporter
from meshwarden.controlplane.gather.resource import Body, Checked, bodies_of, check_resource, own_span
from meshwarden.controlplane.gather.state import backend_states, tail_state
from meshwarden.controlplane.gather.tail.policy import DENIED, LIMITED, NEW_EDGE, TailPolicy
from meshwarden.controlplane.gather.tail.tail import TailSampler
from meshwarden.controlplane.gather.tally import INGEST, Tally
from meshwarden.controlplane.gather.trace import store as trace_store
from meshwarden.controlplane.gather.trace.store import Keep, TraceStore
from meshwarden.sdk.red.exemplar import MOST
from meshwarden.v1.admin_service_pb2 import BackendState, TailSamplingState
from meshwarden.v1.report_pb2 import CallStat, ExportRequest

PRUNE_INTERVAL_S = 10.0
SHUTDOWN_S = 3.0
# So long what the control plane says of itself waits for more of it.
SOON_S = 0.2
# What may have been taken and not be written yet before more is; less than may wait while the disk is full.
UNWRITTEN_BYTES = 32 << 20
_REFUSED: Mapping[int, str] = {CallStat.DENIED: DENIED, CallStat.LIMITED: LIMITED, CallStat.THROTTLED: LIMITED}

log = structlog.get_logger()


class Unwritten(Exception):
    """What was taken is not on disk: it is to be sent again."""


class _Flush:
    """A flush that somebody waits for."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.fault = ""


class Gather:
    """The mouth of the up river. A node is believed for the workloads of its own entries alone."""

    def __init__(
        self,
        durable: Durable,
        ledger: Ledger,
        metrics: Metrics,
        backends: Sequence[Backend],
        clock: Callable[[], datetime],
        rng: random.Random,
        *,
        owns: Owns,
        trust_domain: str,
        region: str,
        first_backoff_s: float = FIRST_BACKOFF_S,
        traces_retention: timedelta = trace_store.RETENTION,
        traces_max_bytes: int = trace_store.MAX_SIZE_BYTES,
        traces_of: Mapping[str, Keep] | None = None,
        tail: TailPolicy | None = None,
        meter: Meter | None = None,
    ) -> None:
        """Goes on where the file has stopped.

        Args:
            durable: the file.
            ledger: a part of it, as the others are that are made here.
            metrics: what is shown to Prometheus.
            backends: where telemetry goes on to.
            clock: the present, aware.
            rng: spreads retries.
            owns: tells whether a node has a workload entry of (node, tenant, service), with "" of any service.
            trust_domain: ours.
            region: ours.
            first_backoff_s: the pause after a backend's first failure.
            traces_retention: how long spans are kept here.
            traces_max_bytes: how much of them; 0: none are kept.
            traces_of: what some tenants have instead, within that: `{tenant: …}`.
            tail: which of them go on; None: all.
            meter: counts calls of models; it is a part of the file already.
        """
        self.ledger, self.graph = ledger, Graph(clock, region=region)
        self.graph.recall(ledger.totals())
        self.tally, self.marks, self.dry_runs = Tally(clock), Marks(), DryRuns(clock)
        self._backends = backends
        self.queue = Queue(self.tally, {backend.name: backend.max_queue_bytes for backend in backends})
        for part in (self.tally, self.marks, self.dry_runs, self.queue):
            durable.add(part)
        self.traces = TraceStore(
            durable,
            self.tally,
            clock,
            retention=traces_retention,
            max_size_bytes=traces_max_bytes,
            tenants=traces_of,
        )
        self._keeps_traces = traces_max_bytes > 0
        self._sends_spans = any("span" in backend.signals for backend in backends)
        self.reads_spans = self._keeps_traces or self._sends_spans  # else they are counted alone
        self._workload_metrics = WorkloadMetrics(self.tally)
        self.tail = TailSampler(tail, self.tally, self._send_spans_on)
        durable.add(self.tail)
        for collector in (self.tally, self.dry_runs, self._workload_metrics, self.tail):
            metrics.registry.register(collector)
        self.changes = Changes(durable)
        self.heard: list[Callable[[str, Sequence[Call]], None]] = []  # are told of each node's calls that are believed
        self._durable, self._metrics, self._meter = durable, metrics, meter
        self._clock, self._owns, self._trust_domain, self._region = clock, owns, trust_domain, region
        self._rates = Rates(clock)
        self._fault, self._unwritten_bytes = "", 0
        self._wanted, self._flush = anyio.Event(), _Flush()
        self._soon: asyncio.TimerHandle | None = None
        self._forwarders = [
            Forwarder(backend, durable, self.queue, self.tally, self.settle, rng, first_backoff_s=first_backoff_s)
            for backend in backends
        ]

    def ingest(self, node: str, request: ExportRequest, packed: Iterable[ExportRequest] = ()) -> bool:
        """Takes a batch of `node`, whose name its certificate proves; returns False for a repeated one.

        What can't be believed is refused piece by piece and counted by reason; the rest is taken.
        Idempotent: for the same records of a chain, and from `settle` on over a restart too.

        Args:
            node: who sends it.
            request: the batch.
            packed: what was packed in it, spans if `reads_spans`; what that raises goes on, and nothing is taken.
        """
        reporter = Reporter(node, cache(self._owns), self._trust_domain, self._region, self._clock())
        found, bodies = Found(reporter), list[Body]()
        for part in itertools.chain(packed, (request,)):
            found.add(part)
            bodies += bodies_of(part, node, reporter.owns, reads_spans=self.reads_spans)
        if not self.marks.first(node, request.run_id, request.first_sequence, request.sequence):
            return False
        calls = self._believed(node, found)
        for hear in self.heard:
            hear(node, calls)
        for counts in (self._metrics, self._rates, self.dry_runs):
            counts.add(calls)
        self._keep_traces(calls, self.graph.add(calls))
        self.ledger.add(calls)
        for body in bodies:
            self._unwritten_bytes += body.size_bytes
            self._take(body, reporter)
        for told in request.model_calls:
            self._take_model_calls(told, reporter)
        for drop in request.drops:
            gone = AgentDrop.read(drop, node, reporter.owns)
            self.tally.lost(gone.stage, gone.signal, gone.reason, gone.tenant, gone.items)
        return True

    def take_own(self, body: bytes, count: int) -> None:
        """Takes a span of the control plane itself."""
        checked = own_span(body, self._region)
        self.changes.add(checked.message)
        self._hand_on(checked, is_mesh=True)
        self._want_soon()

    def take_own_points(self, tenant: str, count: int, body: bytes) -> None:
        """Takes a serialised `ResourceMetrics` of the control plane itself, of what concerns a tenant or none."""
        self._send_on("point", tenant, count, body)
        self._want_soon()

    def rates(self) -> dict[str, tuple[float, float, float]]:
        """Calls per second over the last few seconds, {calling tenant: (allowed, limited, denied)}."""
        return self._rates.read()

    @property
    def fault(self) -> str:
        """Why what was taken can't be written; empty if it can."""
        return self._fault

    def backends(self) -> list[BackendState]:
        """How each backend does."""
        return backend_states(self._forwarders, self.queue)

    def tail_sampling(self) -> TailSamplingState | None:
        """How tail sampling does; None if it is off."""
        return tail_state(self.tail, self.tally)

    async def make_room(self) -> None:
        """Returns once there is room for another batch, which is to be taken at once; `run` must be running.

        Raises:
            Unwritten: the disk refuses.
        """
        while self._fault or self._unwritten_bytes > UNWRITTEN_BYTES:
            await self.settle()

    async def settle(self) -> None:
        """Returns once all that was taken is on disk; `run` must be running.

        Raises:
            Unwritten: the disk refuses. What was taken waits in memory and is written when it can be.
        """
        flush = self._flush
        self._wanted.set()
        await flush.over.wait()
        if flush.fault:
            raise Unwritten(flush.fault)

    # -- what goes on

    async def run(self) -> None:
        """Writes and forwards until cancelled; then writes what is left, and sends for a moment."""
        async with anyio.create_task_group() as group:
            sending = anyio.CancelScope(shield=True)
            group.start_soon(self._forward, sending)
            try:
                await self._keep_written()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._write()
                    group.start_soon(self._end_sending, sending)
                    while not sending.cancel_called:  # the senders settle
                        await self._write_when_wanted(0.1)
                    await self._write()

    async def _forward(self, scope: anyio.CancelScope) -> None:
        # Shielded: when all is cancelled it goes on for a moment, to send what is queued.
        with scope:
            async with anyio.create_task_group() as group:
                for forwarder in self._forwarders:
                    forwarder.wake()
                    group.start_soon(forwarder.run)

    async def _end_sending(self, scope: anyio.CancelScope) -> None:
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHUTDOWN_S):
                    for forwarder in self._forwarders:
                        await forwarder.wait_idle()
            scope.cancel()

    async def _keep_written(self) -> None:
        prune_at = 0.0
        while True:
            if anyio.current_time() >= prune_at:
                await self._prune()
                prune_at = anyio.current_time() + PRUNE_INTERVAL_S
            await self._write_when_wanted(min(PRUNE_INTERVAL_S, self.tail.next_s()))

    def _want_soon(self) -> None:
        """Has what nobody waits for written with what else comes in a moment: each write waits for the disk."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON_S, self._want)

    def _want(self) -> None:
        self._soon = None
        self._wanted.set()

    async def _write_when_wanted(self, most_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._wanted.wait()
        await self._write()

    async def _write(self) -> None:
        # Who comes while this is being written waits for the next time.
        flush, self._flush, self._wanted = self._flush, _Flush(), anyio.Event()
        self.tail.decide()
        unwritten_bytes = self._unwritten_bytes
        try:
            with anyio.CancelScope(shield=True):
                await self._durable.flush()
                self._unwritten_bytes -= unwritten_bytes
                if self.queue.is_over():
                    self.queue.trimmed(await self._durable.work(self.queue.trim))
        except Exception as error:  # a full disk, or a defect of ours: neither may end the server
            flush.fault = f"{type(error).__name__}: {error}"
        flush.over.set()
        if flush.fault and flush.fault != self._fault:
            log.error("reports not written", error=flush.fault)
        self._fault = flush.fault
        for forwarder in self._forwarders:
            forwarder.wake()

    async def _prune(self) -> None:
        try:
            await self._forget_traces()
            for part in (self.tally, self.dry_runs):
                await self._durable.work(part.forget)
            others = self.traces.size_bytes() + sum(self.queue.load(backend.name)[1] for backend in self._backends)
            others += self._meter.size_bytes() if self._meter is not None else 0
            forgotten = await self._durable.work(lambda db: self.ledger.prune(db, others))
        except apsw.Error as error:
            log.error("nothing forgotten", error=str(error))
            return
        for tenant, rows in forgotten.items():
            log.warning("ledger full: the oldest of whoever has most was forgotten", tenant=tenant, rows=rows)

    async def _forget_traces(self) -> None:
        is_more = True
        while is_more:  # a little at a time: who waits for a flush meanwhile gets it
            too_much, is_more = await self._durable.work(self.traces.prune)
            for tenant, size in too_much.items():
                log.info("traces full: the oldest of whoever has most were forgotten", tenant=tenant, bytes=size)

    # -- what comes in

    def _believed(self, node: str, found: Found) -> list[Call]:
        calls = found.calls()
        taken: Counter[str] = Counter()
        for call in calls:
            taken[call.owner] += call.count
        for owner, count in taken.items():
            self.tally.took("call", owner, count)
        for why, count in found.refused.items():
            self.tally.arrived("call", "", count)
            self.tally.drop(INGEST, "call", why, "", count)
            log.info("calls refused", node=node, reason=why, calls=count)
        return calls

    def _take(self, body: Body, reporter: Reporter) -> None:
        signal, content = body.signal, body.content
        try:
            if isinstance(content, Refused):
                raise content
            if isinstance(content, tuple):
                self.tally.took(signal, *content)
                return
            checked = check_resource(signal, content, reporter.node, self._region, reporter.owns)
        except Refused as refused:
            self.tally.arrived(signal, "", refused.count)
            self.tally.drop(INGEST, signal, refused.reason, "", refused.count)
            log.info("telemetry refused", node=reporter.node, signal=signal, reason=refused.reason)
            return
        self.tally.took(signal, checked.tenant, checked.items)
        self._hand_on(checked)

    def _take_model_calls(self, body: bytes, reporter: Reporter) -> None:
        try:
            told = told_of(body, reporter)
        except Refused as refused:
            self.tally.arrived(SIGNAL, "", refused.count)
            self.tally.drop(INGEST, SIGNAL, refused.reason, "", refused.count)
            log.info("telemetry refused", node=reporter.node, signal=SIGNAL, reason=refused.reason)
            return
        if self._meter is not None:
            self._meter.add(told)

    def _hand_on(self, checked: Checked, *, is_mesh: bool = False) -> None:
        if checked.signal != "span":
            if checked.signal == "point" and checked.tenant:
                self._workload_metrics.add(checked)
            self._send_on(checked.signal, checked.tenant, checked.items, checked.body)
            return
        if self._keeps_traces:
            self.traces.add(checked)
        if self._sends_spans:
            self.tail.add(checked, is_mesh=is_mesh or not checked.tenant)

    def _keep_traces(self, calls: Sequence[Call], first: Sequence[Call]) -> None:
        """Has the traces kept of calls that spans alone tell nothing of."""
        if self.tail.is_on:
            refused = [(call, _REFUSED[call.decision]) for call in calls if call.decision in _REFUSED]
            for call, why in refused:
                for exemplar in call.exemplars:
                    self.tail.keep(exemplar.trace_id, why)
            for call in first:
                for exemplar in call.exemplars[:MOST]:
                    self.tail.keep(exemplar.trace_id, NEW_EDGE)

    def _send_spans_on(self, tenant: str, items: int, body: bytes) -> None:
        self._send_on("span", tenant, items, body)

    def _send_on(self, signal: str, tenant: str, items: int, body: bytes) -> None:
        for backend in self._backends:
            if signal in backend.signals:
                self.queue.put(Lane(backend.name, signal, tenant), items, body)
