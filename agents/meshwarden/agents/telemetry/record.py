"""Bounds on logs that programs send: what is too much of a record is cut, what is too large goes.

Source: OpenTelemetry logs data model.
"""

from collections.abc import Callable
from typing import Final

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

from meshwarden.agents.telemetry.attribute import (
    MAX_ATTRIBUTES,
    MAX_KEY,
    MAX_SCOPES,
    Bounded,
    bound_attributes,
    bound_resource,
    bound_scope,
    bound_text,
    bound_value,
    replace_all,
    shorten,
)

_MAX_RECORD_BYTES: Final = 262_144
_MAX_SEVERITY: Final = 63

Claim = Callable[[LogRecord], bool]


def bound_records(message: ResourceLogs, most: int, is_late: Callable[[], bool], claim: Claim) -> Bounded:
    """Bounds a message in place.

    Args:
        message: the message.
        most: how many records may stay or be claimed.
        is_late: asked before each record; once true, the rest goes.
        claim: takes a record that is something else than a log; it is in no count then.
    """
    found = Bounded()
    bound_resource(message)
    found.too_many += shorten(message.scope_logs, MAX_SCOPES)
    for scope in message.scope_logs:
        bound_scope(scope)
        _bound_records_of(scope, most, is_late, claim, found)
    return found


def _bound_records_of(scope: ScopeLogs, most: int, is_late: Callable[[], bool], claim: Claim, found: Bounded) -> None:
    kept: list[LogRecord] = []
    for index, record in enumerate(scope.log_records):
        if is_late() or found.kept + found.claimed + len(kept) >= most:
            found.too_many += len(scope.log_records) - index
            break
        if claim(record):
            found.claimed += 1
            continue
        if _bound_record(record):
            kept.append(record)
        else:
            found.too_many += 1
    replace_all(scope, "log_records", kept)
    found.kept += len(kept)


def _bound_record(record: LogRecord) -> bool:
    """Bounds a record in place; False if it is too large to be kept."""
    bound_text(record.body)
    if record.ByteSize() > _MAX_RECORD_BYTES:
        record.dropped_attributes_count += shorten(record.attributes, MAX_ATTRIBUTES)
        for pair in record.attributes:
            bound_text(pair.value)
    if record.ByteSize() > _MAX_RECORD_BYTES or not bound_value(record.body):
        return False
    record.dropped_attributes_count += bound_attributes(record.attributes, MAX_ATTRIBUTES)
    record.severity_text = record.severity_text[:_MAX_SEVERITY]
    record.event_name = record.event_name[:MAX_KEY]
    if len(record.trace_id) not in (0, 16) or len(record.span_id) not in (0, 8):
        record.ClearField("trace_id")
        record.ClearField("span_id")
    return True
