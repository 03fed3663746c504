"""What happens to each call that a program serves, before its handler and after.

The caller's certificate is checked against the bundle of the moment, its tenant's limit is asked, and the call is
counted and traced. Who may call was settled before by gRPC's own RBAC, which the agent feeds.
"""

import contextlib
import contextvars
import itertools
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.verify import PeerRefused, PeerVerifier, VerifiedPeer
from meshwarden.sdk.agent import AgentLink, Config
from meshwarden.sdk.count import Call
from meshwarden.sdk.deadline import Deadline
from meshwarden.sdk.limits import Limits
from meshwarden.sdk.outgoing import DECISION_KEY
from meshwarden.sdk.span import Span
from meshwarden.sdk.trace import tracer
from meshwarden.v1.report_pb2 import CallStat

# Neither limited nor counted: the agent asks every second, and asking must not use up a tenant's calls.
HEALTH: Final = "/grpc.health.v1.Health/"
"""How the methods that are neither limited nor counted begin."""
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
        self._limits = Limits(link, monotonic_s)
        self._verifier = PeerVerifier(lambda: link.config.bundles, clock)
        self._chains: dict[tuple[bytes, ...], tuple[bytes, ...]] = {}
        self._open: dict[int, tuple[tuple[bytes, ...], Any]] = {}
        self._numbers = itertools.count()
        link.listen(self._configured)

    def close(self) -> None:
        """Listens to the agent no more."""
        self._link.unlisten(self._configured)
        self._limits.close()

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
        if not method.startswith(HEALTH):
            self._limit(call, peer, method)
        if stream:
            number = next(self._numbers)
            self._open[number] = (chain, context)
            call.at_end(lambda: self._open.pop(number, None))
        return call

    def _limit(self, call: "IncomingCall", peer: VerifiedPeer, method: str) -> None:
        tenant = peer.spiffe_id.tenant or ""
        decision = self._limits.take(tenant, method)
        if not decision.allowed:
            message, trailing = self._limits.refusal(decision, tenant, method)
            self._refuse(call, grpc.StatusCode.RESOURCE_EXHAUSTED, message, "limited", *trailing)

    def _refuse(
        self,
        call: "IncomingCall",
        code: grpc.StatusCode,
        message: str,
        decision: str,
        *trailing: tuple[str, str | bytes],
    ) -> None:
        call.refused(CallStat.LIMITED if decision == "limited" else CallStat.DENIED)
        call.context.set_trailing_metadata(((DECISION_KEY, decision), *trailing))
        call.end(code, message)
        open_answer(call.context)
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
            chain = tuple(dict.fromkeys(certificate.public_bytes(Encoding.DER) for certificate in certificates))
            if len(self._chains) >= _MAX_CHAINS:
                self._chains.clear()
            self._chains[pem] = chain
        return chain

    def _configured(self, config: Config) -> None:
        self._limits.update(config.limits)


class IncomingCall:
    """One call; `end` may be told more than once, and the first time counts."""

    def __init__(self, link: AgentLink, method: str, context: Any) -> None:
        self.context = context
        self._link = link
        self._method = method
        self._source = ""
        self._decision: CallStat.Decision.ValueType = CallStat.ALLOWED
        self._begun_s = time.perf_counter()
        self._deadline = Deadline(context.time_remaining())
        self._span: Span | None = None
        self._last: Callable[[], object] | None = None
        self._open = threading.Lock()

    def identified(self, peer: VerifiedPeer) -> None:
        """The caller is known; the call's span begins, and ends even if the handler never hears that the call did."""
        self._source = str(peer.spiffe_id)
        if not self._method.startswith(HEALTH):
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
        self.end(self._deadline.code(self.context.time_remaining()), "the caller has gone")

    def returned(self) -> None:
        """The handler has come to its end."""
        if not self.context.is_active():
            self.gone()
        code = self.context.code() or grpc.StatusCode.OK
        self.end(code, _text(self.context.details()))

    def raised(self, error: BaseException) -> None:
        """The handler has raised: by `abort`, or by a fault of its own."""
        code = self.context.code()
        if isinstance(error, GeneratorExit) or (code is None and not self.context.is_active()):
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
        if self._method.startswith(HEALTH):
            return
        counted = served_call(self._link.config, self._source, self._method, code, self._decision)
        trace = self._span.sampled if self._span is not None else None
        self._link.counter.add(counted, time.perf_counter() - self._begun_s, trace)


def served_call(
    config: Config, source: str, method: str, code: grpc.StatusCode, decision: "CallStat.Decision.ValueType"
) -> Call:
    """What is counted of a call that was served.

    Args:
        config: who serves, and by which policies.
        source: the caller's SPIFFE ID; empty if it has none.
        method: "/package.Service/Method".
        code: how it ended.
        decision: the policies'.
    """
    return Call(
        source=source,
        destination=config.service,
        method=method,
        status=code.name,
        decision=decision,
        reporter=CallStat.DESTINATION,
        revision=config.revision,
    )


def open_answer(context: Any) -> None:
    """Sends the answer's headers, if they haven't been sent.

    C-core's xDS servers abort the process when headers and status go out in one batch without a message between, which
    is what grpc does with each error (seen in 1.85.1 and 1.85.3: "pipe.h: Check failed: has_value()").
    """
    with contextlib.suppress(ValueError):  # sent already
        context.send_initial_metadata(())


def _text(details: bytes | str | None) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else details or ""
