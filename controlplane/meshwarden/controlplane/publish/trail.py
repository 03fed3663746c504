"""The way of a change through the mesh, as spans below that of the call which made it.

For each node: `compile`, until what it is to be told is known; `push`, until it was told; `acknowledge`, until its data
planes have taken or refused it. A change is known by its revision; what is told of one that nobody traces is forgotten.
Of many nodes some are followed, or spans would cost more than the change: `status` tells who of all is behind.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshwarden.certs.clock import utc_now
from meshwarden.v1 import node_service_pb2 as v1

TENANT: Final = "mesh.tenant"
# Changes that are under way at once; a node that stays behind by more of them is not waited for.
MAX_OPEN: Final = 256
# While so many are, what the mesh itself changes is told of and not followed: a fleet that starts changes much at once.
MAX_QUIET: Final = 16
# Nodes that a change is followed to; of more, so many spread over all by name.
MAX_NODES: Final = 8
_SCOPE: Final = "meshwarden.controlplane"
_STAGES: Final = ("compile", "push", "acknowledge")
_MAX_NAMED: Final = 16


@dataclass
class _Stage:
    """What a node is at: one of _STAGES, and since when."""

    number: int
    begun: datetime


@dataclass
class _Trail:
    context: Context
    parent: str
    tenant: str
    nodes: dict[str, _Stage]


class Trails:
    """The changes that are under way."""

    def __init__(self, provider: trace.TracerProvider | None = None, clock: Callable[[], datetime] = utc_now) -> None:
        """Spans go to `provider`, None for nowhere."""
        self._tracer, self._clock = (provider or trace.NoOpTracerProvider()).get_tracer(_SCOPE), clock
        self._open: OrderedDict[int, _Trail] = OrderedDict()
        # {node: the revisions that it is waited for with}
        self._awaited: dict[str, set[int]] = {}
        # What was published before its committer has heard of it: who it is for, and when.
        self._early: OrderedDict[int, tuple[frozenset[str], datetime]] = OrderedDict()

    def made(self, revision: int, tenant: str, by: str, changes: Sequence[str], parent: str, begun: datetime) -> None:
        """The mesh itself has committed a change, as the span `endpoints`.

        Args:
            revision: what it has made.
            tenant: whom the span is to be shown to; "" is the mesh's own.
            by: what has made it.
            changes: what was changed, "UPDATED Endpoint platform/node-a-orders-1".
            parent: the W3C traceparent of what has caused it, or empty.
            begun: when that was to be written.
        """
        above = TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())
        span = self._tracer.start_span("endpoints", above, start_time=nanoseconds(begun))
        with trace.use_span(span):
            self.committed(revision, tenant, by, changes, is_followed=len(self._open) < MAX_QUIET)
        span.end(nanoseconds(self._clock()))

    def committed(
        self, revision: int, tenant: str, by: str = "", changes: Sequence[str] = (), *, is_followed: bool = True
    ) -> None:
        """A change was committed within the present span.

        Args:
            revision: what it has made.
            tenant: whom the span is to be shown to; "" is the mesh's own.
            by: who made it.
            changes: what was changed, "UPDATED AccessPolicy platform/orders".
            is_followed: whether to tell how it comes to nodes.
        """
        here = trace.get_current_span()
        if not here.is_recording():
            return
        here.set_attribute("mesh.revision", revision)
        if by:
            here.set_attribute("mesh.by", by)
        if changes:
            more = [f"and {len(changes) - _MAX_NAMED} more"] if len(changes) > _MAX_NAMED else []
            here.set_attribute("mesh.changes", [*changes[:_MAX_NAMED], *more])
        if tenant:
            here.set_attribute(TENANT, tenant)
        if not is_followed or revision in self._open:
            return
        context, headers = trace.set_span_in_context(here, Context()), dict[str, str]()
        TraceContextTextMapPropagator().inject(headers, context)
        self._open[revision] = trail = _Trail(context, headers.get("traceparent", ""), tenant, {})
        if len(self._open) > MAX_OPEN:
            self._give_up(next(iter(self._open)))
        if (early := self._early.pop(revision, None)) is not None:
            self._publish(revision, trail, *early)

    def published(self, revision: int, nodes: Collection[str]) -> None:
        """A revision is to be told to these nodes."""
        trail = self._open.get(revision)
        if trail is not None:
            self._publish(revision, trail, nodes, self._clock())
            return
        self._early[revision] = frozenset(nodes), self._clock()
        if len(self._early) > MAX_OPEN:
            self._early.popitem(last=False)

    def compiled(self, node: str, revision: int) -> None:
        """What a node is to be told, up to a revision, is known."""
        self._step(node, revision, 0)

    def pushed(self, node: str, revision: int) -> None:
        """A node was told of everything up to a revision."""
        self._step(node, revision, 1)

    def acknowledged(self, node: str, revision: int, nacks: Sequence[v1.Nack]) -> None:
        """A node's data planes have taken or refused everything up to a revision."""
        for number, trail in self._waiting_for(node, revision):
            names = [nack.data_plane for nack in nacks if not trail.tenant or _is_of(nack.data_plane, trail.tenant)]
            self._end(number, trail, node, f"refused by {', '.join(names[:_MAX_NAMED])}" if names else "")

    def left(self, node: str) -> None:
        """A node's session has ended: what it has not acknowledged it may never."""
        for number, trail in self._waiting_for(node):
            self._end(number, trail, node, "the node left")

    def parent(self, node: str, revision: int) -> str:
        """The W3C traceparent of a change that is under way and followed to a node; "" otherwise."""
        trail = self._open.get(revision)
        return trail.parent if trail is not None and node in trail.nodes else ""

    def _waiting_for(self, node: str, revision: int | None = None) -> list[tuple[int, _Trail]]:
        awaited = self._awaited.get(node)
        if awaited is None:  # as most nodes are
            return []
        return [(number, self._open[number]) for number in sorted(awaited) if revision is None or number <= revision]

    def _publish(self, revision: int, trail: _Trail, nodes: Collection[str], now: datetime) -> None:
        for node in trail.nodes:  # it was read again
            self._forget(revision, node)
        trail.nodes = {node: _Stage(0, now) for node in followed(nodes)}
        for node in trail.nodes:
            self._awaited.setdefault(node, set()).add(revision)
        if not nodes:
            del self._open[revision]

    def _step(self, node: str, revision: int, stage: int) -> None:
        for number, trail in self._waiting_for(node, revision):
            if trail.nodes[node].number == stage:
                now = self._clock()
                self._span(number, trail, node, now)
                trail.nodes[node] = _Stage(stage + 1, now)

    def _end(self, revision: int, trail: _Trail, node: str, fault: str) -> None:
        self._span(revision, trail, node, self._clock(), fault)
        del trail.nodes[node]
        self._forget(revision, node)
        if not trail.nodes:
            del self._open[revision]

    def _forget(self, revision: int, node: str) -> None:
        self._awaited[node].discard(revision)
        if not self._awaited[node]:
            del self._awaited[node]

    def _give_up(self, revision: int) -> None:
        trail = self._open[revision]
        for node in list(trail.nodes):
            self._end(revision, trail, node, "given up: other changes are waited for")
        self._open.pop(revision, None)

    def _span(self, revision: int, trail: _Trail, node: str, now: datetime, fault: str = "") -> None:
        stage = trail.nodes[node]
        about: dict[str, str | int] = {"mesh.node": node, "mesh.revision": revision}
        if trail.tenant:
            about[TENANT] = trail.tenant
        span = self._tracer.start_span(
            _STAGES[stage.number], trail.context, attributes=about, start_time=nanoseconds(stage.begun)
        )
        if fault:
            span.set_status(trace.Status(trace.StatusCode.ERROR, fault))
        span.end(nanoseconds(now))


def followed(nodes: Collection[str]) -> list[str]:
    """The nodes, of so many, that something is followed to."""
    step = -(-len(nodes) // MAX_NODES) or 1
    return sorted(nodes)[::step]


def _is_of(data_plane: str, tenant: str) -> bool:
    """Whether a data plane, "acme/web#1", is a tenant's."""
    return data_plane.partition("/")[0] == tenant


def nanoseconds(moment: datetime) -> int:
    """A moment as spans have it, since 1970."""
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000
