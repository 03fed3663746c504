"""What happens to each call that a program serves, before its handler and after.

The caller's certificate is checked against the bundle of the moment, its tenant's limit is asked, and the call is
counted and traced. Who may call was settled before by gRPC's own RBAC, which the agent feeds.
"""

import contextlib
import contextvars
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Final, TypeAlias

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.verify import PeerRefused, PeerVerifier, VerifiedPeer
from meshwarden.sdk.agent import AgentLink, Config
from meshwarden.sdk.count import Call
from meshwarden.sdk.limit import Limiter, retry_after
from meshwarden.sdk.outgoing import DECISION_KEY
from meshwarden.sdk.trace import Span, tracer
from meshwarden.v1.report_pb2 import CallStat

# Its class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# Neither limited nor counted: the agent asks every second, and asking must not use up a tenant's calls.
_HEALTH: Final = "/grpc.health.v1.Health/"
_MAX_CHAINS: Final = 1024
_peer: contextvars.ContextVar[VerifiedPeer | None] = contextvars.ContextVar("meshwarden_sdk_peer", default=None)


def current_peer() -> VerifiedPeer | None:
    """Who is calling, inside a handler; None outside of a call."""
    return _peer.get()


class Incoming:
    """The calls of one server."""

    def __init__(
        self, link: AgentLink, clock: Callable[[], datetime], monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._link = link
        self._monotonic_s = monotonic_s
        self._limiter = Limiter()
        self._verifier = PeerVerifier(lambda: link.config.bundles, clock)
        self._chains: dict[tuple[bytes, ...], tuple[bytes, ...]] = {}
        self._open: dict[int, tuple[tuple[bytes, ...], Any]] = {}
        self._numbers = itertools.count()
        link.listen(self._configured)

    def close(self) -> None:
        """Listens to the agent no more."""
        self._link.unlisten(self._configured)

    def sweep(self) -> int:
        """Ends the open streams whose caller's certificate is good no more, and returns how many there were."""
        refused = 0
        for chain, context in list(self._open.values()):
            try:
                self._verifier.check(chain)
            except PeerRefused:
                context.cancel()
                refused += 1
        return refused

    def begin(self, method: str, context: Any, stream: bool) -> "IncomingCall":
        """Checks a call that has come in, and aborts it if it may not go on.

        Raises:
            Exception: that of `context.abort`.
        """
        call = IncomingCall(self._link, method, context)
        try:
            chain = self._chain(context)
            peer = self._verifier.check(chain)
        except PeerRefused as refusal:
            self._refuse(call, grpc.StatusCode.UNAUTHENTICATED, f"your certificate was refused: {refusal}", "denied")
            raise AssertionError("abort raises") from None
        _peer.set(peer)
        call.identified(peer)
        if not method.startswith(_HEALTH):
            self._limit(call, peer, method)
        if stream:
            number = next(self._numbers)
            self._open[number] = (chain, context)
            call.at_end(lambda: self._open.pop(number, None))
        return call

    def _limit(self, call: "IncomingCall", peer: VerifiedPeer, method: str) -> None:
        tenant = peer.spiffe_id.tenant or ""
        decision = self._limiter.take(tenant, self._monotonic_s())
        if not decision.allowed:
            wait = retry_after(decision)
            message = f"rate policy {self._limiter.policy} limits tenant {tenant} at {method}: try again in {wait} s"
            self._refuse(call, grpc.StatusCode.RESOURCE_EXHAUSTED, message, "limited", ("retry-after", wait))

    def _refuse(
        self, call: "IncomingCall", code: grpc.StatusCode, message: str, decision: str, *trailing: tuple[str, str]
    ) -> None:
        call.refused(CallStat.LIMITED if decision == "limited" else CallStat.DENIED)
        call.context.set_trailing_metadata(((DECISION_KEY, decision), *trailing))
        call.end(code, message)
        _begin_answer(call.context)
        call.context.abort(code, message)

    def _chain(self, context: Any) -> tuple[bytes, ...]:
        """The certificates of a connection in DER, leaf first; empty where it has shown none.

        Raises:
            PeerRefused: they can't be read.
        """
        shown = context.auth_context()
        # "x509_pem_cert" is the leaf, and "x509_pem_cert_chain" what came with it: on a server without the leaf
        # (BoringSSL, SSL_get_peer_cert_chain).
        leaf, rest = tuple(shown.get("x509_pem_cert") or ()), tuple(shown.get("x509_pem_cert_chain") or ())
        pem = rest if rest[:1] == leaf else leaf + rest
        chain = self._chains.get(pem)
        if chain is None:
            try:
                certificates = x509.load_pem_x509_certificates(b"".join(pem)) if pem else []
            except UNREADABLE:
                raise PeerRefused("chain: not X.509 certificates") from None
            chain = tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)
            if len(self._chains) >= _MAX_CHAINS:
                self._chains.clear()
            self._chains[pem] = chain
        return chain

    def _configured(self, config: Config) -> None:
        self._limiter.update(config.limits, self._monotonic_s())


class IncomingCall:
    """One call; `end` may be told more than once, and the first time counts."""

    def __init__(self, link: AgentLink, method: str, context: Any) -> None:
        self.context = context
        self._link = link
        self._method = method
        self._source = ""
        self._decision: CallStat.Decision.ValueType = CallStat.ALLOWED
        self._begun_s = time.perf_counter()
        self._span: Span | None = None
        self._last: Callable[[], object] | None = None
        self._open = threading.Lock()

    def identified(self, peer: VerifiedPeer) -> None:
        """The caller is known; the call's span begins, and ends even if the handler never hears that the call did."""
        self._source = str(peer.spiffe_id)
        if not self._method.startswith(_HEALTH):
            self._span = tracer().server(self._method, self.context.invocation_metadata(), self._source)

    def at_end(self, last: Callable[[], object]) -> None:
        """Has `last` called at the end of the call, which is watched for from now on."""
        self._last = last
        if not self.context.add_callback(self.gone):
            self.gone()

    def refused(self, decision: "CallStat.Decision.ValueType") -> None:
        """A policy stands against the call."""
        self._decision = decision

    def gone(self) -> None:
        """The call is over, whatever its handler does yet."""
        remaining = self.context.time_remaining()
        late = remaining is not None and remaining <= 0
        code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        self.end(code, "the caller has gone")

    def returned(self) -> None:
        """The handler has come to its end."""
        code = self.context.code() or grpc.StatusCode.OK
        self.end(code, _text(self.context.details()))

    def raised(self, error: BaseException) -> None:
        """The handler has raised: by `abort`, or by a fault of its own."""
        code = self.context.code()
        if isinstance(error, GeneratorExit):
            self.gone()
        elif code is None or code is grpc.StatusCode.OK:
            self.end(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}"[:500])
        else:
            self.end(code, _text(self.context.details()))

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """The call has ended."""
        if not self._open.acquire(blocking=False):
            return
        if self._last is not None:
            self._last()
        if self._span is not None:
            self._span.end(code, details)
        if self._method.startswith(_HEALTH):
            return
        config = self._link.config
        counted = Call(
            source=self._source,
            destination=config.service,
            method=self._method,
            status=code.name,
            decision=self._decision,
            reporter=CallStat.DESTINATION,
            revision=config.revision,
        )
        self._link.counter.add(counted, time.perf_counter() - self._begun_s)


class IncomingInterceptor(grpc.ServerInterceptor):
    """Puts `Incoming` around each handler. In the handler, since who calls isn't known any sooner."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Handler | None"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """The handler with all that around it."""
        handler = continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None:
            return _UNIMPLEMENTED
        known = self._wrapped.get(method)
        # A generic handler may make a new one each time; registered ones stay.
        if known is None or known[0] is not handler:
            known = (handler, self._wrap(handler, method))
            if len(self._wrapped) < _MAX_CHAINS:
                self._wrapped[method] = known
        return known[1]

    def _wrap(self, handler: Handler, method: str) -> Handler:
        made: Any = grpc
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        shape = f"{_shape(handler.request_streaming)}_{_shape(handler.response_streaming)}"
        behaviour = (
            self._streaming(inner, method)
            if handler.response_streaming
            else self._single(inner, method, bool(handler.request_streaming))
        )
        make = getattr(made, f"{shape}_rpc_method_handler")
        wrapped: Handler = make(behaviour, _reading(handler.request_deserializer), handler.response_serializer)
        return wrapped

    def _single(self, inner: Callable[[Any, Any], Any], method: str, stream: bool) -> Callable[[Any, Any], Any]:
        def checked(request_or_requests: Any, context: Any) -> Any:
            call = self._incoming.begin(method, context, stream)
            try:
                response = inner(_readable(request_or_requests, context), context)
            except BaseException as error:
                call.raised(error)
                _begin_answer(context)
                raise
            call.returned()
            if response is None:
                _begin_answer(context)
            return response

        return checked

    def _streaming(
        self, inner: Callable[[Any, Any], Iterable[Any]], method: str
    ) -> Callable[[Any, Any], Iterator[Any]]:
        def checked(request_or_requests: Any, context: Any) -> Iterator[Any]:
            call = self._incoming.begin(method, context, stream=True)
            try:
                yield from inner(_readable(request_or_requests, context), context)
            except BaseException as error:
                call.raised(error)
                _begin_answer(context)
                raise
            call.returned()
            _begin_answer(context)

        return checked


class _Unreadable:
    """A message that could not be read."""


def _begin_answer(context: Any) -> None:
    """Sends the initial metadata, if they have not gone yet.

    A status that goes out in one batch with them, and no message between, ends the process where the listener has a
    filter: "pipe.h: Check failed: has_value()" (grpcio 1.85.3). That would be every refusal and every error.
    """
    # They have gone, or the caller has.
    with contextlib.suppress(ValueError):
        context.send_initial_metadata(())


def _reading(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """The deserializer, whose failure grpc would answer in one batch."""
    if deserialize is None:
        return None

    def read_or_not(message: bytes) -> Any:
        try:
            return deserialize(message)
        except Exception:  # whatever the program's own deserializer raises; grpc catches all of them as well
            return _Unreadable()

    return read_or_not


def _readable(request_or_requests: Any, context: Any) -> Any:
    """The request or requests; the call ends at one that could not be read."""
    if isinstance(request_or_requests, _Unreadable):
        _refuse_unreadable(context)
    if not hasattr(request_or_requests, "__next__"):
        return request_or_requests
    return _each_readable(request_or_requests, context)


def _each_readable(requests: Iterator[Any], context: Any) -> Iterator[Any]:
    for request in requests:
        if isinstance(request, _Unreadable):
            _refuse_unreadable(context)
        yield request


def _refuse_unreadable(context: Any) -> None:
    _begin_answer(context)
    context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")


def _unimplemented(_requests: Any, context: Any) -> Iterator[Any]:
    _begin_answer(context)
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    yield


_UNIMPLEMENTED: Final[Handler] = grpc.stream_stream_rpc_method_handler(_unimplemented)


def _shape(streaming: bool | None) -> str:
    return "stream" if streaming else "unary"


def _text(details: bytes | str | None) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else details or ""
