"""One mesh for all of SPIRE's suites, used as an operator and a program use it: by the commands, and by py-spiffe."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli.main import main
from meshwarden.controlplane.local import context, record
from meshwarden.controlplane.local.client import Client, connect
from meshwarden.controlplane.local.port import free_port

DEADLINE_S = 120.0
RNG = random.SystemRandom()
AGENT = (sys.executable, "-m", "meshwarden.agents")
# Says what it has, at the start and at each change: an unmodified client of SPIFFE's Workload API.
HOLDER = """
import json, time
from cryptography.hazmat.primitives import hashes
from spiffe import WorkloadApiClient, X509Source
client, source, before = WorkloadApiClient(), X509Source(), None
token = client.fetch_jwt_svid(audience={"orders"})
proved = client.validate_jwt_svid(token.token, "orders")
jwt = {"sub": str(token.spiffe_id), "proved": str(proved.spiffe_id), "audience": sorted(token.audience)}
def digest(root):
    return root.fingerprint(hashes.SHA256()).hex()
def issued(certificate, root):
    try:
        certificate.verify_directly_issued_by(root)
    except Exception:
        return False
    return True
while True:
    svid = source.svid
    roots = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain).x509_authorities
    below = [digest(root) for root in roots if issued(svid.cert_chain[-1], root)]
    said = {"id": str(svid.spiffe_id), "serial": f"{svid.leaf.serial_number:x}", "jwt": jwt}
    said |= {"root": below[0] if below else "", "roots": sorted(digest(root) for root in roots)}
    if said != before:
        print(json.dumps(said), flush=True)
    before = said
    time.sleep(0.05)
"""


# Says who it is to whoever calls.
SERVER = """
import grpc, os
from meshwarden import sdk
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda _, context: str(os.getpid()).encode())
server = sdk.server(max_workers=4)
server.add_generic_rpc_handlers((Echo(),))
server.add_port("127.0.0.1:" + os.environ["MESHWARDEN_PORT"])
sdk.run(server, grace_s=5)
"""
# Calls without end, once it is let in; says by which process it was answered last, how often, and which calls failed.
CALLER = """
import grpc, json, time
from meshwarden import sdk
call = sdk.channel("xds:///served", throttled=False).unary_unary("/echo.Echo/Say")
said, failed = None, []
count, let_in = 0, False
while True:
    try:
        said, let_in = int(call(b"", timeout=60)), True
        count += 1
    except grpc.RpcError as error:
        failed += [f"{error.code().name}: {error.details()}"] * let_in
    if let_in:
        print(json.dumps({"by": said, "calls": count, "failed": failed}), flush=True)
    time.sleep(0.02)
"""


class Holder:
    """A program that holds an identity, and what it said last."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.said: dict[str, Any] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said = json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Mesh:
    """A running mesh."""

    def __init__(self, up: Any) -> None:
        self.up = up
        self.said: dict[str, Any] = up.wait_until_up()
        self.environment = up.environment
        self.directory = up.state_dir.parent

    def cli(self, *arguments: str, code: int = 0) -> Result:
        """What `meshwarden …` says; it has to end with that code."""
        done = self._invoke(*arguments)
        assert done.exit_code == code, (arguments, done.output, done.exception)
        assert "Traceback" not in done.output
        return done

    def _invoke(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments), env={"XDG_CONFIG_HOME": self.environment["XDG_CONFIG_HOME"]})

    @contextlib.contextmanager
    def operator(self) -> Iterator[Client]:
        """The services of the control plane, as the operator's own programs call them."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CONFIG_HOME", self.environment["XDG_CONFIG_HOME"])
            _, chosen = context.get(None)
        with connect(chosen, utc_now()) as client:
            yield client

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "-o", "json").stdout)

    def apply(self, text: str) -> None:
        file = self.directory / "manifest.yaml"
        file.write_text(text)
        self.cli("apply", "-f", str(file))

    def exec(self, node: int, entry: str, *command: str) -> list[str]:
        socket = self.said["agents"][node]["agent_socket"]
        return [*AGENT, "exec", "--socket", socket, "--entry", f"acme/{entry}", "--", *command]

    def may(self, node: int, entry: str) -> bool:
        """Whether a program of this user becomes an instance of an entry there."""
        done = subprocess.run(
            self.exec(node, entry, "true"), capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert "Traceback" not in done.stderr
        return done.returncode == 0

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, self.up.said()[-4000:]
            time.sleep(0.1)

    def run(self, node: int, entry: str, program: str) -> Holder:
        """Starts a program that says things."""
        command = self.exec(node, entry, sys.executable, "-c", program)
        return Holder(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)))

    def hold(self, node: int, entry: str) -> Holder:
        holder = self.run(node, entry, HOLDER)
        self.until(lambda: holder.said)
        return holder

    def restart(self, name: str) -> None:
        """Ends a part of the mesh in good order, for `up` to start it again; returns when all of the mesh is there."""
        before = self._process(name)
        assert before is not None
        os.kill(before.pid, signal.SIGTERM)
        self.until(lambda: self._process(name) not in (None, before))
        self.until(self._is_whole)

    def _process(self, name: str) -> record.Process | None:
        return next((process for process in record.load(self.up.state_dir) if process.name == name), None)

    def _is_whole(self) -> bool:
        """Whether the agents say that they have sessions, and the control plane that it has them."""
        for agent in self.said["agents"]:
            command = [*AGENT, "status", "--socket", agent["agent_socket"], "-o", "json"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
            if done.returncode or not json.loads(done.stdout)["connected"]:
                return False
        listed = self._invoke("node", "list", "-o", "json")
        return listed.exit_code == 0 and [each["connected"] for each in json.loads(listed.stdout)] == [True, True]


@pytest.fixture(scope="module")
def mesh(start_shared: Callable[..., Any]) -> Mesh:
    """A bare mesh: a control plane and two nodes."""
    return Mesh(start_shared("m", "--no-samples"))


@pytest.fixture(scope="module")
def again(mesh: Mesh, start_shared: Callable[..., Any]) -> Callable[[], Mesh]:
    """Starts the mesh again that was taken down."""
    return lambda: Mesh(start_shared(mesh.up.state_dir.name, "--no-samples"))


@pytest.fixture(scope="module")
def holder(mesh: Mesh) -> Iterator[Holder]:
    """A program of acme's service "held", on the first node."""
    mesh.apply(manifest("held", 0))
    mesh.until(lambda: mesh.may(0, "held"))
    made = mesh.hold(0, "held")
    yield made
    with contextlib.suppress(ProcessLookupError):
        made.end()


ENTRY = """\
kind: Tenant
metadata: {name: acme}
---
kind: Service
metadata: {tenant: acme, name: NAME}
spec: {protocol: GRPC}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: NAME}
spec: {service: NAME, nodes: [NODE], selectors: {uid: UID}, insecureSameUser: true}
"""


def manifest(name: str, node: int) -> str:
    """An entry for programs of this user on a node."""
    return ENTRY.replace("NAME", name).replace("NODE", ("node-a", "node-b")[node]).replace("UID", str(os.geteuid()))


SERVED = """\
kind: Service
metadata: {tenant: acme, name: served}
spec: {protocol: GRPC, healthCheck: {interval: 0.2s}}
---
kind: AccessPolicy
metadata: {tenant: acme, name: served}
spec: {service: served, allow: [{from: [{tenant: acme, service: caller}]}]}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: served-0}
spec: {service: served, nodes: [node-a], port: PORT-0, selectors: {uid: UID}, insecureSameUser: true}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: served-1}
spec: {service: served, nodes: [node-b], port: PORT-1, selectors: {uid: UID}, insecureSameUser: true}
"""


class Programs:
    """A service with an instance on each node, and who calls it from the first."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.caller: Holder | None = None
        self.servers: dict[int, Holder] = {}

    def start(self) -> Holder:
        """Starts them, and returns the caller once both have answered it."""
        text = SERVED.replace("UID", str(os.geteuid()))
        for number in range(2):
            text = text.replace(f"PORT-{number}", str(free_port(RNG)))
        self._mesh.apply(f"{manifest('caller', 0)}---\n{text}")
        self._mesh.until(lambda: self._mesh.may(0, "caller"))
        self.caller = self._mesh.run(0, "caller", CALLER)
        for number in range(2):
            self._mesh.until(lambda number=number: self._mesh.may(number, f"served-{number}"))
            self.restart(number)
        return self.caller

    def restart(self, number: int) -> None:
        """Ends an instance in good order and starts it again; returns once it has answered the caller."""
        if (before := self.servers.pop(number, None)) is not None:
            before.process.terminate()
            before.process.wait(DEADLINE_S)
            before.end()
        server = self.servers[number] = self._mesh.run(number, f"served-{number}", SERVER)
        caller = self.caller
        assert caller is not None
        self._mesh.until(lambda: caller.said.get("by") == server.process.pid)

    def end(self) -> None:
        for program in (self.caller, *self.servers.values()):
            if program is not None:
                program.end()


@pytest.fixture
def programs(mesh: Mesh) -> Iterator[Programs]:
    made = Programs(mesh)
    yield made
    made.end()


@pytest.fixture(name="manifest", scope="module")
def _manifest() -> Callable[[str, int], str]:
    return manifest
