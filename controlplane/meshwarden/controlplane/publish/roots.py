"""What the mesh trusts, on its way to the nodes: a trace for each change of the roots.

`roots` tells what has changed, and `push` for each of some nodes lasts until it was told. Agents go on below that of
theirs with what they make of it (`agents.rotation`).
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshwarden.certs.authority.slot import RootState, SlotState
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import name_text
from meshwarden.controlplane.identity.rotation import CONNECTION_LIFE
from meshwarden.controlplane.publish.trail import MAX_NODES, nanoseconds
from meshwarden.v1 import node_service_pb2 as v1

_MAX_NAMED: Final = 16
HEARD_S: Final = 1.0


class Revoked:
    """Has what is open end when a root is revoked before all that was made with it has ended by itself."""

    def __init__(self, known: Sequence[RootState], cut: Callable[[str], None], clock: Callable[[], datetime]) -> None:
        """Starts with the roots of the moment; `cut` takes the fingerprint of each that goes too early."""
        self._known, self._cut, self._clock = known, cut, clock

    async def follow(self, roots: Sequence[RootState]) -> None:
        """Takes the roots that there are now."""
        left = {root.fingerprint for root in roots}
        gone = [root for root in self._known if root.fingerprint not in left]
        self._known = roots
        for root in gone:
            if root.state is not SlotState.PREPARED and self._clock() < root.since + CONNECTION_LIFE:
                # Once Envoys have heard that they trust it no more; else the next connection could be made with it.
                asyncio.get_running_loop().call_later(HEARD_S, self._cut, root.fingerprint[:16])


class Roots:
    """Follows the newest change, to so many nodes as are told of it first."""

    def __init__(self, provider: trace.TracerProvider | None = None, clock: Callable[[], datetime] = utc_now) -> None:
        """Spans go to `provider`, None for nowhere."""
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer("meshwarden.controlplane")
        self._clock = clock
        self._bundle: Bundle | None = None
        self._context, self._begun = Context(), clock()
        # {node: whether it was told}
        self._nodes: dict[str, bool] = {}

    def message(self, node: str, bundle: Bundle, by: str) -> v1.Bundle:
        """What a node is to be told to trust.

        Args:
            node: its name.
            bundle: the roots as they are now.
            by: whose they are, for people.
        """
        if bundle is not self._bundle:
            self._begin(bundle, by)
        message = bundle.to_proto()
        if node in self._nodes or len(self._nodes) < MAX_NODES:
            self._nodes.setdefault(node, False)
            headers = dict[str, str]()
            TraceContextTextMapPropagator().inject(headers, self._context)
            message.trace_parent = headers.get("traceparent", "")
        return message

    def told(self, node: str, message: v1.Bundle) -> None:
        """A node was told."""
        if self._bundle is None or message.revision != self._bundle.revision or self._nodes.get(node, True):
            return
        self._nodes[node] = True
        about = {"mesh.node": node}
        self._tracer.start_span("push", self._context, attributes=about, start_time=nanoseconds(self._begun)).end(
            nanoseconds(self._clock())
        )

    def _begin(self, bundle: Bundle, by: str) -> None:
        before = self._bundle.roots if self._bundle is not None else ()
        changes = [f"TRUSTED {_title(root)}" for root in bundle.roots if root not in before]
        changes += [f"NOT TRUSTED any more {_title(root)}" for root in before if root not in bundle.roots]
        cause = "changed" if self._bundle is not None else "the control plane has started"
        about = {"mesh.cause": cause, "mesh.changes": changes[:_MAX_NAMED], "mesh.by": by}
        span = self._tracer.start_span("roots", Context(), attributes=about)
        span.end()
        self._bundle, self._begun, self._nodes = bundle, self._clock(), {}
        self._context = trace.set_span_in_context(span, Context())


def _title(root: x509.Certificate) -> str:
    return f"root {name_text(root.subject)} sha256 {root.fingerprint(hashes.SHA256()).hex()[:16]}"
