"""Puts `Incoming` around the handlers of a server, whatever their shape.

Requests are read and responses are written here rather than by grpc, which would answer a request that can't be read
in a way that an xDS server does not survive (`incoming.open_answer`). The same goes for methods that don't exist.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

import grpc

from meshwarden.sdk.incoming import Incoming, IncomingCall, open_answer
from meshwarden.sdk.quota.admission import FREE
from meshwarden.sdk.red.count import OTHER

# Its class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Behaviour = Callable[[Any, Any], Any]
Write: TypeAlias = Callable[[Any], bytes] | None

_MAX_METHODS: Final = 1024
_WELL: Final = (None, grpc.StatusCode.OK)
_log = logging.getLogger("meshwarden.sdk")


class IncomingInterceptor(grpc.ServerInterceptor):
    """The first interceptor of a server. It wraps handlers, since who calls isn't known any sooner."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """The handler with all that around it."""
        method: str = handler_call_details.method
        try:
            handler: MaybeHandler = continuation(handler_call_details)
        except Exception:  # an interceptor of the program may raise anything
            _log.exception("an interceptor failed at %s", method)
            return _Wrap(self._incoming, method).refusal(grpc.StatusCode.UNKNOWN, "an interceptor failed")
        if handler is None:
            # Counted under one name: callers could make up any number of them.
            return _Wrap(self._incoming, OTHER).refusal(grpc.StatusCode.UNIMPLEMENTED, f"{method}: no such method")
        known = self._wrapped.get(method)
        # A generic handler may make a new one each time; registered ones stay.
        if known is None or known[0] is not handler:
            known = (handler, _Wrap(self._incoming, method).around(handler))
            if len(self._wrapped) < _MAX_METHODS:
                self._wrapped[method] = known
        return known[1]


class _Wrap:
    """What goes around the handlers of one method."""

    def __init__(self, incoming: Incoming, method: str) -> None:
        self._incoming = incoming
        self._method = method

    def around(self, handler: Handler) -> Handler:
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        read, write = handler.request_deserializer, handler.response_serializer
        made: Any = grpc
        if not handler.request_streaming and not handler.response_streaming:
            plain: Handler = made.unary_unary_rpc_method_handler(self._unary(inner, read, write))
            return plain
        reading: Behaviour = _read_all(inner, read) if handler.request_streaming else _read_one(inner, read)
        if handler.response_streaming:
            make = made.stream_stream_rpc_method_handler
            make = make if handler.request_streaming else made.unary_stream_rpc_method_handler
            wrapped: Handler = make(self._streaming(reading, write))
        else:
            wrapped = made.stream_unary_rpc_method_handler(self._gathering(reading, write))
        return wrapped

    def refusal(self, code: grpc.StatusCode, message: str) -> Handler:
        """A handler for a call that there is nothing to serve for."""
        made: Any = grpc

        def refuse(_: Any, context: Any) -> Iterator[Any]:
            context.abort(code, message)
            yield  # never reached: it makes this a stream, which fits a call of any shape

        refusing: Handler = made.stream_stream_rpc_method_handler(self._streaming(refuse, None))
        return refusing

    def _unary(self, inner: Behaviour, read: Callable[[bytes], Any] | None, write: Write) -> Behaviour:
        begin, method = self._incoming.begin, self._method

        # What most calls go through: as few functions as there can be.
        def checked(request: bytes, context: Any) -> Any:
            call = begin(method, context, False)
            try:
                if call.admission is not FREE:
                    _weigh(call, request)
                response = inner(request if read is None else _read(request, read, context), context)
                if response is None or write is not None:
                    response = _written(response, write, context)
                if call.admission is not FREE:
                    _weigh(call, response)
                    call.leave(is_measured=context.code() in _WELL)
            except BaseException as error:
                _raised(call, error)
                raise
            finally:
                if call.admission is not FREE:
                    call.leave()
            call.returned()
            return response

        return checked

    def _gathering(self, inner: Behaviour, write: Write) -> Behaviour:
        def checked(requests: Any, context: Any) -> Any:
            call = self._incoming.begin(self._method, context, stream=True)
            try:
                if call.admission is not FREE:
                    requests = _weighed(call, requests)
                response = _written(inner(requests, context), write, context)
                if call.admission is not FREE:
                    _weigh(call, response)
            except BaseException as error:
                _raised(call, error)
                raise
            finally:
                if call.admission is not FREE:
                    call.leave()
            call.returned()
            return response

        return checked

    def _streaming(self, inner: Behaviour, write: Write) -> Behaviour:
        def checked(request_or_requests: Any, context: Any) -> Iterator[Any]:
            call = self._incoming.begin(self._method, context, stream=True)
            try:
                if call.admission is not FREE:
                    request_or_requests = _weighed(call, request_or_requests)
                for response in inner(request_or_requests, context):
                    message = _written(response, write, context)
                    if call.admission is not FREE:
                        call.admission.answered()
                        call.hold()
                        _weigh(call, message)
                    yield message
            except BaseException as error:
                _raised(call, error)
                raise
            finally:
                if call.admission is not FREE:
                    call.leave()
            open_answer(context)
            call.returned()

        return checked


def _weigh(call: IncomingCall, message: Any) -> None:
    """Counts the bytes of a message, if any policy does."""
    if call.admission.weighs and isinstance(message, bytes):
        call.admission.weigh(len(message))


def _weighed(call: IncomingCall, request_or_requests: Any) -> Any:
    """The same, with the bytes counted as they come: of a stream, the next is asked for when there is nothing owed."""
    if not call.admission.weighs:
        return request_or_requests
    if isinstance(request_or_requests, bytes):
        _weigh(call, request_or_requests)
        return request_or_requests
    return _slowed(call, request_or_requests)


def _slowed(call: IncomingCall, requests: Iterable[bytes]) -> Iterator[bytes]:
    for request in requests:
        _weigh(call, request)
        yield request
        call.hold()


def _raised(call: IncomingCall, error: BaseException) -> None:
    if not isinstance(error, GeneratorExit):  # nobody is left to answer to
        open_answer(call.context)
    call.raised(error)


def _read_one(inner: Behaviour, read: Callable[[bytes], Any] | None) -> Behaviour:
    def reading(request: bytes, context: Any) -> Any:
        return inner(_read(request, read, context), context)

    return reading


def _read_all(inner: Behaviour, read: Callable[[bytes], Any] | None) -> Behaviour:
    def reading(requests: Iterable[bytes], context: Any) -> Any:
        return inner((_read(request, read, context) for request in requests), context)

    return reading


def _read(request: bytes, read: Callable[[bytes], Any] | None, context: Any) -> Any:
    if read is None:
        return request
    try:
        return read(request)
    except Exception:  # a deserializer of the program may raise anything; grpc answers the same
        open_answer(context)
        context.abort(grpc.StatusCode.INTERNAL, "the request could not be read")


def _written(response: Any, write: Write, context: Any) -> Any:
    if response is None:
        # grpc answers with the code that was set, and with INTERNAL if none was; here that would go uncounted.
        open_answer(context)
        if context.code() in (None, grpc.StatusCode.OK):
            context.abort(grpc.StatusCode.INTERNAL, "the handler returned None")
        return None
    if write is None:
        return response
    try:
        return write(response)
    except Exception:  # a serializer of the program may raise anything; grpc answers the same
        _log.exception("a response could not be written")
        open_answer(context)
        context.abort(grpc.StatusCode.INTERNAL, "the response could not be written")
