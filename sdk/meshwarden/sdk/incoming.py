"""What happens to each call that a program serves, before its handler and after.

The caller's certificate is checked against the bundle of the moment, its tenant's limit is asked, and the call is
counted and traced. Who may call was settled before by gRPC's own RBAC, which the agent feeds.
"""

import contextlib
import contextvars
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.verify import PeerRefused, PeerVerifier, VerifiedPeer
from meshwarden.sdk import criticality
from meshwarden.sdk.agent import AgentLink, Config
from meshwarden.sdk.count import Call, Known
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
Key: TypeAlias = "tuple[str, str, str, CallStat.Decision.ValueType]"
"""The caller's SPIFFE ID, the method, the name of the status, and the decision of the policies."""
# Looked up once: what hangs on an enumeration or a message is found by way of its class.
_OK: Final = grpc.StatusCode.OK
_ALLOWED: Final = CallStat.ALLOWED
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
        self._known = Known(served_call)
        self._chains: dict[tuple[bytes, ...], _Shown] = {}
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
        call = IncomingCall(self._link, self._known, method, context)
        try:
            shown = self._shown(context)
            peer = self._verifier.check(shown.chain)
        except PeerRefused as refusal:
            self._refuse(call, grpc.StatusCode.UNAUTHENTICATED, f"your certificate was refused: {refusal}", "denied")
            raise AssertionError("abort raises") from None
        _peer.set(peer)
        if shown.peer is not peer:
            shown.name(peer)
        call.source = shown.source
        if not call.is_health:
            metadata = context.invocation_metadata()
            call.span = tracer().server(method, metadata, shown.source)
            criticality.serve(metadata)
            self._limit(call, peer, method)
        if stream:
            number = next(self._numbers)
            self._open[number] = (shown.chain, context)
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

    def _shown(self, context: Any) -> "_Shown":
        """What the certificates of a connection are, kept by what they are in PEM.

        Raises:
            PeerRefused: they can't be read.
        """
        said = _auth_context(context)
        # "x509_pem_cert" is the leaf, and "x509_pem_cert_chain" what came with it: on a server without the leaf
        # (BoringSSL, SSL_get_peer_cert_chain).
        leaf, rest = tuple(said.get(b"x509_pem_cert") or ()), tuple(said.get(b"x509_pem_cert_chain") or ())
        pem = rest if rest[:1] == leaf else leaf + rest
        shown = self._chains.get(pem)
        if shown is None:
            try:
                certificates = x509.load_pem_x509_certificates(b"".join(pem)) if pem else []
            except UNREADABLE:
                raise PeerRefused("chain: not X.509 certificates") from None
            chain = tuple(dict.fromkeys(certificate.public_bytes(Encoding.DER) for certificate in certificates))
            if len(self._chains) >= _MAX_CHAINS:
                self._chains.clear()
            shown = self._chains[pem] = _Shown(chain)
        return shown

    def _configured(self, config: Config) -> None:
        self._limits.update(config.limits)


class _Shown:
    """The certificates that callers show, and who that is as text, as long as the check says so at each call."""

    __slots__ = ("chain", "peer", "source")

    def __init__(self, chain: tuple[bytes, ...]) -> None:
        """`chain` in DER, leaf first; empty where none is shown."""
        self.chain = chain
        self.peer: VerifiedPeer | None = None
        self.source = ""

    def name(self, peer: VerifiedPeer) -> None:
        """The check says anew who it is."""
        self.source = str(peer.spiffe_id)
        self.peer = peer  # last: whoever sees it sees the text of it


class IncomingCall:
    """One call; `end` may be told more than once, and the first time counts.

    Attributes:
        context: its own, of grpc.
        source: the caller's SPIFFE ID, as soon as it is known.
        span: its own, from then on; ended even if the handler never hears that the call was.
        is_health: whether it is neither limited nor counted.
    """

    __slots__ = (
        "_begun_s",
        "_decision",
        "_known",
        "_last",
        "_link",
        "_method",
        "_open",
        "context",
        "is_health",
        "source",
        "span",
    )

    def __init__(self, link: AgentLink, known: "Known[Config, Key]", method: str, context: Any) -> None:
        self.context = context
        self.source = ""
        self.span: Span | None = None
        self.is_health = method.startswith(HEALTH)
        self._link = link
        self._known = known
        self._method = method
        self._decision: CallStat.Decision.ValueType = _ALLOWED
        self._begun_s = time.perf_counter()
        self._last: Callable[[], object] | None = None
        self._open = threading.Lock()

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
        left_s = self.context.time_remaining()
        given_s = None if left_s is None else left_s + time.perf_counter() - self._begun_s
        self.end(Deadline(given_s).code(left_s), "the caller has gone")

    def returned(self) -> None:
        """The handler has come to its end."""
        context = self.context
        if not context.is_active():
            self.gone()
        code = context.code()
        if code is None or code is _OK:
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
        if not self._open.acquire(blocking=False):
            return
        if self._last is not None:
            self._last()
        span = self.span
        if span is not None:
            span.end(code, details)
        if self.is_health:
            return
        status = "OK" if code is _OK else code.name
        counted = self._known.get(self._link.config, (self.source, self._method, status, self._decision))
        trace = span.sampled if span is not None else None
        self._link.counter.add(counted, time.perf_counter() - self._begun_s, trace)


def served_call(config: Config, key: Key) -> Call:
    """What is counted of a call that was served.

    Args:
        config: who serves, and by which policies.
        key: of the call; the caller is empty if nobody has proved who it is.
    """
    source, method, status, decision = key
    return Call(
        source=source,
        destination=config.service,
        method=method,
        status=status,
        decision=decision,
        reporter=CallStat.DESTINATION,
        revision=config.revision,
    )


def _auth_context(context: Any) -> Mapping[bytes, Sequence[bytes]]:
    """What `context.auth_context()` says, with its names as they are."""
    # To make text of all of them, at each call, is more than half of what it takes.
    try:
        return cygrpc.auth_context(context._rpc_event.call) or {}
    except AttributeError:  # a grpcio in which this is elsewhere, or a context of another kind
        return {name.encode(): values for name, values in context.auth_context().items()}


def open_answer(context: Any) -> None:
    """Sends the answer's headers, if they haven't been sent.

    C-core's xDS servers abort the process when headers and status go out in one batch without a message between, which
    is what grpc does with each error (seen in 1.85.1 and 1.85.3: "pipe.h: Check failed: has_value()").
    """
    with contextlib.suppress(ValueError):  # sent already
        context.send_initial_metadata(())


def _text(details: bytes | str | None) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else details or ""
