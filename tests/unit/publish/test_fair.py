"""Turns: each tenant's changes in theirs, whatever another tenant does; held by counts, not by times."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.publish.fair import Queues, Turns
from meshwarden.controlplane.publish.feed import Feed
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.store.port import Put
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1 import resources_pb2

SHARE, WIDTH, CROWD = 8, 4, 120
DEADLINE_S = 120.0


class TestQueues:
    def test_who_has_one_thing_waits_for_one_share_of_each_other_at_most(self) -> None:
        queues: Queues[str] = Queues(SHARE)
        for number in range(1000):
            queues.put(f"a{number}", ["a"])
        served = [self.serve(queues) for _ in range(5)]
        assert set(served) == {"a"}
        queues.put("b", ["b"])
        served = [self.serve(queues) for _ in range(SHARE + 1)]
        assert "b" in served

    @staticmethod
    def serve(queues: Queues[str], cost: float = 1) -> str:
        found = queues.pop()
        assert found is not None
        queues.charge(found[0], cost)
        return found[0]

    def test_shares_are_of_cost_not_of_count(self) -> None:
        queues: Queues[str] = Queues(10)
        for tenant in "ab":
            for number in range(1000):
                queues.put(f"{tenant}{number}", [tenant])
        spent: Counter[str] = Counter()
        for _ in range(500):
            found = queues.pop()
            assert found is not None
            cost = 20 if found[0] == "a" else 1
            queues.charge(found[0], cost)
            spent[found[0]] += cost
        assert abs(spent["a"] - spent["b"]) <= 40, "what one piece costs too much is taken off its next shares"

    def test_one_thing_for_several_is_served_once(self) -> None:
        queues: Queues[str] = Queues(1)
        queues.put("x", ["a", "b"])
        queues.put("x", ["b", "c"])
        assert queues.pop() == ("a", "x")
        assert queues.pop() is None
        assert len(queues) == 0

    @given(st.lists(st.tuples(st.sampled_from("pPr"), st.integers(0, 9), st.sets(st.sampled_from("abc"), min_size=1))))
    def test_nothing_is_lost_nor_kept(self, steps: list[tuple[str, int, set[str]]]) -> None:
        queues: Queues[int] = Queues(2)
        waiting: dict[int, set[str]] = {}
        for what, item, tenants in steps:
            if what == "p":
                queues.put(item, tenants)
                waiting.setdefault(item, set()).update(tenants)
            elif what == "r":
                queues.remove(item)
                waiting.pop(item, None)
            elif (found := queues.pop()) is not None:
                assert found[0] in waiting.pop(found[1])
                queues.charge(found[0], item)
            else:
                assert not waiting
            assert len(queues) == len(waiting)
        while (found := queues.pop()) is not None:
            waiting.pop(found[1])
        assert not waiting
        assert not vars(queues)["_waiting"]
        assert not vars(queues)["_left"]


def put(kind: str, tenant: str, name: str, **spec: Any) -> Put:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    message = json_format.ParseDict(fields, getattr(resources_pb2, kind)())
    return Put(f"/resource/{kind}/{tenant}/{name}", model.encode(model.wrap(message)))


class Audit:
    async def record(self, event: str, **fields: object) -> None:
        """Forgets it."""

    async def record_all(self, event: str, rows: Any) -> None:
        """Forgets them."""

    def note(self, event: str, **fields: object) -> None:
        """Forgets it."""


class World:
    """A tenant with a crowd of nodes, and another one with a single node."""

    def __init__(self, store: Any, turns: Turns) -> None:
        self.store, self.turns = store, turns
        self.publisher = Publisher(store, trust_domain="mesh.test", audit=Audit(), turns=turns)
        self.told: list[tuple[str, bool]] = []  # (node, whether its own scopes changed), in the order of telling
        self.moved = asyncio.Event()

    async def commit(self, *ops: Put) -> int:
        revision = await self.store.commit(ops)
        await self.publisher.wait_revision(revision)
        return revision

    def feed(self, node: str, tenant: str) -> Feed:
        feed = self.publisher.open(node)
        ref = v1.DataPlaneRef(id=f"{tenant}/web#1/grpc", tenant=tenant, entry="web", dialect="GRPC")
        feed.set_interest([ref])
        return feed

    async def read(self, feed: Feed) -> None:
        while True:
            for message in await feed.next():
                said = v1.SyncResponse.FromString(message.body())
                self.told.append((feed.node, bool(said.config.scopes)))
            self.moved.set()
            await asyncio.sleep(0)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.moved.clear()
                await self.moved.wait()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    crowd = [f"a{number}" for number in range(CROWD)]
    async with open_store(tmp_path / "state" / "store.sqlite") as store:
        for tenant, nodes in (("acme", crowd), ("globex", ["b"])):
            await store.commit(
                [
                    put("Service", tenant, "web", protocol="GRPC"),
                    put("WorkloadEntry", tenant, "web", service="web", nodes=nodes),
                ]
            )
        # Each telling costs one.
        world = World(store, Turns(share_s=SHARE, width=WIDTH, write_s=1, used_s=lambda: 0.0))
        async with anyio.create_task_group() as group:
            await group.start(world.publisher.run)
            yield world
            group.cancel_scope.cancel()


def endpoint(tenant: str, port: int) -> Put:
    return put("Endpoint", tenant, "e", service="web", address="127.0.0.1", port=port)


async def test_while_one_tenant_churns_another_ones_change_goes_out_within_a_share(world: World) -> None:
    async with anyio.create_task_group() as group:
        for number in range(CROWD):
            group.start_soon(world.read, world.feed(f"a{number}", "acme"))
        group.start_soon(world.read, world.feed("b", "globex"))
        await world.until(lambda: len({node for node, _ in world.told}) == CROWD + 1)

        async def churn() -> None:
            for port in range(1, 10**6):
                await world.commit(endpoint("acme", 1 + port % 60_000))

        published: list[int] = []  # how many were told when a change of the other tenant was there to be told
        world.publisher.listen(lambda impact: published.append(len(world.told)) if "globex" in impact.seen_by else None)
        group.start_soon(churn)
        waited = []
        for port in range(1, 6):
            await world.commit(endpoint("globex", port))
            begun = published[-1]
            await world.until(lambda begun=begun: ("b", True) in world.told[begun:])
            waited.append(world.told[begun:].index(("b", True)))
        group.cancel_scope.cancel()
    # Before it: one share of the other tenant's, and one of what is nobody's (nodes that are told of a revision which
    # is not about them); and those who have their turn already, each time that it takes a step: to be published, to be
    # told to its feed, to be read by that, twice if the feed was just saying something else.
    assert max(waited) <= 2 * SHARE + 5 * WIDTH < CROWD, waited


async def test_a_thousand_changes_that_nobody_reads_are_one_message_and_hold_nobody_up(world: World) -> None:
    feeds = [world.feed(f"a{number}", "acme") for number in range(20)]
    for feed in feeds:
        await feed.next()
    quick = world.feed("b", "globex")
    await quick.next()
    for port in range(1, 1001):
        await world.store.commit([endpoint("acme", port)])
    revision = await world.commit(endpoint("globex", 1))
    async with asyncio.timeout(DEADLINE_S):
        while True:
            (message,) = await quick.next()
            if message.revision == revision:
                break
    assert len(world.turns) == 0, "who does not come for its news waits for no turn"
    for feed in feeds:
        (message,) = await feed.next()
        assert message.revision == revision


async def test_a_session_that_ends_in_its_turn_gives_it_up(world: World) -> None:
    crowd = [world.feed(f"a{number}", "acme") for number in range(WIDTH)]
    async with anyio.create_task_group() as group:
        for feed in crowd:
            group.start_soon(feed.next)
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    for feed in crowd:
        world.publisher.close(feed)
    async with asyncio.timeout(DEADLINE_S):
        assert await world.feed("b", "globex").next()
    assert len(world.turns) == 0


async def test_what_is_urgent_waits_for_no_turn(world: World) -> None:
    feed = world.feed("b", "globex")
    await feed.next()

    class Stuck:
        def your_turn(self) -> None:
            """Does nothing with it."""

    for _ in range(WIDTH):
        world.turns.ask(Stuck(), ["acme"])
    await world.commit(endpoint("globex", 1))
    order = v1.SyncResponse(renew_now=v1.RenewNow(reason="test"))
    feed.say(order)
    async with asyncio.timeout(DEADLINE_S):
        assert [message.said for message in await feed.next()] == [order]


async def test_what_is_said_to_a_session_that_does_not_read_is_bounded(world: World) -> None:
    feed = world.feed("b", "globex")
    for number in range(1000):
        feed.say(v1.SyncResponse(renew_now=v1.RenewNow(reason=str(number))))
        feed.say(v1.SyncResponse(welcome=v1.Welcome(server_version=str(number))))
    said = [message.said for message in await feed.next() if message.said is not None]
    assert len(said) <= 300
    assert "999" in {message.renew_now.reason for message in said}
