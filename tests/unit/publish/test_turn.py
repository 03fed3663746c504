"""Time changes what holds: the publisher looks at the clock and tells sessions, though nothing was stored."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
from google.protobuf import json_format

from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.store.port import Put
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1 import resources_pb2

DEADLINE_S = 60.0
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def put(kind: str, tenant: str, name: str, **spec: Any) -> Put:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    message = json_format.ParseDict(fields, getattr(resources_pb2, kind)())
    return Put(f"/resource/{kind}/{tenant}/{name}", model.encode(model.wrap(message)))


RULE = {
    "from": [{"tenant": "acme", "service": "web"}],
    "during": {"from": "2026-11-26T11:00:00Z", "until": "2026-11-26T12:00:00.050Z"},
}
FIRST = (
    put("Service", "platform", "orders", protocol="GRPC", exportTo=["acme"]),
    put("WorkloadEntry", "platform", "orders", service="orders", nodes=["n1"], port=7001),
    put("AccessPolicy", "platform", "orders", service="orders", allow=[RULE]),
)
REF = v1.DataPlaneRef(
    id="platform/orders#1/grpc", tenant="platform", entry="orders", dialect="GRPC", listen_address="127.0.0.1:7001"
)


async def told(feed: Any) -> v1.ScopeUpdate:
    """The next update of the servers' scope."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for message in [v1.SyncResponse.FromString(made.body()) for made in await feed.next()]:
                for scope in message.config.scopes if message.HasField("config") else ():
                    if scope.scope.startswith("server/"):
                        return scope


def callers(access: v1.ServerAccess) -> int:
    return sum(len(getattr(rule, "from")) for policy in access.policies for rule in policy.spec.allow)


async def test_what_is_let_in_for_a_time_is_taken_back_when_that_ends(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "state" / "store.sqlite") as store, anyio.create_task_group() as group:
        await store.commit(FIRST)
        publisher = Publisher(store, trust_domain="mesh.test", audit=None, clock=clock)  # type: ignore[arg-type]
        await group.start(publisher.run)
        feed = publisher.open("n1")
        feed.set_interest([REF])
        first = await told(feed)
        assert callers(first.access) == 1
        assert [callers(form.access) for form in first.later.forms] == [0], "the agent knows what comes"
        revision = publisher.revision
        clock.now = NOON + timedelta(seconds=1)
        second = await told(feed)
        assert callers(second.access) == 0
        assert (second.HasField("later"), len(second.later.forms)) == (True, 0), "and nothing more is to come"
        assert {item.version for item in second.resources} == {item.version for item in first.later.forms[0].resources}
        assert publisher.revision == revision
        group.cancel_scope.cancel()
