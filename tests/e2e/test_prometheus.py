"""A real Prometheus and Alertmanager watch a mesh: every panel has data, and a fault fires its alert and no other.

The rules' windows are minutes to days: here they are sixty times shorter (`slo rules --scale 60`), and so is the time
within which an alert must fire.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.needs("prometheus", "prometheus-alertmanager"),
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("mesh"),
]
ROOT = Path(__file__).parents[2]
MEMORY = ROOT / "deploy/grafana/dashboards/meshwarden-nbmf.json"
BOARDS = sorted(set(MEMORY.parent.glob("*.json")) - {MEMORY})
SCALE = 60
# One call in a hundred may fail; the fast alert's long window is an hour.
BUDGET, FACTOR, LONG_S = 0.01, 14.4, 3600 / SCALE
FAST, SLOW = (("SLOBurnFast", "platform/orders-availability"), ("SLOBurnSlow", "platform/orders-availability"))
# What lies between a call and an alert: reports and scrapes of a second each, rules of half a second, a busy machine.
ON_THE_WAY_S = 15.0
MANIFESTS = """\
kind: SLO
metadata: {tenant: platform, name: orders-availability}
spec: {service: orders, availability: {}, objective: 99}
---
kind: SLO
metadata: {tenant: platform, name: orders-latency}
spec: {service: orders, latency: {threshold: 2.5s}, objective: 90}
---
kind: SLO
metadata: {tenant: platform, name: billing-availability}
spec: {service: billing, availability: {}, objective: 99, side: SERVICE}
---
kind: RatePolicy
metadata: {tenant: platform, name: orders}
spec:
  service: orders
  limits: [{tenant: globex, requests: 2}]
---
kind: RoutePolicy
metadata: {tenant: platform, name: orders}
spec:
  service: orders
  rules:
  - split: [{version: v1, weight: 50}, {version: v2, weight: 50}]
"""


class Prometheus:
    """A Prometheus and an Alertmanager beside it."""

    def __init__(self, port: int, alertmanager_port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"
        self._alertmanager = f"http://127.0.0.1:{alertmanager_port}/api/v2/alerts"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of a query; empty while Prometheus is not there."""
        found = self._ask(f"{self._url}/query?{urllib.parse.urlencode({'query': expression})}")
        result: list[dict[str, Any]] = found["data"]["result"] if found else []
        return result

    def value(self, expression: str) -> float:
        """The one value of a query; NaN if there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else float("nan")

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped."""
        found = self._ask(f"{self._url}/targets?state=active")
        result: list[dict[str, Any]] = found["data"]["activeTargets"] if found else []
        return result

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """What leads from a series to traces."""
        found = self._ask(f"{self._url}/query_exemplars?{urllib.parse.urlencode({'query': expression})}")
        result: list[dict[str, Any]] = found["data"] if found else []
        return result

    def alerts(self) -> list[tuple[str, str]]:
        """What Alertmanager would tell somebody: (name, objective or node)."""
        query = urllib.parse.urlencode({"active": "true", "inhibited": "false", "silenced": "false"})
        found: Any = self._ask(f"{self._alertmanager}?{query}") or []
        labels = [alert["labels"] for alert in found]
        return sorted((one["alertname"], one.get("slo") or one.get("node", "")) for one in labels)

    @staticmethod
    def _ask(url: str) -> Any:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own, on loopback
                return json.load(response)
        except OSError:
            return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def watching(directory: Path, metrics_url: str, rules: str) -> Iterator[Prometheus]:
    """Runs both with the configuration of deploy/prometheus, but for addresses and times."""
    for name in ("alerts.yml", "alertmanager.yml"):
        shutil.copy(ROOT / "deploy/prometheus" / name, directory)
    (directory / "slo.yml").write_text(rules)
    port, alertmanager_port = free_port(), free_port()
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    address = urllib.parse.urlsplit(metrics_url).netloc
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager_port}"]
    plane, nodes = config["scrape_configs"]
    plane["static_configs"][0]["targets"] = [address]
    nodes["http_sd_configs"][0] |= {"url": f"http://{address}/sd", "refresh_interval": "2s"}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    commands = (
        [
            "prometheus",
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        ],
        [
            "prometheus-alertmanager",
            f"--config.file={directory}/alertmanager.yml",
            f"--storage.path={directory}/alertmanager",
            f"--web.listen-address=127.0.0.1:{alertmanager_port}",
            "--cluster.listen-address=",
        ],
    )
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((directory / f"{command[0]}.log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=directory)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
        yield Prometheus(port, alertmanager_port)


def panels(boards: Iterable[Path]) -> dict[tuple[str, str, str], str]:
    """Every query of dashboards, as one looks at all tenants and services: {(board, panel, query): PromQL}."""
    found = {}
    for path in boards:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"].replace("$__rate_interval", "15s")
                found[path.stem, panel["title"], target["expr"]] = re.sub(r"\$\w+", ".*", query)
    return found


def assert_data(up: Any, prometheus: Prometheus, boards: Iterable[Path]) -> None:
    """Every query of dashboards returns something, sooner or later."""
    wanted = panels(boards)
    assert wanted

    def has_data() -> bool:
        for key in [key for key, query in wanted.items() if prometheus.query(query)]:
            del wanted[key]
        return not wanted

    with contextlib.suppress(AssertionError):
        up.until(has_data)
    assert not wanted


def test_every_panel_has_data_and_a_fault_fires_its_alert_alone(start: Callable[..., Any], directory: Path) -> None:
    up = start("watched", "--for", "300")
    said = up.wait_until_up()
    manifest = directory / "slo.yaml"
    manifest.write_text(MANIFESTS)
    applied = up.run("apply", "-f", str(manifest))
    assert applied.returncode == 0, applied.stderr
    made = up.run("slo", "rules", "--scale", str(SCALE))
    assert made.returncode == 0, made.stderr
    _wait_until_calm(up, said["metrics_url"])
    with watching(directory, said["metrics_url"], made.stdout) as prometheus:
        # A control plane, two agents and four Envoys, each up.
        up.until(lambda: [target["health"] for target in prometheus.targets()] == ["up"] * 7)
        assert_data(up, prometheus, BOARDS)
        up.until(lambda: prometheus.exemplars("http_server_request_duration_seconds_bucket"))
        up.until(lambda: prometheus.exemplars("rpc_client_call_duration_seconds_bucket"))
        # The mesh is well: its alerts have been evaluated many times by now.
        assert prometheus.query('slo:burn:rate{slo="platform/orders-availability"}')
        assert prometheus.alerts() == []
        _fail_half(up, said, prometheus)


def test_what_a_memory_measures_is_on_its_board(start: Callable[..., Any], directory: Path) -> None:
    up = start("memory", "--samples", "daena", "--for", "300")
    said = up.wait_until_up()
    with watching(directory, said["metrics_url"], "groups: []\n") as prometheus:
        assert_data(up, prometheus, [MEMORY])
        # Its durations lead to the rounds that they were of.
        up.until(lambda: prometheus.exemplars("nbmf_write_duration_seconds_bucket"))
        assert prometheus.alerts() == []


def _wait_until_calm(up: Any, metrics_url: str) -> None:
    """Waits until a hundred calls have gone well in a row: while a mesh starts, some do not."""
    line = re.compile(r'meshwarden_requests_total\{.*reporter="source".*status_class="(\w+)".*\} (\S+)')
    last = {"failed": -1.0, "good": 0.0}

    def calm() -> bool:
        with urllib.request.urlopen(metrics_url, timeout=5) as response:  # noqa: S310 - our own, on loopback
            found = line.findall(response.read().decode())
        failed = sum(float(value) for kind, value in found if kind == "server_error")
        good = sum(float(value) for kind, value in found if kind == "ok")
        if failed != last["failed"]:
            last.update(failed=failed, good=good)
        return good - last["good"] >= 100

    up.until(calm)


def _fail_half(up: Any, said: dict[str, Any], prometheus: Prometheus) -> None:
    """Half of the calls go to a program that hangs: it is taken out of the mesh, and they fail."""
    calls = 'sum(meshwarden_requests_total{reporter="source", destination_service="orders", status_class=~"%s"})'
    failing, counted = f"{calls % 'server_error'} or vector(0)", calls % "ok|client_error|server_error"
    before, all_before = prometheus.value(failing), prometheus.value(counted)
    (pid,) = (item["pid"] for item in said["workloads"] if item["name"] == "orders-v2")
    os.kill(pid, signal.SIGSTOP)
    try:
        up.until(lambda: prometheus.value(failing) > before)
        began_s = prometheus.value("vector(time())")
        seen: set[tuple[str, str]] = set()

        def fired() -> bool:
            seen.update(prometheus.alerts())
            return FAST in seen

        up.until(fired)
        fired_s = prometheus.value("vector(time())")
        share = (prometheus.value(failing) - before) / (prometheus.value(counted) - all_before)
        # What burns fast burns slowly as well, and is told of as a ticket until there is the page.
        up.until(lambda: prometheus.alerts() == [FAST])
        assert seen <= {FAST, SLOW}
        # As docs/metrics.md computes it: a history shorter than the window makes it sooner, never later.
        assert fired_s - began_s < FACTOR * BUDGET / share * LONG_S + ON_THE_WAY_S
    finally:
        os.kill(pid, signal.SIGCONT)
