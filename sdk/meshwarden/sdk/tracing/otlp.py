"""Brings spans to where OpenTelemetry's environment says, by OTLP over gRPC: to the agent's socket, or elsewhere.

Source: OTLP specification 1.5, "OTLP/gRPC Throttling" and "Failures"; OpenTelemetry specification, "OTLP exporter".
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.util.re import parse_env_headers

from meshwarden.sdk.tracing.call_otlp import write_calls
from meshwarden.sdk.tracing.call_span import CallSpan
from meshwarden.sdk.tracing.numbered import Number
from meshwarden.sdk.tracing.span_queue import Away, Refused

TIMEOUT_S: Final = 10.0
"""How long an answer may take before a batch is sent again."""
_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_DETAILS: Final = "grpc-status-details-bin"
_MAX_RETRY_S: Final = 30.0
_OPTIONS: Final = (
    # C-core's own wait between attempts to connect would outlast ours.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)
_AGAIN: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class OtlpCarrier:
    """A carrier to one endpoint."""

    # Of a child's parents: to let go of a channel that another process has made may end this one.
    _inherited: Final[list[grpc.Channel]] = []

    def __init__(self, endpoint: str) -> None:
        """Connects at the first need; `endpoint` is gRPC's target, or a URL with http or https."""
        self._endpoint = endpoint
        self._headers = tuple(parse_env_headers(_setting("HEADERS"), liberal=True).items())
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._is_closed = False

    def pack_calls(self, calls: Sequence[CallSpan], resource: Resource, scope: InstrumentationScope) -> bytes:
        """See `Carrier`."""
        return write_calls(calls, resource, scope)

    def pack(self, spans: Sequence[ReadableSpan]) -> bytes:
        """See `Carrier`."""
        return bytes(encode_spans(spans).SerializeToString())

    def send(self, body: bytes, number: Number) -> None:
        """See `Carrier`. What is rejected of a batch that is taken is counted by who rejects it."""
        try:
            export: Any = self._open().unary_unary(_METHOD)
            export(body, timeout=TIMEOUT_S, metadata=(*self._headers, *number.metadata))
        except grpc.RpcError as error:
            raise _outcome(error) from None
        except ValueError:  # the channel was closed meanwhile
            raise Away("closed") from None

    def close(self) -> None:
        """See `Carrier`."""
        with self._lock:
            self._is_closed = True
            if self._channel is not None:
                self._channel.close()

    def renew(self) -> None:
        """See `Carrier`."""
        self._lock = threading.Lock()
        if self._channel is not None:
            self._inherited.append(self._channel)
        self._channel, self._is_closed = None, False

    def _open(self) -> grpc.Channel:
        with self._lock:
            if self._is_closed:
                raise Away("closed")
            if self._channel is None:
                self._channel = _channel(self._endpoint)
            return self._channel


def _channel(endpoint: str) -> grpc.Channel:
    """A channel as the environment wants it."""
    url = urlsplit(endpoint)
    target = url.netloc or endpoint
    compression = grpc.Compression.Gzip if _setting("COMPRESSION") == "gzip" else None
    if url.scheme != "https":
        return grpc.insecure_channel(target, _OPTIONS, compression)
    files = [_setting(name) for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")]
    credentials = grpc.ssl_channel_credentials(*(Path(file).read_bytes() if file else None for file in files))
    return grpc.secure_channel(target, credentials, _OPTIONS, compression)


def _setting(name: str) -> str:
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""


def _outcome(error: grpc.RpcError) -> Away | Refused:
    """What a failure means for a batch."""
    if not isinstance(error, grpc.Call):
        return Away(str(error))
    code, text = error.code(), f"{error.code().name}: {error.details()}"
    retry_s = _retry_s(error)
    if code in _AGAIN or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_s is not None):
        return Away(text, min(retry_s or 0.0, _MAX_RETRY_S))
    return Refused(text)


def _retry_s(error: grpc.Call) -> float | None:
    """When it may be tried again, if that is said."""
    info = error_details_pb2.RetryInfo()
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS:
            try:
                details = status_pb2.Status.FromString(value).details
                if any(one.Unpack(info) for one in details):
                    return max(0.0, float(info.retry_delay.ToNanoseconds()) / 1e9)
            except DecodeError:
                return None
    return None
