"""Every request message is held against the schema's rules before a servicer sees it, and exceptions become statuses.

The bounds on a message's size are the server's options (`api/server.py`: 4 MiB); protobuf refuses what is nested deeper
than 100 levels.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from meshwarden.controlplane.api.errors import InvalidRequest, abort, refusal_in
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.validate import rule_faults
from meshwarden.sdk.mtls import peer

OURS = "/meshwarden.v1."

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True)
class _Malformed:
    """Stands for a message that is no message: the handler refuses it with a proper status."""

    reason: str


class ValidationInterceptor(grpc.aio.ServerInterceptor):
    """Validates the requests of our own services, unary and streamed, and maps what their handlers raise.

    A handler reads its stream by the iterator that it is given; `context.read()` would pass the check by.
    """

    def __init__(self, audit: AuditLog) -> None:
        """Takes the audit log, which is told of each call that is refused."""
        self._audit = audit
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Returns the handler with the check before it."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or not method.startswith(OURS):
            return handler
        if method not in self._wrapped:
            self._wrapped[method] = _wrap(handler, method, self._audit)
        return self._wrapped[method]


def check(message: Message | _Malformed, size_bytes: int | None = None) -> Any:
    """Returns the message.

    Args:
        message: the message.
        size_bytes: how large it was when it was read, where that is known.

    Raises:
        InvalidRequest: it breaks a rule of the schema.
    """
    if isinstance(message, _Malformed):
        raise InvalidRequest([FieldFault("", message.reason)])
    if faults := rule_faults(message, size_bytes):
        raise InvalidRequest(faults)
    return message


def moment(stamp: Timestamp, field: str) -> datetime:
    """Returns the time that a field says.

    Raises:
        InvalidRequest: it is none; protobuf carries any number of seconds and nanoseconds.
    """
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except ValueError:
        raise InvalidRequest([FieldFault(field, "must be a time between the years 1 and 9999")]) from None


async def _checked(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for message in messages:
        yield check(message)


def _wrap(handler: Any, method: str, audit: AuditLog) -> Handler:
    """The same kind of handler, that checks, serves, and ends with the status of what was raised."""
    serve: Callable[..., Any] = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    generates = inspect.isasyncgenfunction(serve)

    async def served(request: Any, context: Context) -> Any:
        try:
            checked = _checked(request) if handler.request_streaming else check(request)
            if not generates:
                return await serve(checked, context)
            async for answer in serve(checked, context):
                await context.write(answer)
        except grpc.aio.AbortError:
            raise  # the handler has said how it ends
        except Exception as error:  # the edge: whatever it was becomes a status, and a log line if it is a defect
            refusal = refusal_in(error)
            if refusal is not None:
                audit.note("rpc.refused", caller=peer.caller_text(), method=method, reason=refusal)
            await abort(context, error, method)

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(served, _reader(handler.request_deserializer), handler.response_serializer)


def _reader(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read_or_say_why(data: bytes) -> Any:
        try:
            return read(data)
        except Exception as error:  # protobuf raises several kinds; each means bytes that are no such message
            return _Malformed(f"the message can't be read: {type(error).__name__}")

    return read_or_say_why
