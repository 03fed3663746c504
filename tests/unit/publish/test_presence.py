"""Two control planes on one store: a node that is at one is not given up by the other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus
from google.protobuf import json_format

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.publish import presence
from meshwarden.controlplane.publish.presence import PREFIX, Place
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Session, Sessions
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.store.port import Put
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1 import resources_pb2
from meshwarden.v1.resources_pb2 import EndpointSpec

DEADLINE_S = 60.0
ROOT = bytes(32)


def put(kind: str, name: str, **spec: Any) -> Put:
    fields = {"kind": kind, "metadata": {"tenant": "acme", "name": name}, "spec": spec}
    message = json_format.ParseDict(fields, getattr(resources_pb2, kind)())
    return Put(f"/resource/{kind}/acme/{name}", model.encode(model.wrap(message)))


async def until(condition: Any, what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - nothing signals it
                await anyio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"did not come true: {what}") from None


class One:
    """A control plane's sessions."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.judged = 0
        self.scope = anyio.CancelScope()

    async def start(self, stack: AsyncExitStack) -> None:
        self.store = await stack.enter_async_context(open_store(self.path))
        self.publisher = Publisher(self.store, trust_domain="mesh.test", audit=None)  # type: ignore[arg-type]
        self.sessions = Sessions(
            self.publisher, self.store, region="eu", clock=utc_now, grace_s=0.05, start_grace_s=0.05, owner=self.name
        )
        give_up = self.sessions._give_up

        def counted(node: str) -> None:
            self.judged += 1
            give_up(node)

        self.sessions._give_up = counted  # type: ignore[method-assign]
        group = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(group.cancel_scope.cancel)
        await group.start(self._run)

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        with self.scope:
            async with anyio.create_task_group() as group:
                await group.start(self.publisher.run)
                await group.start(self.sessions.run)
                task_status.started()

    def node(self) -> Session:
        """The node's session here, with an endpoint."""
        session = self.sessions.open("n1", v1.NodeHello(agent_version="1", zone="a"))
        report = v1.EndpointReport()
        report.endpoints.add(tenant="acme", entry="web", id="web-1", address="10.0.0.1", port=80)
        session.take(v1.SyncRequest(endpoints=report))
        return session

    def health(self) -> str:
        found = self.publisher.mesh.find("Endpoint", "acme", "n1-web-1")
        return "" if found is None else EndpointSpec.Health.Name(found.spec.health)


@pytest.fixture
async def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[One, One]]:
    monkeypatch.setattr(presence, "LOOK_S", 0.05)
    monkeypatch.setattr(presence, "TTL_S", 1.0)
    made = One("a", tmp_path / "s" / "store.sqlite"), One("b", tmp_path / "s" / "store.sqlite")
    async with AsyncExitStack() as stack:
        for one in made:
            await one.start(stack)
        await made[0].store.commit([put("Service", "web", protocol="GRPC")])
        await made[0].store.commit([put("WorkloadEntry", "web", service="web", nodes=["n1"])])
        entry = ("WorkloadEntry", "acme", "web")
        await until(lambda: all(one.publisher.mesh.find(*entry) for one in made), "both know the entry")
        yield made


async def at(one: One, other: One) -> Session:
    """A node that has come to a control plane, and left the other."""
    session = one.node()
    await until(lambda: other.sessions._presence.elsewhere("n1"), "the other knows")
    await until(lambda: one.health() == other.health() == "HEALTHY", "it is to be called")
    return session


async def test_a_node_that_has_moved_is_not_given_up_where_it_was(both: tuple[One, One]) -> None:
    a, b = both
    old = await at(a, b)
    new = b.node()
    await until(old.replaced.is_set, "its older session ends, as if it were of the same control plane")
    old.close()
    judged = a.judged
    await until(lambda: a.judged > judged + 3, "it would have been given up by now")
    assert (a.health(), b.health()) == ("HEALTHY", "HEALTHY")
    # It comes back, and whoever had it in between leaves it alone.
    newest = a.node()
    await until(new.replaced.is_set, "the other ends that")
    new.close()
    judged = b.judged
    await until(lambda: b.judged > judged + 3, "nor is it given up there")
    assert (a.health(), b.health()) == ("HEALTHY", "HEALTHY")
    assert not newest.replaced.is_set()


async def test_a_node_of_a_control_plane_that_has_died_is_given_up_by_another(both: tuple[One, One]) -> None:
    a, b = both
    await at(b, a)
    await until(lambda: b.sessions._presence._lease, "it lives")
    b.sessions._presence._lease = None  # killed, nobody gives it back
    b.scope.cancel()
    await until(lambda: a.health() == "UNHEALTHY", "nobody is to call it")
    a.node()
    await until(lambda: a.health() == "HEALTHY", "it has come to the one that lives")


async def test_what_a_node_says_of_roots_is_known_to_all(both: tuple[One, One]) -> None:
    a, b = both
    session = await at(b, a)
    ack = v1.BundleAck(trusted=[ROOT], used=[ROOT], jwt_keys=["k1"])
    session.take(v1.SyncRequest(bundle_ack=ack))

    def known() -> bool:
        place = a.sessions._presence.elsewhere("n1")
        return place is not None and place.trusted == place.used == frozenset({ROOT.hex()})

    await until(known, "the other knows of it")
    place = a.sessions._presence.elsewhere("n1")
    assert place is not None
    assert place.jwt_keys == {"k1"}
    assert Place.decode(b'{"holder": "b", "trusted": null, "used": []}') == Place("b"), "as earlier ones wrote it"


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b"{}", b"1", b'{"holder": "b", "trusted": 1, "used": []}'])
async def test_a_record_that_is_none_is_nobody_s_word(both: tuple[One, One], value: bytes) -> None:
    a, b = both
    await at(b, a)
    await b.store.commit([Put(f"{PREFIX}n1", value)])
    await until(lambda: a.sessions._presence.elsewhere("n1") is None, "it is not believed")
    await b.store.commit([Put(f"{PREFIX}n1", Place("b").encode())])
    await until(lambda: a.sessions._presence.elsewhere("n1"), "what follows is")
