"""What a node comes back with: what it holds as it is to be is not told, and nothing else is believed.

Both sides are real: the publisher compiles, and an agent's `ScopeStore` takes what is told and says what it holds.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_layer import message, rollout, stored
from test_publish import DEADLINE_S, ORDERS, Rig, put, ref, running, said

from meshwarden.agents.cache import Cache
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.policy.stage import EVERY
from meshwarden.controlplane.publish import compiled
from meshwarden.controlplane.publish.feed import Feed
from meshwarden.controlplane.store.port import Delete
from meshwarden.v1 import node_service_pb2 as v1

ALLOWED = {"service": "orders", "allow": [{"from": [{"tenant": "acme", "service": "web"}]}]}
REFS = (ref("platform", "orders", "127.0.0.1:7021"), ref("acme", "web"))
CLIENTS = "client/acme/c-core"
SERVER = "server/platform/orders/grpc"


class Node:
    """An agent's configuration, over sessions and restarts of either side."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.store = ScopeStore(Cache(directory))

    def restart(self, *, in_order: bool = True) -> None:
        """Starts it again with what is on its disk."""
        if in_order:
            self.store.flush()
        self.store = ScopeStore(Cache(self._directory))

    async def interest(self, *refs: v1.DataPlaneRef) -> v1.Interest:
        return v1.Interest(data_planes=refs or REFS, held=await self.store.held())

    async def follow(self, feed: Feed, until: int) -> list[v1.ScopeUpdate]:
        """Takes what a feed says until that revision is here; returns what it was told of scopes."""
        told: list[v1.ScopeUpdate] = []
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for message in map(said, await feed.next()):
                    if message.HasField("config"):
                        told += message.config.scopes
                        self.store.apply(message.config)
                        if message.config.revision >= until:
                            return told

    async def come(self, rig: Rig, *refs: v1.DataPlaneRef) -> tuple[Feed, list[v1.ScopeUpdate]]:
        """Opens a session; returns it with what it is told of scopes first."""
        interest = await self.interest(*refs)
        feed = rig.publisher.open("n1")
        feed.set_interest(interest.data_planes, interest.held)
        return feed, await self.follow(feed, rig.publisher.revision)

    def has_what_is_compiled(self, feed: Feed) -> bool:
        now = {name: scope.digest() for name, scope in feed._now.items()}
        return {name: scope.digest(name) for name, scope in self.store._scopes.items()} == now


@asynccontextmanager
async def again(directory: Path) -> AsyncIterator[Rig]:
    """The control plane, started on the store that is there."""
    async with running(directory) as rig:
        yield rig


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "cache")


@pytest.fixture(params=["agent goes on", "agent restarts", "agent crashes"])
def between(request: pytest.FixtureRequest, node: Node) -> Iterator[Any]:
    def happens() -> None:
        if request.param != "agent goes on":
            if request.param == "agent crashes":
                node.store._disk.save(node.store._number, node.store._state())
            node.restart(in_order=request.param == "agent restarts")

    return happens


def named(told: list[v1.ScopeUpdate]) -> dict[str, bool]:
    """Whether all of a scope is told: `{scope: whether}`."""
    return {update.scope: update.full for update in told}


MESH = (*ORDERS, put("AccessPolicy", "platform", "orders", **ALLOWED))


async def test_who_comes_back_to_a_new_control_plane_is_told_nothing_again(
    tmp_path: Path, node: Node, between: Any
) -> None:
    async with running(tmp_path, *MESH) as rig:
        feed, told = await node.come(rig)
        assert set(named(told)) == {SERVER, CLIENTS, "client/platform/c-core", "listener/n1/platform/orders#1/grpc"}
        endpoint = put("Endpoint", "platform", "e", service="orders", address="127.0.0.1", port=1, version="v1")
        await node.follow(feed, await rig.commit(endpoint))
        assert node.has_what_is_compiled(feed)
        was = rig.publisher.revision
    between()
    async with again(tmp_path) as rig:
        feed, told = await node.come(rig)
        assert told == []
        assert (node.store.revision, node.store.refusals()) == (was, {})
        assert node.has_what_is_compiled(feed)
        assert node.store.snapshot("platform/orders#1/grpc") is not None
        # What changes from then on is told as a change, of what it holds.
        endpoint = put("Endpoint", "platform", "e", service="orders", address="127.0.0.1", port=2, version="v1")
        told = await node.follow(feed, await rig.commit(endpoint))
        assert named(told) == {CLIENTS: False, "client/platform/c-core": False}
        assert node.has_what_is_compiled(feed)


@pytest.mark.parametrize(
    "change",
    [
        Delete("/resource/AccessPolicy/platform/orders"),
        put("AccessPolicy", "platform", "orders", service="orders", allow=[{"from": [{"service": "orders"}]}]),
        put("RatePolicy", "platform", "orders", service="orders", limits=[{"requests": 5}]),
    ],
    ids=["revoked", "for another", "limited"],
)
async def test_what_a_server_lets_in_is_told_whole_if_it_has_changed_meanwhile(
    tmp_path: Path, node: Node, between: Any, change: Any
) -> None:
    async with running(tmp_path, *MESH) as rig:
        await node.come(rig)
    between()
    async with again(tmp_path) as rig:
        await rig.commit(change)
        feed, told = await node.come(rig)
        assert named(told)[SERVER] is True
        assert named(told).keys() <= {SERVER, CLIENTS, "client/platform/c-core"}
        assert node.has_what_is_compiled(feed)


async def test_who_says_nothing_is_told_everything(tmp_path: Path, node: Node) -> None:
    async with running(tmp_path, *MESH) as rig:
        _, first = await node.come(rig)
        feed = rig.publisher.open("n1")
        feed.set_interest((await node.interest()).data_planes)  # an agent before this
        assert named(await node.follow(feed, rig.publisher.revision)) == named(first)
        assert all(named(first).values())


async def test_a_lie_leaves_the_liar_alone_with_it(tmp_path: Path, node: Node) -> None:
    async with running(tmp_path, *MESH) as rig:
        feed, _ = await node.come(rig)
        true = (await node.interest()).held
        liar, honest = Node(tmp_path / "liar"), Node(tmp_path / "honest")
        lie = rig.publisher.open("n1")
        lie.set_interest(REFS, true)  # of which it has nothing
        assert await liar.follow(lie, rig.publisher.revision) == []
        assert liar.store.snapshot("platform/orders#1/grpc") is None, "it serves nobody"
        other, told = await honest.come(rig)
        assert set(named(told)) == set(true)
        assert honest.has_what_is_compiled(other)
        assert node.has_what_is_compiled(feed)


async def test_what_is_not_to_be_had_is_not_looked_at(tmp_path: Path, node: Node) -> None:
    async with running(tmp_path, *MESH) as rig:
        keeper, _ = await node.come(rig)
        held = dict((await node.interest()).held)
        server = keeper._now[SERVER]
        thief = rig.publisher.open("n2")  # no instance of orders is on it
        refs = [ref("acme", "web"), ref("platform", "orders", "127.0.0.1:7021")]
        guess = {SERVER: held[SERVER], "client/other/c-core": bytes(32), "no scope": bytes(32), CLIENTS: b"short"}
        server._digest = b""
        thief.set_interest(refs, guess)
        (config,) = [m for m in map(said, await thief.next()) if m.HasField("config")]
        assert [scope.scope for scope in config.config.scopes] == [CLIENTS]
        assert server._digest == b"", "it costs nothing either"
        assert [bool(plane.refused) for plane in config.config.data_planes] == [False, True]
        assert thief._held == {}


async def test_what_was_said_once_does_not_count_once_scopes_were_let_go(tmp_path: Path, node: Node) -> None:
    async with running(tmp_path, *MESH) as rig:
        await node.come(rig)
        feed, told = await node.come(rig, ref("acme", "web"))
        assert told == []
        assert SERVER not in node.store._scopes, "this data plane doesn't need it"
        feed.set_interest(REFS, {SERVER: bytes(32)})
        feed.touch({"n1"}, (), ())
        told = await node.follow(feed, await rig.commit(put("Service", "acme", "more", protocol="GRPC")))
        assert named(told)[SERVER] is True
        assert node.has_what_is_compiled(feed)


async def test_later_interests_are_not_heeded_and_an_early_one_replaced_is(tmp_path: Path, node: Node) -> None:
    async with running(tmp_path, *MESH) as rig:
        await node.come(rig)
        interest = await node.interest()
        feed = rig.publisher.open("n1")
        feed.set_interest([ref("acme", "web")], interest.held)
        feed.set_interest(REFS)  # before anything was told
        assert await node.follow(feed, rig.publisher.revision) == []
        assert node.has_what_is_compiled(feed)
        late = rig.publisher.open("n1")
        late.set_interest(REFS)
        late.set_interest(REFS, interest.held)
        assert len(await node.follow(late, rig.publisher.revision)) == len(interest.held)


async def test_a_node_whose_programs_come_later_is_believed_still(tmp_path: Path, node: Node) -> None:
    async with running(tmp_path, *MESH) as rig:
        await node.come(rig)
        feed = rig.publisher.open("n1")
        feed.set_interest([], (await node.interest()).held)
        await node.follow(feed, rig.publisher.revision)
        assert SERVER in node.store._scopes, "no map was told: it keeps all"
        feed.set_interest(REFS)
        assert await node.follow(feed, await rig.commit(put("Service", "other", "x", protocol="GRPC"))) == []
        assert node.has_what_is_compiled(feed)


async def test_what_ends_by_itself_is_held_with_its_end(tmp_path: Path, node: Node) -> None:
    ends = [{"from": [{"tenant": "acme", "service": "web"}], "during": {"until": _stamp(hours=1)}}]
    policy = put("AccessPolicy", "platform", "orders", service="orders", allow=ends)
    async with running(tmp_path, *ORDERS, policy) as rig:
        feed, told = await node.come(rig)
        assert [update.scope for update in told if update.later.forms] == [SERVER]
        node.restart()
        _, told = await node.come(rig)
        assert told == []
        # With another end it is another.
        ends[0]["during"] = {"until": _stamp(hours=2)}
        await rig.commit(put("AccessPolicy", "platform", "orders", service="orders", allow=ends))
        feed, told = await node.come(rig)
        assert named(told) == {SERVER: True}
        assert node.has_what_is_compiled(feed)


def _stamp(**more: float) -> str:
    return (utc_now() + timedelta(**more)).isoformat().replace("+00:00", "Z")


async def test_it_is_digested_once_for_all_who_come(
    tmp_path: Path, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, *MESH) as rig:
        feed, _ = await node.come(rig)
        real, made = compiled.scope_digest, []
        monkeypatch.setattr(compiled, "scope_digest", lambda beside, of: made.append(beside.scope) or real(beside, of))
        feeds = [await node.come(rig) for _ in range(5)]
        shared = [scope for scope in made if not scope.startswith("listener/")]
        assert sorted(shared) == sorted(set(shared)) == [CLIENTS, "client/platform/c-core", SERVER]
        assert len(feeds) == 5
        assert feed._now


async def test_what_a_rollout_lays_over_the_mesh_is_held_as_it_is_and_told_once_it_is_gone(
    tmp_path: Path, node: Node, between: Any
) -> None:
    """The stage gives orders its policy, and is left while the control plane is away."""
    stage = rollout(below=EVERY)
    del stage.spec.route_policies[:]
    stage.spec.access_policies.append(message("AccessPolicy", "platform", "orders", **ALLOWED))
    async with running(tmp_path, *ORDERS, stored(stage)) as rig:
        feed, _ = await node.come(rig)
        laid = node.store.access("platform/orders#1/grpc")
        assert node.has_what_is_compiled(feed)
    between()
    async with again(tmp_path) as rig:
        _, told = await node.come(rig)
        assert told == []
        await rig.commit(Delete("/resource/Rollout/platform/r"))
    async with again(tmp_path) as rig:
        feed, told = await node.come(rig)
        assert named(told)[SERVER] is True
        assert node.has_what_is_compiled(feed)
        assert node.store.access("platform/orders#1/grpc") != laid
        # And one that begins while it is here comes as a change of what it holds.
        told = await node.follow(feed, await rig.commit(stored(stage)))
        assert named(told)[SERVER] is False
        assert node.store.access("platform/orders#1/grpc") == laid
        assert node.has_what_is_compiled(feed)


async def test_a_session_that_breaks_before_it_has_told_anything_leaves_nothing_behind(
    tmp_path: Path, node: Node
) -> None:
    async with running(tmp_path, *MESH) as rig:
        await node.come(rig)
        lost = rig.publisher.open("n1")
        lost.set_interest(REFS, (await node.interest()).held)
        policy = put("AccessPolicy", "platform", "orders", service="orders", allow=[{"from": [{"service": "orders"}]}])
        await rig.commit(policy)
        await lost.next()  # and it is lost on the way
        lost.close()
        feed, told = await node.come(rig)
        assert named(told) == {SERVER: True}
        assert node.has_what_is_compiled(feed)
