"""Secrets from a real OpenBao's KV to a workload, by way of a control plane and an agent that are processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import OpenBao, serve
from tests.shell import Shell
from tests.written import written

from meshwarden.v1 import admin_service_pb2, resource_service_pb2, resources_pb2
from meshwarden.v1.admin_service_pb2_grpc import AdminServiceStub
from meshwarden.v1.resource_service_pb2_grpc import ResourceServiceStub

DOMAIN = "mesh.test"
FIRST, SECOND, OTHERS = "hunter2-first", "hunter2-second", "hunter2-of-umbrella"
# Says its secret at each line that it reads, as the SDK has it.
PROGRAM = """
import sys
from meshwarden import sdk
for line in sys.stdin:
    try:
        print(sdk.secret(line.strip(), timeout_s=0.5), flush=True)
    except sdk.SecretMissing as error:
        print("!", error, flush=True)
"""


@dataclass
class Mesh:
    """A control plane whose secrets are in an OpenBao, and the agent of its one node."""

    directory: Path
    bao: OpenBao
    process: "subprocess.Popen[bytes]"
    said: dict[str, Any]
    agent: Any = None

    @property
    def port(self) -> int:
        return int(self.said["address"].rpartition(":")[2])

    @property
    def bundle(self) -> "Mesh":
        return self

    def pem(self) -> bytes:
        return Path(self.said["ca_file"]).read_bytes()

    def put(self, path: str, **values: str) -> None:
        self.bao.admin.secrets.kv.v2.create_or_update_secret(path, values, mount_point="kv")

    def call(self, stub: Any, method: str, request: Any) -> Any:
        """Calls as the operator, in a thread."""
        directory = self.directory / "operator"
        files = [(directory / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt")]
        options = [("grpc.ssl_target_name_override", f"controlplane.{DOMAIN}")]
        with grpc.secure_channel(self.said["address"], grpc.ssl_channel_credentials(*files), options) as channel:
            return getattr(stub(channel), method)(request, timeout=60)

    async def apply(self, tenant: str, **secrets: str) -> None:
        """Stores a tenant's service and workload entry `web`, which names these secrets."""
        metadata = {"tenant": tenant, "name": "web"}
        named = [{"name": name.replace("_", "-"), "from": said} for name, said in secrets.items()]
        spec = {"service": "web", "nodes": ["node-a"], "selectors": {"uid": os.geteuid()}, "insecureSameUser": True}
        fields: list[dict[str, Any]] = [
            {"tenant": {"kind": "Tenant", "metadata": {"name": tenant}, "spec": {}}},
            {"service": {"kind": "Service", "metadata": metadata, "spec": {"protocol": "GRPC"}}},
            {"workloadEntry": {"kind": "WorkloadEntry", "metadata": metadata, "spec": {**spec, "secrets": named}}},
        ]
        resources = [json_format.ParseDict(field, resources_pb2.Resource()) for field in fields]
        request = resource_service_pb2.ApplyRequest(resources=resources)
        await asyncio.to_thread(self.call, ResourceServiceStub, "Apply", request)

    async def status(self) -> Any:
        request = admin_service_pb2.GetStatusRequest()
        return await asyncio.to_thread(self.call, AdminServiceStub, "GetStatus", request)

    def run(self, entry: str) -> "subprocess.Popen[str]":
        program: subprocess.Popen[str] = self.agent.exec(entry, sys.executable, "-c", PROGRAM)
        return program

    async def secret(self, entry: str, name: str) -> "subprocess.CompletedProcess[str]":
        """What `meshwarden-agent secret` says to a program of an entry."""
        inner = [sys.executable, "-m", "meshwarden.agents.cli", "secret", "--timeout", "1", name]
        arguments = ["exec", "--socket", str(self.agent.socket), "--entry", entry, "--", *inner]
        found: subprocess.CompletedProcess[str] = await self.agent.command(*arguments)
        return found

    def everything_written(self) -> bytes:
        """All files below the state directories, the store and its log among them, and all logs."""
        return b"".join(content for _, content in written(self.directory))


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        yield server


@pytest.fixture
async def mesh(bao: OpenBao, short_dir: Path, agent_of: Callable[[Any], Any], until: Any) -> AsyncIterator[Mesh]:
    (short_dir / "login").touch(0o600)
    (short_dir / "login").write_text(bao.token(policies=("secrets",)).get_secret_value())
    config = short_dir / "server.toml"
    config.write_text(
        f'trust_domain = "{DOMAIN}"\nstate_dir = "{short_dir}/server"\nlisten = "127.0.0.1:0"\n'
        f'metrics_listen = "127.0.0.1:0"\noperator_directory = "{short_dir}/operator"\nsecrets_poll_s = 1\n'
        f'secrets_of = {{ granted = ["kv/meshwarden/umbrella", "kv/teams"] }}\n'
        f'[authority]\nkind = "memory"\n'
        f'[vault]\naddress = "{bao.address}"\ntoken = "file:{short_dir}/login"\n'
    )
    command = [sys.executable, "-m", "meshwarden.controlplane", "server", "--config", str(config)]
    process = _started(command, short_dir / "server.log")
    announced = short_dir / "server" / "server.json"
    try:
        await until(announced.exists, "the control plane is there")
        mesh = Mesh(short_dir, bao, process, json.loads(announced.read_text()))
        mesh.agent = agent_of(mesh)
        request = admin_service_pb2.CreateJoinTokenRequest(node="node-a")
        token = await asyncio.to_thread(mesh.call, AdminServiceStub, "CreateJoinToken", request)
        (short_dir / "token").write_text(token.token)
        yield mesh
    finally:
        process.kill()
        process.wait()


def _started(command: list[str], file: Path) -> "subprocess.Popen[bytes]":
    with open(file, "wb") as log:
        return subprocess.Popen(command, stderr=log, stdout=log)


async def says(program: "subprocess.Popen[str]", name: str) -> str:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(f"{name}\n")
    program.stdin.flush()
    return (await asyncio.wait_for(asyncio.to_thread(program.stdout.readline), 60)).strip()


async def test_a_secret_reaches_its_workload_and_so_does_the_next(mesh: Mesh, until: Any) -> None:
    mesh.put("meshwarden/acme/db", password=FIRST)
    mesh.put("meshwarden/umbrella/db", password=OTHERS)
    own, others = "vault:kv/meshwarden/acme/db#password", "vault:kv/meshwarden/umbrella/db#password"
    none, beyond = "vault:kv/meshwarden/acme/none#password", "vault:kv/teams/granted/db#password"
    # What the configuration doesn't grant is refused as it is applied, by the field's name.
    with pytest.raises(
        grpc.RpcError, match=r"resources\[2\]\.spec\.secrets\[1\]\.from: .*tenant acme may name"
    ) as caught:
        await mesh.apply("acme", db=own, stolen=others)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    await mesh.apply("acme", db=own, none=none)
    await mesh.apply("granted", shared=others, beyond=beyond)
    await mesh.agent.ready()
    program = mesh.run("acme/web")
    await until(lambda: _is(says(program, "db"), FIRST), "the secret is there")
    assert "there is nothing there" in await says(program, "none")
    assert "names no secret 'other'" in await says(program, "other")
    done = await mesh.secret("acme/web", "db")
    assert (done.stdout, done.returncode) == (FIRST, 0), done.stderr
    done = await mesh.secret("granted/web", "shared")
    assert (done.stdout, done.returncode) == (OTHERS, 0), done.stderr
    shell = Shell({**os.environ, "MESHWARDEN_AGENT_SOCKET": str(mesh.agent.socket)}, mesh.directory)
    typed = (
        "meshwarden-agent exec --entry web -- sh -c 'PGPASSWORD=$(meshwarden-agent secret db-password) exec psql -h db'"
    )
    words = {"--entry web": "--entry acme/web", "db-password": "db", "psql -h db": "printenv PGPASSWORD"}
    said = await asyncio.to_thread(lambda: shell.types("docs/identity.md", typed, words))
    assert said == f"{FIRST}\n"

    # What the configuration grants and Vault's policy doesn't: the workload has all but that, and status says why.
    other = mesh.run("granted/web")
    line = 'path "kv/data/teams/granted/db"'
    await until(lambda: _is(says(other, "shared"), OTHERS), "the other secret is there")
    other.stdin.write("beyond\n")
    other.stdin.flush()
    lines = [await asyncio.wait_for(asyncio.to_thread(other.stdout.readline), 60) for _ in range(2)]
    assert "needs a policy with the line" in lines[0]
    assert line in lines[1]

    async def is_said() -> bool:
        status = await mesh.status()
        errors = [workload.error for node in status.nodes for workload in node.workloads]
        return bool(status.health.secrets_error) and any("secret beyond" in one and line in one for one in errors)

    await until(is_said, "status says so")

    mesh.put("meshwarden/acme/db", password=SECOND)
    await until(lambda: _is(says(program, "db"), SECOND), "the rotated secret is there")
    # One that isn't ours: the entry is changed to name it by another way.
    await mesh.apply("acme", db=own)
    await until(
        lambda: _begins(says(program, "stolen"), "! secret 'stolen': the workload's entry"), "it is named no more"
    )
    mesh.bao.admin.secrets.kv.v2.delete_metadata_and_all_versions("meshwarden/acme/db", mount_point="kv")
    await until(lambda: _begins(says(program, "db"), "!"), "the deleted secret is gone")

    events = [json.loads(line) for line in (mesh.directory / "server" / "audit.jsonl").read_text().splitlines()]
    given = [event["fields"] for event in events if event["event"] == "secret.deliver"]
    named = {(one["node"], one["tenant"], one["entry"], one["name"], one["version"]) for one in given}
    assert {("node-a", "acme", "web", "db", 1), ("node-a", "acme", "web", "db", 2)} <= named
    assert not [one for one in named if one[3] == "stolen"]
    status = await mesh.status()
    assert (
        "hunter2" not in str(status) + (await mesh.agent.command("status", "--socket", str(mesh.agent.socket))).stdout
    )
    assert b"hunter2" not in mesh.everything_written()


async def test_while_vault_is_away_the_last_value_stands_and_status_says_so(
    short_dir: Path, agent_of: Callable[[Any], Any], until: Any, mesh: Mesh
) -> None:
    mesh.put("meshwarden/acme/db", password=FIRST)
    await mesh.apply("acme", db="vault:kv/meshwarden/acme/db#password")
    await mesh.agent.ready()
    program = mesh.run("acme/web")
    await until(lambda: _is(says(program, "db"), FIRST), "the secret is there")
    # As good as away: stopped, it takes connections and answers none.
    os.kill(mesh.bao.process.pid, signal.SIGSTOP)
    try:

        async def is_said() -> bool:
            status = await mesh.status()
            errors = [workload.error for node in status.nodes for workload in node.workloads]
            return "kv/meshwarden/acme/db" in status.health.secrets_error and any("secret db" in one for one in errors)

        await until(is_said, "status says so")
        assert await says(program, "db") == FIRST
    finally:
        os.kill(mesh.bao.process.pid, signal.SIGCONT)
    mesh.put("meshwarden/acme/db", password=SECOND)
    await until(lambda: _is(says(program, "db"), SECOND), "what has changed meanwhile is there")

    async def is_well() -> bool:
        return not (await mesh.status()).health.secrets_error

    await until(is_well, "status says no more")

    # An agent that starts again has none on its disk.
    mesh.agent.stop(signal.SIGKILL)
    assert await says(program, "db") == SECOND  # the program has it still
    mesh.process.kill()
    mesh.process.wait()
    await mesh.agent.ready()
    done = await mesh.secret("acme/web", "db")
    assert done.returncode == 1
    assert "entry names none" in done.stderr or "has not told" in done.stderr
    assert b"hunter2" not in mesh.everything_written()


async def _is(answer: Any, wanted: str) -> bool:
    return bool(await answer == wanted)


async def _begins(answer: Any, wanted: str) -> bool:
    return str(await answer).startswith(wanted)
