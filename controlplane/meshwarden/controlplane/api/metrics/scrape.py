"""What is asked for in the clear: `/metrics`, as OpenMetrics to whoever wants it, and `/sd`, where else to scrape.

And `/crl`: which certificates are revoked.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from itertools import chain
from typing import Any, Final

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from meshwarden.certs.authority.port import AuthorityError
from meshwarden.sdk.scrape import Page, wants_openmetrics
from meshwarden.v1.admin_service_pb2 import NodeState
from meshwarden.v1.node_service_pb2 import DataPlaneRef

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
Targets = list[dict[str, Any]]


class Scraped:
    """The pages of the metrics listener."""

    def __init__(
        self,
        registry: CollectorRegistry,
        vitals: Collector,
        nodes: Callable[[], list[NodeState]],
        crl: Callable[[], Awaitable[bytes]],
    ) -> None:
        """Puts them together.

        Args:
            registry: what may be read on another thread.
            vitals: what must be read on this one.
            nodes: how each node does.
            crl: the list of revoked certificates in DER; AuthorityError if there is none.
        """
        self._registry, self._vitals, self._nodes, self._crl = registry, vitals, nodes, crl

    def find(self, path: str) -> Page | None:
        """The page at a path."""
        return {"/metrics": self._metrics, "/sd": self._sd, "/crl": self._revoked}.get(path)

    async def _metrics(self, accept: str) -> tuple[str, bytes]:
        # What others change is read here; the writing of text goes to a thread, for there may be much of it.
        families = _Families(list(self._vitals.collect()), self._registry)
        if wants_openmetrics(accept):
            return openmetrics.CONTENT_TYPE_LATEST, await asyncio.to_thread(openmetrics.generate_latest, families)
        return _TEXT, await asyncio.to_thread(generate_latest, families)

    async def _revoked(self, _: str) -> tuple[str, bytes]:
        try:
            return "application/pkix-crl", await self._crl()  # RFC 2585 §4.2
        except AuthorityError as error:
            raise OSError(str(error)) from None

    async def _sd(self, _: str) -> tuple[str, bytes]:
        return "application/json", json.dumps(targets(self._nodes())).encode()


class _Families(Collector):
    def __init__(self, read: list[Metric], registry: CollectorRegistry) -> None:
        self._read, self._registry = read, registry

    def collect(self) -> Iterable[Metric]:
        return chain(self._read, self._registry.collect())


def targets(nodes: Iterable[NodeState]) -> Targets:
    """Every agent that serves metrics, and every Envoy beside a workload of its node.

    Source: Prometheus documentation, "HTTP SD".
    """
    found: Targets = []
    for node in nodes:
        if not node.connected or not node.metrics_address:
            continue
        place = {"node": node.node, "zone": node.zone}
        agent = {"__metrics_path__": "/metrics", "component": "agent", **place}
        found.append({"targets": [node.metrics_address], "labels": agent})
        for plane in node.data_planes:
            if plane.dialect == DataPlaneRef.ENVOY:
                workload = plane.id.rpartition("/")[0] if plane.id.endswith("/envoy") else plane.id
                said = {"__metrics_path__": f"/envoy/{workload}/metrics", "component": "envoy"}
                labels = {**said, **place, "workload": workload, "tenant": plane.tenant}
                found.append({"targets": [node.metrics_address], "labels": labels})
    return found
