"""What the parts of telemetry's way up take, each by itself in a loop: however they are put together, it is no less.

The parts are those of the product. In a loop the code of each stays in the processor's caches, which on the way up it
does not; and what holds them together, tasks, transactions and files, is in none.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ingest import DOMAIN, NODE, REGION, SPANS, calls_of, owns, workload_in
from meshwarden.agents.telemetry.aggregate import Aggregator
from meshwarden.agents.telemetry.counted import Counts
from meshwarden.agents.telemetry.pack import packed, packed_spans
from meshwarden.agents.telemetry.segment import Items, Kind, Record, pieces
from meshwarden.agents.telemetry.sieve import are_plain, sift
from meshwarden.agents.telemetry.stamp import Stamp
from meshwarden.agents.workload.bootstrap import NodePlace
from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.api.validation import check
from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.graph.graph import Graph
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.pack import unpack_bounded
from meshwarden.controlplane.gather.rate import Rates
from meshwarden.controlplane.gather.reporter import Found, Reporter
from meshwarden.controlplane.gather.resource import Body, bodies_of
from meshwarden.sdk.tracing import wire
from meshwarden.v1.report_pb2 import CallTable, ExportRequest

_MOST_BYTES = 4 << 20
_FIELD = ExportRequest.DESCRIPTOR.fields_by_name["resource_spans"].number


class Pieces:
    """The parts, in the order in which a span and the counts of its calls pass them."""

    def __init__(self, directory: Path) -> None:
        """Opens a file in a directory that is there."""
        place = NodePlace(NODE, REGION, "z", directory / "a.sock", directory / "w.sock")
        self._stamp, self._workload = Stamp(place), workload_in(directory)
        self._file = os.open(directory / "pieces", os.O_RDWR | os.O_CREAT, 0o600)
        self._counts = Counts(Aggregator(utc_now))
        self._reporter = Reporter(NODE, owns, DOMAIN, REGION, utc_now())
        self._metrics, self._graph, self._rates = Metrics(), Graph(utc_now), Rates(utc_now)

    def take(self, bodies: Sequence[bytes]) -> dict[str, float]:
        """Takes requests through each part; returns `{part: CPU time of this process in µs a span}`."""
        count = len(bodies) * SPANS
        used: dict[str, float] = {}

        def each(name: str, do: Callable[[Any], Any], given: Sequence[Any]) -> list[Any]:
            begun_s = time.process_time()
            for one in given:
                do(one)
            used[name] = (time.process_time() - begun_s) / count * 1e6
            return [do(one) for one in given]  # not timed: to keep what comes out takes memory that is new

        each("read, for the sender to be told", are_plain, bodies)
        stamped = each("bounded and stamped", self._stamped, bodies)
        kept = each("packed", lambda one: packed_spans(one, "web.acme", SPANS), stamped)
        kept = each("to disk and back", self._through_disk, kept)
        each("owned and counted", _counted, kept)
        frames = [ExportRequest.FromString(one).packed_spans[0].spans for one in kept]
        unpacked = each("unpacked, where they are kept", lambda one: unpack_bounded(one, _MOST_BYTES), frames)
        each("held to the schema, where they are kept", _read, unpacked)
        tables = each("calls checked and stamped", self._told, [calls_of() for _ in bodies])
        kept = each("calls packed, to disk and back", lambda one: self._through_disk(packed(one)), tables)
        found = Found(self._reporter)
        frames = [_frame(one) for one in kept]
        each("calls believed", lambda one: found.add(_read(unpack_bounded(one, _MOST_BYTES))), frames)
        each("calls in metrics, rates and graph", self._counted, [found.calls()])
        return used

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)

    def _stamped(self, body: bytes) -> bytes:
        (resource,) = wire.Request.FromString(body).resource_spans
        scopes, _ = sift(resource.scope_spans, SPANS, lambda: False, is_plain=True)
        return wire.framed(_FIELD, self._stamp.head(resource, self._workload) + wire.all_framed(2, scopes))

    def _through_disk(self, payload: bytes) -> bytes:
        record = Record(Kind.DATA, 1, 0, b"", payload, 1, Items(span=SPANS)).encode()
        os.pwrite(self._file, record, 0)
        (piece,) = pieces(os.pread(self._file, len(record), 0), 0)
        assert isinstance(piece.found, Record)
        return piece.found.payload

    def _told(self, table: bytes) -> bytes:
        (counted,) = self._counts.stamp([CallTable.FromString(table)], self._workload.spiffe_id)
        return counted.payload

    def _counted(self, calls: Sequence[Call]) -> None:
        self._metrics.add(calls)
        self._rates.add(calls)
        self._graph.add(calls)


def _counted(content: bytes) -> list[Body]:
    return list(bodies_of(_read(content), NODE, owns, reads_spans=False))


def _read(content: bytes) -> ExportRequest:
    part: ExportRequest = check(ExportRequest.FromString(content), len(content))
    return part


def _frame(payload: bytes) -> bytes:
    """What `packed` has put into a field."""
    frame: bytes = ExportRequest.FromString(payload).packed[0]
    return frame
