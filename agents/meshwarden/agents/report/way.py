"""Something on its way to the workloads of a node, as a span and those below it.

`deliver`, for each of some workloads, begins when its certificate is there, and ends when that and what to trust lie in
the workload's directory and its Envoy has taken them. `connect` begins when the node's certificate is there, and ends
when the control plane has welcomed a session with it. The way is over when all of them are.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from opentelemetry import trace
from opentelemetry.context import Context

from meshwarden.agents.identity.credentials import Credentials
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import Workload

# Workloads that are followed; of more, so many spread over all by name.
MAX_WORKLOADS: Final = 32


class Answers(Protocol):
    """What the node's data planes have said; by id, "acme/web#1/envoy"."""

    def waiting(self) -> Collection[str]:
        """Those whose answer is outstanding."""

    def connected(self) -> Collection[str]:
        """Those that are here."""


@dataclass(frozen=True)
class Node:
    """What a node knows of its certificates.

    Attributes:
        registry: what runs.
        credentials: the workloads' certificates.
        serial: of the node's own.
        errors: what is wrong with workloads, `{workload id: reason}`.
    """

    registry: Registry
    credentials: Credentials
    serial: Callable[[], str]
    errors: Callable[[], Mapping[str, str]]


@dataclass
class _Part:
    """Something that is under way: the serial that it is to differ from, and the span since it does."""

    serial: str
    span: trace.Span | None = None


@dataclass(frozen=True)
class Look:
    """What is seen at one moment.

    Attributes:
        serial: of the certificate with which there is a session; empty if there is none.
        answers: None before data planes can come.
        is_configured: whether configuration has come since the agent has started.
        errors: what is wrong with workloads, `{workload id: reason}`; only where a way is there that asks for it.
    """

    serial: str
    answers: Answers | None
    is_configured: bool
    errors: Mapping[str, str]

    def is_settled(self) -> bool:
        """Whether configuration has come and all data planes have answered to it."""
        return self.is_configured and self.answers is not None and not self.answers.waiting()

    def has_answered(self, data_plane: str, *, must_come: bool) -> bool:
        """Whether a data plane has what it is to have; one that is not here has, unless it must come first."""
        if self.answers is None:
            return False
        return data_plane not in self.answers.waiting() and (not must_come or data_plane in self.answers.connected())


class Way:
    """One of them. It begins when it is made."""

    def __init__(self, tracer: trace.Tracer, node: Node, span: trace.Span, *, must_come: bool = False) -> None:
        """Follows nothing yet.

        Args:
            tracer: makes the spans below.
            node: this node.
            span: the way's own.
            must_come: whether it waits for Envoys that are still to come, too.
        """
        self._tracer, self._node, self.span, self.must_come = tracer, node, span, must_come
        self.context: Final = trace.set_span_in_context(span, Context())
        """For what is done below it."""
        self.unsigned: set[str] = set()
        """The entries, "tenant/name", whose signing is to be below it."""
        self.is_node_unsigned = False
        """Whether that of the node's certificate is."""
        self.is_signing = False
        """Whether they are being signed: what went wrong before says nothing of it."""
        self.awaits_new = False
        """Whether it waits for other certificates than there are."""
        self._deliveries: dict[str, _Part] = {}
        self._connection: _Part | None = None
        self._settling: trace.Span | None = None
        self._faults = 0

    def follow(self, names: Iterable[str], *, anew: bool = True) -> None:
        """Follows what goes to workloads, or to some of many; `anew` to wait for certificates that they don't have."""
        found, self.awaits_new = sorted(names), anew
        self.span.set_attribute("mesh.workloads", len(found))
        for name in found[:: -(-len(found) // MAX_WORKLOADS) or 1]:
            svid = self._node.credentials.svid(name) if anew else None
            self._deliveries[name] = _Part(svid.serial if svid is not None else "")

    def follow_node(self, serial: str) -> None:
        """Follows the node's own certificate, which is to be another than that of this serial."""
        self._connection, self.awaits_new = _Part(serial), bool(serial)

    def follow_configuration(self) -> None:
        """Follows the first configuration that comes, until all data planes have it."""
        self._settling = self._tracer.start_span("configure", self.context)

    @property
    def workloads(self) -> Collection[str]:
        """The ids of those that are waited for."""
        return self._deliveries.keys()

    def look(self, seen: Look) -> bool:
        """Ends what is over; whether the way is."""
        for name, part in list(self._deliveries.items()):
            self._step(name, part, seen)
        if self._connection is not None:
            self._connect(self._connection, seen)
        if self._settling is not None and seen.is_settled():
            self._settling.end()
            self._settling = None
        if self._deliveries or self._connection is not None or self._settling is not None:
            return False
        if self._faults:
            self._fail(self.span, f"{self._faults} are without it")
        self.span.end()
        return True

    def give_up(self, fault: str) -> None:
        """Ends it as it is."""
        for name in list(self._deliveries):
            self.leave(name, fault)
        self.leave_node(fault)
        for span in (self._settling, self.span):
            if span is not None:
                self._fail(span, fault)
                span.end()

    def leave(self, name: str, fault: str = "") -> None:
        """A workload is not waited for any more: it has what it is to have, or will not get it because of a fault."""
        part = self._deliveries.pop(name, None)
        if part is not None:
            self._end(part.span, "deliver", {"mesh.workload": name}, fault)

    def leave_node(self, fault: str = "") -> None:
        """The node's certificate is not waited for any more."""
        part, self._connection = self._connection, None
        if part is not None:
            self._end(part.span, "connect", {}, fault)

    def _step(self, name: str, part: _Part, seen: Look) -> None:
        workload, svid = self._node.registry.workloads.get(name), self._node.credentials.svid(name)
        if workload is None:
            self.leave(name, "the workload has ended")
            return
        if svid is not None and svid.serial != part.serial:
            if part.span is None:
                about = {"mesh.workload": name, "mesh.serial": svid.serial}
                part.span = self._tracer.start_span("deliver", self.context, attributes=about)
            if self._has_it(workload, seen):
                self.leave(name)
                return
        if reason := self._reason(workload, part, seen):
            self.leave(name, reason)

    def _has_it(self, workload: Workload, seen: Look) -> bool:
        if not self._node.credentials.is_delivered(workload):
            return False
        must_come = self.must_come and workload.has_envoy and self._node.registry.is_admitted(workload.id)
        return seen.has_answered(f"{workload.id}/envoy", must_come=must_come)

    def _reason(self, workload: Workload, part: _Part, seen: Look) -> str:
        """Why a workload won't get it; empty if it may."""
        if self.must_come:
            return seen.errors.get(workload.id, "")
        if self.is_signing:
            return ""
        errors = self._node.credentials.errors()
        return errors.get(workload.id, "") or (errors.get(workload.entry_name, "") if part.span is None else "")

    def _connect(self, part: _Part, seen: Look) -> None:
        serial = self._node.serial()
        if serial == part.serial:
            return
        if part.span is None:
            part.span = self._tracer.start_span("connect", self.context, attributes={"mesh.serial": serial})
        if seen.serial == serial:
            self.leave_node()

    def _end(self, span: trace.Span | None, name: str, about: Mapping[str, str], fault: str) -> None:
        if span is None:
            span = self._tracer.start_span(name, self.context, attributes=about)
        if fault:
            self._faults += 1
            self._fail(span, fault)
        span.end()

    @staticmethod
    def _fail(span: trace.Span, fault: str) -> None:
        span.set_status(trace.Status(trace.StatusCode.ERROR, fault))
