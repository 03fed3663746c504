"""Where reports come in: each is checked against who sends it, counted once, and handed on."""

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

import anyio
import apsw
import structlog

from meshwarden.controlplane.gather.call import Call, Owns, Refused, check
from meshwarden.controlplane.gather.ledger import Ledger
from meshwarden.controlplane.gather.metrics import Metrics
from meshwarden.controlplane.gather.rate import Rates
from meshwarden.controlplane.gather.trace import TraceExporter, check_spans, span_count
from meshwarden.v1.report_pb2 import CallStat, ExportRequest

# Batches may overtake each other on the way; one that is this far behind the newest is taken for a repetition.
WINDOW = 1024
# Runs remembered for each node: the present one, and one that a restart has cut off.
RUNS_PER_NODE = 4
FLUSH_INTERVAL_S = 2.0
SHUTDOWN_S = 3.0

log = structlog.get_logger()


class _Run:
    """Which batches of an agent's run have come in."""

    def __init__(self) -> None:
        self._newest = 0
        # Bit n tells of batch newest − n.
        self._seen = 0

    def first(self, sequence: int) -> bool:
        """Whether this batch comes for the first time; remembers it."""
        if sequence > self._newest:
            # A jump beyond the window leaves nothing to remember; shifting by it would fill the memory.
            jump = sequence - self._newest
            self._seen = (self._seen << jump | 1) & ((1 << WINDOW) - 1) if jump < WINDOW else 1
            self._newest = sequence
            return True
        behind = self._newest - sequence
        if behind >= WINDOW or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True


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
        self._metrics = metrics
        self._exporter = exporter
        self._clock = clock
        self._owns = owns
        self._trust_domain = trust_domain
        self._region = region
        self._rates = Rates(clock)
        self._runs: dict[str, OrderedDict[str, _Run]] = {}

    def ingest(self, node: str, request: ExportRequest) -> bool:
        """Takes a batch of `node`, whose name its certificate proves; returns False for a repeated one.

        What can't be believed is refused piece by piece and counted by reason; the rest is taken.
        Idempotent: for the same (node, run_id, sequence).
        """
        if not self._run(node, request.run_id).first(request.sequence):
            return False
        calls = [call for stat in request.calls if (call := self._check(node, stat)) is not None]
        self._metrics.add(calls)
        self._rates.add(calls)
        self.ledger.add(calls)
        for body in request.resource_spans:
            self._take_spans(node, body)
        for drop in request.drops:
            signal = drop.signal if drop.signal in ("call", "span") else "other"
            reason = drop.reason if drop.reason.isidentifier() else "other"
            tenant = drop.tenant if drop.tenant.isprintable() else ""
            self._metrics.drop(signal, f"agent_{reason}", tenant, min(drop.count, 2**53))
        return True

    def rates(self) -> dict[str, tuple[float, float, float]]:
        """Calls per second over the last few seconds, {calling tenant: (allowed, limited, denied)}."""
        return self._rates.read()

    async def run(self) -> None:
        """Writes the ledger and forwards spans until cancelled; then writes and sends what is left."""
        async with anyio.create_task_group() as group:
            sending = anyio.CancelScope(shield=True)
            if self._exporter is not None:
                group.start_soon(self._forward, self._exporter, sending)
            try:
                while True:
                    await anyio.sleep(FLUSH_INTERVAL_S)
                    await self._write_ledger()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._write_ledger()
                    if self._exporter is not None:
                        await self._exporter.flush(SHUTDOWN_S)
                sending.cancel()

    async def _forward(self, exporter: TraceExporter, scope: anyio.CancelScope) -> None:
        # Shielded: when all is cancelled it goes on for a moment, to send what is queued.
        with scope:
            await exporter.run()

    async def _write_ledger(self) -> None:
        try:
            await self.ledger.flush()
        except apsw.Error as error:
            # A full disk must not end the server; the rows wait.
            log.error("ledger not written", error=str(error))

    def _run(self, node: str, run_id: str) -> _Run:
        runs = self._runs.setdefault(node, OrderedDict())
        run = runs.setdefault(run_id, _Run())
        runs.move_to_end(run_id)
        while len(runs) > RUNS_PER_NODE:
            runs.popitem(last=False)
        return run

    def _check(self, node: str, stat: CallStat) -> Call | None:
        try:
            return check(stat, node, self._owns, self._trust_domain, self._clock())
        except Refused as refused:
            self._metrics.drop("call", refused.reason, "", max(1, min(stat.count, 2**31)))
            log.info("call refused", node=node, reason=refused.reason)
            return None

    def _take_spans(self, node: str, body: bytes) -> None:
        try:
            spans, tenant = check_spans(body, node, self._region, self._owns)
        except Refused as refused:
            self._metrics.drop("span", refused.reason, "")
            log.info("spans refused", node=node, reason=refused.reason)
            return
        if self._exporter is None:
            self._metrics.drop("span", "no_backend", tenant, span_count(spans))
        else:
            self._exporter.offer(spans, tenant)
