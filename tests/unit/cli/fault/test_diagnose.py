"""What doctor makes of the control plane's word: each cause once, the gravest first."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from meshwarden.controlplane.cli.fault.diagnose import of_mesh
from meshwarden.controlplane.cli.fault.finding import Finding, Severity, ordered
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1 import node_service_pb2 as node

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def stamp(ahead_s: float = 0.0) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(NOW + timedelta(seconds=ahead_s))
    return made


def workload(name: str, **fields: Any) -> node.WorkloadState:
    fields = {"serial": "1", "not_after": stamp(3600), **fields}
    return node.WorkloadState(id=name, tenant="acme", entry="web", **fields)


def state(name: str = "n1", **fields: Any) -> admin.NodeState:
    return admin.NodeState(node=name, **{"connected": True, "acked_revision": 7, "last_seen": stamp(), **fields})


def found(*nodes: admin.NodeState, away: dict[str, str] | None = None, **fields: Any) -> list[Finding]:
    answer = admin.GetStatusResponse(revision=7, nodes=nodes, **{"now": stamp(), **fields})
    return ordered(of_mesh(answer, NOW, away or {}))


def brief(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(str(finding.cause), finding.subject) for finding in findings]


def test_a_mesh_that_does_well_has_none() -> None:
    health = admin.ControlPlaneHealth(disk_free_bytes=1 << 30, not_after=stamp(60), root_not_after=stamp(86400 * 300))
    assert found(state(workloads=[workload("acme/web#1")]), health=health) == []


@pytest.mark.parametrize(
    ("roots", "overdue_s", "told"), [(1, 0, ""), (1, 899, ""), (1, 901, "the last one stands"), (0, 1, "nobody of it")]
)
def test_a_foreign_bundle_that_is_stale_is_told(roots: int, overdue_s: int, told: str) -> None:
    stale = admin.BundleState(trust_domain="b.test", roots=roots, fault="no answer" if overdue_s else "")
    stale.overdue.FromSeconds(overdue_s)
    findings = found(foreign=[stale])
    assert brief(findings) == ([("foreign bundle stale", "trust domain b.test")] if told else [])
    assert not told or told in findings[0].evidence


def test_twenty_workloads_behind_one_dead_agent_are_one_finding() -> None:
    workloads = [workload(f"acme/web#{number}", error="no way") for number in range(20)]
    (finding,) = found(
        state(connected=False, workloads=workloads, acked_revision=1), away={"n1": "process 9 has ended"}
    )
    assert brief([finding]) == [("agent unreachable", "node n1")]
    assert finding.severity is Severity.CRITICAL
    assert "its 20 workloads go on" in finding.evidence
    assert "process 9 has ended" in finding.evidence


def test_twenty_workloads_with_one_reason_are_one_finding() -> None:
    workloads = [workload(f"acme/web#{number:02}", error="no certificate: banned") for number in range(20)]
    (finding,) = found(state(workloads=workloads))
    assert finding.subject.startswith("workload acme/web#00, ")
    assert finding.subject.endswith(" and 16 more")
    assert finding.cause == "certificate not renewed"


def test_the_gravest_come_first() -> None:
    spool = node.SpoolState(tenant="acme", size_mib=2, limit_mib=64)
    backend = admin.BackendState(name="tempo", error="UNAVAILABLE", waiting=3, waiting_bytes=4096)
    findings = found(
        state(health=node.AgentHealth(spools=[spool])),
        state("n2", nacks=[node.Nack(data_plane="acme/web#1/envoy", type_url="x/a.Listener", message="port\ntaken")]),
        health=admin.ControlPlaneHealth(disk_free_bytes=1 << 30, backends=[backend]),
    )
    assert brief(findings) == [
        ("configuration refused", "acme/web#1/envoy"),
        ("backend away", "backend tempo"),
        ("telemetry spooling", "node n1"),
    ]
    assert "refused a Listener and keeps what it had: port taken" in findings[0].evidence


def test_certificates_that_ended_and_those_that_were_never_had() -> None:
    ended = workload("acme/a#1", not_after=stamp(-60))
    never = node.WorkloadState(id="acme/b#1", error="the control plane could not be asked: away")
    starting = node.WorkloadState(id="acme/c#1")
    assert brief(found(state(workloads=[ended, never, starting]))) == [
        ("certificate expired", "workload acme/a#1"),
        ("certificate expired", "workload acme/b#1"),
    ]


def test_a_full_disk_is_one_finding_whatever_it_refuses() -> None:
    health = admin.ControlPlaneHealth(
        disk_free_bytes=0,
        state_dir="/var/lib/m",
        audit_error="audit.jsonl: No space left on device",
        report_error="FullError: database or disk is full",
    )
    full = node.SpoolState(tenant="acme", size_mib=64, limit_mib=64)
    (finding,) = found(state(health=node.AgentHealth(spools=[full])), health=health)
    assert brief([finding]) == [("disk full", "control plane")]
    assert "0 KiB are left in /var/lib/m; audit.jsonl: No space" in finding.evidence


@pytest.mark.parametrize(
    ("size", "limit", "cause"),
    [(13, 16, "telemetry spooling"), (14, 16, "spool full"), (6, 8, "spool full"), (57, 64, "telemetry spooling")],
)
def test_a_spool_of_which_the_oldest_has_just_gone_is_full(size: int, limit: int, cause: str) -> None:
    spool = node.SpoolState(tenant="acme", size_mib=size, limit_mib=limit)
    assert brief(found(state(health=node.AgentHealth(spools=[spool])))) == [(cause, "node n1")]


def test_a_setting_that_is_another_in_vault_is_told() -> None:
    health = admin.ControlPlaneHealth(disk_free_bytes=1 << 30, settings_error="jwt_passphrase: is another in Vault")
    (finding,) = found(health=health)
    assert brief([finding]) == [("settings not as in Vault", "control plane")]
    assert "start the control plane again" in finding.fix


def test_one_clock_that_is_wrong_and_all_but_one() -> None:
    one = found(state(clock_skew=timedelta(seconds=90)), state("n2"))
    assert brief(one) == [("clock skewed", "node n1")]
    skewed = [state(name, clock_skew=timedelta(seconds=-300)) for name in ("n1", "n2")]
    (finding,) = found(*skewed, now=stamp(300))
    assert brief([finding]) == [("clock skewed", "control plane")]
    assert brief(found(now=stamp(300))) == [("clock skewed", "this machine")]


def test_who_is_only_being_told_is_not_behind() -> None:
    assert found(state(acked_revision=6)) == []
    slow = node.AgentHealth(waiting=["acme/web#1/grpc"])
    (finding,) = found(state(acked_revision=6, health=slow))
    assert brief([finding]) == [("configuration not taken", "acme/web#1/grpc")]
    assert "--workload acme/web#1" in finding.fix


def test_an_ambiguous_name_tells_what_to_dial() -> None:
    name = admin.AmbiguousName(tenant="globex", name="ledger", services=["acme/ledger", "platform/ledger"])
    (finding,) = found(ambiguous_names=[name])
    assert finding.fix.startswith("dial ledger.acme or ledger.platform")
