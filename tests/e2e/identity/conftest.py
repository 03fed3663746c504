"""One mesh for all of SPIRE's suites, used as an operator and a program use it: by the commands, and by py-spiffe."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshwarden.controlplane.cli.main import main

DEADLINE_S = 120.0
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
        done = CliRunner().invoke(main, list(arguments), env={"XDG_CONFIG_HOME": self.environment["XDG_CONFIG_HOME"]})
        assert done.exit_code == code, (arguments, done.output, done.exception)
        assert "Traceback" not in done.output
        return done

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

    def hold(self, node: int, entry: str) -> Holder:
        command = self.exec(node, entry, sys.executable, "-c", HOLDER)
        holder = Holder(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)))
        self.until(lambda: holder.said)
        return holder


@pytest.fixture(scope="module")
def mesh(start_shared: Callable[..., Any]) -> Mesh:
    """A bare mesh: a control plane and two nodes."""
    return Mesh(start_shared("m", "--no-samples"))


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


@pytest.fixture(name="manifest", scope="module")
def _manifest() -> Callable[[str, int], str]:
    return manifest
