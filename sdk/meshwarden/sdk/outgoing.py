"""What is kept of the calls that a program makes: a count, a span, and a word in the log when one is denied."""

import threading
import time
from collections.abc import Iterable
from typing import Final

import grpc

from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.count import Call
from meshwarden.sdk.exemplar import TraceIds
from meshwarden.sdk.span import Headers, Span
from meshwarden.sdk.trace import tracer
from meshwarden.v1.report_pb2 import CallStat

DECISION_KEY: Final = "mesh-decision"
"""Trailing metadata by which a server of ours says that a policy refused the call: "denied" or "limited"."""
# What C-core's RBAC filter answers, before any of our code runs.
_RBAC_DETAILS: Final = "Unauthorized RPC rejected"


class Outgoing:
    """The calls of one channel."""

    def __init__(self, link: AgentLink, name: str) -> None:
        """`name` is what was dialled, "orders" or "orders.platform"."""
        self._link = link
        self._name = name

    def begin(self, method: str) -> "OutgoingCall":
        """A call begins."""
        return OutgoingCall(self, method, tracer().client(method, self._name))

    def ended(
        self,
        method: str,
        duration_s: float,
        code: grpc.StatusCode,
        details: str,
        trailing: Iterable[tuple[str, object]],
        trace: TraceIds | None = None,
    ) -> None:
        """A call has ended; `trace` is where it is recorded."""
        config = self._link.find_config()
        destination = self._destination()
        decision = _decision(code, details, trailing)
        call = Call(
            source=str(config.spiffe_id) if config else "",
            destination=destination or self._name,
            method=method,
            status=code.name,
            decision=decision,
            reporter=CallStat.SOURCE,
            revision=config.revision if config else 0,
        )
        self._link.counter.add(call, duration_s, trace)
        if decision == CallStat.DENIED:
            caller = config.service if config else "TENANT/SERVICE"
            self._link.denials.say(caller, self._name, destination, method, trace)

    def _destination(self) -> str:
        config = self._link.find_config()
        found = config.names.get(self._name) if config else None
        if found is None and self._name.count(".") == 1:
            service, _, tenant = self._name.partition(".")
            found = f"{tenant}/{service}"
        return found or ""


class OutgoingCall:
    """One call; `end` may be told more than once, and the first time counts."""

    def __init__(self, outgoing: Outgoing, method: str, span: Span) -> None:
        self._outgoing = outgoing
        self._method = method
        self._span = span
        self._begun_s = time.perf_counter()
        self._open = threading.Lock()

    @property
    def headers(self) -> Headers:
        """What goes along with the call."""
        return self._span.headers

    def end(self, code: grpc.StatusCode | None, details: str | None, trailing: Iterable[tuple[str, object]]) -> None:
        """The call has ended."""
        if not self._open.acquire(blocking=False):
            return
        duration_s = time.perf_counter() - self._begun_s
        code = code or grpc.StatusCode.UNKNOWN
        self._span.end(code, details or "")
        self._outgoing.ended(self._method, duration_s, code, details or "", trailing, self._span.sampled)


def _decision(
    code: grpc.StatusCode, details: str, trailing: Iterable[tuple[str, object]]
) -> CallStat.Decision.ValueType:
    if code is grpc.StatusCode.OK:
        return CallStat.ALLOWED
    if code is grpc.StatusCode.PERMISSION_DENIED and details == _RBAC_DETAILS:
        return CallStat.DENIED
    said = next((value for name, value in trailing if name == DECISION_KEY), None)
    if said == "denied":
        return CallStat.DENIED
    return CallStat.LIMITED if said == "limited" else CallStat.ALLOWED
