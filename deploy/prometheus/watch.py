"""A Prometheus and an Alertmanager that watch a mesh with what lies in this directory: for tests and for pictures."""

import contextlib
import json
import random
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from meshwarden.controlplane.local.port import free_port

HERE = Path(__file__).parent
OBJECTIVES = """\
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
kind: RatePolicy
metadata: {tenant: platform, name: orders-room}
spec: {service: orders, scope: POINT, adaptive: {min: 15}}
---
kind: RoutePolicy
metadata: {tenant: platform, name: orders}
spec:
  service: orders
  rules:
  - split: [{version: v1, weight: 50}, {version: v2, weight: 50}]
"""
"""What the sample mesh is held to: objectives, a limit, calls at once that servers find, and a split that lets one
version spoil half of the calls."""


class Prometheus:
    """A Prometheus and an Alertmanager beside it."""

    def __init__(self, port: int, alertmanager_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        """Where Prometheus is."""
        self._url = f"{self.url}/api/v1"
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

    def samples(self, selector: str) -> dict[float, float]:
        """All samples of one series: {when Prometheus took or made it: value}."""
        found = self.query(f"{selector}[15m]")
        return {float(at): float(value) for at, value in found[0]["values"]} if found else {}

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
            with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - our own, on loopback
                return json.load(response)
        except OSError:
            return None


@contextlib.contextmanager
def watching(directory: Path, metrics_url: str, rules: str, every: str = "1s") -> Iterator[Prometheus]:
    """Runs both with this directory's configuration, but for addresses and times.

    Args:
        directory: for their files.
        metrics_url: of the control plane.
        rules: what `meshwarden slo rules` has made.
        every: how often is scraped, and rules are evaluated.
    """
    for name in ("alerts.yml", "alertmanager.yml"):
        shutil.copy(HERE / name, directory)
    (directory / "slo.yml").write_text(rules)
    port, alertmanager_port = free_port(random.SystemRandom()), free_port(random.SystemRandom())
    config = yaml.safe_load((HERE / "prometheus.yml").read_text())
    address = urllib.parse.urlsplit(metrics_url).netloc
    config["global"] = {"scrape_interval": every, "evaluation_interval": every}
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
