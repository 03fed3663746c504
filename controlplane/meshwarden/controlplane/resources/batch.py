"""An agent's batch, held against the schema's rules in a fraction of the time that protovalidate takes.

What a batch is made of is bytes, whose bounds are asked of protobuf for all of them at once. Who fails here is held
against the schema as ever, which says what is wrong. What a kind of a table says is held against it by who reads it.
"""

from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from meshwarden.v1.report_pb2 import CallTable, ExportRequest

MAX_ITEMS: Final = 8192
"""How many there may be of each thing in a batch."""
MAX_SPANS: Final = 4096
"""How many spans are packed together at most."""
_MAX_REPORTER: Final = 127
_MAX_BODY_BYTES: Final = 1 << 20
_MAX_KIND_BYTES: Final = 4096
_MAX_RUN_ID: Final = 64
_ID_BYTES: Final = (16, 8)

Holds = Callable[[Message], bool]
"""Whether a message keeps the schema's rules, by protovalidate."""


def keeps_rules(batch: ExportRequest, holds: Holds, size_bytes: int | None = None) -> bool:
    """Whether a batch certainly keeps the rules of the schema; where it doesn't, it may.

    Args:
        batch: the batch.
        holds: asked of what is not looked at here.
        size_bytes: how large it was when it was read, if that is known: in a small one nothing is too large.
    """
    if batch.calls:
        return False
    bodies = (batch.resource_spans, batch.resource_metrics, batch.resource_logs, batch.model_calls)
    packed = (batch.packed, batch.packed_spans, batch.call_tables)
    if max(*map(len, packed), *map(len, bodies)) > MAX_ITEMS:
        return False
    is_small = size_bytes is not None and size_bytes <= _MAX_BODY_BYTES
    # Each body that is looked at is copied.
    if not is_small and any(len(body) > _MAX_BODY_BYTES for of_signal in bodies for body in of_signal[:]):
        return False
    if not all(1 <= one.count <= MAX_SPANS and len(one.reporter) <= _MAX_REPORTER for one in batch.packed_spans):
        return False
    if not all(map(_keep_rules, batch.call_tables)):
        return False
    if not batch.drops and len(batch.run_id) <= _MAX_RUN_ID:
        return True
    return holds(ExportRequest(run_id=batch.run_id, drops=batch.drops))


def _keep_rules(table: CallTable) -> bool:
    kinds = table.kinds[:]
    if len(kinds) > MAX_ITEMS or max(map(len, kinds), default=0) > _MAX_KIND_BYTES:
        return False
    return all((len(one.trace_id), len(one.span_id)) == _ID_BYTES for one in table.exemplars)
