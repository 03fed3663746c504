"""The memory as a service: NBMF spans and metrics around the store."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Final

import grpc

from meshwarden import sdk
from meshwarden.examples import trace
from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc, field
from meshwarden.examples.daena.error import Away, Corrupt, Unknown
from meshwarden.examples.daena.memory.record import Record, parse_id
from meshwarden.examples.daena.memory.store import COLD, HOT, WARM, Moved, Store
from meshwarden.examples.daena.metric import SECONDS, Attributes, Meter
from meshwarden.examples.daena.serve import Identify, answering

_TIER: Final = "nbmf.tier"
_RANK: Final = {HOT: 0, WARM: 1, COLD: 2}
MAX_LISTED: Final = 100
SWEEP_S: Final = 1.0


def move_counter(meter: Meter) -> Moved:
    """Counts moves between tiers for a store."""
    up, down = meter.counter("nbmf.promotions", "{record}"), meter.counter("nbmf.demotions", "{record}")
    # A series that is there from the beginning shows its first event too.
    for source, target in pairwise((HOT, WARM, COLD)):
        up.add(0, {"nbmf.tier.from": target, "nbmf.tier.to": source})
        down.add(0, {"nbmf.tier.from": source, "nbmf.tier.to": target})

    def moved(source: str, target: str, count: int) -> None:
        counter = up if _RANK[target] < _RANK[source] else down
        counter.add(count, {"nbmf.tier.from": source, "nbmf.tier.to": target})

    return moved


class Memory(daena_pb2_grpc.MemoryServicer):
    """Keeps records; a record belongs to its writer's tenant, as the certificate says."""

    def __init__(
        self,
        store: Store,
        meter: Meter,
        identify: Identify = sdk.peer_identity,
        monotonic_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._store = store
        self._meter = meter
        self._identify = identify
        self._monotonic_s = monotonic_s
        self._write_s = meter.histogram("nbmf.write.duration", "s", SECONDS)
        self._read_s = meter.histogram("nbmf.read.duration", "s", SECONDS)
        self._hits = meter.counter("nbmf.hits", "{read}")
        self._misses = meter.counter("nbmf.misses", "{read}")
        self._corrupt = meter.counter("nbmf.corrupt", "{read}")
        for counter in (self._misses, self._corrupt):
            counter.add(0)
        meter.gauge("nbmf.tier.size", "By", lambda: self._holdings("stored_bytes"))
        meter.gauge("nbmf.tier.raw_size", "By", lambda: self._holdings("raw_bytes"))
        meter.gauge("nbmf.tier.records", "{record}", lambda: self._holdings("records"))
        meter.gauge("nbmf.compression.ratio", "1", self._ratios)

    def Write(  # noqa: N802
        self, request: daena_pb2.WriteRequest, context: grpc.ServicerContext
    ) -> daena_pb2.WriteResponse:
        caller, begun_s = self._identify(context), self._monotonic_s()
        with answering(context), trace.span("nbmf write", kind="internal") as span:
            record = Record(caller.tenant or "", str(caller), request.kind, dict(request.fields))
            made = self._store.write(record)
            span.set(
                {
                    "nbmf.record.id": made.id.hex(),
                    "nbmf.record.raw_bytes": made.raw_bytes,
                    "nbmf.record.stored_bytes": made.stored_bytes,
                    "nbmf.record.known": made.known,
                }
            )
        self._write_s.record(self._monotonic_s() - begun_s)
        return daena_pb2.WriteResponse(
            id=made.id.hex(), raw_bytes=made.raw_bytes, stored_bytes=made.stored_bytes, known=made.known
        )

    def Read(  # noqa: N802
        self, request: daena_pb2.ReadRequest, context: grpc.ServicerContext
    ) -> daena_pb2.ReadResponse:
        caller, begun_s = self._identify(context), self._monotonic_s()
        with answering(context), trace.span("nbmf read", kind="internal") as span:
            wanted = parse_id(request.id)
            span.set({"nbmf.record.id": request.id})
            try:
                record, tier = self._store.read(caller.tenant or "", wanted)
            except Unknown:
                self._misses.add(1)
                raise
            except Corrupt as error:
                self._corrupt.add(1)
                logging.error("corrupt: %s", error)
                raise
            span.set({_TIER: tier})
        self._hits.add(1, {_TIER: tier})
        self._read_s.record(self._monotonic_s() - begun_s, {_TIER: tier})
        return daena_pb2.ReadResponse(
            record=daena_pb2.Record(tenant=record.tenant, author=record.author, kind=record.kind, fields=record.fields),
            tier=tier,
        )

    def List(  # noqa: N802
        self, request: daena_pb2.ListRequest, context: grpc.ServicerContext
    ) -> daena_pb2.ListResponse:
        caller = self._identify(context)
        with answering(context):
            kind = field.name("kind", request.kind) if request.kind else ""
            limit = field.count("limit", request.limit, 0, MAX_LISTED) or 10
            found = self._store.newest(caller.tenant or "", kind, limit)
        return daena_pb2.ListResponse(
            entries=[
                daena_pb2.Entry(id=row.id.hex(), kind=row.kind, tier=tier, raw_bytes=row.raw_bytes)
                for row, tier in found
            ]
        )

    def Stats(  # noqa: N802
        self, request: daena_pb2.StatsRequest, context: grpc.ServicerContext
    ) -> daena_pb2.StatsResponse:
        with answering(context):
            return self._meter.stats()

    def sweep_until(self, ended: threading.Event) -> None:
        """Moves records down, steadily."""
        while not ended.wait(SWEEP_S):
            try:
                self._store.sweep()
            except Away as error:
                logging.error("records stay where they are: %s", error)

    def _holdings(self, what: str) -> Iterable[tuple[float, Attributes]]:
        return [(getattr(holding, what), {_TIER: tier}) for tier, holding in self._store.holdings().items()]

    def _ratios(self) -> Iterable[tuple[float, Attributes]]:
        """How many bytes one stored byte stands for, in each tier that holds something."""
        return [
            (holding.raw_bytes / holding.stored_bytes, {_TIER: tier})
            for tier, holding in self._store.holdings().items()
            if holding.stored_bytes
        ]
