"""What changes between a node and the mesh, as spans."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshwarden.agents.report import progress
from meshwarden.agents.report.progress import Progress, Reports
from meshwarden.v1.node_service_pb2 import ConfigAck, ConfigUpdate, EndpointReport, Nack, NodeEndpoint

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def told(provider: TracerProvider) -> Progress:
    return Progress(provider)


def test_a_span_lasts_until_all_data_planes_have_answered(told: Progress, exporter: InMemorySpanExporter) -> None:
    told.begin(ConfigUpdate(revision=6))
    told.begin(ConfigUpdate(revision=7, trace_parent=PARENT))
    told.end(ConfigAck(revision=6))
    assert exporter.get_finished_spans() == ()
    told.begin(ConfigUpdate(revision=8, trace_parent=PARENT))
    told.end(ConfigAck(revision=8, nacks=[Nack(data_plane="acme/web#1")]))
    spans = exporter.get_finished_spans()
    assert [span.attributes["mesh.revision"] for span in spans if span.attributes] == [7, 8]
    assert {format(span.context.trace_id, "032x") for span in spans} == {PARENT[3:35]}
    assert {span.status.description for span in spans} == {"refused by acme/web#1"}


def test_what_waits_is_bounded(told: Progress, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MAX_OPEN", 2)
    for revision in range(1, 4):
        told.begin(ConfigUpdate(revision=revision, trace_parent=PARENT))
    (given_up,) = exporter.get_finished_spans()
    assert not given_up.status.is_ok


def test_a_parent_that_is_none_makes_a_trace_of_its_own(told: Progress, exporter: InMemorySpanExporter) -> None:
    told.begin(ConfigUpdate(revision=1, trace_parent="nonsense"))
    told.end(ConfigAck(revision=1))
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_each_change_of_endpoints_begins_a_trace_that_the_report_names(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    said: list[EndpointReport] = []
    reports = Reports(provider, lambda: None, said.append)
    up = NodeEndpoint(id="orders-1", tenant="acme", entry="orders", address="127.0.0.1", port=7, health=1)
    down = NodeEndpoint(id="orders-1", tenant="acme", entry="orders", address="127.0.0.1", port=7, health=2)
    for endpoints in ([], [up], [up], [down], []):
        reports(endpoints)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["report"] * 3
    assert [report.trace_parent[3:35] for report in said] == [
        "",
        *(format(spans[number].context.trace_id, "032x") for number in (0, 0, 1, 2)),
    ]
    named = [span.attributes["mesh.endpoints"] for span in spans if span.attributes]
    assert named == [
        ("acme/orders-1 HEALTHY at 127.0.0.1:7",),
        ("acme/orders-1 UNHEALTHY at 127.0.0.1:7",),
        ("acme/orders-1 gone",),
    ]
