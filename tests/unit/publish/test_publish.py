"""The pump from a real store to nodes' feeds, and from nodes' sessions back to endpoint records."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from google.protobuf import json_format
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshwarden.certs.deny import Deny, DenyList
from meshwarden.controlplane.identity.record import NodeRecord, node_key
from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.publish.feed import Feed
from meshwarden.controlplane.publish.message import Message
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Session, Sessions
from meshwarden.controlplane.publish.trail import Trails
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.store.port import Delete, Op, Put, Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1 import resources_pb2

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DEADLINE_S = 60.0


class Audit:
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    async def record(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    async def record_all(self, event: str, rows: Any) -> None:
        self.events += [(event, dict(row)) for row in rows]

    def note(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))


def put(kind: str, tenant: str, name: str, **spec: Any) -> Put:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    message = json_format.ParseDict(fields, getattr(resources_pb2, kind)())
    return Put(f"/resource/{kind}/{tenant}/{name}", model.encode(model.wrap(message)))


ORDERS = (
    put("Service", "platform", "orders", protocol="GRPC", exportTo=["acme"]),
    put("WorkloadEntry", "platform", "orders", service="orders", nodes=["n1"], version="v1"),
    put("Service", "acme", "web", protocol="GRPC"),
    put("WorkloadEntry", "acme", "web", service="web", nodes=["n1", "n2"]),
)


def ref(tenant: str, entry: str, listen: str = "") -> v1.DataPlaneRef:
    return v1.DataPlaneRef(
        id=f"{tenant}/{entry}#1/grpc", tenant=tenant, entry=entry, dialect="GRPC", listen_address=listen
    )


class Rig:
    def __init__(self, store: Store) -> None:
        self.store, self.audit = store, Audit()
        self.spans = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.publisher = Publisher(store, trust_domain="mesh.test", audit=self.audit, trails=Trails(provider))
        self.sessions = Sessions(
            self.publisher, store, region="eu", clock=lambda: NOW, grace_s=0.05, start_grace_s=0.05
        )

    async def commit(self, *ops: Op) -> int:
        revision = await self.store.commit(ops)
        await self.publisher.wait_revision(revision)
        return revision

    async def endpoint(self, name: str, wanted: Callable[[Any], bool]) -> Any:
        """The endpoint record of the tenant platform, once it is as wanted (None: absent)."""
        async with asyncio.timeout(DEADLINE_S):
            while not wanted(found := self.publisher.mesh.find("Endpoint", "platform", name)):
                await self.publisher.wait_revision(self.publisher.revision + 1)
        return found

    async def states(self, wanted: Callable[[list[str]], bool]) -> None:
        """Returns once the names of the nodes are as wanted."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if wanted([state.node for state in self.sessions.states()]):
                    return
                await asyncio.sleep(0.01)

    def session(self, node: str, *messages: v1.SyncRequest) -> Session:
        session = self.sessions.open(node, v1.NodeHello(agent_version="1", zone="a"))
        for message in messages:
            session.take(message)
        return session


@asynccontextmanager
async def running(path: Path, *first: Op) -> AsyncIterator[Rig]:
    async with open_store(path / "state" / "store.sqlite") as store:
        if first:
            await store.commit(first)
        rig = Rig(store)
        async with anyio.create_task_group() as group:
            await group.start(rig.publisher.run)
            group.start_soon(rig.sessions.run)
            yield rig
            group.cancel_scope.cancel()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path, *ORDERS) as made:
        yield made


def said(message: Message) -> v1.SyncResponse:
    """What a node reads."""
    body = message.body()
    assert len(body) == message.size_bytes
    return v1.SyncResponse.FromString(body)


async def following(feed: Feed, held: dict[str, dict[tuple[str, str], v1.XdsResource]], until: int) -> list[Any]:
    """Takes what a feed says as an agent does, until it is at a revision."""
    seen = []
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for message in map(said, await feed.next()):
                seen.append(message)
                if not message.HasField("config"):
                    continue
                for scope in message.config.scopes:
                    known = {} if scope.full else held[scope.scope]
                    for gone in scope.removed:
                        del known[gone.type_url, gone.name]
                    known.update({(item.type_url, item.name): item for item in scope.resources})
                    held[scope.scope] = known
                if message.config.data_planes:
                    used = {name for plane in message.config.data_planes for name in plane.scopes}
                    for name in held.keys() - used:
                        del held[name]
                if message.config.revision >= until:
                    return seen


def names(message: v1.SyncResponse) -> set[str]:
    return {f"{item.type_url.rpartition('.')[2]} {item.name}" for s in message.config.scopes for item in s.resources}


async def test_a_new_feed_gets_entries_then_all_its_scopes_then_only_what_changes(rig: Rig) -> None:
    feed, held = rig.publisher.open("n1"), {}
    feed.set_interest([ref("platform", "orders", "127.0.0.1:7021"), ref("acme", "web")])
    entries, config = await following(feed, held, rig.publisher.revision)
    assert [entry.metadata.name for entry in entries.entries.entries] == ["web", "orders"]
    assert {service.metadata.name for service in entries.entries.services} == {"orders", "web"}
    assert set(held) == {
        "client/acme/c-core",
        "client/platform/c-core",
        "server/platform/orders/grpc",
        "listener/n1/platform/orders#1/grpc",
    }
    assert all(scope.full for scope in config.config.scopes)

    revision = await rig.commit(
        put("Endpoint", "platform", "e", service="orders", address="127.0.0.1", port=1, version="v1")
    )
    (change,) = await following(feed, held, revision)
    assert names(change) == {"ClusterLoadAssignment orders.platform", "ClusterLoadAssignment orders.platform|v1"}
    assert not change.config.data_planes, "the map has not changed"

    await rig.commit(Delete("/resource/WorkloadEntry/platform/orders"))
    revision = await rig.commit(Delete("/resource/Endpoint/platform/e"))
    await following(feed, held, revision)
    assert not any("|v1" in name for _, name in held["client/acme/c-core"])
    assert set(held) == {"client/acme/c-core"}


async def test_a_caller_that_a_policy_names_gets_what_is_its_own_until_none_does(rig: Rig) -> None:
    feed, held = rig.publisher.open("n2"), {}
    feed.set_interest([ref("acme", "web")])
    await following(feed, held, rig.publisher.revision)
    assert set(held) == {"client/acme/c-core"}
    rules = [{"match": {"from": [{"tenant": "acme", "service": "web"}]}, "timeout": "1s"}]
    revision = await rig.commit(put("RoutePolicy", "platform", "orders", service="orders", rules=rules))
    await following(feed, held, revision)
    assert set(held) == {"client/acme/c-core/web"}
    revision = await rig.commit(Delete("/resource/RoutePolicy/platform/orders"))
    await following(feed, held, revision)
    assert set(held) == {"client/acme/c-core"}


async def test_a_node_is_told_every_newest_revision_and_equal_updates_are_one_object(rig: Rig) -> None:
    feeds = [rig.publisher.open("n2") for _ in range(3)]
    for feed in feeds:
        feed.set_interest([ref("acme", "web")])
        await following(feed, {}, rig.publisher.revision)
    revision = await rig.commit(put("Service", "globex", "shop", protocol="GRPC"))
    told = [(await feed.next())[0] for feed in feeds]
    config = said(told[0]).config
    assert config.revision == told[0].revision == revision
    assert not config.scopes
    assert told[1] is told[0]
    assert told[2] is told[0], "built once for all that get the same"
    assert told[0].body() is told[2].body(), "and serialised once"


async def test_what_a_node_gets_whole_is_the_same_bytes_for_all_but_for_what_has_changed_since(rig: Rig) -> None:
    def bytes_of(message: Message) -> set[int]:
        return {id(piece) for piece in message._pieces if len(piece) > 64}

    feeds = []
    for _ in range(3):
        feed = rig.publisher.open("n2")
        feed.set_interest([ref("acme", "web")])
        feeds.append(feed)
    (_, first), (_, second) = await feeds[0].next(), await feeds[1].next()
    assert bytes_of(first) == bytes_of(second), "none has a copy while it waits"
    revision = await rig.commit(
        put("Endpoint", "platform", "e", service="orders", address="127.0.0.1", port=1, version="v1")
    )
    (_, third) = await feeds[2].next()
    assert third.revision == revision
    assert len(bytes_of(third) & bytes_of(first)) > 0, "acme/web is as it was"
    assert len(bytes_of(third) - bytes_of(first)) == 1, "platform/orders was made anew"
    assert b"127.0.0.1" in third.body()


async def test_a_deny_goes_before_all_else_and_changes_what_enforces_it_alone(rig: Rig) -> None:
    await rig.commit(put("AccessPolicy", "platform", "p", service="orders", allow=[{"from": [{"tenant": "acme"}]}]))
    feed, other, held = rig.publisher.open("n1"), rig.publisher.open("n2"), {}
    feed.set_interest([ref("platform", "orders", "127.0.0.1:7021")])
    other.set_interest([ref("acme", "web")])
    await following(feed, held, rig.publisher.revision)
    await following(other, {}, rig.publisher.revision)
    denied = "spiffe://mesh.test/tenant/acme/service/web"
    for number in (1, 2):  # who is slow is told the newest alone
        rig.publisher.deny(DenyList([Deny(denied, "", NOW)], number))
    (denies,), (config,) = await feed.next(), await feed.next()
    deny_list = said(denies).deny_list
    assert (deny_list.revision, deny_list.denies[0].spiffe_id) == (2, denied)
    assert names(said(config)) == {"RouteConfiguration server/platform/orders"}
    (told,) = await other.next()
    assert told is denies, "made once for all"
    late = rig.publisher.open("n3")
    assert (await late.next())[0] is denies


async def test_a_feed_that_nobody_reads_holds_one_update_and_no_one_up(rig: Rig) -> None:
    slow, quick = rig.publisher.open("n2"), rig.publisher.open("n2")
    for feed in (slow, quick):
        feed.set_interest([ref("acme", "web")])
        await following(feed, {}, rig.publisher.revision)
    for port in range(1, 6):
        revision = await rig.commit(
            put("Endpoint", "platform", "e", service="orders", address="127.0.0.1", port=port, version="v1")
        )
        await following(quick, {"client/acme/c-core": {}}, revision)
    messages = [said(message) for message in await slow.next()]
    assert [message.config.revision for message in messages] == [revision]
    assert names(messages[0]) == {"ClusterLoadAssignment orders.platform", "ClusterLoadAssignment orders.platform|v1"}


async def test_a_data_plane_of_an_entry_that_does_not_name_the_node_is_refused_and_audited(rig: Rig) -> None:
    feed, held = rig.publisher.open("n2"), {}
    feed.set_interest([ref("platform", "orders"), ref("platform", "nothing"), ref("acme", "web")])
    *_, config = await following(feed, held, rig.publisher.revision)
    refused = {plane.id: plane.refused for plane in config.config.data_planes}
    assert "does not name node n2" in refused["platform/orders#1/grpc"]
    assert "there is no workload entry" in refused["platform/nothing#1/grpc"]
    assert not refused["acme/web#1/grpc"]
    assert set(held) == {"client/acme/c-core"}
    assert [event for event, _ in rig.audit.events] == ["data_plane.refused"] * 2
    revision = await rig.commit(put("WorkloadEntry", "platform", "orders", service="orders", nodes=["n1", "n2"]))
    await following(feed, held, revision)
    assert set(held) == {"client/acme/c-core", "client/platform/c-core"}
    assert len(rig.audit.events) == 2, "a refusal is audited once"


async def test_a_bad_listening_address_refuses_that_data_plane_alone(rig: Rig) -> None:
    feed, held = rig.publisher.open("n1"), {}
    feed.set_interest([ref("platform", "orders", "nonsense"), ref("acme", "web")])
    *_, config = await following(feed, held, rig.publisher.revision)
    refused = {plane.id: plane.refused for plane in config.config.data_planes}
    assert refused["platform/orders#1/grpc"]
    assert set(held) == {"client/acme/c-core"}


async def test_nothing_is_said_before_the_first_load(tmp_path: Path) -> None:
    async with open_store(tmp_path / "state" / "store.sqlite") as store:
        await store.commit(ORDERS)
        publisher = Publisher(store, trust_domain="mesh.test", audit=Audit())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(publisher.wait_loaded(), 0)
        async with anyio.create_task_group() as group:
            await group.start(publisher.run)
            assert publisher.mesh.find("Service", "platform", "orders") is not None
            assert publisher.revision == 1
            group.cancel_scope.cancel()


async def test_an_unreadable_record_stops_nobody(tmp_path: Path) -> None:
    bad = (Put("/resource/Service/platform/bad", b"\xff"), Put("/resource/Other/a/b", b""))
    async with running(tmp_path, *ORDERS, *bad) as rig:
        assert rig.publisher.mesh.find("Service", "platform", "orders") is not None
        await rig.commit(*bad, put("Service", "platform", "more", protocol="GRPC"))
        assert rig.publisher.mesh.find("Service", "platform", "more") is not None


async def test_whatever_changes_a_feed_ends_with_what_a_fresh_compile_gives(rig: Rig) -> None:
    rng = random.Random(4)
    feed, held = rig.publisher.open("n1"), {}
    feed.set_interest([ref("platform", "orders", "127.0.0.1:7021"), ref("acme", "web")])
    caller = [{"from": [{"tenant": "acme", "service": "web"}]}]
    choices: list[Op] = [
        *ORDERS[:3],
        put("Service", "platform", "orders", protocol="GRPC"),
        put("Service", "acme", "orders", protocol="HTTP"),
        Delete("/resource/Service/acme/orders"),
        put("Endpoint", "platform", "e", service="orders", address="127.0.0.1", port=1, version="v2"),
        put("Endpoint", "platform", "f", service="orders", address="127.0.0.1", port=1, health="UNHEALTHY"),
        Delete("/resource/Endpoint/platform/e"),
        put("AccessPolicy", "platform", "p", service="orders", allow=caller),
        Delete("/resource/AccessPolicy/platform/p"),
        put("RoutePolicy", "platform", "r", service="orders", rules=[{"split": [{"version": "v3", "weight": 1}]}]),
        Delete("/resource/RoutePolicy/platform/r"),
        put("RatePolicy", "platform", "l", service="orders", limits=[{"tenant": "acme", "requests": 20}]),
    ]
    told = 0
    for _ in range(60):
        ops = {op.key: op for op in rng.sample(choices, rng.randint(1, 3))}
        revision = await rig.commit(*ops.values())
        if revision > told and rng.random() < 0.5:
            await following(feed, held, revision)
            told = revision
    revision = await rig.commit(put("Service", "globex", "end", protocol="GRPC"))
    await following(feed, held, revision)
    for scope in ("client/acme/c-core", "client/platform/c-core", "server/platform/orders/grpc"):
        fresh = compile_scope(rig.publisher.mesh, scope).resources
        assert {(item.type_url, item.name): item.version for item in fresh} == {
            name: item.version for name, item in held[scope].items()
        }


def endpoints(*items: v1.NodeEndpoint) -> v1.SyncRequest:
    return v1.SyncRequest(endpoints=v1.EndpointReport(endpoints=items))


def orders_endpoint(health: str = "HEALTHY", name: str = "orders-1") -> v1.NodeEndpoint:
    return v1.NodeEndpoint(id=name, tenant="platform", entry="orders", address="127.0.0.1", port=7021, health=health)


def healthy(found: Any) -> bool:
    return found is not None and found.spec.health == resources_pb2.EndpointSpec.HEALTHY


def unhealthy(found: Any) -> bool:
    return found is not None and found.spec.health == resources_pb2.EndpointSpec.UNHEALTHY


async def test_an_endpoint_is_stored_with_what_the_entry_says_and_deleted_by_an_empty_report(rig: Rig) -> None:
    session = rig.session("n1", endpoints(orders_endpoint()))
    found = await rig.endpoint("n1-orders-1", healthy)
    assert (found.spec.service, found.spec.version, found.spec.node, found.spec.entry) == (
        "orders",
        "v1",
        "n1",
        "orders",
    )
    assert (found.spec.locality.region, found.spec.locality.zone) == ("eu", "a")
    async with asyncio.timeout(DEADLINE_S):
        while (stored := (await rig.store.get("/presence/n1"))[0]) is None:  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)
    before = max(stored.revision, int(found.metadata.record.revision))
    session.take(endpoints(orders_endpoint()))
    session.take(endpoints(orders_endpoint("DRAINING")))
    await rig.endpoint("n1-orders-1", lambda item: item.spec.health == resources_pb2.EndpointSpec.DRAINING)
    assert rig.publisher.revision == before + 1, "what has not changed is not written"
    session.take(endpoints())
    await rig.endpoint("n1-orders-1", lambda item: item is None)


async def test_what_a_node_reports_leads_to_the_trace_of_the_revision_that_it_makes(rig: Rig) -> None:
    report = endpoints(orders_endpoint())
    report.endpoints.trace_parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    session = rig.session("n1", report)
    session.take(report)
    await rig.endpoint("n1-orders-1", healthy)
    joined = rig.publisher.revision
    session.close()
    await rig.endpoint("n1-orders-1", unhealthy)
    lost = rig.publisher.revision
    said = [span for span in rig.spans.get_finished_spans() if span.name == "endpoints"]
    assert [dict(span.attributes or {}) for span in said] == [
        {
            "mesh.revision": revision,
            "mesh.by": by,
            "mesh.changes": (change,),
            "mesh.tenant": "platform",
        }
        for revision, by, change in (
            (joined, "the report of node n1", "CREATED Endpoint platform/n1-orders-1 HEALTHY"),
            (lost, "the loss of node n1", "UPDATED Endpoint platform/n1-orders-1 UNHEALTHY"),
        )
    ]
    assert [format(span.context.trace_id, "032x") == report.endpoints.trace_parent[3:35] for span in said] == [
        True,
        False,
    ]


async def test_an_endpoint_of_anothers_entry_is_not_taken(rig: Rig) -> None:
    rig.session("n2", endpoints(orders_endpoint()))
    rig.session("n1", endpoints(orders_endpoint()))
    await rig.endpoint("n1-orders-1", healthy)
    assert rig.publisher.mesh.find("Endpoint", "platform", "n2-orders-1") is None


async def test_a_node_that_leaves_without_goodbye_is_unhealthy_until_it_returns(rig: Rig) -> None:
    session = rig.session("n1", endpoints(orders_endpoint()))
    await rig.endpoint("n1-orders-1", healthy)
    session.close()
    await rig.endpoint("n1-orders-1", unhealthy)
    assert not rig.sessions.states()[0].connected
    rig.session("n1", endpoints(orders_endpoint()))
    await rig.endpoint("n1-orders-1", healthy)


async def test_a_node_that_joined_is_listed_though_it_has_not_come_back(tmp_path: Path) -> None:
    joined = [NodeRecord(f"n{number}", NOW, "192.0.2.1", "1") for number in range(120)]
    spoilt = Put(node_key("spoilt"), b"[]")
    async with running(tmp_path, *(Put(node.key, node.encode()) for node in joined[:100]), spoilt) as rig:
        await rig.store.commit([Put(node.key, node.encode()) for node in joined[100:]])
        await rig.states(lambda states: len(states) == 120)
        session = rig.session("n5")
        state = {state.node: state for state in rig.sessions.states()}
        assert (state["n5"].connected, state["n6"].connected) == (True, False)
        assert not state["n6"].HasField("last_seen")
        assert state["n5"].join_time.ToDatetime(UTC) == state["n6"].join_time.ToDatetime(UTC) == NOW
        session.close()
        await rig.store.commit([Delete(node_key("n7")), Put(node_key("new"), joined[0].encode())])
        await rig.states(lambda states: "new" in states and "n7" not in states)


async def test_a_newer_session_replaces_the_older_whose_end_means_nothing(rig: Rig) -> None:
    older = rig.session("n1", endpoints(orders_endpoint()))
    newer = rig.session("n1")
    assert older.replaced.is_set()
    assert not newer.replaced.is_set()
    older.close()
    (state,) = rig.sessions.states()
    assert state.connected
    assert rig.sessions.renew_all("test") == ["n1"]
    assert any(message.kind == "renew_now" for message in await newer.feed.next())


async def test_at_the_start_nodes_that_do_not_return_are_unhealthy(tmp_path: Path) -> None:
    stored = put("Endpoint", "platform", "n1-x", service="orders", address="127.0.0.1", port=1, node="n1")
    kept = put("Endpoint", "platform", "by-hand", service="orders", address="127.0.0.1", port=2)
    async with running(tmp_path, *ORDERS, stored, kept) as rig:
        await rig.endpoint("n1-x", unhealthy)
        assert rig.publisher.mesh.find("Endpoint", "platform", "by-hand").spec.health == 0


async def test_an_entry_that_no_longer_names_the_node_takes_its_endpoints_away(rig: Rig) -> None:
    rig.session("n1", endpoints(orders_endpoint()))
    await rig.endpoint("n1-orders-1", healthy)
    await rig.commit(put("WorkloadEntry", "platform", "orders", service="orders", nodes=["n3"]))
    await rig.endpoint("n1-orders-1", lambda item: item is None)


async def test_an_endpoint_that_an_operator_takes_away_comes_back(rig: Rig) -> None:
    rig.session("n1", endpoints(orders_endpoint()))
    kept = await rig.endpoint("n1-orders-1", healthy)
    key = "/resource/Endpoint/platform/n1-orders-1"
    await rig.commit(Delete(key))
    again = await rig.endpoint("n1-orders-1", healthy)
    assert again.spec == kept.spec
    await rig.commit(put("Endpoint", "platform", "n1-orders-1", service="orders", address="192.0.2.1", port=1))
    async with asyncio.timeout(DEADLINE_S):
        while not rig.publisher.mesh.endpoints_on("n1"):
            await rig.publisher.wait_revision(rig.publisher.revision + 1)
    (moved,) = rig.publisher.mesh.endpoints_on("n1").values()
    assert moved.spec == kept.spec
    assert moved.metadata.name.startswith("n1-orders-1-")


async def test_names_too_long_or_taken_by_another_node_get_a_digest(rig: Rig) -> None:
    await rig.commit(
        put("Endpoint", "platform", "n1-orders-1", service="orders", address="127.0.0.9", port=9, node="n1-orders")
    )
    rig.session("n1", endpoints(orders_endpoint(), orders_endpoint(name="x" * 63)))
    async with asyncio.timeout(DEADLINE_S):
        while len(found := rig.publisher.mesh.of_service("Endpoint", ("platform", "orders"))) < 3:
            await rig.publisher.wait_revision(rig.publisher.revision + 1)
    assert all(len(key.name) <= 63 for key in found)
    assert rig.publisher.mesh.find("Endpoint", "platform", "n1-orders-1").spec.address == "127.0.0.9"


async def test_a_write_of_someone_else_between_is_looked_at_again(rig: Rig) -> None:
    session = rig.session("n1", endpoints(orders_endpoint()))
    await rig.endpoint("n1-orders-1", healthy)
    for port in range(1, 20):
        wrong = put("Endpoint", "platform", "n1-orders-1", service="orders", address="127.0.0.1", port=port, node="n1")
        await rig.store.commit([wrong])
        session.take(endpoints(orders_endpoint()))
    await rig.endpoint("n1-orders-1", lambda item: item is not None and item.spec.port == 7021)


async def test_a_node_is_told_and_gives_only_what_is_of_tenants_that_it_serves(rig: Rig) -> None:
    hello, held = v1.NodeHello(agent_version="1", zone="a"), {}
    session = rig.sessions.open("n1", hello, lambda tenant: tenant == "platform")
    session.feed.set_interest([ref("platform", "orders", "127.0.0.1:7021"), ref("acme", "web")])
    entries, config = await following(session.feed, held, rig.publisher.revision)
    assert [entry.metadata.name for entry in entries.entries.entries] == ["orders"]
    planes = {plane.id: (list(plane.scopes) != [], plane.refused) for plane in config.config.data_planes}
    assert planes["platform/orders#1/grpc"] == (True, "")
    assert planes["acme/web#1/grpc"] == (False, "node n1 has joined for other tenants than acme")
    items = [
        v1.NodeEndpoint(id=entry, tenant=tenant, entry=entry, address="127.0.0.1", port=7021)
        for tenant, entry in (("acme", "web"), ("platform", "orders"))
    ]
    session.take(v1.SyncRequest(endpoints=v1.EndpointReport(endpoints=items)))
    await rig.endpoint("n1-orders", lambda found: found is not None)
    assert rig.publisher.mesh.find("Endpoint", "acme", "n1-web") is None
