"""Traces: spans of agents are checked, named after their node, and forwarded by OTLP to a configured backend."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc
import structlog
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from meshwarden.controlplane.gather.call import Owns, Refused

MAX_QUEUE_BYTES = 16 * 1024 * 1024
MAX_BATCH_BYTES = 2 * 1024 * 1024
TIMEOUT_S = 10.0
MAX_BACKOFF_S = 30.0
# A batch that isn't taken within this many tries is given up, so that newer spans get their turn.
MAX_TRIES = 8
STAGE = "backend.otlp"
# The agent's own spans carry this service name and no tenant.
AGENT = "meshwarden-agent"
# The control plane's own spans.
OWN_NAME = "meshwarden-controlplane"

# What a sender tries again. Source: OTLP specification 1.5, "Failures" of OTLP/gRPC.
RETRYABLE = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)

log = structlog.get_logger()
OnDrop = Callable[[str, str, str, str, int], None]


def check_spans(body: bytes, node: str, region: str, owns: Owns) -> tuple[ResourceSpans, str]:
    """Takes spans that `node` reports, if it may; returns them with their tenant (empty: the agent's own).

    Who reports is read from `service.name`, `<service>.<tenant>`, which the agent sets; where it was is set here.

    Raises:
        Refused: they are malformed or are of no workload of the node.
    """
    try:
        spans = ResourceSpans.FromString(body)
    except DecodeError:
        raise Refused("malformed") from None
    names = [pair.value.string_value for pair in spans.resource.attributes if pair.key == "service.name"]
    if len(names) != 1:
        raise Refused("unidentified", span_count(spans))
    service, _, tenant = names[0].rpartition(".")
    if names[0] == AGENT:
        tenant = ""
    elif not service or not owns(node, tenant, service):
        raise Refused("not_owned", span_count(spans))
    place = {"mesh.node": node, "mesh.region": region}
    _stamp(spans, {**place, "mesh.tenant": tenant, "mesh.service": service if tenant else ""})
    return spans, tenant


def own_spans(body: bytes, region: str) -> ResourceSpans:
    """Reads spans of the control plane itself."""
    spans = ResourceSpans.FromString(body)
    _stamp(spans, {"mesh.region": region})
    return spans


def _stamp(spans: ResourceSpans, ours: Mapping[str, str]) -> None:
    kept = [pair for pair in spans.resource.attributes if pair.key not in ours]
    del spans.resource.attributes[:]
    spans.resource.attributes.extend(kept)
    for key, text in ours.items():
        if text:
            pair = KeyValue(key=key)
            pair.value.string_value = text
            spans.resource.attributes.append(pair)


def span_count(spans: ResourceSpans) -> int:
    """How many spans there are."""
    return sum(len(scope.spans) for scope in spans.scope_spans)


@dataclass(frozen=True, slots=True)
class _Item:
    spans: ResourceSpans
    size_bytes: int
    tenant: str


class TraceExporter:
    """Forwards spans to an OTLP gRPC endpoint, in order, from a bounded queue; what comes to a full one is dropped."""

    def __init__(
        self,
        endpoint: str,
        on_drop: OnDrop,
        rng: random.Random,
        *,
        authorization: str | None = None,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        first_backoff_s: float = 0.5,
    ) -> None:
        """Prepares to send to `endpoint`, "http://host:port" or "https://host:port".

        Raises:
            ValueError: the endpoint is no such address.
        """
        self._target, self._secure = _parse_endpoint(endpoint)
        self._metadata = (("authorization", authorization),) if authorization else ()
        self._on_drop = on_drop
        self._rng = rng
        self._max_queue_bytes = max_queue_bytes
        self._first_backoff_s = first_backoff_s
        self._queue: deque[_Item] = deque()
        self._queued_bytes = 0
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.sent = 0

    def offer(self, spans: ResourceSpans, tenant: str) -> None:
        """Queues spans to be sent, or counts them as dropped."""
        size_bytes = spans.ByteSize()
        if self._queued_bytes + size_bytes > self._max_queue_bytes:
            self._on_drop(STAGE, "span", "queue_full", tenant, span_count(spans))
            return
        self._queue.append(_Item(spans, size_bytes, tenant))
        self._queued_bytes += size_bytes
        self._idle.clear()
        self._ready.set()

    async def run(self) -> None:
        """Sends until cancelled."""
        channel = (
            grpc.aio.secure_channel(self._target, grpc.ssl_channel_credentials())
            if self._secure
            else grpc.aio.insecure_channel(self._target)
        )
        async with channel:
            stub = TraceServiceStub(channel)  # type: ignore[no-untyped-call]
            while True:
                await self._ready.wait()
                batch = self._batch()
                await self._send(stub, batch)
                # Only now: what is cancelled on its way out stays in the queue, for `flush` to see.
                for item in batch:
                    self._queue.popleft()
                    self._queued_bytes -= item.size_bytes
                if not self._queue:
                    self._ready.clear()
                    self._idle.set()

    async def flush(self, timeout_s: float) -> None:
        """Waits until all that is queued is sent (`run` must be running), and counts as dropped what isn't by then."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            for item in self._queue:
                self._on_drop(STAGE, "span", "shutdown", item.tenant, span_count(item.spans))

    def _batch(self) -> list[_Item]:
        batch: list[_Item] = []
        size_bytes = 0
        for item in self._queue:
            if batch and size_bytes + item.size_bytes > MAX_BATCH_BYTES:
                break
            batch.append(item)
            size_bytes += item.size_bytes
        return batch

    async def _send(self, stub: TraceServiceStub, batch: list[_Item]) -> None:
        request = ExportTraceServiceRequest(resource_spans=[item.spans for item in batch])
        backoff_s = self._first_backoff_s
        for attempt in range(1, MAX_TRIES + 1):
            try:
                response = await stub.Export(request, timeout=TIMEOUT_S, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRYABLE or attempt == MAX_TRIES:
                    log.warning("spans not taken", target=self._target, code=error.code().name, attempt=attempt)
                    self._drop(batch, "rejected" if error.code() not in RETRYABLE else "unreachable")
                    return
                await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
                continue
            rejected = response.partial_success.rejected_spans
            if rejected > 0:
                self._on_drop(STAGE, "span", "rejected", "", rejected)
            self.sent += sum(span_count(item.spans) for item in batch) - max(0, rejected)
            return

    def _drop(self, batch: list[_Item], reason: str) -> None:
        for item in batch:
            self._on_drop(STAGE, "span", reason, item.tenant, span_count(item.spans))


def _parse_endpoint(endpoint: str) -> tuple[str, bool]:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(f"{endpoint!r} is no OTLP gRPC endpoint: write http://host:port or https://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port or 4317}", parts.scheme == "https"
