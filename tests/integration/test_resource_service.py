"""ResourceService behind the front, the peer check and the validation, with a real store and a real audit log."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import grpc
import pytest
import yaml
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane.api import resource as resource_module
from meshwarden.controlplane.api.change import GUARD, ChangeDesk
from meshwarden.controlplane.api.data_plane import DataPlaneServicer
from meshwarden.controlplane.api.history import RevisionServicer
from meshwarden.controlplane.api.resource import ResourceServicer
from meshwarden.controlplane.api.rollout import RolloutServicer
from meshwarden.controlplane.api.server import traced
from meshwarden.controlplane.api.validation import ValidationInterceptor
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.identity.authorize import admit
from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.controlplane.resources.model import unwrap
from meshwarden.controlplane.rollout.count import Counts
from meshwarden.controlplane.rollout.driver import Driver
from meshwarden.controlplane.store.port import Put, Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.sdk.tracing.own_span import Provider, own_provider, server_interceptor
from meshwarden.v1 import resource_service_pb2 as v1
from meshwarden.v1.data_plane_service_pb2_grpc import add_DataPlaneServiceServicer_to_server
from meshwarden.v1.resource_service_pb2_grpc import ResourceServiceStub, add_ResourceServiceServicer_to_server
from meshwarden.v1.resources_pb2 import AccessPolicy, Metadata, Resource, Tenant, TrustDomain
from meshwarden.v1.revision_service_pb2_grpc import add_RevisionServiceServicer_to_server
from meshwarden.v1.rollout_service_pb2_grpc import add_RolloutServiceServicer_to_server

DOMAIN = "mesh.test"
SERVER_NAME = "controlplane.mesh.test"
NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
ROOT_KEY = new_key()
ROOT = self_signed_root(DOMAIN, ROOT_KEY, utc_now() - timedelta(days=1))
BUNDLE = Bundle.of(DOMAIN, [ROOT])

MESH = """\
kind: Tenant
metadata: {name: platform}
---
kind: Tenant
metadata: {name: acme}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC, exportTo: [acme]}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: HTTP}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: orders-v1}
spec: {service: orders, nodes: [n1], selectors: {uid: 1001}, version: v1, port: 7001}
---
kind: AccessPolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, allow: [{from: [{tenant: acme, service: web}]}]}
---
kind: RoutePolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, rules: [{split: [{version: v1, weight: 1}]}]}
"""


def tracing(provider: Provider | None = None) -> grpc.aio.ServerInterceptor:
    """What stands around handlers where a backend takes traces."""
    return server_interceptor(provider or own_provider("test", lambda body, count: None), traced())


def svid(identity: SpiffeId, dns: tuple[str, ...] = ()) -> X509Svid:
    key = new_key()
    template = LeafTemplate(identity, timedelta(hours=1), dns)
    return X509Svid.of(issue_leaf(template, key.public_key(), IssuerKey(ROOT_KEY, (ROOT,)), utc_now()), key)


OPERATOR = svid(SpiffeId.parse(f"spiffe://{DOMAIN}/operator/root"))
ACME = svid(SpiffeId.parse(f"spiffe://{DOMAIN}/tenant/acme/operator/anna"))
WORKLOAD = svid(SpiffeId.workload(DOMAIN, "acme", "web"))
SERVER = svid(SpiffeId.parse(f"spiffe://{DOMAIN}/region/eu/controlplane"), (SERVER_NAME,))


@dataclass
class World:
    store: Store
    audit: Path
    root: ResourceServiceStub
    acme: ResourceServiceStub
    channel: Callable[[X509Svid | None], grpc.aio.Channel]
    sessions: Sessions
    publisher: Publisher
    counts: Counts
    spans: list[bytes]

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


def rollouts(
    store: Store, publisher: Publisher, sessions: Sessions, desk: ChangeDesk, owner: str, provider: Provider
) -> tuple[Counts, Driver]:
    """What drives rollouts."""

    def nodes() -> dict[str, Place]:
        return {state.node: Place("eu", state.zone) for state in sessions.everywhere()}

    counts = Counts(store, publisher.mesh, nodes, owner)
    driver = Driver(store, publisher.mesh, counts, nodes, desk, SERVER.spiffe_id, owner, utc_now, provider)
    publisher.listen(lambda _: (counts.touch(), driver.touch()))
    return counts, driver


@asynccontextmanager
async def serve(directory: Path, owner: str = "") -> AsyncIterator[World]:
    """One control plane process's worth of the service on the store in `directory`."""
    spans: list[bytes] = []
    provider = own_provider("test", lambda body, count: spans.append(body))
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(directory / "s" / "store.db"))
        audit_path = directory / "audit.log"
        audit = await stack.enter_async_context(FileAuditLog.open(audit_path, lambda: NOW))
        front = Front(directory / "in.sock")
        peers = PeerInterceptor(front, PeerVerifier(lambda: {DOMAIN: BUNDLE}, utc_now), admit)
        server = grpc.aio.server(interceptors=[peers, tracing(provider), ValidationInterceptor(audit)])
        desk = ChangeDesk(store, lambda: NOW, "eu", audit, trust_domain=DOMAIN)
        add_ResourceServiceServicer_to_server(ResourceServicer(store, desk), server)
        publisher = Publisher(store, trust_domain=DOMAIN, audit=audit)
        sessions = Sessions(publisher, store, region="eu", clock=utc_now, owner=str(directory))
        add_RevisionServiceServicer_to_server(RevisionServicer(store, desk, publisher, sessions), server)
        add_DataPlaneServiceServicer_to_server(DataPlaneServicer(publisher, sessions), server)
        counts, driver = rollouts(store, publisher, sessions, desk, owner or str(directory), provider)
        rollout = RolloutServicer(publisher.mesh, driver, desk, sessions, utc_now)
        add_RolloutServiceServicer_to_server(rollout, server)
        server.add_insecure_port(front.inner_target)
        await server.start()
        stack.push_async_callback(server.stop, None)
        await stack.enter_async_context(front)
        context = server_context(SERVER.chain_pem(), SERVER.key_pem(), BUNDLE.pem())
        port = await front.serve_tls("127.0.0.1", 0, lambda: context)

        def channel(identity: X509Svid | None) -> grpc.aio.Channel:
            pair = (identity.key_pem(), identity.chain_pem()) if identity else (None, None)
            credentials = grpc.ssl_channel_credentials(BUNDLE.pem(), *pair)
            options = [("grpc.ssl_target_name_override", SERVER_NAME)]
            return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)

        async def stub(identity: X509Svid) -> ResourceServiceStub:
            return ResourceServiceStub(await stack.enter_async_context(channel(identity)))

        async with anyio.create_task_group() as group:
            await group.start(publisher.run)
            await group.start(sessions.run)
            await group.start(counts.run)
            group.start_soon(driver.run)
            stubs = await stub(OPERATOR), await stub(ACME)
            yield World(store, audit_path, *stubs, channel, sessions, publisher, counts, spans)
            group.cancel_scope.cancel()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serve(tmp_path) as served:
        yield served


def batch(text: str) -> list[Resource]:
    return [located.resource for located in parse(text, "m")]


async def apply(stub: ResourceServiceStub, text: str, dry_run: bool = False) -> v1.ApplyResponse:
    return await stub.Apply(v1.ApplyRequest(resources=batch(text), dry_run=dry_run), timeout=60)


def ref(kind: str, tenant: str, name: str) -> v1.ResourceRef:
    return v1.ResourceRef(kind=kind, tenant=tenant, name=name)


async def refused(call: "grpc.aio.UnaryUnaryCall") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


def violations(error: grpc.aio.AioRpcError) -> list[str]:
    status = rpc_status.from_call(error)
    assert status is not None
    details = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(details)
    return [f"{violation.field}: {violation.description}" for violation in details.field_violations]


def actions(answer: v1.ApplyResponse) -> list[str]:
    return [v1.Change.Action.Name(change.action) for change in answer.changes]


async def test_a_batch_is_stored_with_its_record_and_read_back(world: World) -> None:
    answer = await apply(world.root, MESH)
    assert actions(answer) == ["CREATED"] * 7
    found = await world.root.Get(v1.GetRequest(ref=ref("Service", "platform", "orders")), timeout=60)
    record = found.service.metadata.record
    assert (record.revision, record.origin_region, record.epoch) == (answer.revision, "eu", 1)
    assert record.update_time.ToDatetime(UTC) == NOW
    events = world.events()
    assert [event["event"] for event in events] == ["resource.apply"]
    assert "CREATED Service platform/orders" in json.dumps(events)
    assert f"spiffe://{DOMAIN}/operator/root" in json.dumps(events)


def parsing(stub: ResourceServiceStub, text: str) -> "grpc.aio.UnaryUnaryCall":
    return stub.ParseManifest(v1.ParseManifestRequest(manifest=text), timeout=60)


async def test_a_manifest_is_read_as_apply_reads_it_and_stores_nothing(world: World) -> None:
    for stub in (world.root, world.acme):
        answer = await parsing(stub, MESH)
        assert (list(answer.resources), list(answer.faults)) == (batch(MESH), [])
    assert list((await parsing(world.root, json.dumps(yaml.safe_load(MESH.partition("---")[0])))).resources) == batch(
        MESH.partition("---")[0]
    )
    nothing = await parsing(world.root, "# to be written\n---\n")
    assert (list(nothing.resources), list(nothing.faults)) == ([], [])
    wrong = await parsing(world.root, MESH.replace("protocol: HTTP", "protocol: SMTP").replace("port: 7001", "prt: 1"))
    assert [(fault.field, fault.message.partition(":")[0]) for fault in wrong.faults] == [
        ("spec.protocol", "line 13"),
        ("spec.prt", "line 17"),
    ]
    assert (list(wrong.resources), world.events()) == ([], [])
    assert not (await world.root.List(v1.ListRequest(), timeout=60)).resources


HOSTILE = (
    ("a: &a [x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n", "anchors and aliases are not taken"),
    ("<<: *nothing", "anchors and aliases are not taken"),
    ("!!python/object/apply:os.system [id]", "tags are not taken"),
    ("kind: !Tenant x", "tags are not taken"),
    ("[" * 40 + "]" * 40, "nested deeper than 32 levels"),
    ("[" * 200_000, "not YAML"),
    ("---\na\n" * 1001, "more than 1000 documents"),
    ("[" + "1," * 131_000 + "]", "must be a resource"),
    ("kind: Tenant\nkind: Tenant\n", "given twice"),
    ("kind: \0", "not YAML"),
    ("{", "not YAML"),
    ("kind: Tenant\nmetadata: {name: '<img src=x>'}\n", "metadata.name"),
    ("- 1", "must be a resource"),
)


async def test_a_hostile_manifest_is_a_fault_with_its_line(world: World) -> None:
    for text, told in HOSTILE:
        answer = await parsing(world.acme, text)
        assert not answer.resources
        assert told in "".join(f"{fault.field}: {fault.message}" for fault in answer.faults), text[:60]
        assert all(fault.message.startswith("line ") for fault in answer.faults), text[:60]


async def test_a_manifest_of_any_size_is_read_to_nobody_else(world: World) -> None:
    for text in ("", "a" * 262_145):
        assert (await refused(parsing(world.root, text))).code() is grpc.StatusCode.INVALID_ARGUMENT
    for who, code in ((None, grpc.StatusCode.UNAUTHENTICATED), (WORKLOAD, grpc.StatusCode.PERMISSION_DENIED)):
        async with world.channel(who) as channel:
            assert (await refused(parsing(ResourceServiceStub(channel), MESH))).code() is code


async def test_the_same_again_changes_nothing(world: World) -> None:
    first = await apply(world.root, MESH)
    again = await apply(world.root, MESH)
    assert actions(again) == ["UNCHANGED"] * 7
    assert again.revision == first.revision
    changed = await apply(world.root, MESH.replace("weight: 1", "weight: 2"))
    assert actions(changed) == ["UNCHANGED"] * 6 + ["UPDATED"]
    assert len(world.events()) == 2


async def test_a_dry_run_answers_with_every_fault_where_trailers_hold_but_the_first(world: World) -> None:
    await apply(world.root, MESH)
    names = [f"missing-{number}" for number in range(90)]
    policies = [
        f"kind: AccessPolicy\nmetadata: {{tenant: platform, name: p-{name}}}\n"
        f"spec: {{service: orders, allow: [{{from: [{{tenant: {name}, service: '*'}}]}}]}}\n"
        for name in names
    ]
    wanted = [f"resources[{number}].spec.allow[0].from[0].tenant" for number in range(90)]
    cut = violations(await refused(apply(world.root, "---\n".join(policies))))
    assert 20 < len(cut) < 90
    assert cut[-1] == f": and {91 - len(cut)} more: mend these first"
    answer = await apply(world.root, "---\n".join(policies), dry_run=True)
    assert [fault.field for fault in answer.faults] == wanted
    assert [name in fault.message for name, fault in zip(names, answer.faults, strict=True)] == [True] * 90
    assert not answer.changes


async def test_what_the_rules_of_a_kind_refuse_a_dry_run_answers_too(world: World) -> None:
    batched = [*batch(MESH), Resource(tenant=Tenant(kind="Tenant", metadata=Metadata(tenant="x", name="acme")))]
    answer = await world.root.Apply(v1.ApplyRequest(resources=batched, dry_run=True), timeout=60)
    assert [fault.field for fault in answer.faults] == ["resources[7].metadata.tenant"]


async def test_a_dry_run_says_and_changes_nothing(world: World) -> None:
    answer = await apply(world.root, MESH, dry_run=True)
    assert actions(answer) == ["CREATED"] * 7
    assert (await world.store.range("")).records == ()
    assert world.events() == []


async def test_one_fault_refuses_the_batch_and_every_fault_is_told(world: World) -> None:
    text = MESH.replace("weight: 1", "weight: 1}, {version: v9, weight: 1").replace("service: web}]", "service: wbe}]")
    error = await refused(world.root.Apply(v1.ApplyRequest(resources=batch(text))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error) == [
        "resources[5].spec.allow[0].from[0].service: there is no Service acme/wbe; did you mean web?",
        "resources[6].spec.rules[0].split[1].version: no workload entry of platform/orders has version v9; it has v1",
    ]
    assert (await world.store.range("")).records == ()


async def test_the_schemas_rules_hold_for_requests(world: World) -> None:
    error = await refused(world.root.Apply(v1.ApplyRequest(resources=[Resource(tenant=Tenant(kind="X")), Resource()])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error) == [
        "resources[0].kind: must equal `Tenant`",
        "resources[0].metadata: is required",
        "resources[1]: is required: give one of "
        + ", ".join(field.json_name for field in Resource.DESCRIPTOR.oneofs[0].fields),
    ]
    many = [Resource(tenant=Tenant(kind="Tenant", metadata=Metadata(name=f"t{n}"))) for n in range(101)]
    error = await refused(world.root.Apply(v1.ApplyRequest(resources=many)))
    assert violations(error) == ["resources: must contain no more than 100 items"]
    assert actions(await world.root.Apply(v1.ApplyRequest(resources=many[:100]))) == ["CREATED"] * 100
    error = await refused(world.root.Delete(v1.DeleteRequest()))
    assert violations(error) == ["refs: is required: give at least one"]
    own = Resource(tenant=Tenant(kind="Tenant", metadata=Metadata(name="a", tenant="b")))
    error = await refused(world.root.Apply(v1.ApplyRequest(resources=[own])))
    assert violations(error) == ["resources[0].metadata.tenant: a Tenant is owned by itself: leave it out"]


async def test_faults_that_do_not_fit_a_trailer_are_counted(world: World) -> None:
    bad = [Resource(tenant=Tenant(kind="Tenant", metadata=Metadata(name="-" * 40, tenant="-"))) for _ in range(100)]
    error = await refused(world.root.Apply(v1.ApplyRequest(resources=bad)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = violations(error)
    assert len(told) > 10
    left_out = int(told[-1].split()[2])
    assert len(told) - 1 + left_out == 200


async def test_a_record_that_has_moved_past_the_revision_seen_is_not_overwritten(world: World) -> None:
    await apply(world.root, MESH)
    seen = await world.root.Get(v1.GetRequest(ref=ref("Tenant", "acme", "acme")))
    mine = Resource()
    mine.CopyFrom(seen)
    mine.tenant.spec.display_name = "Acme"
    answer = await world.root.Apply(v1.ApplyRequest(resources=[mine]))
    assert actions(answer) == ["UPDATED"]
    mine.tenant.spec.display_name = "ACME"
    error = await refused(world.root.Apply(v1.ApplyRequest(resources=[mine])))
    assert error.code() is grpc.StatusCode.ABORTED
    assert "Tenant acme" in (error.details() or "")
    new = Resource(tenant=Tenant(kind="Tenant", metadata=Metadata(name="new")))
    new.tenant.metadata.record.revision = 3
    error = await refused(world.root.Apply(v1.ApplyRequest(resources=[new])))
    assert "was deleted" in (error.details() or "")


async def test_what_is_used_is_not_deleted_and_says_by_whom(world: World) -> None:
    await apply(world.root, MESH)
    error = await refused(world.root.Delete(v1.DeleteRequest(refs=[ref("Service", "acme", "web")])))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "AccessPolicy platform/orders" in (error.details() or "")
    status = rpc_status.from_call(error)
    assert status is not None
    failure = error_details_pb2.PreconditionFailure()
    assert status.details[0].Unpack(failure)
    assert [violation.type for violation in failure.violations] == ["IN_USE"]
    refs = [ref("Service", "acme", "web"), ref("AccessPolicy", "platform", "orders"), ref("Tenant", "acme", "acme")]
    error = await refused(world.root.Delete(v1.DeleteRequest(refs=refs)))
    assert "Service platform/orders" in (error.details() or ""), "it is exported to acme"
    await world.root.Delete(v1.DeleteRequest(refs=refs[:2]))
    error = await refused(world.root.Get(v1.GetRequest(ref=refs[0])))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    error = await refused(world.root.Delete(v1.DeleteRequest(refs=refs)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "Service acme/web" in (error.details() or "")
    assert "resource.delete" in json.dumps(world.events())


async def test_large_resources_come_in_pages_that_any_client_takes(world: World) -> None:
    await apply(world.root, MESH)
    methods = [f"/{number:03}{'x' * 500}" for number in range(256)]
    for number in range(40):
        policy = AccessPolicy(kind="AccessPolicy", metadata=Metadata(tenant="platform", name=f"p{number}"))
        policy.spec.service = "orders"
        policy.spec.allow.add(methods=methods, **{"from": [{"service": "orders"}]})
        await world.root.Apply(v1.ApplyRequest(resources=[Resource(access_policy=policy)]))
    names: list[str] = []
    token = ""
    while True:
        page = await world.root.List(v1.ListRequest(page_size=1000, page_token=token, tenant="platform"))
        names += [f"{unwrap(found).kind}/{unwrap(found).metadata.name}" for found in page.resources]
        token = page.next_page_token
        if not token:
            break
    assert len(names) == len(set(names)) == 45
    call = world.root.Watch(v1.WatchRequest(), timeout=60)
    assert sum(len(message.events) for message in await take(call, 47)) == 47
    call.cancel()


async def test_fields_of_a_newer_schema_are_refused_by_their_place(world: World) -> None:
    await apply(world.root, MESH)
    (found,) = (await world.root.List(v1.ListRequest(kind="AccessPolicy"))).resources
    newer = found.access_policy
    newer.spec.allow[0].MergeFromString(b"\xf8\x07\x01")  # field 127: 1
    newer.metadata.MergeFromString(b"\xf8\x07\x01")
    error = await refused(world.root.Apply(v1.ApplyRequest(resources=[found])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [fault.partition(":")[0] for fault in violations(error)] == [
        "resources[0].metadata",
        "resources[0].spec.allow[0]",
    ]


async def test_pages_hold_one_revision_and_a_tenants_own(world: World) -> None:
    answer = await apply(world.root, MESH)
    seen: list[str] = []
    token = ""
    while True:
        page = await world.root.List(v1.ListRequest(page_size=2, page_token=token))
        assert page.revision == answer.revision
        seen += [f"{unwrap(found).kind}/{unwrap(found).metadata.name}" for found in page.resources]
        token = page.next_page_token
        if len(seen) == 2:
            await apply(world.root, "kind: Tenant\nmetadata: {name: later}")
        if not token:
            break
    assert seen == [
        "AccessPolicy/orders",
        "RoutePolicy/orders",
        "Service/web",
        "Service/orders",
        "Tenant/acme",
        "Tenant/platform",
        "WorkloadEntry/orders-v1",
    ]
    for size in (1, 2, 500):
        own: list[str] = []
        token = ""
        while True:
            page = await world.acme.List(v1.ListRequest(page_size=size, page_token=token))
            own += [f"{unwrap(found).kind}/{unwrap(found).metadata.name}" for found in page.resources]
            token = page.next_page_token
            if not token:
                break
        assert own == ["Service/web", "Tenant/acme"]
    page = await world.root.List(v1.ListRequest(kind="Service", tenant="platform"))
    assert [found.service.metadata.name for found in page.resources] == ["orders"]


@pytest.mark.parametrize("token", ["x", "W10=", "WzEsIi9pZGVudGl0eS8iXQ==", "[[[[", "WzEsIC8=", "é", "bnVsbA=="])
async def test_a_made_up_page_token_is_refused(world: World, token: str) -> None:
    error = await refused(world.root.List(v1.ListRequest(page_token=token)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error)[0].startswith("pageToken: ")


async def take(call: "grpc.aio.UnaryStreamCall", events: int) -> list[v1.WatchResponse]:
    found: list[v1.WatchResponse] = []
    async with asyncio.timeout(60):
        while sum(len(message.events) for message in found) < events:
            found.append(await call.read())
    return found


async def test_a_watch_starts_with_all_and_goes_on_from_its_cursor(world: World) -> None:
    await apply(world.root, MESH)
    call = world.root.Watch(v1.WatchRequest(), timeout=60)
    first = await take(call, 7)
    assert {event.ref.kind for message in first for event in message.events} >= {"Tenant", "Service", "AccessPolicy"}
    async with asyncio.timeout(60):
        place = await call.read()
    assert place.cursor.incarnation == world.store.incarnation
    await apply(world.root, "kind: Tenant\nmetadata: {name: new}")
    (change,) = [message for message in await take(call, 1) if message.events]
    assert change.events[0].resource.tenant.metadata.name == "new"
    call.cancel()
    await world.root.Delete(v1.DeleteRequest(refs=[ref("Tenant", "new", "new")]))
    again = world.root.Watch(v1.WatchRequest(after=change.cursor), timeout=60)
    (deleted,) = [message for message in await take(again, 1) if message.events]
    assert deleted.events[0].ref == ref("Tenant", "new", "new")
    assert not deleted.events[0].HasField("resource")
    again.cancel()


async def test_a_watch_shows_kinds_and_the_callers_tenant_alone(world: World) -> None:
    await apply(world.root, MESH)
    call = world.acme.Watch(v1.WatchRequest(kinds=["Service", "Tenant"]), timeout=60)
    first = await take(call, 2)
    names = [f"{event.ref.kind} {event.ref.tenant}" for message in first for event in message.events]
    assert names == ["Service acme", "Tenant acme"]
    await apply(world.root, MESH.replace("name: platform}", "name: platform, labels: {a: b}}"))
    await apply(world.root, MESH.replace("name: web}", "name: web, labels: {a: b}}"))
    changes = [message for message in await take(call, 1) if message.events]
    assert [event.ref.name for message in changes for event in message.events] == ["web"]
    call.cancel()


@pytest.mark.parametrize(
    ("cursor", "code"),
    [
        (v1.Cursor(incarnation="another", revision=1), grpc.StatusCode.OUT_OF_RANGE),
        (v1.Cursor(incarnation="", revision=1 << 62), grpc.StatusCode.OUT_OF_RANGE),
        (v1.Cursor(incarnation="", revision=(1 << 64) - 1), grpc.StatusCode.OUT_OF_RANGE),
    ],
)
async def test_a_cursor_of_another_store_asks_to_start_afresh(
    world: World, cursor: v1.Cursor, code: grpc.StatusCode
) -> None:
    if not cursor.incarnation:
        cursor = v1.Cursor(incarnation=world.store.incarnation, revision=cursor.revision)
    call = world.root.Watch(v1.WatchRequest(after=cursor), timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    assert error.value.code() is code


async def test_compacted_history_asks_to_start_afresh(world: World) -> None:
    first = await apply(world.root, MESH)
    second = await apply(world.root, "kind: Tenant\nmetadata: {name: new}")
    await world.store.compact(second.revision)
    cursor = v1.Cursor(incarnation=world.store.incarnation, revision=first.revision)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.root.Watch(v1.WatchRequest(after=cursor), timeout=60).read()
    assert error.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_watch_of_unknown_kinds_is_refused(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.root.Watch(v1.WatchRequest(kinds=["Service", "Pod"]), timeout=60).read()
    assert violations(error.value) == ["kinds[1]: there is no kind 'Pod'"]


async def test_a_tenants_operator_stays_in_its_tenant(world: World) -> None:
    await apply(world.root, MESH)
    await apply(world.acme, MESH.split("---\n")[3].replace("HTTP", "GRPC"))
    for call in (
        world.acme.Apply(v1.ApplyRequest(resources=batch(MESH)[:1])),
        world.acme.Get(v1.GetRequest(ref=ref("Tenant", "platform", "platform"))),
        world.acme.List(v1.ListRequest(tenant="platform")),
        world.acme.Delete(v1.DeleteRequest(refs=[ref("Service", "acme", "web"), ref("Service", "platform", "orders")])),
    ):
        error = await refused(call)
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    error = await refused(world.acme.Delete(v1.DeleteRequest(refs=[ref("Service", "acme", "web")])))
    assert "another tenant" in (error.details() or "")
    assert "platform" not in (error.details() or "")
    async with asyncio.timeout(60):
        while sum(event["event"] == "rpc.refused" for event in world.events()) < 4:  # noqa: ASYNC110 - a file tells nobody
            await anyio.sleep(0.02)


async def test_what_reaches_into_other_tenants_is_for_operators_of_the_mesh(world: World) -> None:
    await apply(world.root, MESH)
    acme = "kind: RatePolicy\nmetadata: {tenant: acme, name: NAME}\nspec: {services: [SERVICES], total: {requests: 9}}"
    own = acme.replace("NAME", "own").replace("SERVICES", "'*'")
    foreign = [acme.replace("NAME", "wide").replace("SERVICES", what) for what in ("platform/orders", "'*/*'")]
    await apply(world.acme, own)
    for text in foreign:
        error = await refused(world.acme.Apply(v1.ApplyRequest(resources=batch(text))))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "for every tenant" in (error.details() or "")
    await apply(world.root, foreign[1])
    for call in (
        world.acme.Apply(v1.ApplyRequest(resources=batch(own.replace("own", "wide")))),
        world.acme.Delete(v1.DeleteRequest(refs=[ref("RatePolicy", "acme", "wide")])),
    ):
        assert (await refused(call)).code() is grpc.StatusCode.PERMISSION_DENIED
    await world.root.Delete(v1.DeleteRequest(refs=[ref("RatePolicy", "acme", "wide")]))


async def test_what_leads_to_other_peoples_nodes_is_for_operators_of_the_mesh(world: World) -> None:
    await apply(world.root, MESH)
    spec = "{protocol: HTTP, hosts: [{address: ADDRESS, port: 80}], insecure: true}"
    text = f"kind: ExternalService\nmetadata: {{tenant: acme, name: metadata}}\nspec: {spec}\n"
    own = text.replace("ADDRESS", "192.0.2.1")
    near = text.replace("ADDRESS", "169.254.169.254").replace("insecure: true", "insecure: true, internal: true")
    await apply(world.acme, own)
    assert (await refused(apply(world.acme, near))).code() is grpc.StatusCode.PERMISSION_DENIED
    await apply(world.root, near)
    assert (await refused(apply(world.acme, own))).code() is grpc.StatusCode.PERMISSION_DENIED
    delete = world.acme.Delete(v1.DeleteRequest(refs=[ref("ExternalService", "acme", "metadata")]))
    assert (await refused(delete)).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_calls_in_the_clear_end_within_ninety_days(world: World) -> None:
    await apply(world.root, MESH)

    def text(until: datetime) -> str:
        said = f"{{until: {until:%Y-%m-%dT%H:%M:%SZ}, methods: [/*]}}"
        return f"kind: Service\nmetadata: {{tenant: acme, name: old}}\nspec: {{protocol: HTTP, permissive: {said}}}\n"

    error = await refused(apply(world.acme, text(NOW + timedelta(days=91))))
    assert "spec.permissive.until: is more than 90 days ahead" in (error.details() or "")
    await apply(world.acme, text(NOW + timedelta(days=89)))
    await apply(world.acme, text(NOW - timedelta(days=1)))  # over, and still to be applied as it is


async def test_a_limit_is_refused_in_a_region_that_has_no_part_of_it(world: World) -> None:
    await apply(world.root, MESH)
    text = "kind: RatePolicy\nmetadata: {tenant: acme, name: parted}\n"
    text += "spec: {services: ['*'], total: {requests: 9}, PARTS}"
    await apply(world.root, text.replace("PARTS", "regions: [{region: eu, weight: 1}, {region: us, weight: 1}]"))
    parts = text.replace("PARTS", "regions: [{region: us, weight: 1}]")
    error = await refused(world.root.Apply(v1.ApplyRequest(resources=batch(parts))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "spec.regions: this is region eu, which has no part" in (error.details() or "")


@pytest.mark.parametrize(
    ("identity", "code"), [(None, grpc.StatusCode.UNAUTHENTICATED), (WORKLOAD, grpc.StatusCode.PERMISSION_DENIED)]
)
async def test_nobody_else_gets_in(world: World, identity: X509Svid | None, code: grpc.StatusCode) -> None:
    async with world.channel(identity) as channel:
        error = await refused(ResourceServiceStub(channel).List(v1.ListRequest(), timeout=60))
    assert error.code() is code


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x05\x0a\x03\x0a\x01\xff",
        bytes([0x0A, 0x7F]) * 60,
        # Resource nested in what is no Resource, 10,000 groups deep.
        b"\x0b" * 10_000,
    ],
)
async def test_bytes_that_are_no_message_are_refused_and_the_server_goes_on(world: World, payload: bytes) -> None:
    async with world.channel(OPERATOR) as channel:
        raw = channel.unary_unary("/meshwarden.v1.ResourceService/Apply")
        error = await refused(raw(payload, timeout=60))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "can't be read" in (error.details() or "")
    await apply(world.root, MESH)


async def test_a_batch_past_the_stores_limit_is_refused_naming_it(world: World) -> None:
    labels = {f"{n:02}": "x" * 255 for n in range(32)}
    rules = [
        {
            "match": {"methods": [f"/{rule}-{n}-" + "m" * 480 for n in range(64)]},
            "split": [{"version": "v1", "weight": 1}],
        }
        for rule in range(50)
    ]
    await apply(world.root, MESH)
    big = batch(MESH)[6]
    big.route_policy.metadata.labels.update(labels)
    del big.route_policy.spec.rules[:]
    for rule in rules:
        big.route_policy.spec.rules.add(**rule)
    error = await refused(world.root.Apply(v1.ApplyRequest(resources=[big])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the limit is 1400000" in (error.details() or "")


async def test_a_defect_is_told_by_an_id_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(key: str) -> None:
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(resource_module, "key_of", broken)
    error = await refused(world.root.Get(v1.GetRequest(ref=ref("Tenant", "a", "a"))))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    number = (error.details() or "").split()[2].strip(":")
    logged = capsys.readouterr().out
    assert number in logged
    assert "secret of the house" in logged


async def test_two_processes_judge_by_what_the_other_has_done(tmp_path: Path) -> None:
    """One deletes what the other's batch names; whatever the order, no reference dangles."""
    (tmp_path / "one").mkdir(mode=0o700)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(serve(tmp_path))
        store = await stack.enter_async_context(open_store(tmp_path / "s" / "store.db"))
        audit = await stack.enter_async_context(FileAuditLog.open(tmp_path / "one" / "audit.log", lambda: NOW))
        other = ChangeDesk(store, lambda: NOW, "eu", audit)
        await apply(one.root, MESH)
        guard, _ = await store.get(GUARD)
        assert guard is not None

        async def elsewhere() -> None:
            """As another process would, between this one's reading and its commit."""
            await one.root.Delete(v1.DeleteRequest(refs=[ref("RoutePolicy", "platform", "orders")]))
            await one.root.Delete(v1.DeleteRequest(refs=[ref("WorkloadEntry", "platform", "orders-v1")]))

        attempts = 0

        async def change(revision: int) -> int:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                await elsewhere()
            return await store.commit([Put("/x", b""), Put(GUARD, b"", revision)])

        await other.guarded(change)
        assert attempts == 2
        assert other.mirror.view.find("WorkloadEntry", "platform", "orders-v1") is None
        page = await one.root.List(v1.ListRequest(kind="WorkloadEntry"))
        assert list(page.resources) == []


async def test_many_applies_at_once_all_land(world: World) -> None:
    await apply(world.root, MESH)
    async with anyio.create_task_group() as group:
        for number in range(20):
            text = f"kind: Service\nmetadata: {{tenant: acme, name: s{number}}}\nspec: {{protocol: GRPC}}"
            group.start_soon(apply, world.root, text)
    page = await world.root.List(v1.ListRequest(kind="Service", tenant="acme"))
    assert len(page.resources) == 21


PARTNER = """\
kind: TrustDomain
metadata: {tenant: acme, name: partner}
spec:
  trustDomain: partner.example
  bundleEndpoint: {url: "https://partner.example:8443/bundle.json", profile: HTTPS_WEB}
---
kind: Tenant
metadata: {name: acme}
spec: {}
"""


async def test_only_an_operator_of_the_mesh_says_whom_else_to_trust(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await apply(world.acme, PARTNER)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await apply(world.root, PARTNER)
    partner = ref("TrustDomain", "acme", "partner")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.acme.Delete(v1.DeleteRequest(refs=[partner]))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError, match="is about this trust domain already"):
        await apply(world.root, PARTNER.replace("name: partner}", "name: twice}"))
    await world.root.Delete(v1.DeleteRequest(refs=[partner]))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("trustDomain: partner.example", f"trustDomain: {DOMAIN}", "is this mesh's own"),
        ("trustDomain: partner.example", "trustDomain: Partner.example", "trustDomain"),
        ("trustDomain: partner.example", 'trustDomain: "partner.example\\n"', "trustDomain"),
        ("trustDomain: partner.example", "trustDomain: partner.example:1", "trustDomain"),
        ("https://partner.example:8443", "http://partner.example:8443", "url"),
        ("https://partner.example:8443", "file:///etc/passwd", "url"),
        ("https://partner.example:8443", "https://user@partner.example:8443", "url"),
        ("/bundle.json", "/bundle.json#x", "url"),
        ("/bundle.json", "/bundle json", "url"),
        ("HTTPS_WEB", "HTTPS_SPIFFE", "give spiffeId with HTTPS_SPIFFE"),
        ("HTTPS_WEB}", "HTTPS_WEB, spiffeId: spiffe://partner.example/x}", "give spiffeId with HTTPS_SPIFFE"),
        ("HTTPS_WEB}", "HTTPS_SPIFFE, spiffeId: spiffe://partner.example/x}", "is required: it proves the server"),
        ("HTTPS_WEB}", "HTTPS_SPIFFE, spiffeId: spiffe://partner.example/}", "spiffeId"),
        ("HTTPS_WEB}", 'HTTPS_WEB}\n  bundle: "{}"', "`keys` is missing"),
    ],
)
async def test_a_trust_domain_that_is_none(world: World, old: str, new: str, reason: str) -> None:
    assert old in PARTNER
    # Past the client, which would refuse most of them by itself.
    first, _ = yaml.safe_load_all(PARTNER.replace(old, new))
    resource = Resource(trust_domain=json_format.ParseDict(first, TrustDomain()))
    with pytest.raises(grpc.aio.AioRpcError, match=reason) as caught:
        await world.root.Apply(v1.ApplyRequest(resources=[resource]), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
