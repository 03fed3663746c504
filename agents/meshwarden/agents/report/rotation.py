"""What becomes of certificates and of the roots on this node, each as one trace: from its cause to the workloads.

    renew   certificates are renewed: half of their life is over, or somebody asks for it, below whose span it is then
    issue   an entry's first certificate, below the registration that wants it
    trust   the roots have changed, below the control plane's span of that
    start   the agent has started: its identity, its session, and what went on running meanwhile

Calls to the control plane stand below the way that they are made for. See `way` for the rest.
"""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any, Final

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshwarden.agents.report.way import Answers, Look, Node, Way
from meshwarden.sdk.tracing.own_span import Provider

# Ways that are open at once; what begins then is not followed.
MAX_OPEN: Final = 64
_CAUSE: Final = "mesh.cause"
_HALF_LIFE: Final = "half-life"
_SUPERSEDED: Final = "given up: another came"


class Rotation:
    """The ways that are open. Of what a workload waits for the newest counts, and older ones end."""

    def __init__(self, provider: Provider, node: Node) -> None:
        """Follows nothing yet; spans go to `provider`."""
        self._tracer, self._node = provider.get_tracer("meshwarden.agents"), node
        self._open: list[Way] = []
        self._wanted: dict[str, Context] = {}
        self._answers: Answers | None = None
        self._session_serial = ""
        self._is_configured = False
        node.credentials.watch(self.look)

    def watch(self, answers: Answers) -> None:
        """Takes what tells of data planes."""
        self._answers = answers

    # -- what begins

    def begin_start(self, span: trace.Span) -> None:
        """The agent has started, which `span` is to last for; nothing was said to the control plane yet."""
        names = set(self._node.registry.workloads)
        way = Way(self._tracer, self._node, span, must_come=True)
        way.unsigned = self._entries(names)
        way.follow(names, anew=False)
        way.follow_node("")
        if names:
            way.follow_configuration()
        self._open.append(way)

    def begin_renewal(self, parent: str) -> None:
        """All certificates are to be renewed; `parent` is the W3C traceparent of who asks, or empty."""
        names = set(self._node.registry.workloads)
        self._supersede(names, is_of_node=True)
        if parent and (way := self._way("renew", _context_of(parent), {_CAUSE: "asked"})) is not None:
            way.unsigned, way.is_node_unsigned = self._entries(names), True
            way.follow(names)
            way.follow_node(self._node.serial())

    def begin_trust(self, parent: str) -> None:
        """The roots change now; `parent` is the W3C traceparent of what has changed them, or empty."""
        if parent and (way := self._way("trust", _context_of(parent), {})) is not None:
            way.follow(self._node.registry.workloads, anew=False)

    @contextlib.contextmanager
    def wanting(self, entry: str) -> Iterator[None]:
        """Somebody waits for a certificate of an entry: if it is issued meanwhile, that is below the present span."""
        if trace.get_current_span().is_recording():
            self._wanted[entry] = context.get_current()
        try:
            yield
        finally:
            self._wanted.pop(entry, None)

    @contextlib.contextmanager
    def signing(self, entries: Collection[str]) -> Iterator[None]:
        """Certificates of these entries are signed within."""
        names = {item.id for item in self._node.registry.workloads.values() if item.entry_name in entries}
        is_first = not any(self._node.credentials.svid(name) for name in names)
        asking = (way for way in self._open if not way.unsigned.isdisjoint(entries))
        way = next((way for way in asking if is_first or not way.must_come), None)
        if way is None:
            way = self._begin_signing(names, entries, is_first)
        if way is None:
            with _within(Context()):
                yield
            return
        way.unsigned.difference_update(entries)
        way.is_signing = True
        try:
            with _within(way.context):
                yield
        finally:
            way.is_signing = False

    @contextlib.contextmanager
    def renewing_node(self) -> Iterator[None]:
        """The node's certificate is renewed within; what is raised there has made nothing of it."""
        way = next((way for way in self._open if way.is_node_unsigned), None)
        if way is None:
            self._supersede((), is_of_node=True)
            way = self._way("renew", Context(), {_CAUSE: _HALF_LIFE})
            if way is not None:
                way.follow_node(self._node.serial())
        if way is None:
            with _within(Context()):
                yield
            return
        way.is_node_unsigned = False
        try:
            with _within(way.context):
                yield
        except BaseException:
            way.leave_node("the node's certificate was not renewed")
            self.look()
            raise

    def _begin_signing(self, names: Collection[str], entries: Collection[str], is_first: bool) -> Way | None:
        self._supersede(names)
        if is_first:
            above = next((self._wanted[entry] for entry in entries if entry in self._wanted), Context())
            way = self._way("issue", above, {})
        else:
            way = self._way("renew", Context(), {_CAUSE: _HALF_LIFE})
        if way is not None:
            way.follow(names)
        return way

    # -- what goes on

    def welcomed(self, serial: str) -> None:
        """The control plane has welcomed a session of the node with the certificate of this serial."""
        self._session_serial = serial
        self.look()

    def configured(self) -> None:
        """Configuration has come."""
        self._is_configured = True
        self.look()

    def look(self) -> None:
        """Something has come on: ends what is over."""
        if self._open:
            errors = self._node.errors() if any(way.must_come for way in self._open) else {}
            seen = Look(self._session_serial, self._answers, self._is_configured, errors)
            self._open = [way for way in self._open if not way.look(seen)]

    def present(self) -> Context | None:
        """The context of the start, while that is not over."""
        return next((way.context for way in self._open if way.must_come), None)

    def close(self) -> None:
        """The agent ends, and with it all that is not over."""
        for way in self._open:
            way.give_up("given up: the agent has ended")
        self._open.clear()

    def _way(self, name: str, above: Context, about: dict[str, str]) -> Way | None:
        if len(self._open) >= MAX_OPEN:
            return None
        way = Way(self._tracer, self._node, self._tracer.start_span(name, above, attributes=about))
        self._open.append(way)
        return way

    def _supersede(self, names: Collection[str], *, is_of_node: bool = False) -> None:
        """The certificates that these workloads, or the node, wait for are not to come: others are, in their place."""
        entries = self._entries(names)
        for way in self._open:
            if way.awaits_new:
                way.unsigned -= entries
                for name in set(names).intersection(way.workloads):
                    way.leave(name, _SUPERSEDED)
                if is_of_node:
                    way.leave_node(_SUPERSEDED)
                    way.is_node_unsigned = False
        self.look()

    def _entries(self, names: Collection[str]) -> set[str]:
        return {self._node.registry.workloads[name].entry_name for name in names}


@contextlib.contextmanager
def _within(above: Context) -> Iterator[None]:
    token: Any = context.attach(above)
    try:
        yield
    finally:
        context.detach(token)


def _context_of(parent: str) -> Context:
    return TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())
