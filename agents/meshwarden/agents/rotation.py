"""A renewal of all certificates, as spans below that of who has asked for it.

`renew` lasts until the node and its workloads have new certificates, and has the calls to the control plane below it.
`deliver`, for each of some workloads, begins when its certificate is there, and ends when it lies in the workload's
directory and its Envoy has taken it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import grpc
from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshwarden.agents.credentials import Credentials
from meshwarden.agents.registry import Registry
from meshwarden.sdk.own_span import Provider

# Workloads that are followed; of more, so many spread over all by name.
MAX_WORKLOADS: Final = 32


@dataclass
class _Delivery:
    """A workload on its way: the serial that it had, and the span since it has another."""

    serial: str
    span: trace.Span | None = None


class Rotation:
    """The renewal that is under way, if somebody traces it. One at a time: a new one ends what is left of the last."""

    def __init__(
        self, provider: Provider, registry: Registry, credentials: Credentials, node_serial: Callable[[], str]
    ) -> None:
        """Follows nothing yet.

        Args:
            provider: where spans go.
            registry: what runs.
            credentials: the workloads' certificates.
            node_serial: of the node's own.
        """
        self._tracer = provider.get_tracer("meshwarden.agents")
        self._registry, self._credentials, self._node_serial = registry, credentials, node_serial
        self._span: trace.Span | None = None
        self._open: dict[str, _Delivery] = {}
        self._old_node_serial = ""
        self._faults = 0
        self._waiting: Callable[[], Collection[str]] = tuple
        credentials.watch(self.look)

    def watch(self, waiting: Callable[[], Collection[str]]) -> None:
        """Takes what tells the ids of the data planes whose answer is outstanding."""
        self._waiting = waiting

    def begin(self, parent: str) -> None:
        """All certificates are to be renewed; `parent` is the W3C traceparent of who asks, or empty."""
        if self._span is not None:
            self._faults += 1
            self._end("given up: it was asked for again")
        if not parent:
            return
        above = TraceContextTextMapPropagator().extract({"traceparent": parent}, context.Context())
        names = sorted(self._registry.workloads)
        self._span = self._tracer.start_span("renew", above, attributes={"mesh.workloads": len(names)})
        self._old_node_serial, self._faults = self._node_serial(), 0
        for name in names[:: -(-len(names) // MAX_WORKLOADS) or 1]:
            svid = self._credentials.svid(name)
            self._open[name] = _Delivery(svid.serial if svid is not None else "")

    def look(self) -> None:
        """Something has come on: ends what is over."""
        if self._span is None:
            return
        waiting, errors = self._waiting(), self._credentials.errors()
        for name, delivery in list(self._open.items()):
            self._step(name, delivery, f"{name}/envoy" in waiting, errors)
        if not self._open and self._node_serial() != self._old_node_serial:
            self._end("")

    def present(self) -> context.Context | None:
        """The context of the renewal that is under way."""
        return None if self._span is None else trace.set_span_in_context(self._span, context.Context())

    def _step(self, name: str, delivery: _Delivery, is_outstanding: bool, errors: Any) -> None:
        workload, svid = self._registry.workloads.get(name), self._credentials.svid(name)
        if workload is None:
            self._delivered(name, "the workload has ended")
            return
        if svid is not None and svid.serial != delivery.serial:
            if delivery.span is None:
                about = {"mesh.workload": name, "mesh.serial": svid.serial}
                delivery.span = self._tracer.start_span("deliver", self.present(), attributes=about)
            if not is_outstanding and self._credentials.is_delivered(workload):
                self._delivered(name, "")
                return
        reason = errors.get(name) or (errors.get(workload.entry_name) if delivery.span is None else None)
        if reason:
            self._delivered(name, reason)

    def _delivered(self, name: str, fault: str) -> None:
        delivery = self._open.pop(name)
        span = delivery.span
        if span is None:
            span = self._tracer.start_span("deliver", self.present(), attributes={"mesh.workload": name})
        if fault:
            self._faults += 1
            span.set_status(trace.Status(trace.StatusCode.ERROR, fault))
        span.end()

    def _end(self, fault: str) -> None:
        for name in list(self._open):
            self._delivered(name, fault)
        if self._span is not None:
            if self._faults:
                text = fault or f"{self._faults} workloads are without it"
                self._span.set_status(trace.Status(trace.StatusCode.ERROR, text))
            self._span.end()
        self._span = None


class Below(grpc.aio.UnaryUnaryClientInterceptor):
    """Has the spans of calls made while a context is present be below it; goes before what makes them."""

    def __init__(self, present: Callable[[], context.Context | None]) -> None:
        """`present` tells the context; None leaves a call as it is."""
        self._present = present

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """See grpc."""
        found = self._present()
        if found is None:
            return await continuation(details, request)
        token = context.attach(found)
        try:
            return await continuation(details, request)
        finally:
            context.detach(token)
