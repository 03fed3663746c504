"""Which traces ran under a revision: the calls that a change has come to, the first of them.

Programs and agents say in spans which revision of the policies was in force. Nothing is kept to find them by: blocks
are read from when the change was made on, so many at most.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import apsw
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from meshwarden.controlplane.gather.pack import unpack
from meshwarden.controlplane.gather.trace.query import Sees, summaries
from meshwarden.v1 import admin_service_pb2 as v1

MAX_TRACES: Final = 8
MAX_BLOCKS: Final = 128
_MAX_REVISION: Final = 2**63 - 1
_TENANTS: Final = "SELECT DISTINCT tenant FROM trace_owners WHERE tenant <> ''"
_BLOCKS: Final = """
SELECT id FROM trace_blocks WHERE newest_ns >= ? AND tenant IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?
"""
_BODY: Final = "SELECT body FROM trace_blocks WHERE id = ?"


def under(db: apsw.Connection, revision: int, since_ns: int, but: bytes, sees: Sees) -> Sequence[v1.TraceSummary]:
    """Some traces of tenants that the asker sees, those first that came first.

    Args:
        db: the file.
        revision: which.
        since_ns: when that was made.
        but: the trace of the change itself.
        sees: whose spans the asker may see.
    """
    if not 0 < revision <= _MAX_REVISION:
        return ()
    tenants: list[Any] = db.execute(_TENANTS).fetchall()
    seen = json.dumps([tenant for (tenant,) in tenants if sees(tenant)])
    blocks: list[Any] = db.execute(_BLOCKS, (since_ns, seen, MAX_BLOCKS)).fetchall()
    said = KeyValue(key="mesh.revision", value=AnyValue(int_value=revision))
    found: dict[bytes, None] = {}
    for (block,) in blocks:
        body: Any = db.execute(_BODY, (block,)).get
        if body is not None:  # it may be forgotten meanwhile
            found.update(dict.fromkeys(_in(unpack(body), said, since_ns)))
            found.pop(but, None)
        if len(found) >= MAX_TRACES:
            break
    return summaries(db, list(found)[:MAX_TRACES], sees)


def _in(block: bytes, said: KeyValue, since_ns: int) -> Iterator[bytes]:
    """The traces of a block's spans that say so."""
    if said.SerializeToString() not in block:  # to read all would take a hundred times as long
        return
    for resource in TracesData.FromString(block).resource_spans:
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            if span.start_time_unix_nano >= since_ns and said in span.attributes:
                yield span.trace_id
