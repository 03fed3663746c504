"""What an agent tells Prometheus: of itself, and of Envoys no more than their own statistics."""

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshwarden.agents.quota.points import Points
from meshwarden.agents.report.concurrency import Concurrencies
from meshwarden.agents.report.metrics import AgentMetrics, only_envoys
from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.v1 import workload_service_pb2 as pb

NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)


def metrics(admin_socket: Path) -> AgentMetrics:
    status = pb.AgentStatusResponse(node="a", version="1", connected=True, revision=7)
    workload = status.workloads.add(id="acme/web", tenant="acme", serial="1")
    workload.not_after.FromDatetime(NOW + timedelta(minutes=10))
    status.envoys.add(name="acme/web#1", admin_socket=str(admin_socket), pid=5, restarts=2)
    points = Points(None, lambda: 12.5, random.Random(1))  # type: ignore[arg-type]
    points.answered_s = 11.0
    overload: Any = SimpleNamespace(now=(20, 3), shed=Counter({Criticality.SHEDDABLE_PLUS: 5}))
    end = NOW + timedelta(hours=1)
    said = Concurrencies(lambda: 0.0)
    state = pb.ConcurrencyState(policy="platform/orders", limit=12, in_flight=9)
    state.shed.add(tenant="acme", criticality="SHEDDABLE", count=4)
    said.take("platform/orders", 7, [state, pb.ConcurrencyState(policy="foreign/one", limit=1)], ["platform/orders"])
    return AgentMetrics(lambda: status, lambda: {"acme": 512}, lambda: end, points, said, overload, lambda: NOW)


async def test_how_the_agent_does(tmp_path: Path) -> None:
    page = metrics(tmp_path / "s").find("/metrics")
    assert page is not None
    _, body = await page("")
    found = {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(body.decode())
        for one in family.samples
    }
    wanted = {
        ("meshwarden_agent_info", "1"): 1,
        ("meshwarden_agent_connected",): 1,
        ("meshwarden_agent_concurrency_limit",): 20,
        ("meshwarden_agent_concurrency",): 3,
        ("meshwarden_concurrency_limit", "platform/orders", "platform/orders"): 12,
        ("meshwarden_concurrency", "platform/orders", "platform/orders"): 9,
        ("meshwarden_concurrency_shed_total", "SHEDDABLE", "platform/orders", "acme", "platform/orders"): 4,
        ("meshwarden_agent_shed_total", "SHEDDABLE_PLUS"): 5,
        ("meshwarden_agent_acked_revision",): 7,
        ("meshwarden_agent_certificate_expiry_seconds",): 3600,
        ("meshwarden_agent_svid_expiry_seconds", "acme", "acme/web"): 600,
        ("meshwarden_spool_bytes", "acme"): 512,
        ("meshwarden_spool_bytes", ""): 0,
        ("meshwarden_agent_quota_points",): 0,
        ("meshwarden_agent_quota_lease_age_seconds",): 1.5,
        ("meshwarden_agent_envoy_up", "acme/web#1"): 1,
        ("meshwarden_agent_envoy_restarts_total", "acme/web#1"): 2,
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert found["process_resident_memory_bytes",] > 0


@pytest.mark.parametrize(
    "path", ["/", "/envoy/acme/web/metrics", "/envoy/acme/web#1", "/envoy/acme/web#1/quitquitquit", "/envoy//metrics"]
)
def test_there_are_no_other_pages(tmp_path: Path, path: str) -> None:
    assert metrics(tmp_path / "s").find(path) is None


async def test_an_envoys_statistics_and_nothing_that_it_makes_up(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        body = b"# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\nmeshwarden_requests_total{} 1e9\nup 0\n"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    server = await asyncio.start_unix_server(speak, tmp_path / "s")
    page = metrics(tmp_path / "s").find("/envoy/acme/web#1/metrics")
    assert page is not None
    _, body = await page("")
    server.close()
    await server.wait_closed()
    assert body == b"# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n"
    assert asked[0].startswith(b"GET /stats/prometheus?usedonly HTTP/1.1\r\n")
    with pytest.raises(OSError):  # noqa: PT011 - nobody is there
        await page("")


def test_lines_of_other_names_are_left_out() -> None:
    assert only_envoys(b"\n# HELP envoy_x y\nenvoyx 1\n envoy_x 1\n# TYPE up gauge") == b"# HELP envoy_x y\n"
