"""What Prometheus is told of a node: how its agent does, and the statistics of the Envoys beside its workloads.

`/metrics` is the agent's; `/envoy/<tenant>/<instance>/metrics` is an Envoy's, of whose admin interface nothing else can
be reached here. An Envoy's directory belongs to its workload's user, so who answers there may be anybody: what comes is
bounded, and only series of Envoy's own names go on.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from meshwarden.agents.envoy import admin
from meshwarden.agents.quota.points import Points
from meshwarden.agents.report.concurrency import Concurrencies
from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.sdk.backpressure.overload import OverloadInterceptor
from meshwarden.sdk.scrape import Page, wants_openmetrics
from meshwarden.v1 import workload_service_pb2 as workload_pb

_PREFIX: Final = "/envoy/"
_SUFFIX: Final = "/metrics"
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_Rows = Iterable[tuple[Sequence[str], float]]


class AgentMetrics(Collector):
    """The pages of an agent's metrics listener. Read on the event loop's thread, at each scrape."""

    def __init__(
        self,
        status: Callable[[], workload_pb.AgentStatusResponse],
        waiting: Callable[[], Mapping[str, int]],
        certificate_end: Callable[[], datetime],
        points: Points,
        concurrencies: Concurrencies,
        overload: OverloadInterceptor,
        clock: Callable[[], datetime],
    ) -> None:
        """Puts them together.

        Args:
            status: how the agent does.
            waiting: what waits to go up: `{tenant: bytes}`.
            certificate_end: when the node's own certificate ends.
            points: the enforcement points.
            concurrencies: how it is with calls at once at servers.
            overload: knows how many calls the agent takes.
            clock: the present, aware.
        """
        self._status, self._waiting, self._certificate_end, self._clock = status, waiting, certificate_end, clock
        self._points, self._concurrencies, self._overload = points, concurrencies, overload
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)

    def find(self, path: str) -> Page | None:
        """The page at a path."""
        if path == _SUFFIX:
            return self._metrics
        name = path.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        if path != f"{_PREFIX}{name}{_SUFFIX}":
            return None
        for envoy in self._status().envoys:
            if envoy.name == name:
                return _of_envoy(Path(envoy.admin_socket))
        return None

    async def _metrics(self, accept: str) -> tuple[str, bytes]:
        if wants_openmetrics(accept):
            return openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest(self)  # type: ignore[no-untyped-call]
        return _TEXT, generate_latest(self)

    def collect(self) -> Iterable[Metric]:
        """Shows all there is."""
        status, now = self._status(), self._clock()
        yield _gauge("meshwarden_agent_info", "What runs.", ("version",), [((status.version,), 1)])
        yield _gauge("meshwarden_agent_connected", "Whether the control plane is there.", (), [((), status.connected)])
        yield _gauge(
            "meshwarden_agent_acked_revision",
            "The revision that all data planes have taken or refused.",
            (),
            [((), status.revision)],
        )
        yield _gauge("meshwarden_agent_nacks", "What data planes refuse at present.", (), [((), len(status.nacks))])
        end = self._certificate_end()
        yield _gauge(
            "meshwarden_agent_certificate_expiry_seconds",
            "Seconds until the node's own certificate ends.",
            (),
            [((), (end - now).total_seconds())],
        )
        yield _gauge(
            "meshwarden_agent_svid_expiry_seconds",
            "Seconds until a workload's certificate ends.",
            ("tenant", "workload"),
            [
                ((item.tenant, item.id), (_moment(item.not_after) - now).total_seconds())
                for item in status.workloads
                if item.serial
            ],
        )
        yield _gauge(
            "meshwarden_spool_bytes",
            "Telemetry that waits to go up, by the tenant whose workloads made it.",
            ("tenant",),
            [((tenant,), size) for tenant, size in {"": 0, **self._waiting()}.items()],
        )
        yield from _of_points(self._points)
        yield from self._concurrencies.metrics()
        yield from _of_calls(self._overload)
        yield _gauge(
            "meshwarden_agent_envoy_up",
            "Whether a workload's Envoy runs.",
            ("workload",),
            [((envoy.name,), bool(envoy.pid)) for envoy in status.envoys],
        )
        restarts = CounterMetricFamily(
            "meshwarden_agent_envoy_restarts", "How often an Envoy had to be started again.", labels=["workload"]
        )
        for envoy in status.envoys:
            restarts.add_metric([envoy.name], envoy.restarts)
        yield restarts
        yield from self._process.collect()


def _of_points(points: Points) -> Iterable[Metric]:
    text = "Enforcement points that share limits across the mesh."
    yield _gauge("meshwarden_agent_quota_points", text, (), [((), len(points))])
    if points.answered_s is not None:
        text = "How long ago shares were last prolonged, in seconds: leases hold for three."
        yield _gauge("meshwarden_agent_quota_lease_age_seconds", text, (), [((), points.now_s - points.answered_s)])
    foreign = CounterMetricFamily("meshwarden_agent_quota_foreign", "Buckets of others that programs spoke of.")
    foreign.add_metric([], points.foreign)
    yield foreign


def _of_calls(overload: OverloadInterceptor) -> Iterable[Metric]:
    limit, in_flight = overload.now
    text = "How many unary calls the agent takes at once, as it has found."
    yield _gauge("meshwarden_agent_concurrency_limit", text, (), [((), limit)])
    yield _gauge("meshwarden_agent_concurrency", "How many there are.", (), [((), in_flight)])
    shed = CounterMetricFamily(
        "meshwarden_agent_shed", "Calls that were not let in, by how much they matter.", labels=["criticality"]
    )
    for level in Criticality:
        shed.add_metric([level.name], overload.shed[level])
    yield shed


def only_envoys(text: bytes) -> bytes:
    """The lines that are of Envoy's own series: `envoy_…`, and their types."""
    lines = text.split(b"\n")
    kept = [line for line in lines if line.startswith((b"envoy_", b"# TYPE envoy_", b"# HELP envoy_"))]
    return b"\n".join([*kept, b""])


def _of_envoy(socket_path: Path) -> Page:
    async def page(_: str) -> tuple[str, bytes]:
        text = await admin.statistics(socket_path)
        return _TEXT, await asyncio.to_thread(only_envoys, text)

    return page


def _moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _gauge(name: str, text: str, labels: Sequence[str], rows: _Rows) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for values, value in rows:
        family.add_metric(list(values), value)
    return family
