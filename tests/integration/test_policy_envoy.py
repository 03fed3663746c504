"""What policy compiles, taken by real data planes: gRPC's own xDS client and server, and Envoy.

Nothing of the agent or of the publisher is here: an ADS server serves compiled scopes, so that a failure is policy's.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from meshwarden.certs import files
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.scope import scopes_of
from meshwarden.v1 import node_service_pb2, resources_pb2
from meshwarden.xds import api
from meshwarden.xds.server import add_ads
from meshwarden.xds.snapshot import Resource, Snapshot, resource

PEER = Path(__file__).with_name("policy_peer.py")
DEADLINE_S = 20


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Waits until the condition (which may be async) gives something true, and returns that."""
    last = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                last = condition()
                if asyncio.iscoroutine(last):
                    last = await last
                if last:
                    return last
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {DEADLINE_S} s: {what}; last {last!r}")


class Client:
    """One data plane's stream, as the ADS server wants it."""

    def __init__(self, rig: "Rig", node: str) -> None:
        self.rig, self.node = rig, node

    def snapshot(self) -> Snapshot | None:
        return self.rig.snapshots.get(self.node)

    async def changed(self, after: Snapshot | None) -> Snapshot:
        while (now := self.snapshot()) is None or now is after:
            await self.rig.moved.wait()
        return now

    def acked(self, type_url: str, version: str) -> None:
        pass

    def nacked(self, type_url: str, version: str, message: str) -> None:
        self.rig.nacks.append(f"{self.node} {type_url}: {message}")

    def close(self) -> None:
        pass


class Rig:
    """A mesh, a certificate authority, an ADS server and the processes that use it."""

    def __init__(self, root: Path) -> None:
        self.root, self.mesh, self.authority = root, Mesh("mesh.test"), MemoryAuthority("mesh.test")
        self.snapshots: dict[str, Snapshot] = {}
        self.nacks: list[str] = []
        self.moved = asyncio.Event()
        self.planes: dict[str, tuple[node_service_pb2.DataPlaneRef, tuple[Resource, ...]]] = {}
        self.processes: list[Any] = []
        self.socket = root / "ads.sock"

    def open(self, _: Any, node: Any) -> Client:
        return Client(self, node.id)

    def apply(self, *changes: Change) -> None:
        self.mesh.apply(changes)
        self.publish()

    def publish(self) -> None:
        for name, (ref, extra) in self.planes.items():
            entry = self.mesh.find("WorkloadEntry", ref.tenant, ref.entry)
            found = list(extra)
            for scope in scopes_of(ref, "n1", entry):
                found += compile_scope(self.mesh, scope, ref, entry).resources
            self.snapshots[name] = Snapshot.of(found)
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    async def svid(self, spiffe_id: SpiffeId) -> X509Svid:
        key = new_key()
        chain = await self.authority.sign(LeafTemplate(spiffe_id, timedelta(hours=1)), key.public_key(), utc_now())
        return X509Svid.of(chain, key)

    async def grpc(self, tenant: str, service: str, *args: str, listen: str = "") -> asyncio.subprocess.Process:
        """Starts a proxyless program as a workload."""
        name = f"{tenant}/{service}#{len(self.planes)}/grpc"
        self.planes[name] = (self._ref(name, tenant, service, "GRPC", listen_address=listen), ())
        self.publish()
        directory = self.root / str(len(self.planes))
        svid, bundle = await self.svid(SpiffeId.workload("mesh.test", tenant, service)), await self.authority.bundle()
        directory.mkdir()
        files.publish(
            directory, {"tls.crt": svid.chain_pem(), "tls.key": svid.key_pem(), "ca.crt": bundle.pem()}
        )
        bootstrap = directory / "bootstrap.json"
        bootstrap.write_text(json.dumps(_bootstrap(self.socket, name, directory)))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            PEER,
            *args,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(bootstrap)},
        )
        self.processes.append(process)
        return process

    def _ref(self, name: str, tenant: str, service: str, dialect: str, **more: str) -> node_service_pb2.DataPlaneRef:
        if self.mesh.find("WorkloadEntry", tenant, service) is None:
            entry = {"service": service, "nodes": ["n1"], "version": "v1"}
            self.mesh.apply([made("WorkloadEntry", tenant, service, entry)])
        return node_service_pb2.DataPlaneRef(id=name, tenant=tenant, entry=service, dialect=dialect, **more)

    async def stop(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
            process._transport.close()


def _bootstrap(ads: Path, node: str, directory: Path) -> dict[str, Any]:
    provider = {
        "certificate_file": str(directory / "tls.crt"),
        "private_key_file": str(directory / "tls.key"),
        "ca_certificate_file": str(directory / "ca.crt"),
        "refresh_interval": "1s",
    }
    return {
        "xds_servers": [{"server_uri": f"unix:{ads}", "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": node, "cluster": "test", "locality": {"region": "r", "zone": "z"}},
        "server_listener_resource_name_template": "grpc/server?xds.resource.listening_address=%s",
        "certificate_providers": {"meshwarden": {"plugin_name": "file_watcher", "config": provider}},
    }


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made_rig = Rig(tmp_path)
    server = grpc.aio.server()
    add_ads(server, made_rig)
    server.add_insecure_port(f"unix:{made_rig.socket}")
    await server.start()
    try:
        yield made_rig
    finally:
        await made_rig.stop()
        await server.stop(0)
    assert not made_rig.nacks


async def ask(process: asyncio.subprocess.Process, target: str, method: str) -> dict[str, str]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{target} {method}\n".encode())
    await process.stdin.drain()
    return json.loads(await process.stdout.readline())


def allow(*methods: str, service: str = "web") -> Change:
    rule = {"from": [{"tenant": "acme", "service": service}], "methods": list(methods)}
    return made("AccessPolicy", "platform", "orders", {"service": "orders", "allow": [rule]})


async def test_grpc_denies_by_default_allows_by_method_and_revokes_on_the_open_connection(rig: Rig) -> None:
    port = free_port()
    rig.apply(
        made("Service", "platform", "orders", {"protocol": "GRPC", "exportTo": ["acme"]}),
        made("Service", "acme", "web", {"protocol": "GRPC"}),
        made("Endpoint", "platform", "n1-orders", {"service": "orders", "address": "127.0.0.1", "port": port, "version": "v1"}),
    )
    await rig.grpc("platform", "orders", "server", f"127.0.0.1:{port}", listen=f"127.0.0.1:{port}")
    web = await rig.grpc("acme", "web", "client")

    async def code(target: str, method: str, wanted: str) -> None:
        async def same() -> bool:
            return (await ask(web, target, method))["code"] == wanted

        await until(same, f"{target} {method} gets {wanted}")

    await code("xds:///orders.platform", "/shop.Orders/Get", "PERMISSION_DENIED")
    rig.apply(allow("/shop.Orders/Get"))
    await code("xds:///orders.platform", "/shop.Orders/Get", "OK")
    await code("xds:///orders", "/shop.Orders/Get", "OK")
    assert (await ask(web, "xds:///orders", "/shop.Orders/Put"))["code"] == "PERMISSION_DENIED"
    rig.apply(allow(service="other"))
    await code("xds:///orders", "/shop.Orders/Get", "PERMISSION_DENIED")
    rig.apply(allow("/shop.*", service="*"))
    await code("xds:///orders", "/shop.Orders/Get", "OK")
