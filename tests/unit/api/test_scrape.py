"""What the control plane tells Prometheus of itself and of the nodes."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from meshwarden.certs.authority.port import AuthorityUnavailable
from meshwarden.certs.authority.slot import RootState, SlotState
from meshwarden.controlplane.api.metrics.scrape import Scraped, targets
from meshwarden.controlplane.api.metrics.vitals import Vitals
from meshwarden.controlplane.audit.count import CountedAuditLog
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.quota.division import Division
from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.v1.admin_service_pb2 import NodeState
from meshwarden.v1.resources_pb2 import Rollout, RolloutStatus, Service

NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)


class Audit:
    """Takes everything but events called "full"."""

    async def record(self, event: str, **fields: object) -> None:
        await self.record_all(event, [fields])

    async def record_all(self, event: str, rows: Any) -> None:
        if event == "full":
            raise OSError("disk full")

    def note(self, event: str, **fields: object) -> None: ...


def node(**fields: Any) -> NodeState:
    state = NodeState(**{"node": "a", "zone": "z", "connected": True, "acked_revision": 6, **fields})
    state.last_seen.FromDatetime(NOW - timedelta(seconds=4))
    workload = state.workloads.add(id="acme/web", tenant="acme", serial="1")
    workload.not_before.FromDatetime(NOW - timedelta(minutes=50))
    workload.not_after.FromDatetime(NOW + timedelta(minutes=10))
    state.workloads.add(id="acme/new", tenant="acme")
    state.data_planes.add(id="acme/web#1/grpc", tenant="acme", entry="web", dialect="GRPC")
    state.data_planes.add(id="acme/web#1/envoy", tenant="acme", entry="web", dialect="ENVOY")
    return state


@pytest.fixture
def audit() -> CountedAuditLog:
    return CountedAuditLog(Audit())


def mesh(*more: Any) -> Mesh:
    """Two services of acme, and what else there is of it."""
    services = [Service(metadata={"tenant": "acme", "name": name}) for name in ("web", "api")]
    found = Mesh("mesh.test")
    found.apply([Change(Key(one.DESCRIPTOR.name, "acme", one.metadata.name), one) for one in (*services, *more)])
    return found


def vitals(audit: CountedAuditLog, state_dir: Path, *nodes: NodeState, more: tuple[Any, ...] = ()) -> Vitals:
    (state_dir / "store.sqlite").write_bytes(b"x" * 10)
    (state_dir / "store.sqlite-wal").write_bytes(b"x" * 5)
    root = RootState("ab", SlotState.ACTIVE, NOW, NOW + timedelta(days=9), NOW)
    old = RootState("cd", SlotState.OLD, NOW, NOW + timedelta(days=1), NOW)
    fakes: Any = {
        "publisher": SimpleNamespace(revision=7, mesh=mesh(*more), recent=[3, 5, 6, 7]),
        "sessions": SimpleNamespace(states=lambda: list(nodes)),
        "svid": lambda: SimpleNamespace(not_before=NOW, not_after=NOW + timedelta(hours=1)),
        "roots": lambda: (old, root),
        "federation": SimpleNamespace(
            states=lambda: [SimpleNamespace(trust_domain="b.test", overdue=timedelta(minutes=7))]
        ),
    }
    fakes["overload"] = SimpleNamespace(now=(20, 3), shed=Counter({Criticality.SHEDDABLE: 5}))
    fakes["division"] = Division(None, Mesh("mesh.test"), "a", lambda: 0.0, lambda: 0.0, lambda: 1)  # type: ignore[arg-type]
    return Vitals(region="eu", version="1", state_dir=state_dir, audit=audit, clock=lambda: NOW, **fakes)


def shown(found: Vitals) -> dict[tuple[str, ...], float]:
    return {(one.name, *one.labels.values()): one.value for family in found.collect() for one in family.samples}


async def test_nodes_revisions_certificates_and_events(audit: CountedAuditLog, tmp_path: Path) -> None:
    lost = node(node="b", connected=False)
    lost.nacks.add(data_plane="acme/web#1/grpc", type_url="type.googleapis.com/envoy.Cluster", message="no")
    await audit.record_all("workload.sign", [{"tenant": "acme"}, {"tenant": "acme"}, {"tenant": "globex"}])
    await audit.record("node.renew", node="a")
    audit.note("rpc.refused", caller="x", tenant="made-up")
    unseen = NodeState(node="c")
    found = shown(vitals(audit, tmp_path, node(), lost, unseen))
    assert {key for key in found if "c" in key[1:]} == {
        ("meshwarden_node_connected", "c", ""),
        ("meshwarden_nacks", "c", ""),
    }
    wanted = {
        ("meshwarden_build_info", "eu", "1"): 1,
        ("meshwarden_store_revision",): 7,
        ("meshwarden_nodes_connected",): 1,
        ("meshwarden_node_connected", "b", "z"): 0,
        ("meshwarden_node_acked_revision", "a"): 6,
        ("meshwarden_node_silence_seconds", "a"): 4,
        ("meshwarden_nacks", "b", "Cluster"): 1,
        ("meshwarden_nacks", "a", ""): 0,
        ("meshwarden_nodes_behind", "0"): 0,
        ("meshwarden_nodes_behind", "1"): 2,
        ("meshwarden_nodes_behind", "2-9"): 1,
        ("meshwarden_nodes_behind", "10+"): 0,
        ("meshwarden_tenant_nacks", "acme"): 1,
        ("meshwarden_workloads", "a", "acme"): 2,
        ("meshwarden_data_planes", "a", "envoy"): 1,
        ("meshwarden_resources", "Service", "acme"): 2,
        ("meshwarden_database_size_bytes", "store"): 15,
        ("meshwarden_svid_expiry_seconds", "workload", "a", "acme", "acme/web"): 600,
        ("meshwarden_svid_lifetime_seconds", "workload", "a", "acme", "acme/web"): 3600,
        ("meshwarden_svid_expiry_seconds", "controlplane", "", "", ""): 3600,
        ("meshwarden_svid_expiry_seconds", "root", "", "", ""): 9 * 86400,
        ("meshwarden_svids_issued_total", "workload", "acme"): 2,
        ("meshwarden_svids_issued_total", "node", ""): 1,
        ("meshwarden_denials_total", "rpc.refused"): 1,
        ("meshwarden_denials_total", "node.attest_denied"): 0,
        ("meshwarden_audit_events_total", "workload.sign"): 3,
        ("meshwarden_server_concurrency_limit",): 20,
        ("meshwarden_server_concurrency",): 3,
        ("meshwarden_server_shed_total", "SHEDDABLE"): 5,
        ("meshwarden_server_shed_total", "CRITICAL"): 0,
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert ("meshwarden_svid_expiry_seconds", "workload", "a", "acme", "acme/new") not in found


async def no_crl() -> bytes:
    raise AuthorityUnavailable("nobody signs")


async def test_a_revocation_list_is_told_as_one_or_why_there_is_none(audit: CountedAuditLog, tmp_path: Path) -> None:
    async def crl() -> bytes:
        return b"der"

    for find, wanted in ((crl, ("application/pkix-crl", b"der")), (no_crl, None)):
        page = Scraped(CollectorRegistry(), vitals(audit, tmp_path, node()), list, find).find("/crl")
        assert page is not None
        if wanted is not None:
            assert await page("") == wanted
        else:
            with pytest.raises(OSError, match="nobody signs"):
                await page("")


async def test_what_the_log_did_not_take_is_not_counted(audit: CountedAuditLog) -> None:
    with pytest.raises(OSError, match="disk full"):
        await audit.record("full")
    assert audit.counts == Counter()


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        ("", False),
        ("text/plain", False),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),
        ("text/html, application/openmetrics-text ; version=abc", True),
        ("\x00;;;=,", False),
    ],
)
async def test_openmetrics_to_whoever_asks(
    audit: CountedAuditLog, tmp_path: Path, accept: str, is_openmetrics: bool
) -> None:
    page = Scraped(CollectorRegistry(), vitals(audit, tmp_path, node()), list, no_crl).find("/metrics")
    assert page is not None
    content_type, body = await page(accept)
    assert content_type.startswith("application/openmetrics-text" if is_openmetrics else "text/plain")
    families = list((parse_openmetrics if is_openmetrics else parse_text)(body.decode()))
    assert "meshwarden_nodes_connected" in {family.name for family in families}


def test_targets_are_agents_that_serve_and_their_envoys() -> None:
    served = node(metrics_address="127.0.0.1:9102")
    found = targets([served, node(node="b"), node(node="c", connected=False, metrics_address="127.0.0.1:9103")])
    place = {"node": "a", "zone": "z"}
    assert found == [
        {
            "targets": ["127.0.0.1:9102"],
            "labels": {"__metrics_path__": "/metrics", "component": "agent", **place},
        },
        {
            "targets": ["127.0.0.1:9102"],
            "labels": {
                "__metrics_path__": "/envoy/acme/web#1/metrics",
                "component": "envoy",
                **place,
                "workload": "acme/web#1",
                "tenant": "acme",
            },
        },
    ]


def test_a_foreign_bundle_that_is_overdue_is_told(audit: CountedAuditLog, tmp_path: Path) -> None:
    assert shown(vitals(audit, tmp_path))["meshwarden_foreign_bundle_overdue_seconds", "b.test"] == 420


def called(node_name: str, **last: timedelta) -> NodeState:
    """A node whose agent saw calls to acme's web in the clear, `{address: how long ago the last was}`."""
    state = NodeState(node=node_name)
    for address, ago in last.items():
        state.health.clear_callers.add(tenant="acme", service="web", address=address).last.FromDatetime(NOW - ago)
    state.health.clear_callers.add(tenant="acme", service="api", address="x").last.FromDatetime(NOW)
    return state


@pytest.mark.parametrize("left", [timedelta(days=3), timedelta(seconds=-5)])
def test_until_when_calls_come_in_the_clear_and_from_how_many(
    audit: CountedAuditLog, tmp_path: Path, left: timedelta
) -> None:
    web = Service(metadata={"tenant": "acme", "name": "web"})
    web.spec.permissive.until.FromDatetime(NOW + left)
    elsewhere = called("c", d=timedelta(0))
    elsewhere.control_plane = "another"
    nodes = (called("a", a=timedelta(days=1), b=timedelta(days=8)), called("b", a=timedelta(0)), elsewhere)
    found = shown(vitals(audit, tmp_path, *nodes, more=(web,)))
    told = {key[1:]: value for key, value in found.items() if key[0] == "meshwarden_permissive_expiry_seconds"}
    assert told == {("acme", "web"): left.total_seconds()}
    callers = {key[1:]: value for key, value in found.items() if key[0] == "meshwarden_permissive_callers"}
    assert callers == {("acme", "web"): 1}


@pytest.mark.parametrize(
    ("phase", "since"),
    [
        ("PENDING", "start_time"),
        ("RUNNING", "stage_time"),
        ("PAUSED", "pause_time"),
        ("COMMITTED", "end_time"),
        ("ROLLED_BACK", "end_time"),
        ("ABORTED", "end_time"),
    ],
)
def test_how_long_a_rollout_is_in_its_phase(audit: CountedAuditLog, tmp_path: Path, phase: str, since: str) -> None:
    rollout = Rollout(metadata={"tenant": "acme", "name": "timeout"}, status={"phase": phase})
    for field in RolloutStatus.DESCRIPTOR.fields_by_name:
        if field.endswith("_time"):
            getattr(rollout.status, field).FromDatetime(NOW - timedelta(days=1))
    getattr(rollout.status, since).FromDatetime(NOW - timedelta(seconds=7))
    found = shown(vitals(audit, tmp_path, more=(rollout,)))
    told = {key[1:]: value for key, value in found.items() if key[0] == "meshwarden_rollout_phase_seconds"}
    assert told == {("acme", "timeout", phase): 7}
