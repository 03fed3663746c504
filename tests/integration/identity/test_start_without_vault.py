"""A control plane is killed, and starts again, while a real OpenBao is sealed: all goes on but what OpenBao signs."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from openbao_server import SHIPPED, OpenBao, serve

from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.node_service_pb2_grpc import NodeServiceStub
from meshwarden.v1.resource_service_pb2 import ApplyRequest

DEADLINE_S = 60.0
MANIFEST = """
kind: Tenant
metadata: {tenant: acme, name: acme}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: GRPC}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: web}
spec: {service: web, nodes: [node-a], selectors: {uid: 1}}
"""
MORE = """
kind: Service
metadata: {tenant: acme, name: api}
spec: {protocol: GRPC}
"""


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        role = json.loads((SHIPPED / "direct-role.json").read_text().replace("mesh.example", "mesh.test"))
        server.admin.write_data("pki/roles/meshwarden", data=role)
        yield server


class Server:
    """A control plane as a process of its own, which is killed and started again."""

    def __init__(self, directory: Path, connect: Any, authority: str) -> None:
        self.directory, self._connect, self.file = directory, connect, directory / "server.toml"
        self.state = directory / "cp"
        self.process: subprocess.Popen[bytes] | None = None
        self._command = [sys.executable, "-m", "meshwarden.controlplane", "server", "--config", str(self.file)]
        self.file.write_text(
            f'trust_domain = "mesh.test"\nregion = "eu"\nstate_dir = "{self.state}"\nlisten = "127.0.0.1:0"\n'
            f'metrics_listen = "127.0.0.1:0"\noperator_directory = "{directory / "operator-cp"}"\n'
            f'jwt_passphrase = "vault:kv/meshwarden#otlp"\n{authority}\n'
            # Nobody is there; what it needs is what this is about.
            f'[[otlp]]\nname = "tempo"\nendpoint = "http://127.0.0.1:9"\n'
            f'headers = {{ x-key = "transit:transit/meshwarden#{directory / "wrapped"}" }}\n'
        )

    async def start(self) -> Any:
        """Starts it; returns what an operator does with it."""
        said = self.state / "server.json"
        said.unlink(missing_ok=True)
        process = self.process = self._spawn()
        async with asyncio.timeout(DEADLINE_S):
            while not said.exists():
                assert process.poll() is None, self.log()
                await asyncio.sleep(0.02)
        return self._connect(int(json.loads(said.read_text())["address"].rpartition(":")[2]))

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with (self.directory / "server.log").open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log)

    def refuses(self) -> str:
        """Runs it to its end; returns what it said last."""
        done = subprocess.run(self._command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr[done.stderr.rindex("error: ") :]

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return (self.directory / "server.log").read_text()


@asynccontextmanager
async def session(mesh: Any, svid: X509Svid) -> AsyncIterator[Any]:
    """A node's session; gives what asks for a certificate, and what waits for the next message of a kind."""
    async with mesh.channel(svid) as channel:
        stub: Any = NodeServiceStub(channel)
        call = stub.Sync()
        await call.write(v1.SyncRequest(hello=v1.NodeHello(agent_version="1")))

        async def told(kind: str) -> Any:
            async with asyncio.timeout(DEADLINE_S):
                while (message := await call.read()) is not grpc.aio.EOF:
                    if message.HasField(kind):
                        return getattr(message, kind)
            raise AssertionError(f"the session has ended: {await call.details()}")

        async def sign() -> v1.SignedWorkload:
            request = v1.WorkloadCsr(tenant="acme", entry="web", csr=make_csr(new_key()))
            answer = await stub.SignWorkload(v1.SignWorkloadRequest(requests=[request]), timeout=DEADLINE_S)
            (signed,) = answer.results
            return signed

        await told("welcome")
        try:
            yield told, sign
        finally:
            call.cancel()


async def apply(mesh: Any, text: str) -> int:
    resources = [item.resource for item in parse(text, "m.yaml")]
    return int((await mesh.resources.Apply(ApplyRequest(resources=resources), timeout=DEADLINE_S)).revision)


async def health(mesh: Any) -> Any:
    return (await mesh.admin.GetStatus(admin.GetStatusRequest(), timeout=DEADLINE_S)).health


@pytest.mark.parametrize(("form", "passphrase"), [("upstream", "correct horse battery"), ("direct", "")])
async def test_killed_while_vault_is_sealed_it_starts_and_serves(
    short_dir: Path, bao: OpenBao, connect: Any, form: str, passphrase: str
) -> None:
    bao.wrap(short_dir / "wrapped", "hunter2 in transit")
    token = bao.token(policies=(form, "secrets", "transit")).get_secret_value()
    for name, secret in (("token", token), ("pass", passphrase)):
        (short_dir / name).touch(0o600)
        (short_dir / name).write_text(secret)
    authority = f'[authority]\nkind = "vault"\nform = "{form}"\naddress = "{bao.address}"\n'
    authority += f'token = "file:{short_dir / "token"}"\n'
    authority += f'passphrase = "file:{short_dir / "pass"}"\n' if passphrase else ""
    server = Server(short_dir, connect, authority)
    is_sealed = False
    try:
        mesh = await server.start()
        node = await mesh.attest_by_token(await mesh.token("node-a"))
        await apply(mesh, MANIFEST)
        async with session(mesh, node) as (told, sign):
            while not (await told("entries")).entries:
                pass
            assert (await sign()).chain
        bao.seal()
        is_sealed = True
        server.kill()  # -9
        if form == "direct":
            kept = short_dir / "cp" / "kept" / "svid"
            kept.rename(kept.with_name("aside"))
            assert "no certificate to show meanwhile: none was kept by an earlier run. Start Vault" in server.refuses()
            kept.with_name("aside").rename(kept)
        mesh = await server.start()
        said = await health(mesh)
        assert said.authority_error.startswith("started without Vault, which is asked every few seconds; ")
        assert "sealed" in said.authority_error
        # Of several faults the first is told, and how many there are beside it.
        assert said.settings_error.startswith("[[otlp]] tempo: transit:transit/meshwarden#")
        assert said.settings_error.endswith(" more)")
        async with session(mesh, node) as (told, sign):
            while not (await told("entries")).entries:
                pass
            assert await apply(mesh, MORE)
            signed = await sign()
            if passphrase:
                assert signed.chain
            else:
                assert (signed.code, signed.retry_after.ToMilliseconds()) == (14, 1000)
                assert "sealed" in signed.message
            bao.unseal()
            is_sealed = False
            async with asyncio.timeout(DEADLINE_S):
                while True:  # Vault tells nobody that it is back
                    said = await health(mesh)
                    if not said.authority_error and not said.settings_error and (await sign()).chain:
                        break
                    await asyncio.sleep(0.1)
    finally:
        server.kill()
        if is_sealed:
            bao.unseal()
    assert "Traceback" not in server.log()
    assert "hunter2" not in server.log()
