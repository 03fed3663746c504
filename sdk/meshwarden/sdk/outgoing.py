"""What is kept of the calls that a program makes: a count, a span, and a word in the log when one is denied.

And which of them are not made: those that the destination would most likely refuse (`throttle`).
"""

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import grpc

from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.backpressure import criticality
from meshwarden.sdk.backpressure.retry import Retries
from meshwarden.sdk.backpressure.throttle import Throttle, is_refusal
from meshwarden.sdk.backpressure.throttled import CODE
from meshwarden.sdk.config import Config
from meshwarden.sdk.red.count import Call, Known
from meshwarden.sdk.tracing.span import Headers, Span
from meshwarden.sdk.tracing.trace import tracer
from meshwarden.v1.report_pb2 import CallStat

DECISION_KEY: Final = "mesh-decision"
"""Trailing metadata by which a server of ours says that a policy refused the call: "denied" or "limited"."""
_Decision: TypeAlias = "CallStat.Decision.ValueType"
_Key: TypeAlias = "tuple[str, str, CallStat.Decision.ValueType]"
# Looked up once: what hangs on an enumeration or a message is found by way of its class.
_OK: Final = grpc.StatusCode.OK
_ALLOWED: Final = CallStat.ALLOWED
# What grpc.aio says of a call that ended while a message was written, a moment before it knows how.
_LOST_DETAILS: Final = "Internal error from Core"
_MAX_METHODS: Final = 1024
# What C-core's RBAC filter answers, before any of our code runs.
_RBAC_DETAILS: Final = "Unauthorized RPC rejected"


class Outgoing:
    """The calls of one channel.

    Attributes:
        name: what was dialled, "orders" or "orders.platform".
        tracer: begins their spans; `answered` or `failed` is to be told when such a call ends. Or `begin` does.
        retries: of unary calls.
    """

    def __init__(
        self,
        link: AgentLink,
        name: str,
        *,
        throttled: bool = True,
        retries: int = 0,
        now_s: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Begins to keep them.

        Args:
            link: to the agent.
            name: what was dialled, "orders" or "orders.platform".
            throttled: whether a destination that refuses most calls is spared others.
            retries: how often a unary call may be made again.
            now_s: the present, of any clock that never goes back.
            chance: a number from 0 up to 1.

        Raises:
            ValueError: that many retries are not made.
        """
        self.tracer = tracer()
        self.name = name
        self._link = link
        self._known = Known(link.counter, self._call)
        self._throttled, self._now_s, self._chance = throttled, now_s, chance
        self._throttles = _Throttles(now_s)
        self.retries = Retries(retries, now_s, chance)

    def throttle(self, method: str) -> Throttle:
        """What is known of a method's calls; while it is `on`, `refusal` is to be asked before each."""
        return self._throttles[method]

    def refusal(self, method: str) -> str | None:
        """Why a call isn't made, which is counted and traced; None if it is to be made."""
        throttle, begun_s = self._throttles[method], time.perf_counter()
        if throttle.admits(self._now_s(), self._chance()):
            return None
        config, (refused, calls) = self._link.last_config, throttle.counts()
        message = (
            f"the SDK itself refuses this call, since {self._destination(config) or self.name} refused {refused} of "
            f"the last {calls} calls of {method}: try again later"
        )
        span = self.tracer.client(method, self.name)
        span.end(CODE, message)
        self._known.add(config, (method, CODE.name, CallStat.THROTTLED), begun_s, span.sampled)
        return message

    def begin(self, method: str) -> "OutgoingCall":
        """A call begins, whose end may be heard of from more than one side."""
        return OutgoingCall(self, method, self.tracer.client(method, self.name))

    def answered(self, method: str, span: Span, begun_s: float) -> None:
        """A call that began at `begun_s`, by `time.perf_counter`, has ended well."""
        self._throttles[method].accepted += 1
        if span.ends:
            span.end(_OK, "")
        self._known.add(self._link.last_config, (method, "OK", _ALLOWED), begun_s, span.sampled)

    def ended(
        self,
        method: str,
        span: Span,
        begun_s: float,
        code: grpc.StatusCode,
        details: str,
        trailing: Iterable[tuple[str, object]],
    ) -> None:
        """A call has ended, with any status."""
        if code is _OK:
            self.answered(method, span, begun_s)
            return
        trailing = tuple(trailing)
        throttle = self._throttles[method]
        if self._throttled and is_refusal(code, trailing):
            throttle.refused(self._now_s())
        elif details != _LOST_DETAILS:
            throttle.accepted += 1
        span.end(code, details)
        config = self._link.last_config
        decision = _decision(code, details, trailing)
        self._known.add(config, (method, code.name, decision), begun_s, span.sampled)
        if decision == CallStat.DENIED:
            caller = config.service if config else "TENANT/SERVICE"
            self._link.denials.say(caller, self.name, self._destination(config), method, span.sampled)

    def failed(self, method: str, span: Span, begun_s: float, error: BaseException) -> None:
        """A call has ended with an error: the answer's, or one that kept it from being made."""
        if isinstance(error, grpc.Call):
            code, details = error.code() or grpc.StatusCode.UNKNOWN, error.details() or ""
            self.ended(method, span, begun_s, code, details, error.trailing_metadata() or ())
        else:
            self.ended(method, span, begun_s, grpc.StatusCode.INTERNAL, str(error), ())

    def _call(self, config: Config | None, key: _Key) -> Call:
        method, status, decision = key
        return Call(
            source=str(config.spiffe_id) if config else "",
            destination=self._destination(config) or self.name,
            method=method,
            status=status,
            decision=decision,
            reporter=CallStat.SOURCE,
            revision=config.revision if config else 0,
        )

    def _destination(self, config: Config | None) -> str:
        found = config.names.get(self.name) if config else None
        if found is None and self.name.count(".") == 1:
            service, _, tenant = self.name.partition(".")
            found = f"{tenant}/{service}"
        return found or ""


class _Throttles(dict[str, Throttle]):
    """{method: what is known of its calls}; of more methods than a program has nothing is kept."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        super().__init__()
        self._now_s = now_s

    def __missing__(self, method: str) -> Throttle:
        made = Throttle(self._now_s())
        return self.setdefault(method, made) if len(self) < _MAX_METHODS else made


class OutgoingCall:
    """One call; `end` may be told more than once, and the first time counts."""

    __slots__ = ("_begun_s", "_method", "_open", "_outgoing", "_span")

    def __init__(self, outgoing: Outgoing, method: str, span: Span) -> None:
        self._outgoing = outgoing
        self._method = method
        self._span = span
        self._begun_s = time.perf_counter()
        self._open = threading.Lock()

    @property
    def headers(self) -> Headers:
        """What goes along with the call."""
        return along(self._span)

    def end(self, code: grpc.StatusCode | None, details: str | None, trailing: Iterable[tuple[str, object]]) -> None:
        """The call has ended."""
        if not self._open.acquire(blocking=False):
            return
        code = code or grpc.StatusCode.UNKNOWN
        self._outgoing.ended(self._method, self._span, self._begun_s, code, details or "", trailing)


def along(span: Span) -> Headers:
    """What goes along with a call: its trace, and how much it matters, as far as the call being served has said."""
    level = criticality.headers()
    return (*span.headers, *level) if level else span.headers


def _decision(code: grpc.StatusCode, details: str, trailing: Iterable[tuple[str, object]]) -> _Decision:
    if code is grpc.StatusCode.PERMISSION_DENIED and details == _RBAC_DETAILS:
        return CallStat.DENIED
    said = next((value for name, value in trailing if name == DECISION_KEY), None)
    if said == "denied":
        return CallStat.DENIED
    return CallStat.LIMITED if said == "limited" else CallStat.ALLOWED
