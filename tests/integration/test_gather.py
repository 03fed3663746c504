"""Gather with its real neighbours: promtool, a scrape over HTTP."""

import random
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.v1.report_pb2 import CallStat, ExportRequest, Histogram

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def request(sequence: int) -> ExportRequest:
    stat = CallStat(
        source="spiffe://mesh.test/tenant/acme/service/web",
        destination="platform/orders",
        method="GET /a",
        status="200",
        decision=CallStat.ALLOWED,
        reporter=CallStat.SOURCE,
        count=1,
        durations=Histogram(buckets=[100], counts=[1]),
    )
    stat.minute.FromDatetime(NOW)
    return ExportRequest(first_sequence=sequence, sequence=sequence, run_id="run", calls=[stat])


@pytest.mark.needs("promtool")
def test_promtool_has_nothing_to_say(tmp_path: Path) -> None:
    metrics, durable = Metrics(), Durable(tmp_path / "gather.sqlite")
    ledger = Ledger(durable, "mesh.test", lambda: NOW)
    mesh = {"owns": lambda *_: True, "trust_domain": "mesh.test", "region": "eu"}
    gather = Gather(durable, ledger, metrics, [], lambda: NOW, random.Random(1), **mesh)  # type: ignore[arg-type]
    metrics.gauge("meshwarden_nodes", "Nodes with a session.", ("region",), lambda: [(("eu",), 2.0)])
    gather.ingest("a", request(1))
    text = generate_latest(metrics.registry)
    durable.close()
    assert b"meshwarden_requests_total{" in text
    assert b'meshwarden_telemetry_received_total{signal="call",stage="control.ingest",tenant="acme"} 1.0' in text
    assert b'meshwarden_nodes{region="eu"} 2.0' in text
    result = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
