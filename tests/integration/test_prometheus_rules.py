"""Rules and alerts in the hands of Prometheus: `promtool` evaluates them over invented days."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from google.protobuf.json_format import ParseDict

from meshwarden.controlplane.cli.main import main
from meshwarden.controlplane.insight.slo import ABSENT, ALERTS, BURNS, min_calls, rules
from meshwarden.v1.resources_pb2 import SLO, Service

pytestmark = pytest.mark.needs("promtool")
FAST, SLOW = ALERTS["page"], ALERTS["ticket"]
CALLS = 'meshwarden_requests_total{destination_tenant="platform",destination_service="orders",reporter="source"'
DURATIONS = 'rpc_client_call_duration_seconds_%s{mesh_destination_tenant="platform",mesh_destination_service="orders"'
HOUR, DAY = 60, 1440


def objective(**spec: Any) -> tuple[SLO, Service]:
    metadata = {"tenant": "platform", "name": "orders"}
    said: dict[str, Any] = {"service": "orders", "availability": {}, "objective": 99.9, **spec}
    if "latency" in said:
        del said["availability"]
    service = ParseDict({"metadata": metadata, "spec": {"protocol": "GRPC"}}, Service())
    return ParseDict({"metadata": metadata, "spec": said}, SLO()), service


def run(
    tmp_path: Path, found: dict[str, Any], series: dict[str, str], firing: dict[int, set[str]], step: int = 1
) -> None:
    """Lets promtool hold what fires, {minute: names of alerts}, over series of a value each `step` minutes."""
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(found))
    tests = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)],
        }
        for minute, names in firing.items()
    ]
    case = {
        "interval": f"{step}m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": tests,
    }
    (tmp_path / "test.yml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": f"{step}m", "tests": [case]})
    )
    for command in (["check", "rules", "rules.yml"], ["test", "rules", "test.yml"]):
        result = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


def grows(by: float, minutes: int, start: float = 0) -> str:
    return f"{start:g}+{by:g}x{minutes}"


def calls(status_class: str, **more: str) -> str:
    return CALLS + "".join(f',{key}="{value}"' for key, value in {"status_class": status_class, **more}.items()) + "}"


def test_a_total_outage_pages_within_its_minute(tmp_path: Path) -> None:
    good = f"{grows(60, 2 * HOUR)} {grows(0, 10, 7200)}"
    bad = f"{grows(0, 2 * HOUR)} {grows(60, 10, 60)}"
    # 14.4 times 0.1 % of an hour's calls have failed after 52 seconds; the longer windows know of two hours yet, and 3
    # times 0.1 % of these have failed as well.
    firing = {2 * HOUR: set(), 2 * HOUR + 2: {FAST, SLOW}, 2 * HOUR + 9: {FAST, SLOW}}
    run(tmp_path, rules([objective()]), {calls("ok"): good, calls("server_error"): bad}, firing)


def test_a_page_ends_soon_after_its_cause(tmp_path: Path) -> None:
    good = f"{grows(60, 12 * HOUR)} {grows(0, 2, 43200)} {grows(60, 90, 43260)}"
    bad = f"{grows(0, 12 * HOUR)} {grows(60, 2, 60)} {grows(0, 90, 180)}"
    firing = {12 * HOUR + 3: {FAST}, 12 * HOUR + 60: set()}
    # The short windows have forgotten: five minutes for the fast one, thirty for the next.
    found = rules([objective()])
    found["groups"] = [group for group in found["groups"] if not group["name"].endswith("budget")]
    for group in found["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert", FAST) == FAST]
    run(tmp_path, found, {calls("ok"): good, calls("server_error"): bad}, firing)


def test_a_slow_burn_is_a_ticket_and_no_page(tmp_path: Path) -> None:
    # 0.2 %: twice too fast, which is above 1 and below 3.
    series = {calls("ok"): grows(4990, DAY // 10), calls("server_error"): grows(10, DAY // 10)}
    run(tmp_path, rules([objective()]), series, {DAY // 2: {SLOW}, DAY: {SLOW}}, step=10)


def test_within_the_objective_nothing_fires(tmp_path: Path) -> None:
    series = {calls("ok"): grows(8000, DAY // 4), calls("server_error"): grows(4, DAY // 4)}
    run(tmp_path, rules([objective()]), series, {HOUR: set(), DAY: set()}, step=4)


def test_one_failure_of_a_seldom_called_service_wakes_nobody(tmp_path: Path) -> None:
    # A call in four minutes, and one of them fails: 15 an hour, of which that is 67 times too much.
    good = "0+0x3 " + " ".join(f"{n}+0x3" for n in range(1, 180))
    series = {calls("ok"): good, calls("server_error"): f"{grows(0, 6 * HOUR)} {grows(0, 6 * HOUR, 1)}"}
    run(tmp_path, rules([objective()]), series, {6 * HOUR + 4: set(), 7 * HOUR: set(), 11 * HOUR: set()})


def test_what_nobody_hears_of_is_a_ticket_after_six_hours(tmp_path: Path) -> None:
    series = {calls("ok"): f"{grows(60, HOUR)} stale"}
    firing = {HOUR: set(), 4 * HOUR: set(), 7 * HOUR + 5: {ABSENT}}
    run(tmp_path, rules([objective()]), series, firing)


def test_what_a_policy_refuses_or_the_caller_did_wrong_is_no_failure(tmp_path: Path) -> None:
    kinds = ("ok", "denied", "limited", "client_error")
    series = {calls(kind): grows(60, 3 * HOUR) for kind in kinds}
    run(tmp_path, rules([objective()]), series, {HOUR: set(), 3 * HOUR: set()})


def test_a_tenants_own_objective_counts_its_calls_alone(tmp_path: Path) -> None:
    series = {
        calls("server_error", source_tenant="globex"): grows(60, HOUR),
        calls("ok", source_tenant="acme"): grows(60, HOUR),
    }
    run(tmp_path, rules([objective(callingTenant="acme")]), series, {HOUR: set()})
    run(tmp_path, rules([objective(callingTenant="globex")]), series, {HOUR: {FAST, SLOW}})


def test_slow_calls_spend_the_budget_of_a_latency_objective(tmp_path: Path) -> None:
    found = rules([objective(latency={"threshold": "0.1s"}, objective=99)])
    failed = DURATIONS % "count" + ',error_type="UNAVAILABLE"}'
    for quick, firing in ((599, set()), (300, {FAST, SLOW})):
        series = {
            DURATIONS % "count" + ',error_type=""}': grows(600, HOUR),
            DURATIONS % "bucket" + ',error_type="",le="0.1"}': grows(quick, HOUR),
            failed: grows(600, HOUR),
        }
        run(tmp_path, found, series, {HOUR: firing})


def test_everything_happens_as_many_times_as_fast() -> None:
    def windows(scale: float = 1.0, **changes: Any) -> list[str]:
        group = rules([objective(**changes)], scale=scale)["groups"][0]
        expressions = [rule["expr"] for rule in group["rules"] if rule.get("record") == "slo:events:increase"]
        return [expression.rpartition("[")[2].partition("]")[0] for expression in expressions]

    assert windows() == ["1h", "5m", "6h", "30m", "1d", "2h", "3d", "6h"]
    assert windows(scale=60) == ["1m", "5s", "6m", "30s", "24m", "2m", "72m", "6m"]
    assert windows(window="604800s") == ["14m", "70s", "84m", "7m", "336m", "28m", "1008m", "84m"]


def test_a_factor_that_no_outage_reaches_makes_no_rule() -> None:
    found = rules([objective(objective=90)])
    burns = {rule["labels"].get("burn") for group in found["groups"] for rule in group["rules"]} - {None}
    # 14.4 times 10 % are more calls than there are.
    assert burns == {"6", "3", "1"}


@pytest.mark.parametrize("percent", [90, 95, 99, 99.9, 99.99])
def test_two_failures_alone_never_trip_an_alert(percent: float) -> None:
    slo, _ = objective(objective=percent)
    for burn in BURNS:
        assert 2 / min_calls(slo, burn) < burn.factor * (1 - percent / 100)


def test_the_command_takes_manifests_and_tells_what_is_missing(tmp_path: Path) -> None:
    manifest = tmp_path / "mesh.yaml"
    service = "kind: Service\nmetadata: {tenant: platform, name: orders}\nspec: {protocol: GRPC}\n---\n"
    slo = "kind: SLO\nmetadata: {tenant: platform, name: a}\nspec: {service: orders, availability: {}, objective: 99}\n"
    manifest.write_text(service + slo)
    result = CliRunner().invoke(main, ["slo", "rules", "-f", str(manifest), "--runbooks", "https://runbooks.test/"])
    assert result.exit_code == 0, result.output
    (tmp_path / "rules.yml").write_text(result.output)
    checked = subprocess.run(
        ["promtool", "check", "rules", "rules.yml"], cwd=tmp_path, check=False, capture_output=True
    )
    assert checked.returncode == 0, checked.stdout
    assert "runbook_url: https://runbooks.test/SLOBurnFast.md" in result.output
    assert "&id" not in result.output
    manifest.write_text(slo)
    result = CliRunner().invoke(main, ["slo", "rules", "-f", str(manifest)])
    assert result.exit_code == 1
    assert "there is no Service platform/orders" in result.output
    manifest.write_text("kind: SLO\n")
    assert "metadata: is required" in CliRunner().invoke(main, ["slo", "rules", "-f", str(manifest)]).output


# -- alerts of the mesh itself

ROOT = Path(__file__).parents[2]
STATIC = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
CP = 'job="meshwarden",instance="cp"'
NODE = f'{CP},node="a"'


def names(found: dict[str, Any]) -> set[str]:
    return {rule["alert"] for group in found["groups"] for rule in group["rules"] if "alert" in rule}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    generated = rules([objective()])
    for found in (STATIC, generated):
        for group in found["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
                    assert rule["labels"]["severity"] in ("page", "ticket")
    assert names(STATIC) | names(generated) == {path.stem for path in (ROOT / "docs/runbooks").glob("*.md")}


def test_runbooks_say_what_to_look_at_and_what_to_do_and_lead_nowhere_wrong() -> None:
    for path in (ROOT / "docs/runbooks").glob("*.md"):
        text = path.read_text()
        assert text.startswith(f"# {path.stem}\n"), path
        assert "\n## Look\n" in text, path
        assert "\n## Do\n" in text, path
        for target in re.findall(r"\]\(([^)]+)\)", text):
            assert (path.parent / target).exists(), (path, target)


HEALTHY = {
    f"up{{{CP}}}": "1x15",
    f"meshwarden_store_revision{{{CP}}}": "7x15",
    f"meshwarden_node_connected{{{NODE}}}": "1x15",
    f"meshwarden_node_acked_revision{{{NODE}}}": "7x15",
    f'meshwarden_nacks{{{NODE},type=""}}': "0x15",
    f'meshwarden_svid_expiry_seconds{{{NODE},kind="workload",workload="w"}}': "3000x15",
    f'meshwarden_svid_lifetime_seconds{{{NODE},kind="workload",workload="w"}}': "3600x15",
    f'meshwarden_svid_expiry_seconds{{{CP},kind="root"}}': "31536000x15",
    'meshwarden_agent_certificate_expiry_seconds{job="meshwarden-nodes",node="a"}': "3000x15",
    'meshwarden_spool_bytes{job="meshwarden-nodes",node="a",tenant="acme"}': "1024x15",
    f"meshwarden_node_clock_skew_seconds{{{NODE}}}": "0.1x15",
    f"meshwarden_disk_free_bytes{{{CP}}}": "50x15",
    f"meshwarden_disk_size_bytes{{{CP}}}": "100x15",
    f'meshwarden_telemetry_dropped_total{{{CP},signal="span",reason="no_backend"}}': "0+100x15",
    f'meshwarden_telemetry_dropped_total{{{CP},signal="span",reason="sampled"}}': "0+100x15",
    f'meshwarden_denials_total{{{CP},event="node.attest_denied"}}': "0x15",
    f'meshwarden_region_age_seconds{{{CP},region="us"}}': "2x15",
}


@pytest.mark.parametrize(
    ("changes", "alert"),
    [
        ({}, ""),
        ({f"up{{{CP}}}": "0x15"}, "ControlPlaneDown"),
        ({f"up{{{CP}}}": "stale"}, "ControlPlaneDown"),
        ({f"meshwarden_node_connected{{{NODE}}}": "0x15"}, "NodeDisconnected"),
        ({f"meshwarden_store_revision{{{CP}}}": "8x15"}, "NodeBehind"),
        # One that follows, a revision behind at each look, is not behind.
        (
            {
                f"meshwarden_store_revision{{{CP}}}": "8+1x15",
                f"meshwarden_node_acked_revision{{{NODE}}}": "7+1x15",
            },
            "",
        ),
        ({f'meshwarden_nacks{{{NODE},type="Cluster"}}': "1x15"}, "ConfigRefused"),
        (
            {f'meshwarden_svid_expiry_seconds{{{NODE},kind="workload",workload="w"}}': "800x15"},
            "CertificateExpiring",
        ),
        (
            {'meshwarden_agent_certificate_expiry_seconds{job="meshwarden-nodes",node="a"}': "500x15"},
            "NodeCertificateExpiring",
        ),
        (
            {'meshwarden_spool_bytes{job="meshwarden-nodes",node="a",tenant="acme"}': "20000000x15"},
            "SpoolGrowing",
        ),
        (
            {f'meshwarden_telemetry_dropped_total{{{CP},signal="span",reason="queue_full"}}': "0+1x15"},
            "TelemetryDropped",
        ),
        # What is dropped once makes a series that never grows.
        (
            {f'meshwarden_telemetry_dropped_total{{{CP},signal="span",reason="disk_full"}}': "_x8 3x7"},
            "TelemetryDropped",
        ),
        ({f'meshwarden_telemetry_dropped_total{{{CP},signal="span",reason="disk_full"}}': "3x15"}, ""),
        # Whether a series is new can't be told where Prometheus is; it is, where the program is.
        (
            {
                f"up{{{CP}}}": "_x8 1x7",
                f'meshwarden_telemetry_dropped_total{{{CP},signal="span",reason="disk_full"}}': "_x8 3x7",
                f"process_start_time_seconds{{{CP}}}": "-9000x15",
            },
            "",
        ),
        (
            {
                f"up{{{CP}}}": "_x8 1x7",
                f'meshwarden_telemetry_dropped_total{{{CP},signal="span",reason="disk_full"}}': "_x8 3x7",
                f"process_start_time_seconds{{{CP}}}": "480x15",
            },
            "TelemetryDropped",
        ),
        ({f'meshwarden_series_overflow_total{{{CP},tenant="acme"}}': "0+1x15"}, "SeriesOverflow"),
        ({f"meshwarden_node_clock_skew_seconds{{{NODE}}}": "-31x15"}, "ClockSkewed"),
        ({f"meshwarden_disk_free_bytes{{{CP}}}": "4x15"}, "DiskFilling"),
        ({'meshwarden_agent_envoy_restarts_total{node="a",workload="w"}': "0+1x15"}, "EnvoyRestarting"),
        ({f'meshwarden_denials_total{{{CP},event="node.attest_denied"}}': "0+2x15"}, "IdentityRefused"),
        ({f'meshwarden_region_age_seconds{{{CP},region="us"}}': "60+60x15"}, "RegionSilent"),
        (
            {f'meshwarden_foreign_bundle_overdue_seconds{{{CP},trust_domain="b.test"}}': "600+60x15"},
            "ForeignBundleStale",
        ),
    ],
)
def test_a_mesh_that_is_well_is_quiet_and_each_fault_has_its_alert_alone(
    tmp_path: Path, changes: dict[str, str], alert: str
) -> None:
    run(tmp_path, STATIC, {**HEALTHY, **changes}, {12: {alert} if alert else set()})


def test_a_root_that_ends_is_told_a_month_before(tmp_path: Path) -> None:
    left = {f'meshwarden_svid_expiry_seconds{{{CP},kind="root"}}': "2000000x12", f"up{{{CP}}}": "1x12"}
    run(tmp_path, STATIC, left, {2 * HOUR: {"RootExpiring"}}, step=10)


def test_a_root_that_is_tainted_for_an_hour_is_told(tmp_path: Path) -> None:
    series = {f'meshwarden_roots{{{CP},state="TAINTED"}}': "0x5 1x10", f"up{{{CP}}}": "1x15"}
    run(tmp_path, STATIC, series, {HOUR: set(), HOUR + 50: set(), 2 * HOUR + 10: {"RootTainted"}}, step=10)


def test_a_root_that_should_sign_and_waits_is_told(tmp_path: Path) -> None:
    """A root is prepared at a half of the active one's life: until five sixths it waits as it should."""
    life = 300 * 86_400
    for left, alerts in ((life // 2, set()), (life // 6 + 60, set()), (life // 6 - 60, {"RootWaiting"})):
        series = {
            f'meshwarden_roots{{{CP},state="PREPARED"}}': "1x12",
            f'meshwarden_svid_expiry_seconds{{{CP},kind="root"}}': f"{left}x12",
            f'meshwarden_svid_lifetime_seconds{{{CP},kind="root"}}': f"{life}x12",
            f"up{{{CP}}}": "1x12",
        }
        run(tmp_path, STATIC, series, {2 * HOUR: alerts}, step=10)
        series[f'meshwarden_roots{{{CP},state="PREPARED"}}'] = "0x12"
        run(tmp_path, STATIC, series, {2 * HOUR: set()}, step=10)


def test_a_banned_node_that_goes_on_calling_is_told(tmp_path: Path) -> None:
    name = f'meshwarden_audit_events_total{{{CP},event="node.banned_call"}}'
    run(tmp_path, STATIC, {name: grows(2, 40), f"up{{{CP}}}": "1x40"}, {10: set(), 30: {"BannedNodeCalls"}})
    run(tmp_path, STATIC, {name: "0x5 1x40", f"up{{{CP}}}": "1x45"}, {10: set(), 40: set()})


def test_a_node_that_is_gone_has_one_alert_whatever_its_certificates_do(tmp_path: Path) -> None:
    gone = {
        **HEALTHY,
        f"meshwarden_node_connected{{{NODE}}}": "0x15",
        f'meshwarden_svid_expiry_seconds{{{NODE},kind="workload",workload="w"}}': "-100x15",
        f"meshwarden_store_revision{{{CP}}}": "9x15",
    }
    run(tmp_path, STATIC, gone, {12: {"NodeDisconnected"}})


@pytest.mark.parametrize(
    ("left_s", "callers", "alerts"),
    [
        (8 * 86_400, 3, set()),
        (6 * 86_400, 3, {"PermissiveEnding"}),
        (6 * 86_400, 0, set()),
        (60, 3, {"PermissiveEnding"}),
        (-60, 0, {"PermissiveEnded"}),
    ],
)
def test_calls_in_the_clear_that_end_are_told_while_somebody_makes_them(
    tmp_path: Path, left_s: int, callers: int, alerts: set[str]
) -> None:
    service = f'{CP},tenant="platform",service="billing"'
    series = {
        f"meshwarden_permissive_expiry_seconds{{{service}}}": f"{left_s}x15",
        f"meshwarden_permissive_callers{{{service}}}": f"{callers}x15",
    }
    run(tmp_path, STATIC, {**HEALTHY, **series}, {3: set(), 12: alerts})


def test_a_rollout_that_is_held_or_rolled_back_is_told_and_one_that_runs_is_not(tmp_path: Path) -> None:
    def seconds(phase: str) -> str:
        return f'meshwarden_rollout_phase_seconds{{{CP},tenant="platform",rollout="orders",phase="{phase}"}}'

    for phase in ("RUNNING", "COMMITTED", "ABORTED"):
        run(tmp_path, STATIC, {**HEALTHY, seconds(phase): "0+60x15"}, {1: set(), 12: set()})
    held = {f"up{{{CP}}}": "1x90", seconds("PAUSED"): grows(60, 30)}
    run(tmp_path, STATIC, held, {14: set(), 17: {"RolloutHeld"}, 29: {"RolloutHeld"}, 60: set()})
    # Two control planes of one store tell of it as one; after an hour it is known.
    back = {**held, seconds("PAUSED"): "_", seconds("ROLLED_BACK"): grows(60, 90)}
    other = seconds("ROLLED_BACK").replace("instance=", 'place="b",instance=')
    run(
        tmp_path,
        STATIC,
        {**back, other: grows(60, 90)},
        {1: {"RolloutRolledBack"}, 59: {"RolloutRolledBack"}, 62: set()},
    )


@pytest.mark.needs("amtool")
def test_the_sample_configurations_hold(tmp_path: Path) -> None:
    for name in ("alerts.yml", "prometheus.yml", "alertmanager.yml"):
        shutil.copy(ROOT / "deploy/prometheus" / name, tmp_path)
    (tmp_path / "slo.yml").write_text(yaml.safe_dump(rules([objective()])))
    for command in (["promtool", "check", "config", "prometheus.yml"], ["amtool", "check-config", "alertmanager.yml"]):
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
