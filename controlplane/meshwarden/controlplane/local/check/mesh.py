"""The running mesh as the checks see it: what `up.json` names, the operator's API, and the operator's commands."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio

from meshwarden.certs.issue import control_plane_dns_name
from meshwarden.controlplane.local.check.result import CheckFailed
from meshwarden.controlplane.local.handle import MeshHandle
from meshwarden.v1 import admin_service_pb2, resource_service_pb2, resources_pb2
from meshwarden.v1.admin_service_pb2_grpc import AdminServiceStub
from meshwarden.v1.resource_service_pb2_grpc import ResourceServiceStub

RPC_S = 10.0
SETTLED_S = 15.0
PAUSE_S = 0.1

Value = TypeVar("Value")


class Mesh:
    """A handle on the mesh, with what several checks need."""

    def __init__(self, handle: MeshHandle) -> None:
        self.handle = handle

    @property
    def up(self) -> dict[str, Any]:
        """What `up.json` says now."""
        return self.handle.up_json

    @property
    def roots_pem(self) -> bytes:
        """The trust domain's roots."""
        return Path(self.up["control_plane"]["ca_file"]).read_bytes()

    @property
    def trust_domain(self) -> str:
        """The trust domain."""
        return str(self.up["trust_domain"])

    def agent_socket(self, node: str) -> Path:
        """The agent's socket of a node."""
        return next(Path(agent["agent_socket"]) for agent in self.up["agents"] if agent["node"] == node)

    def pid(self, workload: str) -> int:
        """The process of a sample."""
        return next(int(item["pid"]) for item in self.up["workloads"] if item["name"] == workload)

    def vault_root_pem(self) -> bytes:
        """What OpenBao's PKI engine shows to anybody as its root; blocks.

        Raises:
            OSError: OpenBao is away, or there is none.
        """
        vault = self.handle.vault
        if vault is None:
            raise OSError("this mesh was started without --vault")
        url = f"{vault.address}/v1/{vault.mount}/ca/pem"
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - ours
            return bytes(response.read())

    async def vault_answers(self) -> bool:
        """Whether OpenBao, if the root is there, can be asked."""
        if self.handle.vault is None:
            return True
        try:
            await asyncio.to_thread(self.vault_root_pem)
        except OSError:
            return False
        return True

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """A channel to the control plane, as the operator."""
        up = self.up
        credentials = grpc.ssl_channel_credentials(
            self.roots_pem, Path(up["admin"]["key_file"]).read_bytes(), Path(up["admin"]["cert_file"]).read_bytes()
        )
        options = [("grpc.ssl_target_name_override", control_plane_dns_name(self.trust_domain))]
        async with grpc.aio.secure_channel(up["control_plane"]["address"], credentials, options=options) as channel:
            yield channel

    async def status(self) -> admin_service_pb2.GetStatusResponse:
        """What `meshwarden status` is told."""
        async with self.channel() as channel:
            return await AdminServiceStub(channel).GetStatus(admin_service_pb2.GetStatusRequest(), timeout=RPC_S)

    async def graph(self) -> dict[tuple[str, str], admin_service_pb2.GraphEdge]:
        """The edges of `meshwarden graph`, {(source, destination): edge}."""
        async with self.channel() as channel:
            answer = await AdminServiceStub(channel).GetGraph(admin_service_pb2.GetGraphRequest(), timeout=RPC_S)
        return {(edge.source, edge.destination): edge for edge in answer.edges}

    async def trace(self, trace_id: str) -> list[admin_service_pb2.TraceSpan]:
        """The spans that `meshwarden trace` shows; none if it knows no such trace."""
        return list((await self._trace(admin_service_pb2.GetTraceRequest(trace_id=trace_id))).spans)

    async def trace_of(self, revision: int) -> str:
        """The trace that `meshwarden trace --revision` shows; empty if it knows none."""
        return (await self._trace(admin_service_pb2.GetTraceRequest(revision=revision))).trace_id

    async def _trace(self, request: admin_service_pb2.GetTraceRequest) -> admin_service_pb2.GetTraceResponse:
        async with self.channel() as channel:
            try:
                return await AdminServiceStub(channel).GetTrace(request, timeout=RPC_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return admin_service_pb2.GetTraceResponse()
                raise

    async def renew_svids(self) -> list[str]:
        """Asks every agent for new certificates; returns the nodes that were told."""
        async with self.channel() as channel:
            request = admin_service_pb2.RenewSvidsRequest(reason="meshwarden up --check")
            return list((await AdminServiceStub(channel).RenewSvids(request, timeout=RPC_S)).nodes)

    async def roots(self, state: str) -> list[admin_service_pb2.RootState]:
        """What `meshwarden ca list` shows of our own that are in a state, the oldest first."""
        wanted = admin_service_pb2.RootState.State.Value(state)
        async with self.channel() as channel:
            answer = await AdminServiceStub(channel).ListRoots(admin_service_pb2.ListRootsRequest(), timeout=RPC_S)
        return [root for root in answer.roots if root.state == wanted and not root.region]

    async def change_root(self, change: str, fingerprint: str = "", *, force: bool = False) -> str:
        """Runs `meshwarden ca prepare`, `activate`, `taint` or `revoke`; why it was refused, "" if it was done."""
        request = admin_service_pb2.ChangeRootRequest(
            change=admin_service_pb2.ChangeRootRequest.Change.Value(change),
            fingerprint=fingerprint,
            reason="meshwarden up --check",
            force=force,
        )
        async with self.channel() as channel:
            try:
                await AdminServiceStub(channel).ChangeRoot(request, timeout=RPC_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    return error.details() or error.code().name
                raise
        return ""

    async def endpoints(self, tenant: str, service: str) -> list[resources_pb2.EndpointSpec]:
        """The endpoints of a service."""
        async with self.channel() as channel:
            request = resource_service_pb2.ListRequest(kind="Endpoint", tenant=tenant)
            answer = await ResourceServiceStub(channel).List(request, timeout=RPC_S)
        specs = [resource.endpoint.spec for resource in answer.resources]
        return [spec for spec in specs if spec.service == service]

    async def apply_traced(self, manifest: str) -> tuple[str, int]:
        """Runs `meshwarden apply -f`; returns the trace and the revision that it names."""
        said = await self._command("apply", "-f", "-", "-o", "json", stdin=manifest)
        # What is under way is told on stderr, before the answer.
        answer = json.loads(said[said.index("{") :])
        return str(answer.get("traceId", "")), int(answer["revision"])

    async def apply(self, manifest: str) -> int:
        """Runs `meshwarden apply -f` and waits until every node runs the revision; returns it."""
        await self._command("apply", "-f", "-", stdin=manifest)
        return await self.settled()

    async def delete(self, kind: str, *names: str) -> None:
        """Runs `meshwarden delete` and waits until every node runs the revision."""
        await self._command("delete", kind, *names)
        await self.settled()

    async def settled(self) -> int:
        """Waits until every connected node has acknowledged the newest revision; returns it."""

        async def acked() -> int | None:
            status = await self.status()
            behind = [node for node in status.nodes if node.connected and node.acked_revision < status.revision]
            return None if behind else int(status.revision)

        return await until(acked, SETTLED_S, "a node does not acknowledge the newest revision")

    @contextlib.contextmanager
    def paused(self, workload: str) -> Iterator[None]:
        """Stops a sample's process for a while, so that its load doesn't count."""
        pid = self.pid(workload)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _command(self, *arguments: str, stdin: str = "") -> str:
        process = await asyncio.create_subprocess_exec(
            *self.handle.meshwarden,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate(stdin.encode())
        if process.returncode != 0:
            said = output.decode(errors="replace").strip()
            raise CheckFailed(f"meshwarden {' '.join(arguments)} exited {process.returncode}: {said}")
        return output.decode()


async def until(look: Callable[[], Awaitable[Value | None]], timeout_s: float, otherwise: str) -> Value:
    """Looks again and again until there is something to see, and returns it.

    Raises:
        CheckFailed: there was nothing within the time; says `otherwise`, and what went wrong with the last look.
    """
    last = ""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    seen = await look()
                    last = ""
                except (grpc.aio.AioRpcError, OSError, CheckFailed) as error:
                    seen, last = None, f" ({error})"
                if seen is not None:
                    return seen
                await asyncio.sleep(PAUSE_S)
    except TimeoutError:
        raise CheckFailed(f"{otherwise} within {timeout_s:g} s{last}") from None


def tls_client(roots_pem: bytes) -> ssl.SSLContext:
    """A TLS client that trusts the mesh's roots and looks at no host name: identities are URIs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=roots_pem.decode("ascii"))
    return context
