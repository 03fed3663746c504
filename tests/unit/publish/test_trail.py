"""The way of a change through the mesh as spans: who is waited for, what ends the waiting, and whom it is shown to."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshwarden.controlplane.publish import trail
from meshwarden.controlplane.publish.trail import MAX_NODES, Trails
from meshwarden.v1.node_service_pb2 import Nack

START = datetime(2026, 1, 2, tzinfo=UTC)


class World:
    def __init__(self) -> None:
        self.now = START
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.trails = Trails(self.provider, lambda: self.now)

    def apply(self, revision: int, tenant: str = "", early: Callable[[], None] = lambda: None) -> str:
        """Commits a change; returns its trace id."""
        with self.provider.get_tracer("test").start_as_current_span("Apply") as span:
            early()
            changes = [f"UPDATED Service a/s{number}" for number in range(20)]
            self.trails.committed(revision, tenant, "spiffe://m/operator/root", changes)
        return format(span.get_span_context().trace_id, "032x")

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def tick(self) -> None:
        self.now += timedelta(milliseconds=10)


@pytest.fixture
def world() -> World:
    return World()


def told(span: ReadableSpan) -> tuple[object, object]:
    assert span.attributes is not None
    return span.attributes["mesh.node"], span.attributes["mesh.revision"]


def test_each_node_has_its_own_way_below_the_apply(world: World) -> None:
    trace_id = world.apply(7)
    world.trails.published(7, {"a", "b"})
    world.tick()
    world.trails.compiled("a", 7)
    world.tick()
    world.trails.pushed("a", 7)
    world.tick()
    world.trails.acknowledged("a", 7, [])
    (compiled,), (pushed,), (acked,) = (world.spans(name) for name in ("compile", "push", "acknowledge"))
    assert told(compiled) == told(pushed) == told(acked) == ("a", 7)
    assert compiled.end_time == pushed.start_time
    assert pushed.end_time == acked.start_time
    assert acked.end_time == int(START.timestamp() * 1e9) + 30_000_000
    (apply,) = world.spans("Apply")
    assert apply.attributes is not None
    assert apply.attributes["mesh.revision"] == 7
    assert apply.attributes["mesh.by"] == "spiffe://m/operator/root"
    changes = apply.attributes["mesh.changes"]
    assert isinstance(changes, tuple)
    assert (len(changes), changes[0], changes[-1]) == (17, "UPDATED Service a/s0", "and 4 more")
    assert acked.parent is not None
    assert acked.parent.span_id == apply.context.span_id
    assert world.trails.parent("b", 7).startswith(f"00-{trace_id}-{apply.context.span_id:016x}-")
    world.trails.compiled("b", 7)
    world.trails.pushed("b", 7)
    world.trails.acknowledged("b", 7, [])
    assert world.trails.parent("b", 7) == ""


def test_a_newer_revision_ends_the_older_ones(world: World) -> None:
    for revision in (1, 2):
        world.apply(revision)
        world.trails.published(revision, {"a"})
    world.trails.published(3, {"a"})  # nobody traces it
    world.trails.compiled("a", 3)
    world.trails.pushed("a", 3)
    world.trails.acknowledged("a", 1, [])
    assert [told(span) for span in world.spans("acknowledge")] == [("a", 1)]
    world.trails.acknowledged("a", 3, [])
    assert [told(span) for span in world.spans("acknowledge")] == [("a", 1), ("a", 2)]


def test_a_revision_that_is_published_before_its_committer_hears_of_it(world: World) -> None:
    world.apply(4, early=lambda: world.trails.published(4, {"a"}))
    world.trails.compiled("a", 4)
    world.trails.pushed("a", 4)
    world.trails.acknowledged("a", 4, [])
    assert [told(span) for span in world.spans("acknowledge")] == [("a", 4)]


def test_refusals_and_departures_are_failures(world: World) -> None:
    world.apply(1)
    world.trails.published(1, {"a", "b", "c"})
    world.trails.acknowledged("a", 1, [Nack(data_plane="acme/web#1"), Nack(data_plane="globex/web#1")])
    world.trails.pushed("b", 1)
    world.trails.left("b")
    world.trails.left("nobody")
    ended = {span.status.description for name in ("compile", "acknowledge") for span in world.spans(name)}
    assert ended == {"refused by acme/web#1, globex/web#1", "the node left"}
    assert all(not span.status.is_ok for span in world.spans("compile"))


def test_an_operator_of_a_tenant_is_told_of_that_tenants_refusals_alone(world: World) -> None:
    world.apply(1, "acme")
    world.trails.published(1, {"a", "b"})
    world.trails.acknowledged("a", 1, [Nack(data_plane="acme/web#1"), Nack(data_plane="globex/web#1")])
    world.trails.acknowledged("b", 1, [Nack(data_plane="acme-two/web#1")])
    spans = [span for span in world.exporter.get_finished_spans() if span.attributes]
    assert {span.attributes["mesh.tenant"] for span in spans if span.attributes} == {"acme"}
    assert [span.status.description for span in spans if span.name != "Apply"] == ["refused by acme/web#1", None]


def test_what_is_waited_for_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail, "MAX_OPEN", 3)
    for revision in range(1, 6):
        world.apply(revision)
        world.trails.published(revision, {"a"})
    assert [told(span) for span in world.spans("compile")] == [("a", 1), ("a", 2)]
    for revision in range(10, 100):
        world.trails.published(revision, {"a"})
    world.apply(50)  # when it was published is forgotten by now; revision 3 is given up for it
    world.trails.acknowledged("a", 99, [])
    assert [told(span) for span in world.spans("compile")] == [("a", number) for number in range(1, 6)]


def test_nothing_is_kept_of_what_nobody_traces() -> None:
    trails = Trails()
    trails.committed(1, "acme")
    trails.published(1, {"a"})
    trails.compiled("a", 1)
    trails.pushed("a", 1)
    trails.acknowledged("a", 1, [])
    assert trails.parent("a", 1) == ""


def test_of_many_nodes_some_are_followed_all_over_the_mesh(world: World) -> None:
    nodes = [f"n{number:04}" for number in range(1000)]
    world.apply(1)
    world.trails.published(1, nodes)
    followed = [node for node in nodes if world.trails.parent(node, 1)]
    assert MAX_NODES // 2 < len(followed) <= MAX_NODES
    assert followed[0] < "n0100"
    assert followed[-1] > "n0800"
    for node in nodes:
        world.trails.compiled(node, 1)
        world.trails.acknowledged(node, 1, [])
    assert len(world.spans("compile")) == len(followed)
    assert world.trails.parent(followed[0], 1) == "", "nobody is waited for any more"


def test_a_revision_that_is_read_again_is_waited_for_once(world: World) -> None:
    world.apply(1)
    world.trails.published(1, {"a", "b"})
    world.apply(1)
    world.trails.published(1, {"b", "c"})
    for node in ("a", "b", "c"):
        world.trails.compiled(node, 1)
        world.trails.pushed(node, 1)
        world.trails.acknowledged(node, 1, [])
    assert [told(span)[0] for span in world.spans("acknowledge")] == ["b", "c"]
    assert world.trails.parent("b", 1) == ""


def test_a_mesh_without_nodes_has_nobody_to_wait_for(world: World) -> None:
    world.apply(1)
    world.trails.published(1, set())
    assert world.trails.parent("a", 1) == ""


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_what_the_mesh_changes_is_followed_below_what_has_caused_it(world: World) -> None:
    world.trails.made(7, "acme", "the report of node n1", ["UPDATED Endpoint acme/a"], PARENT, START)
    world.trails.published(7, {"a"})
    world.trails.compiled("a", 7)
    (made,), (compiled,) = world.spans("endpoints"), world.spans("compile")
    assert made.parent is not None
    assert format(made.parent.span_id, "016x") == PARENT[36:52]
    assert compiled.parent is not None
    assert compiled.parent.span_id == made.context.span_id
    assert made.attributes is not None
    assert made.attributes["mesh.by"] == "the report of node n1"
    assert made.attributes["mesh.tenant"] == "acme"
    for odd in ("", "nonsense", f"00-{'0' * 32}-{'0' * 16}-01"):
        world.trails.made(8, "", "the loss of node n1", [], odd, START)
        assert world.spans("endpoints")[-1].parent is None


def test_what_the_mesh_changes_amid_much_else_is_told_of_and_not_followed(world: World) -> None:
    for revision in range(1, 40):
        world.trails.made(revision, "", "the report of node n1", [], "", START)
        world.trails.published(revision, {"a"})
    assert len(world.spans("endpoints")) == 39
    world.trails.acknowledged("a", 40, [])
    assert len(world.spans("compile")) == trail.MAX_QUIET
    # What a person changes is followed all the same.
    world.trails.made(41, "", "the report of node n1", [], "", START)
    world.apply(42)
    world.trails.published(42, {"a"})
    world.trails.acknowledged("a", 42, [])
    assert 42 in {told(span)[1] for span in world.spans("compile")}
