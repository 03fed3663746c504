"""Two control planes on one store: what is done at one holds at the other, and nodes go from one to the other."""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_agent_quota import PROGRAM, say, shares, told, usage
from test_control_planes import knows

from meshwarden.certs.svid import X509Svid
from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.sdk.mtls.refusal import BANNED, refusal_of
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1 import audit_service_pb2 as audit
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.node_service_pb2_grpc import NodeServiceStub
from meshwarden.v1.resource_service_pb2 import ApplyRequest

DEADLINE_S = 60.0
PREPARE, ACTIVATE = admin.ChangeRootRequest.PREPARE, admin.ChangeRootRequest.ACTIVATE
WEB = "spiffe://mesh.test/tenant/acme/service/web"
LIMITED = """
kind: Tenant
metadata: {name: acme}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: GRPC}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: web}
spec: {service: web, nodes: [node-a], selectors: {uid: UID}, insecureSameUser: true, port: PORT}
---
kind: RatePolicy
metadata: {tenant: acme, name: limits}
spec: {service: web, limits: [{tenant: acme, requests: 100}]}
"""


@pytest.fixture
async def both(start: Any, short_dir: Path) -> tuple[Any, Any]:
    """The control planes."""
    passphrase = short_dir / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text("of these tests")
    authority = {"kind": "disk", "passphrase": f"file:{passphrase}", "directory": short_dir / "ca", "create": True}
    store = short_dir / "store" / "store.sqlite"
    one = await start(authority=authority, store_file=store)
    return one, await start("cp2", authority=authority, store_file=store)


class Stream:
    """A node's session."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def told(self, kind: str) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            while (message := await self.call.read()) is not grpc.aio.EOF:
                if message.HasField(kind):
                    return getattr(message, kind)
        raise AssertionError(f"the session has ended: {await self.call.details()}")

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        """How it ends: the status, and the word for programs."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError:
                pass
            return await self.call.code(), refusal_of(await self.call.trailing_metadata())


@asynccontextmanager
async def session(mesh: Any, svid: X509Svid) -> AsyncIterator[Stream]:
    async with mesh.channel(svid) as channel:
        stub: Any = NodeServiceStub(channel)
        call = stub.Sync()
        await call.write(v1.SyncRequest(hello=v1.NodeHello(agent_version="1")))
        made = Stream(call)
        await made.told("welcome")
        yield made
        call.cancel()


async def until(look: Any, what: str) -> Any:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (found := await look()):  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.02)
            return found
    except TimeoutError:
        raise AssertionError(f"did not come true: {what}") from None


async def test_a_ban_at_one_ends_the_session_at_the_other(both: tuple[Any, Any], refusal: Any) -> None:
    one, two = both
    svid = await one.attest_by_token(await one.token("node-a"))
    async with session(two, svid) as stream:
        await one.admin.BanNode(admin.BanNodeRequest(node="node-a", reason="stolen"))
        assert await stream.ended() == (grpc.StatusCode.PERMISSION_DENIED, BANNED)
    # Nothing that it can show lets it back in, wherever it asks.
    # As banned, though its certificate is denied as well: an agent clears up, and the alert counts it.
    code, _, word = await refusal(two.renew(svid))
    assert (code, word) == (grpc.StatusCode.PERMISSION_DENIED, BANNED)
    token = await two.token("node-b")
    assert await two.attest_by_token(token)
    # A token that is used up at one is so at the other.
    assert (await refusal(one.attest_by_token(token)))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_what_is_done_at_one_holds_at_the_other(both: tuple[Any, Any]) -> None:
    one, two = both
    svid = await two.attest_by_token(await one.token("node-a"))
    async with session(two, svid) as stream:
        await one.admin.Deny(admin.DenyRequest(targets=[admin.DenyTarget(spiffe_id=WEB)], reason="leaked"))

        async def denied() -> bool:
            return WEB in [deny.spiffe_id for deny in (await stream.told("deny_list")).denies]

        await until(denied, "the node is told whom to refuse")
        # A node that comes to the other leaves the one where it was.
        async with session(one, svid):
            assert (await stream.ended())[0] is grpc.StatusCode.ABORTED

            async def shown() -> bool:
                (state,) = (await two.admin.GetStatus(admin.GetStatusRequest())).nodes
                return not state.connected and state.control_plane.endswith("/cp")

            await until(shown, "the other says where it is")
    # Each has an audit log of its own, whose end the store has noted.
    for mesh in both:

        async def whole(mesh: Any = mesh) -> bool:
            said = await mesh.audit.VerifyEvents(audit.VerifyEventsRequest())
            return not said.fault and bool(said.anchored_seq)

        await until(whole, "its end is noted, and its chain whole")


async def test_a_root_waits_for_nodes_of_both(both: tuple[Any, Any]) -> None:
    one, two = both
    svid = await one.attest_by_token(await one.token("node-a"))
    async with session(two, svid) as stream:
        await one.admin.ChangeRoot(admin.ChangeRootRequest(change=PREPARE, reason="test"))
        roots: list[bytes] = []
        while len(roots) < 2:
            roots = list((await stream.told("bundle")).roots)
        listed = (await one.admin.ListRoots(admin.ListRootsRequest())).roots
        new = next(root for root in listed if root.state == admin.RootState.PREPARED)
        activate = admin.ChangeRootRequest(change=ACTIVATE, fingerprint=new.fingerprint, reason="test")
        with pytest.raises(grpc.aio.AioRpcError, match="node-a has not acknowledged it yet"):
            await one.admin.ChangeRoot(activate)
        trusted = [bytes.fromhex(root.fingerprint) for root in listed]
        await stream.call.write(v1.SyncRequest(bundle_ack=v1.BundleAck(trusted=trusted)))

        async def activated() -> bool:
            try:
                await one.admin.ChangeRoot(activate)
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.OK
            return True

        await until(activated, "what the node says to one is known to the other")


async def test_shares_come_to_nodes_of_the_one_that_does_not_divide(both: tuple[Any, Any], agent_of: Any) -> None:
    manifest = parse(
        LIMITED.replace("UID", str(os.geteuid())).replace("PORT", str(free_port(random.SystemRandom()))), "limits.yaml"
    )
    await both[0].resources.Apply(ApplyRequest(resources=[item.resource for item in manifest]))
    divides: dict[bool, Any] = {}

    async def known() -> bool:
        divides.clear()
        for mesh in both:
            divides[(await mesh.admin.GetQuotas(admin.GetQuotasRequest())).divides] = mesh
        return len(divides) == 2

    await until(known, "one of them divides")
    holder, other = divides[True], divides[False]
    agent = agent_of(other)
    knows(agent, other, holder)
    (agent.directory / "token").write_text(await other.token("node-a"))
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", PROGRAM)
    sequence, given = 0, 0.0
    deadline_s = asyncio.get_running_loop().time() + DEADLINE_S
    while not given:
        assert asyncio.get_running_loop().time() < deadline_s, agent.log.read_text()[-4000:]
        sequence += 1
        say(program, {"sequence": sequence, "points": [{"usages": [usage("acme", 2)]}]})
        given = sum(rate for _, rate in shares(await told(program)))
    (state,) = (await holder.admin.GetQuotas(admin.GetQuotasRequest(tenant="acme"))).quotas
    assert {point.node for point in state.points} == {"node-a"}
    # It has its session where it wants it.
    (node,) = (await other.admin.GetStatus(admin.GetStatusRequest())).nodes
    assert node.connected
