"""OTLP backends: where telemetry goes on to, and how it is sent there.

A request's body is put together from the bytes that lie in the queue; nothing is parsed.

Errors: `Away`, try again (`Limited`, one tenant's alone); `Rejected`, this will never be taken; `TooLarge`, less is.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

import anyio.to_thread
import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from meshwarden.controlplane.gather.forward.header import Headers
from meshwarden.sdk.tracing.wire import all_framed

if TYPE_CHECKING:
    import requests

TIMEOUT_S: Final = 10.0
DEADLINE_S: Final = 30.0
"""How long one request over HTTP may take in all."""
_ANSWER_BYTES: Final = 65_536
_MAX_DIGITS: Final = 10
_SERVICES: Final = {
    "span": ("opentelemetry.proto.collector.trace.v1.TraceService", "v1/traces", ExportTraceServiceResponse),
    "point": ("opentelemetry.proto.collector.metrics.v1.MetricsService", "v1/metrics", ExportMetricsServiceResponse),
    "log": ("opentelemetry.proto.collector.logs.v1.LogsService", "v1/logs", ExportLogsServiceResponse),
}
# Source: OTLP specification 1.5, "Failures" of OTLP/gRPC and of OTLP/HTTP.
_AGAIN: Final = frozenset(
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
_AGAIN_HTTP: Final = frozenset({429, 502, 503, 504})


class Away(Exception):
    """The backend does not take anything now; the message says why."""

    def __init__(self, message: str, retry_s: float = 0.0) -> None:
        """`retry_s` is how long it has asked to be left alone; 0 if it has not."""
        super().__init__(message)
        self.retry_s = retry_s


class Limited(Away):
    """The backend takes no more of this tenant's now."""


class Rejected(Exception):
    """The backend will never take this."""


class TooLarge(Exception):
    """The backend does not take this much."""


class Transport(Protocol):
    """A way to one backend."""

    async def send(self, signal: str, tenant: str, bodies: Sequence[bytes]) -> int:
        """Sends things of a signal, each a serialised `Resource…`; returns how many items the backend has rejected.

        Args:
            signal: "span", "point" or "log".
            tenant: whose they are; "" for the mesh itself.
            bodies: the things.

        Raises:
            Away: try again later, Limited with this tenant's alone.
            Rejected: not all of it will ever be taken.
            TooLarge: it may take less.
        """

    async def close(self) -> None:
        """Lets go of connections."""


class Withheld:
    """In place of headers that are not known yet: nothing is sent without them."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def of(self, tenant: str) -> dict[str, str]:
        """Refuses.

        Raises:
            Away: always; says why.
        """
        raise Away(self._reason)


@dataclass(frozen=True)
class Backend:
    """A backend that telemetry goes on to.

    Attributes:
        name: what its stage is called by.
        transport: the way there.
        signals: what goes there: "span", "point", "log".
        max_queue_bytes: what may wait for it.
    """

    name: str
    transport: Transport
    signals: frozenset[str]
    max_queue_bytes: int


class GrpcTransport:
    """OTLP over gRPC."""

    def __init__(self, endpoint: str, headers: Headers | Withheld | None = None) -> None:
        """Connects when first used.

        Raises:
            ValueError: the endpoint is not "http://host:port" or "https://host:port".
        """
        target, is_secure = parse_endpoint(endpoint)
        self._headers: Headers | Withheld = headers or Headers()
        self._channel = (
            grpc.aio.secure_channel(target, grpc.ssl_channel_credentials())
            if is_secure
            else grpc.aio.insecure_channel(target)
        )

    def use(self, headers: Headers) -> None:
        """Sends others from now on."""
        self._headers = headers

    async def send(self, signal: str, tenant: str, bodies: Sequence[bytes]) -> int:
        """See `Transport`."""
        service, _, kind = _SERVICES[signal]
        export: Any = self._channel.unary_unary(f"/{service}/Export", None, None)
        try:
            answer = await export(
                all_framed(1, bodies),
                timeout=TIMEOUT_S,
                metadata=tuple(self._headers.of(tenant).items()),
                compression=grpc.Compression.Gzip,
            )
        except grpc.aio.AioRpcError as error:
            said = f"{error.code().name}: {error.details()}"[:500]
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than" in said:
                raise TooLarge(said) from None
            if error.code() in _AGAIN:
                is_limit = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                raise (Limited if is_limit else Away)(said, _retry_info(error)) from None
            raise Rejected(said) from None
        return _rejected(kind, answer)

    async def close(self) -> None:
        """See `Transport`."""
        await self._channel.close()


class HttpTransport:
    """OTLP over HTTP, protobuf."""

    def __init__(
        self, endpoint: str, headers: Headers | Withheld | None = None, deadline_s: float = DEADLINE_S
    ) -> None:
        """Connects when first used.

        Args:
            endpoint: the base to which `/v1/traces` and so on are added.
            headers: go with each request.
            deadline_s: how long one may take in all.
        """
        # With all that `requests` needs: most control planes start without.
        from meshwarden.controlplane.gather.forward import hasty

        self._endpoint = endpoint.rstrip("/")
        self._headers: Headers | Withheld = headers or Headers()
        self._within, self._deadline_s = hasty.within, deadline_s
        self._session = hasty.session()
        self._session.trust_env = False  # no proxies, no .netrc
        self._session.headers.update({"content-type": "application/x-protobuf", "content-encoding": "gzip"})

    def use(self, headers: Headers) -> None:
        """Sends others from now on."""
        self._headers = headers

    async def send(self, signal: str, tenant: str, bodies: Sequence[bytes]) -> int:
        """See `Transport`."""
        _, path, kind = _SERVICES[signal]
        url, headers = f"{self._endpoint}/{path}", self._headers.of(tenant)
        code, answer, retry_s = await anyio.to_thread.run_sync(self._post, url, headers, bodies)
        if code in _AGAIN_HTTP:
            raise (Limited if code == 429 else Away)(f"HTTP {code}", retry_s)
        if code == 413:
            raise TooLarge(f"HTTP {code}")
        if not 200 <= code < 300:
            raise Rejected(f"HTTP {code}: {answer[:200].decode(errors='replace')}")
        return _rejected(kind, answer)

    async def close(self) -> None:
        """See `Transport`."""
        self._session.close()

    def _post(self, url: str, headers: dict[str, str], bodies: Sequence[bytes]) -> tuple[int, bytes, float]:
        data = gzip.compress(all_framed(1, bodies), 1)
        # A redirect would take the headers somewhere else.
        options: Any = {"timeout": TIMEOUT_S, "allow_redirects": False, "stream": True}
        with self._within(self._deadline_s) as watch:
            try:
                with self._session.post(url, data=data, headers=headers, **options) as response:
                    if watch.is_cut:  # within the headers, which then seem to end
                        raise TimeoutError("cut off")
                    return response.status_code, _body(response), _retry_after(response.headers.get("retry-after", ""))
            except OSError as error:  # as all of requests' are
                said = f"no answer within {self._deadline_s:g} s: " if watch.is_cut else ""
                raise Away(f"{said}{type(error).__name__}: {error}"[:500]) from None


def parse_endpoint(endpoint: str) -> tuple[str, bool]:
    """The gRPC target of an endpoint, and whether it wants TLS.

    Raises:
        ValueError: it is none.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(f"{endpoint!r} is no OTLP gRPC endpoint: write http://host:port or https://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port or 4317}", parts.scheme == "https"


def _body(response: "requests.Response") -> bytes:
    """The beginning of what was answered; nothing if that breaks off or can't be unpacked, for its status is known."""
    try:
        return bytes(response.raw.read(_ANSWER_BYTES, decode_content=True))
    except Exception:  # errors of urllib3's own, which requests wraps elsewhere
        return b""


def _retry_after(text: str) -> float:
    """What a Retry-After header asks for, in seconds; 0 for a date, which is not read."""
    return float(text) if text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS else 0.0


def _retry_info(error: grpc.aio.AioRpcError) -> float:
    """What google.rpc.RetryInfo in a status asks for, in seconds; 0 if there is none."""
    found = next((value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"), b"")
    try:
        details = status_pb2.Status.FromString(found).details if isinstance(found, bytes) else ()
        for detail in details:
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                return max(0.0, float(info.retry_delay.ToTimedelta().total_seconds()))
    except (DecodeError, OverflowError, ValueError):
        pass  # what can't be read asks for nothing
    return 0.0


def _rejected(kind: Any, answer: bytes) -> int:
    try:
        partial = kind.FromString(answer).partial_success
    except DecodeError:
        return 0  # it said that it has taken them
    counts = (number for field, number in partial.ListFields() if field.number == 1)
    return max(0, next(counts, 0))
