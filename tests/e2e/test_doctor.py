"""`meshwarden doctor` before real faults: one mesh, into which each is put and taken out again.

docs/operations.md has the table of them.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from fault import full, small_disks, stopped

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.local import kernel, record

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# An agent whose clock is ten minutes ahead: the clock is passed in, as DESIGN §8 has it.
SKEWED_AGENT = """\
import random, sys
from datetime import timedelta
from pathlib import Path
import anyio
from meshwarden.agents import config, run
from meshwarden.certs.clock import utc_now
anyio.run(run.run, config.load(Path(sys.argv[1])), lambda: utc_now() + timedelta(minutes=10), random.SystemRandom())
"""


# A program whose spans are large and can't be made smaller.
TALKATIVE = """\
import os, random, time, grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
export = grpc.insecure_channel(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]).unary_unary(
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export", ExportTraceServiceRequest.SerializeToString)
print("up", flush=True)
input()
while True:
    time.sleep(0.02)  # it is to talk much, and not to take all of a processor
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="talk")
    span.trace_id, span.span_id = random.randbytes(16), random.randbytes(8)
    for number in range(100):
        span.attributes.add(key=str(number)).value.string_value = random.randbytes(1000).hex()
    try:
        export(request)
    except grpc.RpcError:
        pass
"""


@dataclass
class Patient:
    """A mesh that faults are put into.

    Attributes:
        up: `meshwarden up`; tests/e2e/conftest.py: Up.
        backend: the port at which telemetry's backend is expected.
        disks: the parts of the mesh that have a small disk of their own: {part: directory}.
    """

    up: Any
    backend: int
    disks: dict[str, Path]

    def doctor(self, *arguments: str) -> list[dict[str, str]]:
        """What doctor finds."""
        said = self.up.run(*arguments, "doctor", "-o", "json")
        assert said.returncode in (0, 1), said.stderr
        found: list[dict[str, str]] = json.loads(said.stdout)
        assert bool(found) == bool(said.returncode)
        return found

    def finds(self, cause: str, subject: str, *arguments: str) -> dict[str, str] | None:
        """The finding of this cause and subject, if doctor has it now."""
        for finding in self.doctor(*arguments):
            if finding["cause"] == cause and subject in finding["subject"]:
                assert finding["evidence"]
                assert finding["fix"]
                return finding
        return None

    def until_found(self, cause: str, subject: str, *arguments: str) -> dict[str, str]:
        """Waits for a finding."""
        found: list[dict[str, str]] = []

        def has() -> bool:
            finding = self.finds(cause, subject, *arguments)
            found.extend([finding] if finding else [])
            return bool(found)

        self.up.until(has)
        return found[0]

    def until_healed(self, cause: str, subject: str) -> None:
        """Waits until doctor has a finding no more."""
        self.up.until(lambda: self.finds(cause, subject) is None)

    def apply(self, manifest: str) -> None:
        """Applies manifests."""
        path = self.up.state_dir.with_suffix(".yaml")
        path.write_text(manifest)
        said = self.up.run("apply", "-f", str(path))
        assert said.returncode == 0, said.stderr

    def manifest(self, kind: str, name: str, **changed: str) -> str:
        """A resource as one would write it, with fields of its spec changed."""
        found: dict[str, Any] = yaml.safe_load(self.up.run("get", kind, name, "-o", "yaml").stdout)
        metadata = {key: found["metadata"][key] for key in ("tenant", "name")}
        return str(yaml.safe_dump({"kind": kind, "metadata": metadata, "spec": {**found["spec"], **changed}}))

    def envoy(self, name: str, node: str) -> dict[str, Any]:
        """An Envoy, as its agent tells of it."""
        sockets = {agent["node"]: agent["agent_socket"] for agent in self.up.up_json["agents"]}
        command = [sys.executable, "-m", "meshwarden.agents", "status", "--socket", sockets[node], "-o", "json"]
        said = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        return next(envoy for envoy in said["envoys"] if envoy["name"] == name)

    def running_envoy(self, name: str, node: str) -> dict[str, Any]:
        """The same, once it has a process: between two it has none."""
        found: list[dict[str, Any]] = []

        def is_running() -> bool:
            found[:] = [self.envoy(name, node)]
            return bool(found[0]["pid"])

        self.up.until(is_running)
        return found[0]

    def end_envoy(self, name: str, node: str) -> None:
        """Kills an Envoy, once it has a process, and waits until its agent knows."""
        pid = self.running_envoy(name, node)["pid"]
        os.kill(pid, signal.SIGKILL)
        self.up.until(lambda: self.envoy(name, node)["pid"] != pid)

    def process(self, name: str) -> record.Process:
        """A process of the mesh."""
        return next(item for item in record.load(self.up.state_dir) if item.name == name)

    @contextlib.contextmanager
    def node(self, name: str, *program: str, **settings: str | int) -> Iterator[Path]:
        """One more node, its agent run by `python *program CONFIG`; gives its agent's socket."""
        state_dir = self.up.state_dir.with_name(name)
        state_dir.mkdir()
        token = state_dir / "token"
        token.write_text(self.up.run("token", "create", "--node", name).stdout)
        about = {
            "node": name,
            "trust_domain": "mesh.test",
            "control_plane": self.up.up_json["control_plane"]["address"],
            "ca_file": self.up.up_json["control_plane"]["ca_file"],
            "join_token_file": str(token),
            "state_dir": str(state_dir),
            **settings,
        }
        config = state_dir / "agent.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in about.items()))
        agent = subprocess.Popen([sys.executable, *program, str(config)], stderr=subprocess.DEVNULL)
        try:
            yield state_dir / "run" / "agent.sock"
        finally:
            agent.terminate()
            agent.wait(60)

    def kill(self, name: str) -> None:
        """Ends a process with SIGKILL."""
        process = self.process(name)
        os.kill(process.pid, signal.SIGKILL)
        assert kernel.wait_gone(process.pid, process.start_time, 30)

    @contextlib.contextmanager
    def unattended(self) -> Iterator[None]:
        """Keeps `up` from starting anything again."""
        with stopped(self.up.process.pid):
            yield


@pytest.fixture(scope="module")
def patient(shared_directory: Path, start_shared: Callable[..., Any]) -> Iterator[Patient]:
    with socket.socket() as taken, small_disks(shared_directory / "a", "node-b", "server") as disks:
        # Bound and not listened on: nobody is there, and nobody comes but who shares it.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        up = start_shared("a", "--otlp-endpoint", f"http://127.0.0.1:{port}")
        up.wait_until_up()
        yield Patient(up, port, disks)
        up.end()


def test_a_backend_that_is_away(patient: Patient) -> None:
    found = patient.until_found("backend away", "backend check")
    assert "Connection refused" in found["evidence"]
    assert "wait for it" in found["evidence"]


def test_calls_that_no_policy_allows(patient: Patient) -> None:
    policy = patient.manifest("AccessPolicy", "platform/orders")
    assert patient.up.run("delete", "AccessPolicy", "platform/orders").returncode == 0
    found = patient.until_found("calls denied", "acme/web → platform/orders")
    why = "denied: no AccessPolicy allows calls of platform/orders"
    assert f"/meshwarden.examples.v1.Orders/Get: {why}" in found["evidence"]
    patient.apply(policy)


def test_a_tenant_that_calls_too_much(patient: Patient) -> None:
    limit = "{tenant: acme, requests: 1, per: 1s}"
    patient.apply(
        "kind: RatePolicy\nmetadata: {tenant: platform, name: orders}\n"
        f"spec:\n  service: orders\n  limits: [{limit}]\n"
    )
    found = patient.until_found("calls limited", "acme/web → platform/orders")
    assert "RatePolicy platform/orders" in found["evidence"]
    assert patient.up.run("delete", "RatePolicy", "platform/orders").returncode == 0


def test_a_name_that_means_two_services(patient: Patient) -> None:
    text = "kind: Service\nmetadata: {{tenant: {}, name: ledger}}\nspec: {{protocol: GRPC, exportTo: [globex]}}\n"
    patient.apply("---\n".join(text.format(tenant) for tenant in ("acme", "platform")))
    found = patient.until_found("name ambiguous", "tenant globex")
    assert "ledger could mean acme/ledger, platform/ledger" in found["evidence"]
    assert "ledger.acme" in found["fix"]
    for tenant in ("acme", "platform"):
        assert patient.up.run("delete", "Service", f"{tenant}/ledger").returncode == 0
    patient.until_healed("name ambiguous", "tenant globex")


def test_a_service_whose_program_hangs(patient: Patient) -> None:
    pid = next(item["pid"] for item in patient.up.up_json["workloads"] if item["name"] == "billing")
    with stopped(pid):
        found = patient.until_found("no healthy endpoint", "service platform/billing")
        assert "none of its 1 endpoints takes calls, on node-b" in found["evidence"]
    patient.until_healed("no healthy endpoint", "service platform/billing")


def test_a_data_plane_that_does_not_answer(patient: Patient) -> None:
    with stopped(patient.running_envoy("acme/acme-web", "node-a")["pid"]):
        patient.apply(
            "kind: Service\nmetadata: {tenant: platform, name: extra}\nspec: {protocol: HTTP, exportTo: [acme]}\n"
        )
        found = patient.until_found("configuration not taken", "acme/acme-web/envoy")
        assert "node node-a stays at" in found["evidence"]
    patient.until_healed("configuration not taken", "acme/acme-web/envoy")


def test_a_port_that_is_taken_from_an_envoy(patient: Patient) -> None:
    envoy = patient.running_envoy("platform/billing", "node-b")
    host, _, port = envoy["inbound"].rpartition(":")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Its agent, which would start it again at once, must wait until the port is ours.
        with stopped(patient.process("agent-node-b").pid):
            started = kernel.start_time(envoy["pid"])
            assert started is not None
            os.kill(envoy["pid"], signal.SIGKILL)
            assert kernel.wait_gone(envoy["pid"], started, 30)
            taken.bind((host, int(port)))
            taken.listen()
        found = patient.until_found("configuration refused", "platform/billing/envoy")
        assert "refused the Listener inbound" in found["evidence"]
        assert "Address already in use" in found["evidence"]
    patient.end_envoy("platform/billing", "node-b")
    patient.until_healed("configuration refused", "platform/billing/envoy")


def test_an_envoy_that_does_not_stay_up(patient: Patient) -> None:
    def ends_and_is_found() -> bool:
        for _ in range(3):
            patient.end_envoy("acme/intruder", "node-a")
        return patient.finds("workload faulty", "acme/intruder") is not None

    patient.up.until(ends_and_is_found)


def test_an_agent_that_hangs(patient: Patient) -> None:
    with stopped(patient.process("agent-node-a").pid):
        found = patient.until_found("agent silent", "node node-a")
        assert "is stopped by a signal" in found["evidence"]
    patient.until_healed("agent silent", "node node-a")


def test_an_agent_that_is_killed(patient: Patient) -> None:
    with patient.unattended():
        patient.kill("agent-node-a")
        found = patient.until_found("agent unreachable", "node node-a")
        assert "no session since" in found["evidence"]
        assert "has ended" in found["evidence"]
        # Its workloads are not findings of their own.
        assert not [item for item in patient.doctor() if "acme/acme-web" in item["subject"]]
    patient.until_healed("agent unreachable", "node node-a")


def test_an_agent_whose_disk_is_full(patient: Patient) -> None:
    if "node-b" not in patient.disks:
        pytest.skip("this user may not mount a small disk")
    with full(patient.disks["node-b"]):
        found = patient.until_found("disk full", "node node-b")
        assert "node-b" in found["evidence"]
    patient.until_healed("disk full", "node node-b")


def test_a_control_plane_whose_disk_is_full(patient: Patient) -> None:
    if "server" not in patient.disks:
        pytest.skip("this user may not mount a small disk")
    with full(patient.disks["server"]):
        found = patient.until_found("disk full", "control plane")
        (left,) = re.findall(r"(\d+) KiB are left", found["evidence"])
        assert int(left) < 8 << 10
    patient.until_healed("disk full", "control plane")


def test_an_operator_whose_certificate_has_ended(patient: Patient) -> None:
    leaf = patient.up.state_dir.with_suffix(".crt")
    leaf.write_bytes(_ended("spiffe://mesh.test/operator/late"))
    _put_context(patient, "late", cert_file=str(leaf))
    found = patient.until_found("operator certificate expired", "operator", "--context", "late")
    assert str(leaf) in found["evidence"]


def test_a_context_of_another_mesh(patient: Patient) -> None:
    root = patient.up.state_dir.with_suffix(".pem")
    root.write_bytes(_ended("spiffe://other.test"))
    _put_context(patient, "other", ca_file=str(root))
    patient.until_found("control plane untrusted", "control plane", "--context", "other")


def test_a_key_that_others_can_read(patient: Patient) -> None:
    key = Path(patient.up.up_json["admin"]["key_file"])
    key.chmod(0o644)
    assert "0644" in patient.until_found("key readable by others", "operator")["evidence"]
    key.chmod(0o600)
    patient.until_healed("key readable by others", "operator")


def test_a_node_whose_clock_is_wrong(patient: Patient) -> None:
    with patient.node("node-c", "-c", SKEWED_AGENT):
        found = patient.until_found("clock skewed", "node node-c")
        # The clock is read before the message is on its way, however long that takes.
        (skew,) = re.findall(r"its clock is \+(\d+) s off", found["evidence"])
        assert 500 < int(skew) <= 600


def test_a_node_whose_spool_is_full(patient: Patient) -> None:
    entry = f"nodes: [node-d], insecureSameUser: true, selectors: {{uid: {os.getuid()}}}"
    patient.apply(
        "kind: Service\nmetadata: {tenant: acme, name: talk}\nspec: {protocol: GRPC}\n---\n"
        f"kind: WorkloadEntry\nmetadata: {{tenant: acme, name: talk}}\nspec: {{service: talk, {entry}}}\n"
    )
    run = ("-m", "meshwarden.agents", "run", "--config")
    bounds = {"spool_tenant_bytes": 16 << 20, "telemetry_bytes_per_s": 64 << 20}
    # The node ends before what it has kept can go up: that would fill a small disk.
    with contextlib.ExitStack() as until_after, patient.node("node-d", *run, **bounds) as agent:
        patient.up.until(agent.exists)
        start = [sys.executable, "-m", "meshwarden.agents", "exec", "--socket", str(agent), "--entry", "acme/talk"]
        talk = [*start, "--", sys.executable, "-c", TALKATIVE]
        with subprocess.Popen(talk, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            try:
                assert program.stdout is not None
                assert program.stdout.readline() == b"up\n"
                _put_context(patient, "lonely", agent_sockets=[str(agent)])
                until_after.enter_context(stopped(patient.process("server").pid))
                assert program.stdin is not None
                program.stdin.write(b"go\n")
                program.stdin.flush()
                found = patient.until_found("spool full", "node node-d", "--context", "lonely")
                assert "of 16 MiB of tenant acme wait to go up: the oldest is dropped" in found["evidence"]
            finally:
                program.kill()
    patient.until_healed("control plane silent", "control plane")
    for kind in ("WorkloadEntry", "Service"):
        assert patient.up.run("delete", kind, "acme/talk").returncode == 0


def test_a_control_plane_that_hangs_until_a_certificate_ends(patient: Patient) -> None:
    patient.apply(patient.manifest("WorkloadEntry", "platform/billing", svidTtl="60s"))
    assert patient.up.run("svid", "renew").returncode == 0

    def is_short() -> bool:
        status = json.loads(patient.up.run("status", "-o", "json").stdout)
        workloads = [item for node in status["nodes"] for item in node.get("workloads", [])]
        billing = next(item for item in workloads if item["id"] == "platform/billing")
        return bool(billing.get("notAfter", "9") < (utc_now() + timedelta(seconds=90)).isoformat())

    patient.up.until(is_short)
    with stopped(patient.process("server").pid):
        found = patient.until_found("control plane silent", "control plane")
        assert "is stopped by a signal" in found["evidence"]
        found = patient.until_found("certificate expired", "workload platform/billing")
        assert "the control plane could not be asked" in found["evidence"]
    patient.until_healed("certificate expired", "workload platform/billing")


def test_a_control_plane_that_is_killed(patient: Patient) -> None:
    with patient.unattended():
        patient.kill("server")
        found = patient.until_found("control plane unreachable", "control plane")
        assert "Connection refused" in found["evidence"]
        assert "has ended" in found["evidence"]
    patient.until_healed("control plane unreachable", "control plane")


def test_a_backend_that_is_back_is_no_finding(patient: Patient) -> None:
    def taken(request: bytes, context: Any) -> bytes:
        return b""

    export = {"Export": grpc.unary_unary_rpc_method_handler(taken)}
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, export)])
    server.add_insecure_port(f"127.0.0.1:{patient.backend}")
    server.start()
    try:
        patient.until_healed("backend away", "backend check")
    finally:
        server.stop(None).wait()


def _ended(uri: str) -> bytes:
    """A certificate that has ended, its own root, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "late")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(utc_now() - timedelta(hours=2))
    builder = builder.not_valid_after(utc_now() - timedelta(hours=1))
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    leaf = builder.add_extension(names, critical=False).sign(key, SHA256())
    return leaf.public_bytes(Encoding.PEM)


def _put_context(patient: Patient, name: str, **changed: str | list[str]) -> None:
    """Adds a context that is the mesh's but for what is changed."""
    path = Path(patient.up.environment["XDG_CONFIG_HOME"]) / "meshwarden" / "contexts.json"
    said = json.loads(path.read_text())
    said["contexts"][name] = {**said["contexts"][said["current"]], **changed}
    path.write_text(json.dumps(said))
