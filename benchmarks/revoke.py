"""`revoke`: how long until nothing is left of a revoked identity, or of a root that is revoked by force.

On a mesh of `meshwarden up`, a client that policies of its own let in calls without a pause, and has streams open to a
server of the SDK and to one behind an Envoy. Its identity is denied: its next call is refused after A, its streams have
ended after B, both from the call of Deny. Then all certificates are made to lead to another root, and the one before is
revoked by `--force`: streams that were opened with it have ended after B, from the call of ChangeRoot.

References: for A a change on a bare xDS server with one gRPC client and server, or one Envoy, as in `effect`; for B the
period of the SDK's sweep, and how long an Envoy drains.
"""

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc

from benchmarks import effect
from benchmarks.process import Broken, Child, child, say
from benchmarks.result import Case
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import admin_service_pb2, admin_service_pb2_grpc, resource_service_pb2, resource_service_pb2_grpc

SWEEP_MS, DRAIN_MS = 500.0, 2000.0
SWEEP, DRAIN = "the period of the SDK's sweep", "how long an Envoy drains"
RPC_S = 10.0
RENEWED_S = 60.0
HELD_NODE = "node-b"
HELD = """
kind: Service
metadata: {tenant: platform, name: held}
spec: {protocol: HTTP, exportTo: [acme], healthCheck: {httpPath: /healthz}}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: held}
spec: {service: held, dataPlane: ENVOY, nodes: [%s], selectors: {uid: %d}, insecureSameUser: true}
---
kind: AccessPolicy
metadata: {tenant: platform, name: held}
spec: {service: held, allow: [{from: [{tenant: acme, service: intruder}]}]}
"""
Admin = admin_service_pb2_grpc.AdminServiceStub
Change = admin_service_pb2.ChangeRootRequest


async def run(_: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases; a round is one deny, and one allow. A root is revoked once: that takes half a minute."""
    over_grpc = Case("revoke", "deny to refusal (A), SDK server", effect.GRPC_REFERENCE, "ms")
    over_envoy = Case("revoke", "deny to refusal (A), Envoy", effect.ENVOY_REFERENCE, "ms")
    ended = Case("revoke", "deny to the end of a stream (B), SDK server", SWEEP, "ms")
    drained = Case("revoke", "deny to the end of a stream (B), Envoy", DRAIN, "ms")
    root_ended = Case("revoke", "root revoked by force to the end of a stream (B), SDK server", SWEEP, "ms")
    root_drained = Case("revoke", "root revoked by force to the end of a stream (B), Envoy", DRAIN, "ms")
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mw-bench-")))
        mesh = await effect.start(stack, directory)
        deny = _deny(Admin(await effect.channel(stack, mesh)), mesh)
        await _serve_held(stack, directory, mesh)
        grpc_side = await _ours(stack, directory, mesh, "grpc", "orders", deny)
        envoy_side = await _ours(stack, directory, mesh, "http", "billing", deny)
        stream = await effect.client(stack, directory, mesh, "stream", "xds:///orders")
        held = await effect.client(stack, directory, mesh, "held")
        bare = [await effect.bare_grpc(stack, directory), await effect.bare_envoy(stack, directory)]
        for one in bare:
            await one.flip(True)
        say(f"revoke: {rounds} rounds")
        for number in range(rounds):
            pairs = ((over_grpc, grpc_side, bare[0], stream), (over_envoy, envoy_side, bare[1], held))
            for case, side, reference, open_ in pairs:
                await asyncio.sleep(effect.SETTLE_S)
                opened = await _open(open_)
                begun_ns = time.monotonic_ns()
                case.add(await side.flip(False), await reference.flip(False))
                of_stream, limit_ms = (ended, SWEEP_MS) if open_ is stream else (drained, DRAIN_MS)
                of_stream.add((await opened - begun_ns) / 1e6, limit_ms)
                await side.flip(True)
                await reference.flip(True)
                say(f"  {number + 1}: {case.name}: {case.ours[-1]:.1f} / {case.theirs[-1]:.1f} ms")
                say(f"  {number + 1}: {of_stream.name}: {of_stream.ours[-1]:.1f} ms")
        both = [await _open(stream), await _open(held)]
        old = await _another_root_signs(mesh)
        async with _operator(mesh) as admin:
            await _roots(admin)  # connected
            begun_ns = time.monotonic_ns()
            await _change(admin, Change.REVOKE, old, is_forced=True)
        ends_ms = [(at_ns - begun_ns) / 1e6 for at_ns in await asyncio.gather(*both)]
        root_ended.add(ends_ms[0], SWEEP_MS)
        root_drained.add(ends_ms[1], DRAIN_MS)
        say(f"  root revoked by force: {ends_ms[0]:.1f} and {ends_ms[1]:.1f} ms")
    for case in (over_grpc, over_envoy, ended, drained, root_ended, root_drained):
        yield case


def _deny(admin: Admin, mesh: effect.Up) -> effect.Change:
    spiffe_id = f"spiffe://{mesh['trust_domain']}/tenant/{effect.TENANT}/service/{effect.CALLER}"
    targets = [admin_service_pb2.DenyTarget(spiffe_id=spiffe_id)]

    async def change(is_allowed: bool) -> None:
        if is_allowed:
            await admin.Allow(admin_service_pb2.AllowRequest(targets=targets), timeout=RPC_S)
        else:
            await admin.Deny(admin_service_pb2.DenyRequest(targets=targets, reason="bench"), timeout=RPC_S)

    return change


async def _ours(
    stack: AsyncExitStack, directory: Path, mesh: effect.Up, kind: str, service: str, deny: effect.Change
) -> effect.Side:
    """A client that is let in, and may be denied."""
    side = await effect.client_side(stack, directory, mesh, kind, service)
    await side.flip(True)
    return effect.Side(side.poll, deny)


async def _serve_held(stack: AsyncExitStack, directory: Path, mesh: effect.Up) -> None:
    """Starts what answers without an end, behind an Envoy, with a policy that lets the client in."""
    stub = resource_service_pb2_grpc.ResourceServiceStub(await effect.channel(stack, mesh))
    resources = [item.resource for item in parse(HELD % (HELD_NODE, os.getuid()), "held.yaml")]
    await stub.Apply(resource_service_pb2.ApplyRequest(resources=resources), timeout=RPC_S)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    command = effect.under_agent(mesh, HELD_NODE, "platform/held", "bench-held", "--port", str(port))
    await stack.enter_async_context(child("held", [*command, "-m", "benchmarks.held"], directory))


@asynccontextmanager
async def _operator(mesh: effect.Up) -> AsyncIterator[Admin]:
    """An operator with the certificate of the moment: roots come and go."""
    async with AsyncExitStack() as stack:
        yield Admin(await effect.channel(stack, mesh))


async def _another_root_signs(mesh: effect.Up) -> str:
    """Has all certificates lead to a new root; returns the one of before, which nobody uses any more."""
    async with _operator(mesh) as admin:
        await _change(admin, Change.PREPARE)
        roots = await _roots(admin)
        new, old = roots["PREPARED"].fingerprint, roots["ACTIVE"].fingerprint
        await _until(lambda: _is_activated(admin, new), "not every node has acknowledged the root")

    async def is_left() -> bool:
        async with _operator(mesh) as admin:
            now = await _roots(admin)
        return not now["TAINTED"].used_by and bool(now["ACTIVE"].used_by)

    async with _operator(mesh) as admin:
        await _change(admin, Change.TAINT, old)
    await _until(is_left, "certificates still lead to the old root")
    return old


async def _is_activated(admin: Admin, fingerprint: str) -> bool:
    try:
        await _change(admin, Change.ACTIVATE, fingerprint)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            raise
        return False
    return True


async def _change(admin: Admin, change: Change.Change, fingerprint: str = "", *, is_forced: bool = False) -> None:
    request = Change(change=change, fingerprint=fingerprint, reason="bench", force=is_forced)
    await admin.ChangeRoot(request, timeout=RPC_S)


async def _roots(admin: Admin) -> dict[str, admin_service_pb2.RootState]:
    answer = await admin.ListRoots(admin_service_pb2.ListRootsRequest(), timeout=RPC_S)
    return {admin_service_pb2.RootState.State.Name(root.state): root for root in answer.roots}


async def _until(holds: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    deadline_s = time.monotonic() + RENEWED_S
    while not await holds():
        if time.monotonic() > deadline_s:
            raise Broken(otherwise)
        await asyncio.sleep(0.1)


async def _open(stream: Child) -> Awaitable[int]:
    """Opens a stream; what is returned waits for its end and says when that was."""
    await stream.ask("open")
    if (first := (await stream.answer())["saw"]) != "open":
        raise Broken(f"{stream.name}: a stream can't be opened: {first}")
    return asyncio.ensure_future(_end(stream.answer))


async def _end(answer: Callable[[], Awaitable[dict[str, object]]]) -> int:
    return int(str((await answer())["at_ns"]))
