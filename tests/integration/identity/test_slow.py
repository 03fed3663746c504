"""A store that takes nothing, and a Vault that doesn't answer: certificates wait and say so, and all else goes on."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from openbao_server import SHIPPED, OpenBao, serve

from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.resources.manifest import parse
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
# Another process: a process doesn't keep itself out of a file.
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""
MORE = """
kind: Service
metadata: {tenant: acme, name: NAME}
spec: {protocol: GRPC}
"""


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        role = json.loads((SHIPPED / "direct-role.json").read_text().replace("mesh.example", "mesh.test"))
        server.admin.write_data("pki/roles/meshwarden", data=role)
        yield server


class Node:
    """A node with a session: what it is told, and certificates that it asks for."""

    def __init__(self, mesh: Any, stub: Any, call: Any) -> None:
        self.mesh, self.stub, self.call = mesh, stub, call

    async def told(self, kind: str) -> Any:
        """The next message of a kind."""
        async with asyncio.timeout(DEADLINE_S):
            while (message := await self.call.read()) is not grpc.aio.EOF:
                if message.HasField(kind):
                    return getattr(message, kind)
        raise AssertionError(f"the session has ended: {await self.call.details()}")

    async def sign(self, timeout_s: float = DEADLINE_S) -> v1.SignedWorkload:
        request = v1.WorkloadCsr(tenant="acme", entry="web", csr=make_csr(new_key()))
        answer = await self.stub.SignWorkload(v1.SignWorkloadRequest(requests=[request]), timeout=timeout_s)
        (signed,) = answer.results
        return signed

    async def apply(self, text: str) -> int:
        resources = [item.resource for item in parse(text, "m.yaml")]
        return int((await self.mesh.resources.Apply(ApplyRequest(resources=resources), timeout=DEADLINE_S)).revision)

    async def goes_on(self) -> None:
        """It is heard, and another data plane of its gets its configuration."""
        await self.call.write(v1.SyncRequest(heartbeat=v1.Heartbeat()))
        for dialect in ("GRPC", "ENVOY"):
            ref = v1.DataPlaneRef(id=f"acme/web#1/{dialect.lower()}", tenant="acme", entry="web", dialect=dialect)
            await self.call.write(v1.SyncRequest(interest=v1.Interest(data_planes=[ref])))
            assert (await self.told("config")).scopes


@asynccontextmanager
async def node(mesh: Any) -> AsyncIterator[Node]:
    svid: X509Svid = await mesh.attest_by_token(await mesh.token("node-a"))
    async with mesh.channel(svid) as channel:
        stub: Any = NodeServiceStub(channel)
        call = stub.Sync()
        await call.write(v1.SyncRequest(hello=v1.NodeHello(agent_version="1")))
        made = Node(mesh, stub, call)
        await made.told("welcome")
        await made.apply(MANIFEST)
        while not (await made.told("entries")).entries:
            pass
        assert (await made.sign()).chain
        try:
            yield made
        finally:
            call.cancel()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def held(store: Path) -> Iterator[None]:
    """Nothing can be written, as with a disk that hangs; what is there can be read."""
    command = [sys.executable, "-c", HOLD, str(store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.stdin.close()


async def test_a_store_that_takes_nothing_delays_certificates_alone(start: Callable[..., Any], short_dir: Path) -> None:
    mesh = await start()
    async with node(mesh) as one:
        with held(short_dir / "cp" / "store.sqlite"):
            waiting = asyncio.ensure_future(one.sign())
            await one.goes_on()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await waiting
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "held the store" in str(caught.value.details())
            assert retry_s(caught.value) == 1
            # The caller's own deadline holds as well.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await one.sign(timeout_s=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await one.goes_on()
        assert (await one.sign()).chain


@pytest.mark.parametrize("form", ["direct", "upstream"])
async def test_a_vault_that_does_not_answer_delays_what_it_signs_alone(
    start: Callable[..., Any], short_dir: Path, bao: OpenBao, form: str
) -> None:
    token = short_dir / "token"
    token.touch(0o600)
    token.write_text(bao.token(policies=(form, "secrets")).get_secret_value())
    authority = {"kind": "vault", "address": bao.address, "token": f"file:{token}", "form": form}
    mesh = await start(authority=authority)
    async with node(mesh) as one:
        with stopped(bao.process.pid):
            waiting = asyncio.ensure_future(one.sign())
            await one.goes_on()
            revision = await one.apply(MORE.replace("NAME", "api"))
            while (await one.told("config")).revision < revision:
                pass
            signed = await waiting
            if form == "direct":
                assert (signed.code, signed.retry_after.ToMilliseconds()) == (14, 1000)
                assert bao.address in signed.message
            else:
                assert signed.chain  # by the key that Vault has signed for us
        async with asyncio.timeout(DEADLINE_S):
            while not (await one.sign()).chain:  # noqa: ASYNC110 - Vault tells nobody that it is back
                await asyncio.sleep(0.1)


def retry_s(error: grpc.aio.AioRpcError) -> float:
    """After how long the caller is told to come again."""
    status: Any = rpc_status.from_call(error)
    info = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    return float(info.retry_delay.ToTimedelta().total_seconds())
