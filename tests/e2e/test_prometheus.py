"""A real Prometheus and Alertmanager watch a mesh: every panel has data, and a fault fires its alert and no other.

The rules' windows are minutes to days: here they are sixty times shorter (`slo rules --scale 60`). When the alert must
fire is worked out of what Prometheus had counted, evaluation by evaluation, so it holds on a busy machine too;
tests/integration/test_prometheus_rules.py has the times of the documentation.
"""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest
from fault import full, small_disks, stopped
from watch import OBJECTIVES, Prometheus, watching

from meshwarden.controlplane.local import record
from meshwarden.controlplane.local.check.call import http_calls, only
from meshwarden.controlplane.local.check.probe import probe
from meshwarden.controlplane.local.kernel import MARK
from meshwarden.controlplane.local.otlp import receiver

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.needs("prometheus", "prometheus-alertmanager"),
    pytest.mark.timeout(900),
]
ROOT = Path(__file__).parents[2]
MEMORY = ROOT / "deploy/grafana/dashboards/meshwarden-nbmf.json"
COST = MEMORY.with_name("meshwarden-cost.json")
BOARDS = sorted(set(MEMORY.parent.glob("*.json")) - {MEMORY, COST})
SCALE = 60
# How fast a budget is spent when somebody is woken.
PAGES = (14.4, 6.0)
FAST, SLOW = (("SLOBurnFast", "platform/orders-availability"), ("SLOBurnSlow", "platform/orders-availability"))


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


@dataclass
class Watched:
    """A mesh that a Prometheus watches.

    Attributes:
        up: `meshwarden up`; tests/e2e/conftest.py: Up.
        prometheus: who watches it.
        rules: those of its SLOs.
        disks: the parts of the mesh that have a small disk of their own: {part: directory}.
    """

    up: Any
    prometheus: Prometheus
    rules: str
    disks: dict[str, Path]


@contextlib.contextmanager
def _backend() -> Iterator[str]:
    """Where the mesh sends some of its traces on to."""
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(receiver()) as kept:
        yield kept.endpoint


@pytest.fixture(scope="module")
def watched(start_shared: Callable[..., Any], shared_directory: Path) -> Iterator[Watched]:
    with small_disks(shared_directory / "watched", "node-b") as disks, _backend() as endpoint:
        up = start_shared("watched", "--otlp-endpoint", endpoint, "--tail-sampling", "0.2")
        said = up.wait_until_up()
        manifest = shared_directory / "slo.yaml"
        manifest.write_text(OBJECTIVES)
        applied = up.run("apply", "-f", str(manifest))
        assert applied.returncode == 0, applied.stderr
        made = up.run("slo", "rules", "--scale", str(SCALE))
        assert made.returncode == 0, made.stderr
        _wait_until_calm(up, said["metrics_url"])
        with watching(shared_directory, said["metrics_url"], made.stdout) as prometheus:
            yield Watched(up, prometheus, made.stdout, disks)
        up.end()


def test_every_panel_has_data_and_a_fault_fires_its_alert_alone(watched: Watched) -> None:
    up, prometheus = watched.up, watched.prometheus
    # A control plane, two agents and four Envoys, each up.
    up.until(lambda: [target["health"] for target in prometheus.targets()] == ["up"] * 7)
    assert_data(up, prometheus, BOARDS)
    up.until(lambda: prometheus.exemplars("http_server_request_duration_seconds_bucket"))
    up.until(lambda: prometheus.exemplars("rpc_client_call_duration_seconds_bucket"))
    # The mesh is well: its alerts have been evaluated many times by now.
    assert prometheus.query('slo:burn:rate{slo="platform/orders-availability"}')
    assert prometheus.alerts() == []
    _fail_half(up, prometheus, watched.rules)


async def test_a_full_disk_costs_the_oldest_reports_alone_and_is_told_of(watched: Watched) -> None:
    if "node-b" not in watched.disks:
        pytest.skip("this user may not mount a small disk")
    up, prometheus = watched.up, watched.prometheus
    control_plane = next(item.pid for item in record.load(up.state_dir) if item.name == "server")
    agent = next(Path(item["agent_socket"]) for item in up.up_json["agents"] if item["node"] == "node-a")
    log = up.state_dir / "logs" / "agent-node-b.log"
    command, environment = (sys.executable, "-m", "meshwarden.agents"), {MARK: str(up.state_dir.resolve())}
    async with probe("probe", command, agent, "acme/web", up.state_dir, environment) as caller:
        only(await http_calls(caller, 1, timeout_s=30), "200", "before")
        # Nobody takes the reports, and there is no room to keep them.
        with stopped(control_plane), full(watched.disks["node-b"]):
            await asyncio.to_thread(up.until, lambda: "making room" in log.read_text())
            # Billing runs on that node alone.
            only(await http_calls(caller, 50, timeout_s=30), "200", "with a full disk")
    # What is under way makes no room: where there is no more than that, what comes is lost rather than the oldest.
    dropped = 'meshwarden_telemetry_dropped_total{stage=~"agent[.](spool|receive)", reason="disk_full"}'
    await asyncio.to_thread(up.until, lambda: prometheus.value(f"sum({dropped})") > 0)
    await asyncio.to_thread(up.until, lambda: "TelemetryDropped" in {name for name, _ in prometheus.alerts()})


def test_what_a_memory_measures_and_models_cost_is_on_their_boards(start: Callable[..., Any], directory: Path) -> None:
    up = start("memory", "--samples", "daena")
    said = up.wait_until_up()
    agent = next(item["agent_socket"] for item in said["agents"] if item["node"] == "node-a")
    with (
        watching(directory, said["metrics_url"], "groups: []\n") as prometheus,
        # The samples' model is a stand-in, which nobody knows the price of.
        _running(up, agent, "daena/convener", "-m", "meshwarden.examples.model_call", "--calls", "0", "--cached", "9"),
    ):
        assert_data(up, prometheus, [MEMORY, COST])
        # Its durations lead to the rounds that they were of.
        up.until(lambda: prometheus.exemplars("nbmf_write_duration_seconds_bucket"))
        assert prometheus.alerts() == []


@contextlib.contextmanager
def _running(up: Any, agent_socket: str, entry: str, *arguments: str) -> Iterator[None]:
    """A program of Python's that runs as a workload meanwhile."""
    way = ["-m", "meshwarden.agents", "exec", "--socket", agent_socket, "--entry", entry, "--"]
    command = [sys.executable, *way, sys.executable, *arguments]
    with (up.state_dir / "logs" / "running.log").open("ab") as log:
        program = subprocess.Popen(command, env=up.environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        program.terminate()
        program.wait(60)


def _wait_until_calm(up: Any, metrics_url: str) -> None:
    """Waits until a hundred calls have gone well in a row: while a mesh starts, some do not."""
    line = re.compile(r'meshwarden_requests_total\{.*reporter="source".*status_class="(\w+)".*\} (\S+)')
    last = {"failed": -1.0, "good": 0.0}

    def calm() -> bool:
        with urllib.request.urlopen(metrics_url, timeout=30) as response:  # noqa: S310 - our own, on loopback
            found = line.findall(response.read().decode())
        failed = sum(float(value) for kind, value in found if kind == "server_error")
        good = sum(float(value) for kind, value in found if kind == "ok")
        if failed != last["failed"]:
            last.update(failed=failed, good=good)
        return good - last["good"] >= 100

    up.until(calm)


def _fail_half(up: Any, prometheus: Prometheus, rules: str) -> None:
    """Half of the calls go to a program that hangs: it is taken out of the mesh, and they fail."""
    (pid,) = (item["pid"] for item in up.up_json["workloads"] if item["name"] == "orders-v2")
    with stopped(pid):
        seen: set[tuple[str, str]] = set()

        def fired() -> bool:
            seen.update(prometheus.alerts())
            return FAST in seen

        up.until(fired)
        # What burns fast burns slowly as well, and is told of as a ticket until there is the page.
        up.until(lambda: prometheus.alerts() == [FAST])
        assert seen <= {FAST, SLOW}
        name, slo = FAST
        firing = prometheus.samples(f'ALERTS{{alertname="{name}", slo="{slo}", alertstate="firing"}}')
        assert min(firing) == _due_s(prometheus, slo, rules)


def _due_s(prometheus: Prometheus, slo: str, rules: str) -> float:
    """The first evaluation at which both windows of a burn spent the budget too fast, and the long one held enough."""
    due: list[float] = []
    for factor in PAGES:
        of = f'slo="{slo}", burn="{factor:g}"'
        (enough,) = re.findall(rf"slo:events:increase{{{of}, span=\"long\"}} >= (\d+)", rules)
        long, short = (prometheus.samples(f'slo:burn:rate{{{of}, span="{span}"}}') for span in ("long", "short"))
        events = prometheus.samples(f'slo:events:increase{{{of}, span="long"}}')
        due += [at for at in long if long[at] > factor < short.get(at, 0) and events[at] >= int(enough)]
    return min(due)
