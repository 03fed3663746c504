"""OTLP over HTTP/1.1: protobuf and JSON, plain or gzip; and the Jaeger remote-sampling API.

Requests are bounded in size (before and after they are unpacked), in time and in number at a time.

Source: OTLP specification 1.5, "OTLP/HTTP"; RFC 9110 §15.5, §10.2.3 (Retry-After).
"""

import asyncio
import base64
import contextlib
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import grpc
import h11
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.rpc import status_pb2

from meshwarden.agents.telemetry.intake import Intake, IntakeRefused, Unreadable
from meshwarden.agents.workload.workload import Workload

MAX_BODY_BYTES: Final = 4 << 20
# Python reads JSON at some megabytes a second.
MAX_JSON_BYTES: Final = 256 << 10
MAX_CONNECTIONS: Final = 256
_MAX_DEPTH: Final = 32
_HEAD_BYTES: Final = 16 << 10
_CHUNK_BYTES: Final = 64 << 10
_IDLE_S: Final = 120.0
_REQUEST_S: Final = 30.0
_SIGNALS: Final = {b"/v1/traces": "span", b"/v1/metrics": "point", b"/v1/logs": "log"}
# Source: Jaeger, "Remote sampling" (sampling.proto in JSON): GET /sampling?service=NAME.
_SAMPLING: Final = b"/sampling"
_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})
_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}

CallerOf = Callable[[asyncio.StreamWriter, "Request"], Workload | None]
"""Who has sent a request."""


@dataclass
class Request:
    """A request; `headers` by their names in lower case."""

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    body: bytearray = field(default_factory=bytearray)

    @property
    def is_json(self) -> bool:
        """Whether its body, and so its answer's, is JSON."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip() == b"application/json"


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, text: str = "", retry_s: float | None = None) -> None:
        super().__init__(text or status.phrase)
        self.status, self.retry_s = status, retry_s


class HttpReceiver:
    """Serves connections that somebody else accepts: `serve` is a callback of asyncio's servers."""

    def __init__(self, caller: CallerOf, intake: Intake, trace_ratio: Callable[[Workload], float]) -> None:
        """Puts together who tells the callers, who takes what they send, and how many traces each is to record."""
        self._caller, self._intake, self._trace_ratio = caller, intake, trace_ratio
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection."""
        if len(self._open) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._open.add(writer)
        try:
            # A sender that has gone, or is silent, is nothing to report.
            with contextlib.suppress(OSError, TimeoutError, h11.LocalProtocolError):
                await self._serve(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    def close(self) -> None:
        """Ends all connections."""
        for writer in list(self._open):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
        while True:
            request: Request | None = None
            try:
                request = await _read(connection, reader, writer)
                if request is None:
                    return
                answer = self._take(request, writer)
                await _answer(connection, writer, HTTPStatus.OK, request, answer)
            except h11.RemoteProtocolError as error:
                await _refuse(connection, writer, request, _Refused(HTTPStatus(error.error_status_hint), str(error)))
            except _Refused as refused:
                await _refuse(connection, writer, request, refused)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    def _take(self, request: Request, writer: asyncio.StreamWriter) -> Message:
        path = request.path.partition(b"?")[0]
        if path == _SAMPLING:
            return self._sampling(request, writer)
        signal = _SIGNALS.get(path)
        if signal is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "this is for /v1/traces, /v1/metrics, /v1/logs and /sampling")
        if request.method != b"POST":
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED)
        read = _reader(request)
        workload = self._caller(writer, request)
        try:
            if workload is None:
                raise self._intake.refuse_stranger(signal)
            answer: Message = self._intake.take(signal, bytes(request.body), workload, read)
        except IntakeRefused as refusal:
            raise _Refused(_STATUSES[refusal.code], str(refusal), refusal.retry_s) from None
        return answer

    def _sampling(self, request: Request, writer: asyncio.StreamWriter) -> Message:
        """The caller's own policy: which service it names is its word, and of no weight."""
        if request.method != b"GET":
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED)
        workload = self._caller(writer, request)
        if workload is None:
            raise _Refused(HTTPStatus.UNAUTHORIZED, "no workload of this node")
        policy = Struct()
        policy["strategyType"] = "PROBABILISTIC"
        policy.get_or_create_struct("probabilisticSampling")["samplingRate"] = self._trace_ratio(workload)
        return policy


async def _read(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    """The next request with its body; None if there is none.

    Raises:
        _Refused: the body is too large.
        h11.RemoteProtocolError: it is no HTTP.
    """
    async with asyncio.timeout(_IDLE_S):
        event = await _event(connection, reader)
    if not isinstance(event, h11.Request):
        return None
    request = Request(event.method, event.target, dict(event.headers))
    most = MAX_JSON_BYTES if request.is_json else MAX_BODY_BYTES
    async with asyncio.timeout(_REQUEST_S):
        if connection.they_are_waiting_for_100_continue:
            writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        while isinstance(event := await _event(connection, reader), h11.Data):
            if len(request.body) + len(event.data) > most:
                raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {most} bytes")
            request.body += event.data
    return request if isinstance(event, h11.EndOfMessage) else None


async def _event(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_CHUNK_BYTES))
    return event


async def _answer(
    connection: h11.Connection,
    writer: asyncio.StreamWriter,
    status: HTTPStatus,
    request: Request | None,
    message: Message,
    headers: list[tuple[str, str]] | None = None,
) -> None:
    is_json = (request is not None and request.is_json) or isinstance(message, Struct)
    body = json_format.MessageToJson(message, indent=None).encode() if is_json else message.SerializeToString()
    said = [
        ("content-type", "application/json" if is_json else "application/x-protobuf"),
        ("content-length", str(len(body))),
        *(headers or []),
    ]
    response = h11.Response(status_code=status.value, reason=status.phrase, headers=said)
    for event in (response, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(connection.send(event) or b"")
    async with asyncio.timeout(_REQUEST_S):
        await writer.drain()


async def _refuse(
    connection: h11.Connection, writer: asyncio.StreamWriter, request: Request | None, refused: _Refused
) -> None:
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    headers = [] if connection.their_state is h11.DONE else [("connection", "close")]
    if refused.retry_s is not None:
        headers.append(("retry-after", str(math.ceil(refused.retry_s))))
    await _answer(connection, writer, refused.status, request, status_pb2.Status(message=str(refused)), headers)


def _reader(request: Request) -> Callable[[Any, bytes], bytes]:
    """How to make protobuf of a request's body.

    Raises:
        _Refused: it is of a kind that nobody reads.
    """
    kind = request.headers.get(b"content-type", b"").partition(b";")[0].strip()
    if kind not in (b"application/x-protobuf", b"application/json"):
        raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/x-protobuf or application/json")
    encoding = request.headers.get(b"content-encoding", b"identity").strip()
    if encoding not in (b"identity", b"gzip"):
        raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send it plain or as gzip")

    def read(message: Any, body: bytes) -> bytes:
        if encoding == b"gzip":
            body = unpack(body, MAX_JSON_BYTES if request.is_json else MAX_BODY_BYTES)
        return parse_json(message, body).SerializeToString() if request.is_json else body

    return read


def unpack(body: bytes, most: int) -> bytes:
    """What was packed by gzip.

    Raises:
        Unreadable: it is no gzip, or more than `most` bytes.
    """
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise Unreadable(f"no gzip: {error}") from None
    if len(found) > most:
        raise Unreadable(f"more than {most} bytes when it is unpacked")
    if not unpacker.eof:
        raise Unreadable("gzip that ends too soon")
    return found


def parse_json(message: Any, body: bytes) -> Message:
    """Reads OTLP's JSON, which writes ids in hexadecimal.

    Raises:
        Unreadable: it is none.
    """
    try:
        found = _with_ids(json.loads(body), 0)
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        parsed: Message = json_format.ParseDict(
            found, message(), ignore_unknown_fields=True, max_recursion_depth=_MAX_DEPTH
        )
    except (ValueError, RecursionError, json_format.ParseError, TypeError, AttributeError) as error:
        raise Unreadable(f"no JSON of OTLP: {str(error)[:200]}") from None
    return parsed


def _with_ids(value: Any, depth: int) -> Any:
    """The same with ids in base64, as protobuf's own mapping has them."""
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {
            key: base64.b64encode(bytes.fromhex(item)).decode()
            if key in _IDS and isinstance(item, str)
            else _with_ids(item, depth + 1)
            for key, item in value.items()
        }
    return [_with_ids(item, depth + 1) for item in value] if isinstance(value, list) else value
