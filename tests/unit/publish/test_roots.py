"""What the mesh trusts on its way to the nodes, as spans: who is told of which change, once, and how many."""

from datetime import UTC, datetime

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.bundle import Bundle
from meshwarden.controlplane.publish.roots import Roots
from meshwarden.controlplane.publish.trail import MAX_NODES

NOW = datetime(2026, 1, 2, tzinfo=UTC)


async def bundle_of(revision: int, *more: Bundle) -> Bundle:
    """A bundle with a new root, and those of others."""
    made = await MemoryAuthority("mesh.test").bundle()
    return Bundle.of("mesh.test", [*made.roots, *(root for bundle in more for root in bundle.roots)], revision)


def followed() -> tuple[Roots, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Roots(provider, lambda: NOW), exporter


def said(span: ReadableSpan, key: str) -> object:
    assert span.attributes is not None
    return span.attributes[key]


async def test_each_change_has_a_trace_and_each_node_a_push_below_it() -> None:
    roots, exporter = followed()
    first = await bundle_of(1)
    second = await bundle_of(2, first)
    old = roots.message("a", first, "memory")
    for _ in range(2):
        message = roots.message("a", second, "memory")
        roots.told("a", message)
    roots.told("a", old)
    roots.told("b", message)
    began, changed, push = exporter.get_finished_spans()
    assert (began.name, changed.name, push.name) == ("roots", "roots", "push")
    assert said(began, "mesh.cause") == "the control plane has started"
    assert said(changed, "mesh.cause") == "changed"
    (told,) = said(changed, "mesh.changes")  # type: ignore[misc]
    assert told.startswith("TRUSTED root ")
    assert push.parent is not None
    assert push.parent.span_id == changed.context.span_id
    assert message.trace_parent.split("-")[1:3] == [
        format(changed.context.trace_id, "032x"),
        format(changed.context.span_id, "016x"),
    ]
    assert old.trace_parent != message.trace_parent
    roots.message("a", await bundle_of(3), "memory")
    gone = [text for text in said(exporter.get_finished_spans()[-1], "mesh.changes") if text.startswith("NOT")]  # type: ignore[attr-defined]
    assert len(gone) == 2


async def test_of_many_nodes_the_first_are_followed_and_nobody_where_spans_go_nowhere() -> None:
    roots, _ = followed()
    bundle = await bundle_of(1)
    parents = [roots.message(f"n{number}", bundle, "memory").trace_parent for number in range(MAX_NODES + 3)]
    assert [bool(parent) for parent in parents] == [True] * MAX_NODES + [False] * 3
    assert roots.message("n0", bundle, "memory").trace_parent == parents[0]
    assert Roots().message("n", bundle, "memory").trace_parent == ""
