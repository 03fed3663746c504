"""What waits to go up: spans in a bounded queue, counts in the aggregator, and what was dropped."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
import structlog

from meshwarden.agents.telemetry.aggregate import Aggregator
from meshwarden.v1 import report_pb2 as pb

_log = structlog.get_logger()
_MAX_CALLS: Final = 4096
_MAX_ITEMS: Final = 512
_MAX_BATCH_BYTES: Final = 2 * 1024 * 1024
_MAX_DROPS: Final = 256
_PERIOD_S: Final = 1.0


class Outbox:
    """Sends batches up, each at least once: it is repeated with its number until it is taken."""

    def __init__(
        self,
        aggregator: Aggregator,
        export: Callable[[pb.ExportRequest], Awaitable[object]],
        run_id: str,
        most_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        """`run_id` tells this run of the agent from its others; spans beyond `most_bytes` push out the oldest."""
        self._aggregator = aggregator
        self._export = export
        self._run_id = run_id
        self._most_bytes = most_bytes
        self._spans: deque[tuple[bytes, int, str]] = deque()
        self._bytes = 0
        self._drops: Counter[tuple[str, str, str]] = Counter()
        self._sequence = 0
        self._unanswered: pb.ExportRequest | None = None

    def put_spans(self, body: bytes, count: int, tenant: str) -> None:
        """Queues a serialised ResourceSpans of `count` spans."""
        self._spans.append((body, count, tenant))
        self._bytes += len(body)
        while self._bytes > self._most_bytes:
            old, lost, whose = self._spans.popleft()
            self._bytes -= len(old)
            self.drop("span", "queue_full", whose, lost)

    def drop(self, signal: str, reason: str, tenant: str, count: int) -> None:
        """Counts what was dropped."""
        self._drops[signal, reason, tenant] += count

    async def run(self) -> None:
        """Sends once a second until it is cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self.flush()

    async def flush(self) -> bool:
        """Sends all there is; False if the control plane is away, and then nothing is lost."""
        while (batch := self._unanswered or self._next()) is not None:
            self._unanswered = batch
            try:
                await self._export(batch)
            except (OSError, grpc.RpcError) as error:
                _log.debug("report not taken", sequence=batch.sequence, reason=str(error))
                return False
            self._unanswered = None
        return True

    def _next(self) -> pb.ExportRequest | None:
        batch = pb.ExportRequest(run_id=self._run_id, calls=self._aggregator.take(_MAX_CALLS))
        size = 0
        while self._spans and len(batch.resource_spans) < _MAX_ITEMS and size < _MAX_BATCH_BYTES:
            body, _, _ = self._spans.popleft()
            self._bytes -= len(body)
            size += len(body)
            batch.resource_spans.append(body)
        if self._aggregator.dropped:
            self.drop("call", "queue_full", "", self._aggregator.dropped)
            self._aggregator.dropped = 0
        for key in list(self._drops)[:_MAX_DROPS]:
            signal, reason, tenant = key
            batch.drops.add(signal=signal, reason=reason, tenant=tenant, count=self._drops.pop(key))
        if not (batch.calls or batch.resource_spans or batch.drops):
            return None
        self._sequence += 1
        batch.sequence = self._sequence
        return batch
