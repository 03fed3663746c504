"""What makes a trace worth forwarding as a whole, told from one of its spans. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from meshwarden.controlplane.gather import outcome
from meshwarden.controlplane.gather.trace.state import threshold_of
from meshwarden.v1.report_pb2 import CallStat

ERROR: Final = "error"
DENIED: Final = "denied"
LIMITED: Final = "limited"
SLOW: Final = "slow"
NEW_EDGE: Final = "new_edge"
MESH: Final = "mesh"
MAX_WAITING_BYTES: Final = 64 << 20
GRACE_S: Final = 1.0
ACROSS_GRACE_S: Final = 3.0
"""Where other regions tell what they keep: a report is a second on its way, and their word as long."""
# Of OpenTelemetry's conventions, old ones included, and of Envoy's.
_RPC: Final = frozenset({"rpc.response.status_code", "rpc.grpc.status_code", "grpc.status_code"})
_HTTP: Final = frozenset({"http.response.status_code", "http.status_code"})
_NAMES: Final = {str(code.value[0]): code.name for code in grpc.StatusCode}
_REFUSED: Final = {"PERMISSION_DENIED": DENIED, "403": DENIED, "RESOURCE_EXHAUSTED": LIMITED, "429": LIMITED}
_CODE_CHARS: Final = 32
_CALLS: Final = frozenset({Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER})

SlowAfter = Callable[[str, str], float | None]
"""The latency, in seconds, that a service's objectives allow its calls, of (tenant, service); None if they say none."""


def _nothing(_tenant: str, _service: str) -> float | None:
    return None


@dataclass(frozen=True)
class TailPolicy:
    """Which traces go on to backends.

    Attributes:
        ratio: the share, from 0 to 1, of the traces that nothing asks for.
        tenants: the same for the spans of some tenants, `{tenant: share}`.
        slow_s: what takes longer is slow; None: only what an objective calls so.
        wait_s: how long a trace is waited for that does not become complete.
        grace_s: how long a complete one is, for what may be late.
        max_waiting_bytes: how much may wait, about, in memory and on disk.
        slow_after: what objectives say.
    """

    ratio: float
    tenants: Mapping[str, float] = field(default_factory=dict)
    slow_s: float | None = None
    wait_s: float = 10.0
    grace_s: float = GRACE_S
    max_waiting_bytes: int = MAX_WAITING_BYTES
    slow_after: SlowAfter = _nothing

    def threshold(self, tenant: str) -> int:
        """What a tenant's spans must pass, of traces that nothing asks for."""
        return threshold_of(self.tenants.get(tenant, self.ratio))

    def limits(self, tenant: str, service: str) -> tuple[int | None, int | None]:
        """How long any span and a served call of this service may take, in nanoseconds."""
        of_call = [limit for limit in (self.slow_s, self.slow_after(tenant, service)) if limit is not None]
        return _ns(self.slow_s), _ns(min(of_call, default=None))


def reason(span: Span, limits: tuple[int | None, int | None]) -> str:
    """Why the trace of this span is to be kept; empty if the span gives no reason.

    A client's span says ERROR of every status but OK: one that tells of a failure of the caller's own, NOT_FOUND for
    one, is no error here, as it is none in the counts of calls.
    """
    found = _outcome(span) if span.kind in _CALLS else ""
    if found in (DENIED, LIMITED):
        return found
    is_caller_fault = found == outcome.CLIENT_ERROR and span.kind == Span.SPAN_KIND_CLIENT
    if found == outcome.SERVER_ERROR or (span.status.code == Status.STATUS_CODE_ERROR and not is_caller_fault):
        return ERROR
    most_ns = limits[span.kind == Span.SPAN_KIND_SERVER]
    if most_ns is not None and span.end_time_unix_nano - span.start_time_unix_nano > most_ns:
        return SLOW
    return ""


def _outcome(span: Span) -> str:
    """What a call came to, as its span's attributes tell; gRPC's status goes before HTTP's, which is 200 there."""
    found = ""
    for pair in span.attributes:
        key = pair.key
        if key in _RPC:
            found = _text(pair.value)
            found = _NAMES.get(found, found)
            break
        if key in _HTTP:
            found = _text(pair.value)
    if not found:
        return ""
    return _REFUSED.get(found) or outcome.outcome(found, CallStat.ALLOWED)


def _text(value: Any) -> str:
    if value.HasField("int_value"):
        return str(value.int_value)
    return str(value.string_value)[:_CODE_CHARS]


def _ns(limit_s: float | None) -> int | None:
    return None if limit_s is None else int(limit_s * 1e9)
