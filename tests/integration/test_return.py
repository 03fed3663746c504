"""A real agent returns to a control plane that was started anew: it is told what it lacks, and that is in force."""

import hashlib
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_agent_data_planes import CALLER, ECHO, call
from test_node_service import DOMAIN, World, put, serving

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.publish.feed import Feed
from meshwarden.controlplane.publish.message import CONFIG, Message
from meshwarden.controlplane.store.port import Op
from meshwarden.v1 import node_service_pb2 as v1

NODE = "node-a"
SERVER = "server/platform/orders/grpc"


def allow(*callers: str) -> Op:
    """The policy of orders: these services of acme may call."""
    rules = [{"from": [{"tenant": "acme", "service": name}]} for name in callers]
    return put("AccessPolicy", "platform", "orders", service="orders", allow=rules)


class ControlPlanes:
    """Control planes of one store, one after the other; what the last has told and heard.

    Attributes:
        whole: the scopes that it has told whole.
        held: those that the node holds, as each interest of it says.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._authority = directory, MemoryAuthority(DOMAIN)
        self.port = free_port(random.SystemRandom())
        self.whole: set[str] = set()
        self.held: list[set[str]] = []

    async def bundle(self) -> Any:
        return await self._authority.bundle()

    @asynccontextmanager
    async def serve(self, *first: Op) -> AsyncIterator[World]:
        self.whole, self.held = set(), []
        async with serving(self._directory, self._authority, *first, port=self.port) as world:
            yield world

    def told(self, message: Message) -> None:
        if message.kind == CONFIG:
            config = v1.SyncResponse.FromString(message.body()).config
            self.whole |= {update.scope for update in config.scopes if update.full}


def settled(world: World, planes: int = 2) -> Any:
    """Whether the node has all that there is for its data planes."""

    def look() -> bool:
        states = [state for state in world.sessions.states() if state.node == NODE and state.connected]
        has = [
            state.acked_revision >= world.publisher.revision and len(state.data_planes) == planes for state in states
        ]
        return any(has)

    return look


@pytest.fixture
def control_planes(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> ControlPlanes:
    own = short_dir / "control-plane"
    own.mkdir(mode=0o700)
    made, real, set_interest = ControlPlanes(own), Feed.next, Feed.set_interest

    def interested(feed: Feed, refs: Any, held: Any) -> None:
        made.held.append(set(held))
        set_interest(feed, refs, held)

    async def heard(feed: Feed) -> list[Message]:
        messages = await real(feed)
        for message in messages:
            made.told(message)
        return messages

    monkeypatch.setattr(Feed, "next", heard)
    monkeypatch.setattr(Feed, "set_interest", interested)
    return made


async def test_who_returns_is_told_what_has_changed_and_nothing_else(
    control_planes: ControlPlanes, short_dir: Path, agent_of: Any, until: Any
) -> None:
    runs = {"nodes": [NODE], "selectors": {"uid": os.geteuid()}, "insecureSameUser": True}
    port = free_port(random.SystemRandom())
    mesh = (
        put("Service", "platform", "orders", protocol="GRPC", exportTo=["acme"]),
        put("WorkloadEntry", "platform", "orders", service="orders", port=port, **runs),
        put("Service", "acme", "web", protocol="GRPC"),
        put("WorkloadEntry", "acme", "web", service="web", **runs),
        allow("web"),
    )
    agent = agent_of(SimpleNamespace(port=control_planes.port, bundle=await control_planes.bundle()))
    async with control_planes.serve(*mesh) as world:
        (short_dir / "token").write_text(await world.tokens.create(NODE))
        await agent.ready()
        agent.exec("orders", sys.executable, "-c", ECHO)
        caller = agent.exec("web", sys.executable, "-c", CALLER)
        await until(settled(world), "both have their configuration")
        assert SERVER in control_planes.whole

        async def called(code: str) -> bool:
            return await call(caller, "xds:///orders.platform") == code

        await until(lambda: called("OK"), "web may call orders")
        await until(settled(world), "all is told")
        had = control_planes.whole
    # Nothing has changed.
    async with control_planes.serve() as world:
        await until(settled(world), "the agent has returned")
        assert control_planes.whole == set()
        assert control_planes.held[0] == had
        assert await called("OK")
    # Its access was taken away while the control plane was away.
    async with control_planes.serve(allow("other")) as world:
        await until(settled(world), "the agent has returned")
        assert control_planes.whole == {SERVER}
        await until(lambda: called("PERMISSION_DENIED"), "web may not call any more")
    # The agent starts again, with one scope spoilt on its disk: that is told, and nothing else.
    assert agent.stop() == 0
    spoilt = agent.state_dir / "cache" / f"scope-{hashlib.sha256(SERVER.encode()).hexdigest()[:32]}"
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    async with control_planes.serve() as world:
        await agent.ready()
        await until(settled(world), "the agent has returned")
        assert control_planes.whole == {SERVER} < had
        assert await called("PERMISSION_DENIED")
        # And what is changed from now on comes as a change of what it holds.
        await world.store.commit([allow("web")])
        await until(lambda: called("OK"), "web may call again")
        assert control_planes.whole == {SERVER}
        # It says so once a session, and each session anew, also where one follows the other.
        agent.exec("web", sys.executable, "-c", CALLER)
        await until(settled(world, 3), "another program has its configuration")
        assert control_planes.held[0] == had - {SERVER}
        assert not any(control_planes.held[1:])
        world.sessions.renew_all("test")
        again = await until(
            lambda: [*filter(None, control_planes.held[1:])], "it has a session with its next certificate"
        )
        await until(settled(world, 3), "and all that there is")
        assert again == [had]
        assert control_planes.whole == {SERVER}
