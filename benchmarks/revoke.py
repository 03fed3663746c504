"""`revoke`: from Deny of an identity until it is refused (A), and until what it has open has ended (B).

On a mesh of `meshwarden up`, a client that a policy of its own lets in calls without a pause, and has a stream open;
its identity is denied, and allowed again. References: for A a change on a bare xDS server with one gRPC client and
server, or one Envoy, as in `effect`; for B the sweep's half second.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks import effect
from benchmarks.process import Broken, Child, say
from benchmarks.result import Case
from meshwarden.v1 import admin_service_pb2, admin_service_pb2_grpc

SWEEP_MS = 500.0
RPC_S = 10.0


async def run(_: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases; a round is one deny, and one allow."""
    over_grpc = Case("revoke", "deny to refusal (A), SDK server", effect.GRPC_REFERENCE, "ms")
    over_envoy = Case("revoke", "deny to refusal (A), Envoy", effect.ENVOY_REFERENCE, "ms")
    ended = Case("revoke", "deny to the end of a stream (B), SDK server", "the period of the SDK's sweep", "ms")
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mw-bench-")))
        mesh = await effect.start(stack, directory)
        deny = await _deny(stack, mesh)
        grpc_side = await _ours(stack, directory, mesh, "grpc", "orders", deny)
        envoy_side = await _ours(stack, directory, mesh, "http", "billing", deny)
        stream = await effect.client(stack, directory, mesh, "stream", "xds:///orders")
        bare = [await effect.bare_grpc(stack, directory), await effect.bare_envoy(stack, directory)]
        for one in bare:
            await one.flip(True)
        say(f"revoke: {rounds} rounds")
        for number in range(rounds):
            for case, side, reference in ((over_grpc, grpc_side, bare[0]), (over_envoy, envoy_side, bare[1])):
                await asyncio.sleep(effect.SETTLE_S)
                opened = await _open(stream) if side is grpc_side else None
                begun_ns = time.monotonic_ns()
                case.add(await side.flip(False), await reference.flip(False))
                if opened is not None:
                    ended.add((await opened - begun_ns) / 1e6, SWEEP_MS)
                await side.flip(True)
                await reference.flip(True)
                say(f"  {number + 1}: {case.name}: {case.ours[-1]:.1f} / {case.theirs[-1]:.1f} ms")
            say(f"  {number + 1}: {ended.name}: {ended.ours[-1]:.1f} ms")
    for case in (over_grpc, over_envoy, ended):
        yield case


async def _deny(stack: AsyncExitStack, mesh: effect.Up) -> effect.Change:
    stub = admin_service_pb2_grpc.AdminServiceStub(await effect.channel(stack, mesh))
    spiffe_id = f"spiffe://{mesh['trust_domain']}/tenant/{effect.TENANT}/service/{effect.CALLER}"
    targets = [admin_service_pb2.DenyTarget(spiffe_id=spiffe_id)]

    async def change(is_allowed: bool) -> None:
        if is_allowed:
            await stub.Allow(admin_service_pb2.AllowRequest(targets=targets), timeout=RPC_S)
        else:
            await stub.Deny(admin_service_pb2.DenyRequest(targets=targets, reason="bench"), timeout=RPC_S)

    return change


async def _ours(
    stack: AsyncExitStack, directory: Path, mesh: effect.Up, kind: str, service: str, deny: effect.Change
) -> effect.Side:
    """A client that is let in, and may be denied."""
    side = await effect.client_side(stack, directory, mesh, kind, service)
    await side.flip(True)
    return effect.Side(side.poll, deny)


async def _open(stream: Child) -> Awaitable[int]:
    """Opens a stream; what is returned waits for its end and says when that was."""
    await stream.ask("open")
    if (first := (await stream.answer())["saw"]) != "open":
        raise Broken(f"{stream.name}: a stream can't be opened: {first}")
    return asyncio.ensure_future(_end(stream.answer))


async def _end(answer: Callable[[], Awaitable[dict[str, object]]]) -> int:
    return int(str((await answer())["at_ns"]))
