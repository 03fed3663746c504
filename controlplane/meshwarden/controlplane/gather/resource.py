"""OTLP telemetry of agents, checked: named after the workload that it is of, and after the node that sends it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from meshwarden.controlplane.gather.call import Owns, Refused
from meshwarden.sdk.tracing import wire
from meshwarden.v1.report_pb2 import ExportRequest

# The agent's own spans carry this service name and no tenant.
AGENT: Final = "meshwarden-agent"
OWN_NAME: Final = "meshwarden-controlplane"


@dataclass(frozen=True)
class Checked:
    """Telemetry that is believed.

    Attributes:
        signal: "span", "point" or "log".
        tenant: whose it is; empty: the agent's own.
        message: the stamped message.
        items: how many things are in it.
        body: the message, serialised.
    """

    signal: str
    tenant: str
    message: Any
    items: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Body:
    """Telemetry of one resource, as it came in.

    Attributes:
        signal: "span", "point" or "log".
        size_bytes: how large it is.
        content: its bytes; where nobody will read them, whose it is and how many things; or why it is refused.
    """

    signal: str
    size_bytes: int
    content: bytes | tuple[str, int] | Refused


def _spans(message: Any) -> int:
    return sum(len(scope.spans) for scope in message.scope_spans)


def _points(message: Any) -> int:
    found = 0
    for scope in message.scope_metrics:
        for metric in scope.metrics:
            kind = metric.WhichOneof("data")
            found += len(getattr(metric, kind).data_points) if kind else 0
    return found


def _records(message: Any) -> int:
    return sum(len(scope.log_records) for scope in message.scope_logs)


_KINDS: Final[Mapping[str, tuple[Any, Callable[[Any], int]]]] = {
    "span": (ResourceSpans, _spans),
    "point": (ResourceMetrics, _points),
    "log": (ResourceLogs, _records),
}


def check_resource(signal: str, body: bytes, node: str, region: str, owns: Owns) -> Checked:
    """Takes telemetry that `node` reports, if it may.

    Who reports is read from `service.name`, `<service>.<tenant>`, which the agent sets; where it was is set here.

    Raises:
        Refused: it is malformed or of no workload of the node.
    """
    kind, count = _KINDS[signal]
    try:
        message = kind.FromString(body)
    except DecodeError:
        raise Refused("malformed") from None
    items = count(message)
    tenant, service = _reporter(message.resource, node, owns, items)
    place = {"mesh.node": node, "mesh.region": region}
    is_changed = _stamp(message, {**place, "mesh.tenant": tenant, "mesh.service": service if tenant else ""})
    return Checked(signal, tenant, message, items, message.SerializeToString() if is_changed else body)


def bodies_of(part: ExportRequest, node: str, owns: Owns, *, reads_spans: bool) -> Iterator[Body]:
    """The telemetry that a part of a batch of `node` holds; spans that are kept nowhere and go nowhere are counted."""
    if not reads_spans:
        yield from _packed_spans(part, node, owns)
    for body in part.resource_spans:
        yield Body("span", len(body), body if reads_spans else _counted(body, node, owns))
    for signal, bodies in (("point", part.resource_metrics), ("log", part.resource_logs)):
        for body in bodies:
            yield Body(signal, len(body), body)


def _packed_spans(batch: ExportRequest, node: str, owns: Owns) -> Iterator[Body]:
    """The spans that a batch of `node` holds packed, counted by its word."""
    for one in batch.packed_spans:
        try:
            content: tuple[str, int] | Refused = (named(one.reporter, node, owns, one.count)[0], one.count)
        except Refused as refused:
            content = refused
        yield Body("span", len(one.spans), content)


def _counted(body: bytes, node: str, owns: Owns) -> tuple[str, int] | Refused:
    """The tenant whose spans they are, as of `Checked`, and how many they are."""
    try:
        opened = wire.AllScopes.FromString(body)
        resource = Resource.FromString(b"".join(opened.resource))
        items = len(opened.scope_spans.spans)
        return _reporter(resource, node, owns, items)[0], items
    except DecodeError:
        return Refused("malformed")
    except Refused as refused:
        return refused


def _reporter(resource: Resource, node: str, owns: Owns, items: int) -> tuple[str, str]:
    """Whose telemetry it is: tenant and service; of the agent's own the tenant is empty."""
    names = [pair.value.string_value for pair in resource.attributes if pair.key == "service.name"]
    if len(names) != 1:
        raise Refused("unidentified", items)
    return named(names[0], node, owns, items)


def named(name: str, node: str, owns: Owns, items: int) -> tuple[str, str]:
    """The tenant and service that an agent of `node` names, "<service>.<tenant>"; of its own name no tenant.

    Raises:
        Refused: it is no workload of the node.
    """
    service, _, tenant = name.rpartition(".")
    if name == AGENT:
        return "", service
    if not service or not owns(node, tenant, service):
        raise Refused("not_owned", items)
    return tenant, service


def own_span(body: bytes, region: str) -> Checked:
    """Reads a span of the control plane itself; it may say which tenant it is to be shown to."""
    message = ResourceSpans.FromString(body)
    said = [pair for scope in message.scope_spans for span in scope.spans for pair in span.attributes]
    tenant = next((pair.value.string_value for pair in said if pair.key == "mesh.tenant"), "")
    _stamp(message, {"mesh.region": region, "mesh.tenant": tenant, "mesh.service": OWN_NAME if tenant else ""})
    return Checked("span", tenant, message, _spans(message), message.SerializeToString())


def nanos(moment: datetime) -> int:
    """A moment as OTLP has it, in nanoseconds since 1970."""
    return int(moment.timestamp() * 1_000_000) * 1000


def _stamp(message: Any, ours: Mapping[str, str]) -> bool:
    """Writes what we know into a message; whether that has changed it. An agent writes the same if it is right."""
    known = {key: text for key, text in ours.items() if text}
    said = [pair for pair in message.resource.attributes if pair.key in ours]
    if len(said) == len(known) and {pair.key: pair.value.string_value for pair in said} == known:
        return False
    kept = [pair for pair in message.resource.attributes if pair.key not in ours]
    del message.resource.attributes[:]
    message.resource.attributes.extend(kept)
    for key, text in known.items():
        pair = KeyValue(key=key)
        pair.value.string_value = text
        message.resource.attributes.append(pair)
    return True
