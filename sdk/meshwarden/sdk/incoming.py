"""What happens to each call that a program serves, before its handler and after.

The caller's certificate is checked against the bundle of the moment, its tenant's limit is asked, and the call is
counted and traced. Who may call was settled before by gRPC's own RBAC, which the agent feeds.
"""

import contextlib
import contextvars
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from grpc import _server

from meshwarden.certs.clock import Clock
from meshwarden.certs.verify import PeerRefused, VerifiedPeer
from meshwarden.sdk.access import Access
from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.backpressure import criticality
from meshwarden.sdk.backpressure.room import MOST_CALLS
from meshwarden.sdk.config import Config
from meshwarden.sdk.deadline import Deadline
from meshwarden.sdk.mtls.caller import Caller, Callers
from meshwarden.sdk.outgoing import DECISION_KEY
from meshwarden.sdk.quota import cost
from meshwarden.sdk.quota.admission import FREE
from meshwarden.sdk.quota.limits import Limits
from meshwarden.sdk.red.count import Call, Known
from meshwarden.sdk.tracing.span import Span
from meshwarden.sdk.tracing.trace import tracer
from meshwarden.v1.node_service_pb2 import ServerAccess
from meshwarden.v1.report_pb2 import CallStat

# Neither limited nor counted: the agent asks every second, and asking must not use up a tenant's calls.
HEALTH: Final = "/grpc.health.v1.Health/"
"""How the methods that are neither limited nor counted begin."""
Key: TypeAlias = "tuple[str, str, str, CallStat.Decision.ValueType, str]"
"""The caller's SPIFFE ID, the method, the name of the status, the decision of the policies, and which rule in dry run
would have made it the opposite."""
# Looked up once: what hangs on an enumeration or a message is found by way of its class.
LONGEST_HOLD_S: Final = 0.5
"""After so long a stream that waits asks again whether it must."""
_OK: Final = grpc.StatusCode.OK
_ALLOWED: Final = CallStat.ALLOWED
_peer: contextvars.ContextVar[VerifiedPeer | None] = contextvars.ContextVar("meshwarden_sdk_peer", default=None)


def current_peer() -> VerifiedPeer | None:
    """Who is calling, inside a handler; None outside of a call."""
    return _peer.get()


class Incoming:
    """The calls of one server.

    All that `begin` and `IncomingCall` do is done at each call, and code that ran a millisecond ago is out of the
    processor's caches again. There each function costs about a microsecond, whatever is in it, so there are few.

    Attributes:
        config: what the agent has said last.
        counted: what counts them, by their key.
    """

    def __init__(
        self,
        link: AgentLink,
        clock: Clock,
        monotonic_s: Callable[[], float] = time.monotonic,
        most_calls: int = MOST_CALLS,
    ) -> None:
        """Begins to listen to the agent, which must have said already who the program is (`AgentLink.wait`).

        Args:
            link: to the agent.
            clock: the present, for checking certificates.
            monotonic_s: the same, for limits.
            most_calls: how many calls the server could serve at once and refuse one more.
        """
        self.config: Config = link.config
        self.counted = Known(link.counter, served_call)
        self._tracer = tracer()
        self._link = link
        self._limits = Limits(link, monotonic_s, most_calls)
        self._callers = Callers(lambda: self.config.federated, clock, self.config.spiffe_id.trust_domain)
        self._said: ServerAccess | None = None
        # What gRPC's own RBAC doesn't ask: what policies in dry run would say. None where there are none.
        self._access: Access | None = None
        self._open: dict[int, tuple[Caller, Any]] = {}
        self.swept = 0
        """How many streams `sweep` has ended."""
        self._to_sweep = threading.Event()
        self._numbers = itertools.count()
        link.listen(self._configured)

    def close(self) -> None:
        """Listens to the agent no more."""
        self._to_sweep.set()
        self._link.unlisten(self._configured)
        self._limits.close()

    def wait_to_sweep(self, timeout_s: float) -> None:
        """Returns when somebody was denied, or after `timeout_s`; certificates end at any time."""
        if self._to_sweep.wait(timeout_s):
            self._to_sweep.clear()

    def sweep(self) -> int:
        """Ends the open streams whose caller's certificate is good no more, and returns how many there were."""
        refused = 0
        for caller, context in list(self._open.values()):
            if not self._callers.is_good(caller):
                context.cancel()
                refused += 1
        self.swept += refused
        return refused

    def begin(self, method: str, context: Any, stream: bool) -> "IncomingCall":
        """Checks a call that has come in, and aborts it if it may not go on.

        Raises:
            Exception: that of `context.abort`.
        """
        call = IncomingCall()
        call.begun_s = time.perf_counter()
        call.incoming, call.method, call.context = self, method, context
        try:
            caller = self._callers.identify(context)
        except PeerRefused as refusal:
            self._refuse(call, grpc.StatusCode.UNAUTHENTICATED, f"your certificate was refused: {refusal}", "denied")
        _peer.set(caller.peer)
        call.source = caller.source
        if not method.startswith(HEALTH):
            metadata = context.invocation_metadata()
            call.span = self._tracer.server(method, metadata, caller.source)
            criticality.serve(metadata)
            if self._access is not None:
                call.dry_run = self._access.decide(caller.source, method, metadata).dry_run
        if stream:
            number = next(self._numbers)
            self._open[number] = (caller, context)
            call.at_end(lambda: self._open.pop(number, None))
        if self._limits.on and call.span is not None:
            self._admit(call, method, caller.tenant, metadata)  # last: who has the call gives back what it takes
        return call

    def _admit(self, call: "IncomingCall", method: str, tenant: str, metadata: Sequence[Any]) -> None:
        try:
            admission = self._limits.admit(tenant, method, metadata)
            if admission.decision.coming is not None:
                told = tenant, method, metadata
                admission = self._limits.wait(admission, told, call.context.time_remaining())
            call.admission = admission
        except cost.Malformed as error:
            self._refuse(call, grpc.StatusCode.INVALID_ARGUMENT, str(error), "denied")
        if not admission.decision.allowed:
            limited = self._limits.refusal(admission.decision, tenant, method)
            open_answer(call.context, limited.headers)
            # Of a server that can do no more it is no policy's doing that a call fails.
            decision = "" if limited.code is grpc.StatusCode.UNAVAILABLE else "limited"
            self._refuse(call, limited.code, limited.message, decision, *limited.trailing)

    def _refuse(
        self,
        call: "IncomingCall",
        code: grpc.StatusCode,
        message: str,
        decision: str,
        *trailing: tuple[str, str | bytes],
    ) -> NoReturn:
        if decision:
            call.refused(CallStat.LIMITED if decision == "limited" else CallStat.DENIED)
            trailing = ((DECISION_KEY, decision), *trailing)
        call.context.set_trailing_metadata(trailing)
        call.end(code, message)
        open_answer(call.context)
        call.context.abort(code, message)
        raise AssertionError("abort raises")

    def _configured(self, config: Config) -> None:
        before, self.config = self.config, config
        if config.deny_list is not before.deny_list or config.deny_list:
            self._callers.deny(config.deny_list)
            self._to_sweep.set()
        self._limits.update(config.limits)
        if config.access is not self._said:
            said = self._said = config.access
            is_dry = said is not None and any(policy.spec.dry_run for policy in said.policies)
            self._access = Access(said, config.spiffe_id.trust_domain) if said is not None and is_dry else None


class IncomingCall:
    """One call; `end` may be told more than once of a stream, and the first time counts.

    Attributes:
        incoming: those of its server.
        method: "/package.Service/Method", or `OTHER`.
        context: its own, of grpc.
        begun_s: when it began, by `time.perf_counter`.
        admission: what it holds of the policies; held until `leave`.
        source: the caller's SPIFFE ID, as soon as it is known.
        span: its own, from then on; ended even if the handler never hears that the call was.
        dry_run: the rule in dry run by which it would have been denied.
    """

    # `begin` gives each call these: a function for it would be one more.
    incoming: Incoming
    method: str
    context: Any
    begun_s: float
    # Of most calls these stay as they are.
    admission = FREE
    source = ""
    dry_run = ""
    span: Span | None = None
    _decision: CallStat.Decision.ValueType = _ALLOWED
    _last: Callable[[], object] | None = None
    _open: "threading.Lock | None" = None
    _over: threading.Event | None = None

    def leave(self, is_measured: bool = False) -> None:
        """The handler has ended, whatever becomes of its answer; see `Admission.end`."""
        self.admission.end(self.context.trailing_metadata() or (), is_measured=is_measured)

    def hold(self) -> None:
        """Waits until what messages have taken too much is paid, or the call is over."""
        while (wait_s := self.admission.owed_s()) > 0:
            if self._over is None:
                self._over = threading.Event()
                if not self.context.add_callback(self._over.set):
                    return
            # A larger share may come meanwhile.
            if self._over.wait(min(wait_s, LONGEST_HOLD_S)):
                return

    def at_end(self, last: Callable[[], object]) -> None:
        """Has `last` called at the end of the call, which is watched for from now on, by a thread of grpc."""
        self._last = last
        self._open = threading.Lock()
        if not self.context.add_callback(self.gone):
            self.gone()

    def refused(self, decision: "CallStat.Decision.ValueType") -> None:
        """A policy stands against the call."""
        self._decision = decision

    def gone(self) -> None:
        """The call is over, whatever its handler does yet."""
        left_s = self.context.time_remaining()
        given_s = None if left_s is None else left_s + time.perf_counter() - self.begun_s
        self.end(Deadline(given_s).code(left_s), "the caller has gone")

    def returned(self) -> None:
        """The handler has come to its end."""
        context = self.context
        try:  # what the two below say, without the five functions and the lock that they go through
            code, is_active = context._state.code, _server._is_rpc_state_active(context._state)
        except AttributeError:  # a grpcio in which this is elsewhere, or a context of another kind
            code, is_active = context.code(), context.is_active()
        if not is_active:
            self.gone()
        elif code is None or code is _OK:
            self.end(_OK, "")
        else:
            self.end(code, _text(context.details()))

    def raised(self, error: BaseException) -> None:
        """The handler has raised: by `abort`, or by a fault of its own."""
        code = self.context.code()
        if isinstance(error, GeneratorExit) or (code is None and not self.context.is_active()):
            self.gone()
        elif code is None or code is _OK:
            self.end(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}"[:500])
        else:
            self.end(code, _text(self.context.details()))

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """The call has ended."""
        if self._open is not None and not self._open.acquire(blocking=False):
            return
        if self._last is not None:
            self._last()
        span, trace = self.span, None
        if span is not None:
            if span.ends:
                span.end(code, details)
            trace = span.sampled
        elif self.method.startswith(HEALTH):
            return
        incoming = self.incoming
        key = (self.source, self.method, "OK" if code is _OK else code.name, self._decision, self.dry_run)
        incoming.counted.add(incoming.config, key, self.begun_s, trace)


def served_call(config: Config, key: Key) -> Call:
    """What is counted of a call that was served.

    Args:
        config: who serves, and by which policies.
        key: of the call; the caller is empty if nobody has proved who it is.
    """
    source, method, status, decision, dry_run = key
    return Call(
        source=source,
        destination=config.service,
        method=method,
        status=status,
        decision=decision,
        reporter=CallStat.DESTINATION,
        revision=config.revision,
        dry_run=dry_run,
    )


def open_answer(context: Any, headers: tuple[tuple[str, str], ...] = ()) -> None:
    """Sends the answer's headers, if they haven't been sent.

    C-core's xDS servers abort the process when headers and status go out in one batch without a message between, which
    is what grpc does with each error (seen in 1.85.1 and 1.85.3: "pipe.h: Check failed: has_value()").
    """
    with contextlib.suppress(ValueError):  # sent already
        context.send_initial_metadata(headers)


def _text(details: bytes | str | None) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else details or ""
