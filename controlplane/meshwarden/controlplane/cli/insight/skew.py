"""Clocks that do not agree, as one trace shows them, and when its spans must have been.

No effect comes before its cause, and no server hears of a call after its caller has the answer. Where a node's spans
say so nevertheless, its clock is off from that of the node that called: by so much that they would lie in the middle of
what called them, as if a request took as long as its answer.

Source: NTP's assumption of a symmetric way (RFC 5905 §8), and Jaeger's adjuster of clock skew, which this follows.
"""

import statistics
from collections.abc import Mapping, Sequence

from meshwarden.v1.admin_service_pb2 import TraceSpan


def offsets_ns(spans: Sequence[TraceSpan]) -> dict[str, int]:
    """What is to be added to the times of nodes, so that they are by the clock of the node where the trace begins.

    Args:
        spans: of a trace, by when they began.

    Returns:
        {node: nanoseconds}, of those nodes alone whose clocks are off. The control plane's own node is "".
    """
    by_id = {span.span_id: span for span in spans}
    found: dict[tuple[str, str], list[int]] = {}
    for span in spans:
        parent = by_id.get(span.parent_span_id)
        if parent is not None and parent.node != span.node:
            found.setdefault((parent.node, span.node), []).append(_off_ns(parent, span))
    between = {nodes: round(statistics.median(seen)) for nodes, seen in found.items()}
    known: dict[str, int] = {}
    for span in spans:
        if span.parent_span_id not in by_id and span.node not in known:
            known[span.node] = 0
            _follow(span.node, between, known)
    return {node: offset for node, offset in known.items() if offset}


def _follow(node: str, between: Mapping[tuple[str, str], int], known: dict[str, int]) -> None:
    """Adds those that a node has called, and those that they have."""
    waiting = [node]
    while waiting:
        caller = waiting.pop()
        for (source, called), offset in between.items():
            if source == caller and called not in known:
                known[called] = known[caller] + offset
                waiting.append(called)


def _off_ns(parent: TraceSpan, child: TraceSpan) -> int:
    """How much later a span must have begun than it says; 0 if it may be right."""
    begun_ns, child_ns = parent.start.ToNanoseconds(), child.start.ToNanoseconds()
    took_ns, child_took_ns = parent.duration.ToNanoseconds(), child.duration.ToNanoseconds()
    is_call = (parent.kind, child.kind) == ("client", "server")
    if child_ns >= begun_ns and not (is_call and child_ns > begun_ns + took_ns):
        return 0
    return begun_ns + max(0, took_ns - child_took_ns) // 2 - child_ns
