"""Where reports come in: each is checked against who sends it, counted once, and handed on."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime

import anyio
import apsw
import structlog

from meshwarden.controlplane.gather.call import Call, Owns, Refused, check
from meshwarden.controlplane.gather.graph import Graph
from meshwarden.controlplane.gather.ledger import Ledger
from meshwarden.controlplane.gather.metrics import Metrics
from meshwarden.controlplane.gather.rate import Rates
from meshwarden.controlplane.gather.run import Runs
from meshwarden.controlplane.gather.trace import TraceExporter, check_spans, own_spans, span_count
from meshwarden.v1.report_pb2 import CallStat, ExportRequest

STAGE = "control.ingest"
AGENT_STAGES = ("agent.receive", "agent.spool")
PRUNE_INTERVAL_S = 10.0
SHUTDOWN_S = 3.0

log = structlog.get_logger()


class Gather:
    """The mouth of the up river. A node is believed for the workloads of its own entries alone."""

    def __init__(
        self,
        ledger: Ledger,
        metrics: Metrics,
        exporter: TraceExporter | None,
        clock: Callable[[], datetime],
        *,
        owns: Owns,
        trust_domain: str,
        region: str,
    ) -> None:
        self.ledger = ledger
        self.graph = Graph(clock)
        self.graph.recall(ledger.totals())
        self._metrics = metrics
        self._exporter = exporter
        self._clock = clock
        self._owns = owns
        self._trust_domain = trust_domain
        self._region = region
        self._rates = Rates(clock)
        self._runs = Runs(ledger.runs())
        self._fault = ""
        self._wanted = anyio.Event()
        self._written = anyio.Event()

    def ingest(self, node: str, request: ExportRequest) -> bool:
        """Takes a batch of `node`, whose name its certificate proves; returns False for a repeated one.

        What can't be believed is refused piece by piece and counted by reason; the rest is taken.
        Idempotent: for the same (node, run_id, sequence), and from `settle` on over a restart too.
        """
        if not self._runs.first(node, request.run_id, request.sequence):
            return False
        self.ledger.keep_runs(node, self._runs.heard(node, request.run_id))
        calls = [call for stat in request.calls if (call := self._check(node, stat)) is not None]
        self._metrics.add(calls)
        self._rates.add(calls)
        self.graph.add(calls)
        self.ledger.add(calls)
        for body in request.resource_spans:
            self._take_spans(node, body)
        for drop in request.drops:
            stage = drop.stage if drop.stage in AGENT_STAGES else "agent"
            signal = drop.signal if drop.signal in ("call", "span") else "other"
            reason = drop.reason if drop.reason.isidentifier() else "other"
            tenant = drop.tenant if drop.tenant.isprintable() else ""
            self._metrics.drop(stage, signal, reason, tenant, min(drop.count, 2**53))
        return True

    def take_own(self, body: bytes, count: int) -> None:
        """Takes spans of the control plane itself."""
        if self._exporter is not None:
            self._exporter.offer(own_spans(body, self._region), "")

    def rates(self) -> dict[str, tuple[float, float, float]]:
        """Calls per second over the last few seconds, {calling tenant: (allowed, limited, denied)}."""
        return self._rates.read()

    async def settle(self) -> None:
        """Returns once the ledger holds what was taken, so that it outlives the process; `run` must be running.

        A full disk keeps nobody waiting: the rows wait in memory, and the log says so.
        """
        written = self._written
        self._wanted.set()
        await written.wait()

    async def run(self) -> None:
        """Writes the ledger and forwards spans until cancelled; then writes and sends what is left."""
        async with anyio.create_task_group() as group:
            sending = anyio.CancelScope(shield=True)
            if self._exporter is not None:
                group.start_soon(self._forward, self._exporter, sending)
            try:
                await self._keep_written()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._write()
                    if self._exporter is not None:
                        await self._exporter.flush(SHUTDOWN_S)
                sending.cancel()

    async def _keep_written(self) -> None:
        prune_at = 0.0
        while True:
            if anyio.current_time() >= prune_at:
                await self._prune()
                prune_at = anyio.current_time() + PRUNE_INTERVAL_S
            # The wait alone is bounded: a write that was cut off might go on unseen, and its rows count twice.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PRUNE_INTERVAL_S):
                    await self._wanted.wait()
            await self._write()

    async def _write(self) -> None:
        # Who comes while this is being written waits for the next time.
        written, self._written, self._wanted = self._written, anyio.Event(), anyio.Event()
        fault = ""
        try:
            with anyio.CancelScope(shield=True):
                await self.ledger.flush()
        except Exception as error:  # a full disk, or a defect of ours: neither may end the server
            fault = f"{type(error).__name__}: {error}"
        written.set()
        if fault and fault != self._fault:
            log.error("ledger not written", error=fault)
        self._fault = fault

    async def _forward(self, exporter: TraceExporter, scope: anyio.CancelScope) -> None:
        # Shielded: when all is cancelled it goes on for a moment, to send what is queued.
        with scope:
            await exporter.run()

    async def _prune(self) -> None:
        try:
            forgotten = await self.ledger.prune()
        except apsw.Error as error:
            log.error("ledger not pruned", error=str(error))
            return
        for tenant, rows in forgotten.items():
            log.warning("ledger full: the oldest of whoever has most was forgotten", tenant=tenant, rows=rows)

    def _check(self, node: str, stat: CallStat) -> Call | None:
        try:
            return check(stat, node, self._owns, self._trust_domain, self._clock(), self._region)
        except Refused as refused:
            self._metrics.drop(STAGE, "call", refused.reason, "", max(1, min(stat.count, 2**31)))
            log.info("call refused", node=node, reason=refused.reason)
            return None

    def _take_spans(self, node: str, body: bytes) -> None:
        try:
            spans, tenant = check_spans(body, node, self._region, self._owns)
        except Refused as refused:
            self._metrics.drop(STAGE, "span", refused.reason, "", refused.count)
            log.info("spans refused", node=node, reason=refused.reason)
            return
        if self._exporter is None:
            self._metrics.drop(STAGE, "span", "no_backend", tenant, span_count(spans))
        else:
            self._exporter.offer(spans, tenant)
