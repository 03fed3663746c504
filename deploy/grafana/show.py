"""Draws every dashboard from a mesh made for it: both sets of samples, a real Prometheus, and things going wrong.

python deploy/grafana/show.py --minutes 8 --out docs/dashboards        `make dashboards` does

An intruder is denied and a tenant limited all the time; a program's certificate lives for five minutes; somebody comes
to the control plane with one of his own making; for a minute one version of orders hangs; records that have become cold
are read again; a program tells of calls of a model that has a price. A rollout that spoils calls is rolled back, one
reaches all nodes, a third finds too few calls and is paused. Billing takes calls in the clear for some minutes, and
somebody makes them. The windows of objectives are sixty times shorter, so that there is something to see.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any, Final

import anyio.from_thread
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from render import render, span_of

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.local.otlp import receiver

sys.path.append(str(Path(__file__).parents[1] / "prometheus"))
from watch import OBJECTIVES, Prometheus, watching

SCALE: Final = 60
_DEADLINE_S: Final = 300.0
_EVERY_S: Final = 2
_MANIFESTS: Final = """\
kind: Service
metadata: {tenant: acme, name: batch}
spec: {protocol: GRPC}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: batch}
spec:
  service: batch
  nodes: [node-a]
  selectors: {uid: $uid}
  insecureSameUser: true
  svidTtl: 300s
"""
_IN_THE_CLEAR: Final = """\
kind: Service
metadata: {tenant: platform, name: billing}
spec:
  protocol: HTTP
  exportTo: [acme, globex]
  healthCheck: {httpPath: /healthz}
  permissive: {until: "$until", methods: ["GET /invoices*"]}
"""
_ROLLOUT: Final = """\
kind: Rollout
metadata: {tenant: platform, name: $name}
spec:
  routePolicies:
  - kind: RoutePolicy
    metadata: {tenant: platform, name: orders}
    spec:
      service: orders
      rules:
      - split: [{version: v1, weight: 50}, {version: v2, weight: 50}]
        $rule
  stages: $stages
  judge: {minCalls: $calls}
"""
# (when of the time that is shown, {what stands for what in it})
_ROLLOUTS: Final = (
    (
        0.08,
        {
            "name": "faulty",
            "rule": "fault: {abort: {percent: 20, grpcStatus: UNAVAILABLE}}",
            "stages": "[{all: true, hold: 60s}]",
            "calls": "100",
        },
    ),
    (
        0.15,
        {
            "name": "timeout",
            "rule": "timeout: 20s",
            "stages": "[{percent: 50, hold: 40s}, {all: true, hold: 40s}]",
            "calls": "20",
        },
    ),
    (
        0.7,
        {
            "name": "waits",
            "rule": "timeout: 25s",
            "stages": "[{percent: 50, hold: 10s, wait: 10s}, {all: true}]",
            "calls": "1000000",
        },
    ),
)


class Mesh:
    """A running `meshwarden up`."""

    def __init__(self, directory: Path, seconds: float, otlp_endpoint: str) -> None:
        """Starts it, to end by itself after so many seconds; some of its traces go on."""
        self._state_dir = directory / "mesh"
        self._environment = {**os.environ, "XDG_CONFIG_HOME": str(directory)}
        self._directory = directory
        samples = ["--samples", "shop", "--samples", "daena"]
        going_on = ["--otlp-endpoint", otlp_endpoint, "--tail-sampling", "0.1"]
        command = ["up", "--state-dir", str(self._state_dir), *samples, *going_on, "--for", f"{seconds:.0f}"]
        with (directory / "up.out").open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "meshwarden.controlplane", *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )

    @property
    def said(self) -> dict[str, Any]:
        """What `up.json` says."""
        said: dict[str, Any] = json.loads((self._state_dir / "up.json").read_text())
        return said

    def wait_until_up(self) -> None:
        """Waits for `up.json`.

        Raises:
            SystemExit: the mesh has ended.
        """
        path = self._state_dir / "up.json"
        until(lambda: path.exists() or self.process.poll() is not None)
        if not path.exists():
            raise SystemExit((self._directory / "up.out").read_text())

    def run(self, *arguments: str) -> str:
        """What a command prints."""
        command = [sys.executable, "-m", "meshwarden.controlplane", *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=True).stdout

    def apply(self, text: str, **known: str) -> None:
        """Applies manifests in which `$name` stands for what is known by that name."""
        path = self._directory / "show.yaml"
        path.write_text(Template(text).substitute(known))
        self.run("apply", "-f", str(path))

    def exec(self, node: str, entry: str, *command: str) -> subprocess.Popen[bytes]:
        """Starts a program as a workload."""
        place = next(agent["agent_socket"] for agent in self.said["agents"] if agent["node"] == node)
        way = ["-m", "meshwarden.agents", "exec", "--socket", place, "--entry", entry, "--"]
        with (self._directory / "exec.out").open("ab") as out:
            return subprocess.Popen([sys.executable, *way, *command], env=self._environment, stdout=out, stderr=out)

    def read_oldest(self) -> None:
        """Reads the council's oldest decisions again, with the convener's identity."""
        log = (self._state_dir / "logs/convener.log").read_text()
        oldest = re.findall(r"record ([0-9a-f]{64})", log)[:4]
        command = [sys.executable, "-m", "meshwarden.examples.daena", "convene", "--read", *oldest]
        self.exec("node-b", "daena/convener", *command).wait()

    def knock(self) -> None:
        """Comes to the control plane's door with a certificate of our own making."""
        host, _, port = self.said["control_plane"]["address"].rpartition(":")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(_self_made(self._directory / "stranger.pem"))
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, int(port)), 5) as plain,
            context.wrap_socket(plain) as door,
        ):
            door.recv(1)

    def call_in_the_clear(self) -> None:
        """Calls billing as one who is not of the mesh."""
        endpoints = (one["spec"] for one in json.loads(self.run("get", "Endpoint", "-o", "json")))
        place = next(f"{spec['address']}:{spec['port']}" for spec in endpoints if spec["service"] == "billing")
        url = f"http://{place}/invoices/1"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            answer.read()


def _self_made(path: Path) -> Path:
    """A certificate that no authority has signed, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = utc_now()
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = (
        made.serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + timedelta(hours=1))
    )
    leaf = made.sign(key, hashes.SHA256())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form) + leaf.public_bytes(serialization.Encoding.PEM))
    return path


def until(condition: Callable[[], object]) -> None:
    """Waits until something holds.

    Raises:
        SystemExit: it does not for long.
    """
    deadline_s = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit("the mesh takes too long")
        time.sleep(0.2)


@contextlib.contextmanager
def running(directory: Path, seconds: float) -> Iterator[Mesh]:
    """A mesh that ends with the block."""
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(receiver()) as backend:
        mesh = Mesh(directory, seconds, backend.endpoint)
        try:
            yield mesh
        finally:
            mesh.process.terminate()
            mesh.process.wait()


def spoil(mesh: Mesh, minutes: float) -> None:
    """Lets time go by and things go wrong."""
    (pid,) = (item["pid"] for item in mesh.said["workloads"] if item["name"] == "orders-v2")
    begin_s, hangs = time.monotonic(), False
    batch = mesh.exec("node-a", "acme/batch", "sleep", f"{60 * minutes + 300:.0f}")
    tells = ("-m", "meshwarden.examples.model_call", "--calls", "0", "--cached", "400")
    rollouts = list(_ROLLOUTS)
    telling = mesh.exec("node-a", "daena/convener", sys.executable, *tells)
    try:
        while (gone := (time.monotonic() - begin_s) / 60 / minutes) < 1:
            is_to_hang = 0.5 <= gone < 0.5 + 1 / minutes
            if is_to_hang != hangs:
                os.kill(pid, signal.SIGSTOP if is_to_hang else signal.SIGCONT)
                hangs = is_to_hang
            while rollouts and gone > rollouts[0][0]:
                mesh.apply(_ROLLOUT, **rollouts.pop(0)[1])
            mesh.call_in_the_clear()
            if 0.3 < gone < 0.45:
                mesh.knock()
            if 0.35 < gone < 0.5 or gone > 0.75:
                mesh.read_oldest()
            time.sleep(5)
    finally:
        os.kill(pid, signal.SIGCONT)
        for program in (batch, telling):
            program.terminate()
            program.wait()


def draw_all(prometheus: Prometheus, minutes: float, out: Path) -> list[Path]:
    """Draws; returns those that lack data."""
    end_s = prometheus.value("vector(time())")
    note = f"{minutes:g} minutes of the sample mesh"
    notes = {"meshwarden-slo": f"{note}, all windows {SCALE} times shorter"}
    return render(prometheus.url, span_of(end_s, minutes), out, lambda uid: notes.get(uid, note), f"{10 * _EVERY_S}s")


def main() -> int:
    """Reads the command line and draws; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="how much to show (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/dashboards"), help="where to (default: %(default)s)")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        # Short: there are Unix sockets below it.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mw-")))
        mesh = stack.enter_context(running(directory, 60 * asked.minutes + 600))
        mesh.wait_until_up()
        mesh.apply(f"{OBJECTIVES}---\n{_MANIFESTS}", uid=str(os.getuid()))
        mesh.apply(_IN_THE_CLEAR, until=f"{utc_now() + timedelta(minutes=0.8 * asked.minutes):%Y-%m-%dT%H:%M:%SZ}")
        rules = mesh.run("slo", "rules", "--scale", str(SCALE))
        prometheus = stack.enter_context(watching(directory, mesh.said["metrics_url"], rules, f"{_EVERY_S}s"))
        until(lambda: prometheus.query("up == 1"))
        spoil(mesh, asked.minutes)
        lacking = draw_all(prometheus, asked.minutes, asked.out)
    for path in lacking:
        print(f"{path}: a panel has no data", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
