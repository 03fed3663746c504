"""What is followed of certificates and roots on a node: what ends it, what takes its place, and how much of it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshwarden.agents.report import rotation
from meshwarden.agents.report.rotation import Rotation
from meshwarden.agents.report.way import MAX_WORKLOADS, Node

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class World:
    """A node whose workloads have what a test says; each entry has one workload, `<entry>#1`."""

    def __init__(self, *entries: str) -> None:
        self.exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.provider = provider
        self.serials = dict.fromkeys(entries, "")
        self.published: set[str] = set()
        self.faults: dict[str, str] = {}
        self.node_serial = "n1"
        self.waiting_planes: set[str] = set()
        self.connected_planes: set[str] = set()
        self.workloads = {
            f"{entry}#1": SimpleNamespace(id=f"{entry}#1", entry_name=entry, has_envoy=entry.endswith("envoy"))
            for entry in entries
        }
        registry: Any = SimpleNamespace(workloads=self.workloads, is_admitted=lambda name: True)
        credentials: Any = SimpleNamespace(
            svid=self._svid,
            watch=lambda callback: None,
            errors=lambda: self.faults,
            is_delivered=lambda workload: workload.id in self.published,
        )
        self.rotation = Rotation(provider, Node(registry, credentials, lambda: self.node_serial, lambda: self.faults))
        self.rotation.watch(self)

    def waiting(self) -> set[str]:
        return self.waiting_planes

    def connected(self) -> set[str]:
        return self.connected_planes

    def _svid(self, name: str) -> Any:
        serial = self.serials[name.removesuffix("#1")] if name in self.workloads else ""
        return SimpleNamespace(serial=serial) if serial else None

    def sign(self, *entries: str, serial: str = "s1") -> None:
        """Certificates come and are delivered."""
        with self.rotation.signing(set(entries)):
            self.rotation.look()
        for entry in entries:
            self.serials[entry] = serial
            self.published.add(f"{entry}#1")
        self.rotation.look()

    def ended(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


def fault(span: ReadableSpan) -> str:
    return span.status.description or ""


def test_a_first_certificate_is_an_issue_and_the_next_a_renewal() -> None:
    world = World("acme/web")
    world.sign("acme/web")
    world.sign("acme/web", serial="s2")
    (issue,), (renew,) = world.ended("issue"), world.ended("renew")
    assert issue.parent is None
    assert renew.attributes is not None
    assert renew.attributes["mesh.cause"] == "half-life"
    assert [span.parent and span.parent.span_id for span in world.ended("deliver")] == [
        issue.context.span_id,
        renew.context.span_id,
    ]


def test_a_try_that_fails_says_why_and_the_next_is_not_held_to_that() -> None:
    world = World("acme/web")
    with world.rotation.signing({"acme/web"}):
        pass
    world.faults["acme/web"] = "no"
    world.rotation.look()
    assert [fault(span) for span in world.ended("deliver")] == ["no"]
    assert fault(world.ended("issue")[0]) == "1 are without it"
    with world.rotation.signing({"acme/web"}):
        world.rotation.look()  # what went wrong before stands there until there is an answer
    world.faults.clear()
    world.sign("acme/web")
    assert [fault(span) for span in world.ended("issue")] == ["1 are without it", "1 are without it", ""]
    assert [fault(span) for span in world.ended("deliver")] == ["no", "given up: another came", ""]


def test_an_order_takes_the_place_of_what_is_under_way_and_not_of_a_start() -> None:
    world = World("acme/envoy")
    world.serials["acme/envoy"], world.node_serial = "s1", "n1"
    world.published.add("acme/envoy#1")
    world.rotation.begin_start(world.provider.get_tracer("test").start_span("start"))
    world.rotation.welcomed("n1")
    world.rotation.configured()
    assert world.ended("start") == [], "its Envoy is still to come"
    for _ in range(2):
        world.rotation.begin_renewal(PARENT)
    (given_up,) = world.ended("renew")
    assert fault(given_up) == "2 are without it"
    assert {format(given_up.context.trace_id, "032x")} == {PARENT[3:35]}
    world.connected_planes = {"acme/envoy#1/envoy"}
    world.sign("acme/envoy", serial="s2")
    with world.rotation.renewing_node():
        world.node_serial = "n2"
    world.rotation.welcomed("n2")
    assert [fault(span) for span in (*world.ended("renew")[1:], *world.ended("start"))] == ["", ""]


def test_what_is_open_is_bounded_and_ends_with_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "MAX_OPEN", 2)
    names = [f"acme/w{number}" for number in range(MAX_WORKLOADS * 2 + 1)]
    world = World(*names)
    for name in names[:3]:
        with world.rotation.signing({name}):
            pass
    world.rotation.begin_trust(PARENT)
    world.rotation.close()
    assert [fault(span) for span in world.ended("issue")] == ["given up: the agent has ended"] * 2
    assert world.ended("trust") == []
    world.rotation.begin_trust(PARENT)
    world.rotation.close()
    assert len(world.ended("deliver")) - 2 <= MAX_WORKLOADS
    (trust,) = world.ended("trust")
    assert trust.attributes is not None
    assert trust.attributes["mesh.workloads"] == len(names)


def test_a_renewal_of_the_node_that_fails_ends_and_is_raised() -> None:
    world = World()

    def renew(work: Callable[[], None]) -> None:
        with world.rotation.renewing_node():
            work()

    def refused() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        renew(refused)
    (failed,) = world.ended("renew")
    assert not failed.status.is_ok
    assert fault(world.ended("connect")[0]) == "the node's certificate was not renewed"


@pytest.mark.parametrize("parent", ["", "nonsense", f"00-{'0' * 32}-{'0' * 16}-01"])
def test_orders_that_nobody_traces_or_that_are_odd_lead_nowhere_else(parent: str) -> None:
    world = World("acme/web")
    world.rotation.begin_trust(parent)
    world.rotation.begin_renewal(parent)
    world.rotation.close()
    assert all(span.parent is None for name in ("trust", "renew") for span in world.ended(name))


def test_who_waits_for_a_certificate_has_it_issued_below() -> None:
    world = World("acme/web", "acme/other")
    with (
        world.provider.get_tracer("test").start_as_current_span("Register") as span,
        world.rotation.wanting("acme/web"),
    ):
        world.sign("acme/web")
        world.sign("acme/other")
    assert trace.get_current_span() is trace.INVALID_SPAN
    below, beside = world.ended("issue")
    assert below.parent is not None
    assert below.parent.span_id == span.get_span_context().span_id
    assert beside.parent is None
