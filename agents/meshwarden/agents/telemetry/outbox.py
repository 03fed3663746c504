"""What waits to go up: spans in bounded queues, counts in the aggregator, and what was dropped."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import grpc
import structlog

from meshwarden.agents.telemetry.aggregate import Aggregator, total_of
from meshwarden.v1 import report_pb2 as pb

_log = structlog.get_logger()
# A batch stays below the 4 MiB that gRPC takes: counts, then spans of which the last may be of 1 MiB.
_MAX_CALLS: Final = 4096
_MAX_CALL_BYTES: Final = 1024 * 1024
_MAX_ITEMS: Final = 512
_MAX_SPAN_BYTES: Final = 1536 * 1024
_MAX_DROPS: Final = 256
_PERIOD_S: Final = 1.0
_TIMEOUT_S: Final = 15.0
_MAX_REFUSALS: Final = 10
# The batch itself is wrong: it will be no better next time.
_PERMANENT: Final = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS}
)
# Nobody has looked at the batch.
_AWAY: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


@dataclass(frozen=True)
class _Item:
    body: bytes
    count: int


@dataclass
class _Batch:
    request: pb.ExportRequest
    spans: Counter[str] = field(default_factory=Counter)
    refusals: int = 0


class Outbox:
    """Sends batches up, each at least once: it is repeated with its number until it is taken, or refused for good."""

    def __init__(
        self,
        aggregator: Aggregator,
        export: Callable[[pb.ExportRequest, float], Awaitable[object]],
        run_id: str,
        most_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        """Starts empty.

        Args:
            aggregator: holds the counts.
            export: sends a batch within so many seconds; raises OSError or grpc.RpcError.
            run_id: tells this run of the agent from its others.
            most_bytes: what queued spans may take; beyond, the tenant that has most of it loses its oldest.
        """
        self._aggregator = aggregator
        self._export = export
        self._run_id = run_id
        self._most_bytes = most_bytes
        self._spans: dict[str, deque[_Item]] = {}
        self._sizes: Counter[str] = Counter()
        self._drops: Counter[tuple[str, str, str]] = Counter()
        self._sequence = 0
        self._unanswered: _Batch | None = None

    def put_spans(self, body: bytes, count: int, tenant: str) -> None:
        """Queues a serialised ResourceSpans of `count` spans."""
        self._spans.setdefault(tenant, deque()).append(_Item(body, count))
        self._sizes[tenant] += len(body)
        while self._sizes.total() > self._most_bytes:
            greediest = max(self._sizes, key=lambda name: self._sizes[name])
            self.drop("span", "queue_full", greediest, self._pop(greediest).count)

    def drop(self, signal: str, reason: str, tenant: str, count: int) -> None:
        """Counts what was dropped."""
        self._drops[signal, reason, tenant] += count

    async def run(self) -> None:
        """Sends once a second until it is cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self.flush()

    async def flush(self, timeout_s: float = _TIMEOUT_S) -> bool:
        """Sends all there is, each batch within `timeout_s`; False if some of it has to wait, and then it is kept."""
        while (batch := self._unanswered or self._next()) is not None:
            self._unanswered = batch
            try:
                await self._export(batch.request, timeout_s)
            except (OSError, grpc.RpcError) as error:
                if not self._is_lost(batch, error):
                    return False
            # Whatever else it is, it came from this one batch: the next shall still go up.
            except Exception as error:
                _log.exception("report not sent", sequence=batch.request.sequence)
                self._lose(batch, type(error).__name__)
            self._unanswered = None
        return True

    def _is_lost(self, batch: _Batch, error: Exception) -> bool:
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.UNAVAILABLE
        batch.refusals += code not in _AWAY
        if code in _PERMANENT or batch.refusals >= _MAX_REFUSALS:
            self._lose(batch, f"{code.name}: {error}")
            return True
        _log.debug("report not taken", sequence=batch.request.sequence, reason=str(error))
        return False

    def _lose(self, batch: _Batch, reason: str) -> None:
        _log.error("report dropped", sequence=batch.request.sequence, reason=reason[:500])
        for tenant, count in batch.spans.items():
            self.drop("span", "refused", tenant, count)
        for tenant, count in total_of(batch.request.calls).items():
            self.drop("call", "refused", tenant, count)
        for old in batch.request.drops:
            self.drop(old.signal, old.reason, old.tenant, old.count)

    def _pop(self, tenant: str) -> _Item:
        item = self._spans[tenant].popleft()
        self._sizes[tenant] -= len(item.body)
        if not self._spans[tenant]:
            del self._spans[tenant], self._sizes[tenant]
        return item

    def _next(self) -> _Batch | None:
        request = pb.ExportRequest(run_id=self._run_id, calls=self._aggregator.take(_MAX_CALLS, _MAX_CALL_BYTES))
        batch = _Batch(request)
        self._fill_spans(batch)
        for (reason, tenant), count in self._aggregator.take_drops().items():
            self.drop("call", reason, tenant, count)
        for key in list(self._drops)[:_MAX_DROPS]:
            signal, reason, tenant = key
            request.drops.add(signal=signal, reason=reason, tenant=tenant, count=self._drops.pop(key))
        if not (request.calls or request.resource_spans or request.drops):
            return None
        self._sequence += 1
        request.sequence = self._sequence
        return batch

    def _fill_spans(self, batch: _Batch) -> None:
        size = 0
        while self._spans:
            for tenant in list(self._spans):  # one of each in turn
                if len(batch.request.resource_spans) >= _MAX_ITEMS or size >= _MAX_SPAN_BYTES:
                    return
                item = self._pop(tenant)
                batch.request.resource_spans.append(item.body)
                batch.spans[tenant] += item.count
                size += len(item.body)
