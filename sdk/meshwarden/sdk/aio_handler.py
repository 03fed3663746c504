"""Limits, traces and counts the calls that a grpc.aio server serves, whatever their shape and their end.

    server = grpc.aio.server(interceptors=[peers, sdk.aio_server_interceptor()])

A caller is known where `meshwarden.sdk.mtls.peer.PeerInterceptor` stands before it, and held to its tenant's limits.
Whom nobody has proved is traced and not counted, and refused as soon as a rate policy limits the program's service. Who
may call at all is asked where there is a `Gate`: in `sdk.aio_server`.
"""

import asyncio
import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc

from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.aio_gate import Gate, Refusal, guarded
from meshwarden.sdk.aio_slow import slowed, weighing
from meshwarden.sdk.backpressure import criticality
from meshwarden.sdk.config import Config
from meshwarden.sdk.deadline import Deadline
from meshwarden.sdk.incoming import HEALTH, LONGEST_HOLD_S, Key, served_call
from meshwarden.sdk.mtls import peer
from meshwarden.sdk.outgoing import DECISION_KEY
from meshwarden.sdk.quota import cost
from meshwarden.sdk.quota.admission import FREE
from meshwarden.sdk.quota.limits import Limits
from meshwarden.sdk.quota.limits import Refusal as Excess
from meshwarden.sdk.red.count import Known
from meshwarden.sdk.tracing.trace import tracer
from meshwarden.v1.report_pb2 import CallStat

# Its class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

_MAX_METHODS: Final = 1024
# Looked up once: what hangs on an enumeration is found by way of its class.
_OK: Final = grpc.StatusCode.OK
_WELL: Final = (None, 0, _OK)
_log = logging.getLogger("meshwarden.sdk")


class ServedInterceptor(grpc.aio.ServerInterceptor):
    """Wraps handlers, which must be async: coroutines or async generators. Others are left as they are, untraced."""

    def __init__(self, link: AgentLink, *, enforce: bool = True, gate: Gate | None = None) -> None:
        """Begins to enforce the limits that `link` tells of.

        Args:
            link: to the agent.
            enforce: if not, calls are only traced and counted.
            gate: who may call; without one, who comes so far.
        """
        self._link, self._gate = link, gate
        self._known = Known(link.counter, served_call)
        self._limits = Limits(link, time.monotonic) if enforce else None
        # {method: a handler, and what is served in its place}; a generic handler may make a new one each time
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}
        if enforce:
            link.listen(self._configured)

    def close(self) -> None:
        """Gives the share of limits back, as the end of the process would; takes half a second at most."""
        if self._limits is not None:
            self._link.unlisten(self._configured)
            self._limits.close()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        """The handler with all that around it; None, as it comes, for a method that doesn't exist."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or (self._gate is None and method.startswith(HEALTH)):
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = (handler, self._around(method, handler, is_new=known is None))
            if len(self._wrapped) < _MAX_METHODS:
                self._wrapped[method] = known
        if known[1] is handler and self._gate is not None:
            return _refusing(grpc.StatusCode.UNIMPLEMENTED, f"{method}: its handler is not async, so nothing guards it")
        if known[1] is handler and self._limits is not None:  # nothing of ours is around it
            fault = _unproved(self._link.last_config)
            if fault is not None:
                return _refusing(*fault)
        return known[1]

    def _around(self, method: str, handler: Handler, is_new: bool) -> Handler:
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        if not inspect.iscoroutinefunction(inner) and not inspect.isasyncgenfunction(inner):
            if is_new:  # said once
                _log.warning("calls of %s are not traced: its handler is not async", method)
            return handler
        if self._gate is not None and method.startswith(HEALTH):
            return guarded(handler, self._gate, method)
        begin = functools.partial(ServedCall, self._link, self._known, self._limits, self._gate, method)
        return _around(handler, inner, begin)

    def _configured(self, config: Config) -> None:
        if self._limits is not None:
            self._limits.update(config.limits)


def aio_server_interceptor(*, enforce: bool = True) -> ServedInterceptor:
    """Makes an interceptor for a grpc.aio.server; put it behind those that check who calls.

    Args:
        enforce: whether the rate policies of the program's service hold here. False is for a server whose calls come by
            way of an Envoy, which enforces them, or from outside of the mesh.

    Raises:
        NotStarted: the program doesn't run under a node agent.
    """
    return ServedInterceptor(AgentLink.of_process(), enforce=enforce)


class ServedCall:
    """One call, from the moment that its handler may run.

    Attributes:
        admission: what it holds of the policies until it ends.
        ended_by: why it is ended before its handler does; None if it isn't.
    """

    __slots__ = (
        "_begun_s",
        "_caller",
        "_context",
        "_decision",
        "_dry_run",
        "_gate",
        "_is_measured",
        "_known",
        "_limits",
        "_link",
        "_metadata",
        "_method",
        "_source",
        "_span",
        "admission",
        "ended_by",
    )

    def __init__(
        self,
        link: AgentLink,
        known: Known[Config, Key],
        limits: Limits | None,
        gate: Gate | None,
        method: str,
        context: Any,
    ) -> None:
        self._link = link
        self._gate = gate
        self.ended_by: Refusal | None = None
        self._known = known
        self._limits = limits
        self._method = method
        self._context = context
        self._caller = caller = peer.current()
        self._decision: CallStat.Decision.ValueType = CallStat.ALLOWED
        self._dry_run = ""
        self.admission = FREE
        self._is_measured = False
        self._source = str(caller.spiffe_id) if caller is not None else ""
        self._metadata = metadata = context.invocation_metadata() or ()
        self._span = tracer().server(method, metadata, self._source)
        criticality.serve(metadata)
        self._begun_s = time.perf_counter()

    def __enter__(self) -> "ServedCall":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.admission is not FREE:
            is_measured = self._is_measured and error is None and self._context.code() in _WELL
            self.admission.end(self._context.trailing_metadata() or (), is_measured=is_measured)
        code, details = self._ended(error)
        self._span.end(code, details)
        config = self._link.last_config
        if self._source and config is not None:
            status = "OK" if code is _OK else code.name
            key = (self._source, self._method, status, self._decision, self._dry_run)
            self._known.add(config, key, self._begun_s, self._span.sampled)

    def admit(self) -> Awaitable[None] | None:
        """Lets the call go on; or returns what does, or aborts it, to be awaited."""
        if self._gate is not None:
            refusal, self._dry_run = self._asked(self._gate)
            if refusal is not None:
                return self._refused(refusal)
        if self._limits is None:
            return None
        config, caller = self._link.last_config, self._caller
        if caller is None or config is None:
            fault = _unproved(config)
            if fault is None:
                return None
            self._decision = CallStat.DENIED
            return self._refuse(*fault, "denied")
        tenant = caller.spiffe_id.account(config.spiffe_id.trust_domain)
        try:
            self.admission = admission = self._limits.admit(tenant, self._method, self._metadata)
        except cost.Malformed as error:
            self._decision = CallStat.DENIED
            return self._refuse(grpc.StatusCode.INVALID_ARGUMENT, str(error), "denied")
        if admission.decision.allowed:
            return None
        if admission.decision.coming is not None:
            return self._wait(self._limits, tenant)
        return self._limited(self._limits.refusal(admission.decision, tenant, self._method))

    def refusal(self) -> Refusal | None:
        """Why the access policies don't let it in as they are now; None if they do, or if they aren't asked here."""
        return self._asked(self._gate)[0] if self._gate is not None else None

    def _asked(self, gate: Gate) -> tuple[Refusal | None, str]:
        caller = self._caller
        return gate.ask(caller.spiffe_id if caller is not None else None, self._method, self._metadata)

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Ends the running task, which serves it, when the access policies don't let it in any more."""
        return self._gate.watching(self) if self._gate is not None else contextlib.nullcontext()

    async def end_if_refused(self) -> None:
        """Tells the caller why it is ended, where the task's cancellation is ours."""
        task = asyncio.current_task()
        if self.ended_by is not None and task is not None:
            task.uncancel()
            await self._refused(self.ended_by)

    async def _refused(self, refusal: Refusal) -> None:
        if refusal.is_denied:
            self._decision = CallStat.DENIED
        await self._context.abort(refusal.code, refusal.message, refusal.trailing)

    async def _wait(self, limits: Limits, tenant: str) -> None:
        """Lets the call go on as soon as there is enough for it."""
        told = tenant, self._method, self._metadata
        self.admission = found = await limits.wait_aio(self.admission, told, self._context.time_remaining())
        if not found.decision.allowed:
            await self._limited(limits.refusal(found.decision, tenant, self._method))

    async def _limited(self, refusal: Excess) -> None:
        await self._context.send_initial_metadata(refusal.headers)
        if refusal.code is grpc.StatusCode.UNAVAILABLE:
            # Of a server that can do no more it is no policy's doing that a call fails.
            await self._context.abort(refusal.code, refusal.message, refusal.trailing)
        self._decision = CallStat.LIMITED
        await self._refuse(refusal.code, refusal.message, "limited", *refusal.trailing)

    def answered(self) -> None:
        """A stream has had its first answer."""
        self.admission.answered()

    @property
    def weighs(self) -> bool:
        """Whether the bytes of its messages are counted."""
        return self.admission.weighs

    def weigh(self, message: Any) -> None:
        """Counts the bytes of a message, if any policy does."""
        if self.admission.weighs and isinstance(message, bytes):
            self.admission.weigh(len(message))

    async def hold(self) -> None:
        """Waits until what messages have taken too much is paid; who calls no more ends the task."""
        while (wait_s := self.admission.owed_s()) > 0:  # noqa: ASYNC110  # time pays, and a larger share
            await asyncio.sleep(min(wait_s, LONGEST_HOLD_S))

    def returned(self) -> None:
        """A handler of one request and one response has come to its end."""
        self._is_measured = True

    async def _refuse(
        self, code: grpc.StatusCode, message: str, decision: str, *trailing: tuple[str, str | bytes]
    ) -> None:
        await self._context.abort(code, message, ((DECISION_KEY, decision), *trailing))

    def _ended(self, error: BaseException | None) -> tuple[grpc.StatusCode, str]:
        """What the caller is told, or would be if it were still there."""
        said = self._context.code() or _OK
        task = asyncio.current_task()
        # A handler may keep its task's cancellation to itself, and return.
        if not isinstance(error, Exception | None) or (task is not None and task.cancelling()):
            left_s = self._context.time_remaining()
            given_s = None if left_s is None else left_s + time.perf_counter() - self._begun_s
            return Deadline(given_s).code(left_s), "the caller has gone"
        if said is not _OK:
            return said, _text(self._context.details())
        return (_OK, "") if error is None else (grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}"[:500])


def _around(handler: Handler, inner: Any, begin: Callable[[Any], ServedCall]) -> Handler:
    """A handler of the same shape.

    One request is read, and one response written, by us: grpc would do so where we do not see it fail. A handler reads
    and writes streams by its context too, which is grpc's.
    """
    read = None if handler.request_streaming else handler.request_deserializer
    write = None if handler.response_streaming else handler.response_serializer

    async def single(call: ServedCall, request_or_requests: Any, context: Any) -> Any:
        response = await inner(read(request_or_requests) if read else request_or_requests, context)
        if not handler.request_streaming:
            call.returned()
        response = write(response) if write else response
        if call.admission is not FREE:
            call.weigh(response)
        return response

    async def streaming(call: ServedCall, request_or_requests: Any, context: Any) -> None:
        answer = inner(read(request_or_requests) if read else request_or_requests, context)
        if isinstance(answer, Awaitable):  # a handler that writes by itself
            call.answered()  # nobody sees when it does
            await answer
            return
        async with contextlib.aclosing(answer) as messages:
            async for message in messages:
                call.answered()
                await context.write(message)

    answered = streaming if handler.response_streaming else single
    is_stream = handler.request_streaming or handler.response_streaming

    async def served(request_or_requests: Any, context: Any) -> Any:
        with begin(context) as call:
            if (aborting := call.admit()) is not None:
                await aborting
            if call.admission is not FREE:
                request_or_requests, context = slowed(call, request_or_requests, context)
            if not is_stream:
                return await answered(call, request_or_requests, context)
            try:
                with call.watching():
                    return await answered(call, request_or_requests, context)
            except asyncio.CancelledError:
                await call.end_if_refused()
                raise

    made: Any = grpc  # the constructors' types know sync handlers only
    make = {
        (False, False): made.unary_unary_rpc_method_handler,
        (False, True): made.unary_stream_rpc_method_handler,
        (True, False): made.stream_unary_rpc_method_handler,
        (True, True): made.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    traced: Handler = make(
        served,
        weighing(handler.request_deserializer) if handler.request_streaming else None,
        weighing(handler.response_serializer) if handler.response_streaming else None,
    )
    return traced


def _unproved(config: Config | None) -> tuple[grpc.StatusCode, str] | None:
    """What a caller is told whose tenant nobody has proved; None if it may go on.

    To let it would be a way around every limit.
    """
    if config is None:
        return grpc.StatusCode.UNAVAILABLE, "the node agent has not said yet which limits hold here: try again"
    said = next((said for said in config.limits.policies if not said.spec.shadow), None)
    if said is not None:
        return (
            grpc.StatusCode.UNAUTHENTICATED,
            f"RatePolicy {said.policy} limits callers by their certificates, and nothing here proves yours",
        )
    return None


def _refusing(code: grpc.StatusCode, message: str) -> Handler:
    """A handler that aborts a call of any shape."""
    made: Any = grpc

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(code, message, ((DECISION_KEY, "denied"),))

    handler: Handler = made.stream_stream_rpc_method_handler(refuse)
    return handler


def _text(details: bytes | str | None) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else details or ""
