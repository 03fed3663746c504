"""The least that telemetry on its way up takes in Python, with the libraries that it is done with.

A span is read by protobuf once, so that its sender can be told what can't be read; its ids are looked at; it is packed,
written to a file with a checksum, read from it again, and counted by how many were packed together. Of the counts of
calls, those of one kind are added up; edges, requests by status and durations are counted, and what that makes goes
into SQLite with a mark, as durable as ours. What is left out is whatever makes that fit for others: names resolved,
bounds and budgets, ownership, drops accounted for, batches that are known when they come again, messages, tasks and the
schema.

As a program it takes OTLP over gRPC and does nothing with it:

    python -m benchmarks.ingest_floor DIRECTORY
"""

import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import apsw
import grpc
from backports import zstd

from meshwarden.sdk.heap import settle
from meshwarden.sdk.red.call_table import rows_of
from meshwarden.sdk.tracing import columns, wire
from meshwarden.v1.report_pb2 import CallStat, CallTable

AT_ONCE = 8
_SCHEMA = """
CREATE TABLE IF NOT EXISTS counts (kind BLOB PRIMARY KEY, count INTEGER, sum_s REAL, durations BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mark (id INTEGER PRIMARY KEY, number INTEGER)
"""
_ADD = """
INSERT INTO counts VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET count = count + excluded.count, sum_s = sum_s + excluded.sum_s, durations = excluded.durations
"""


class Floor:
    """Both ends, in a directory."""

    def __init__(self, directory: Path) -> None:
        """Opens its file and its database."""
        self._file = os.open(directory / "spool", os.O_RDWR | os.O_CREAT, 0o600)
        self._db = apsw.Connection(str(directory / "floor.sqlite"))
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        self._db.execute(_SCHEMA)
        self.spans = 0
        self.edges: Counter[tuple[str, str]] = Counter()
        self._requests: Counter[bytes] = Counter()
        self._kinds: dict[bytes, tuple[str, str]] = {}

    def take(self, bodies: Sequence[bytes], tables: Sequence[bytes]) -> float:
        """Takes requests, each with the counts of its calls as the SDK sends them.

        Returns:
            The CPU time of this process, in seconds.
        """
        begun_s = time.process_time()
        for first in range(0, len(bodies), AT_ONCE):
            at = 0
            sizes = []
            for body in bodies[first : first + AT_ONCE]:
                packed, count = _packed(body)
                os.pwrite(self._file, packed, at)
                at += len(packed)
                sizes.append((len(packed), zlib.crc32(packed), count))
            self._take_up(sizes)
            self._count(tables[first : first + AT_ONCE], first)
        return time.process_time() - begun_s

    def close(self) -> None:
        """Lets go of both."""
        os.close(self._file)
        self._db.close()

    def _take_up(self, sizes: Sequence[tuple[int, int, int]]) -> None:
        at = 0
        for size, crc, count in sizes:
            packed = os.pread(self._file, size, at)
            at += size
            if zlib.crc32(packed) != crc:
                raise ValueError("damaged")
            self.spans += count

    def _count(self, tables: Sequence[bytes], number: int) -> None:
        counts: Counter[bytes] = Counter()
        sums_s: dict[bytes, float] = {}
        durations: dict[bytes, dict[int, int]] = {}
        for table in tables:
            for kind, count, sum_s, spread, _ in rows_of(CallTable.FromString(table)):
                counts[kind] += count
                sums_s[kind] = sums_s.get(kind, 0.0) + sum_s
                known = durations.setdefault(kind, {})
                for bucket, calls in spread.items():
                    known[bucket] = known.get(bucket, 0) + calls
        for kind, count in counts.items():
            if kind not in self._kinds:
                stat = CallStat.FromString(kind)
                self._kinds[kind] = (stat.source, stat.destination)
            self.edges[self._kinds[kind]] += count
            self._requests[kind] += count
        rows = ((kind, count, sums_s[kind], str(durations[kind])) for kind, count in counts.items())
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(_ADD, rows)
        self._db.execute("INSERT OR REPLACE INTO mark VALUES (1, ?)", (number,))
        self._db.execute("COMMIT")


def _packed(body: bytes) -> tuple[bytes, int]:
    """A request that can be read and whose spans are some, packed; and how many they are."""
    read = columns.Request.FromString(body)
    spans = wire.AllResources.FromString(body).resource_spans.scope_spans.spans
    if not columns.is_flat(read) or not columns.are_ids(read.resource_spans.scope_spans.spans, len(spans)):
        raise ValueError("no spans")
    return zstd.compress(body, 1), len(spans)


async def serve(directory: Path) -> None:
    """Takes OTLP over gRPC and does nothing with it, until standard input ends; its port is in DIRECTORY/floor.port."""

    async def export(_: bytes, __: object) -> bytes:
        return b""

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 4 << 20)])
    handler = grpc.unary_unary_rpc_method_handler(export, None, None)
    name = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    settle()
    (directory / "floor.port").write_text(str(port))
    while await anyio.to_thread.run_sync(sys.stdin.readline):
        pass
    await server.stop(None)


if __name__ == "__main__":
    anyio.run(serve, Path(sys.argv[1]))
