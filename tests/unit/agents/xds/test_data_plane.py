"""The agent's ADS: who gets what, and when a revision is acknowledged. A hand-made ScopeStore, all else real."""

import os
import sys
from typing import Any

import grpc
import pytest
from xds_node import ADS, Node, Stream, cluster, entry, stream, until

from meshwarden.agents.envoy import runtime
from meshwarden.agents.telemetry.name import Names
from meshwarden.agents.xds.fit import fits
from meshwarden.agents.xds.interest import client_of
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, Snapshot, resource


async def test_a_stranger_is_refused_with_the_fix(channel: grpc.aio.Channel) -> None:
    call: Any = channel.stream_stream(ADS)()
    await Stream(call).ask(api.CLUSTER)
    assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "meshwarden-agent exec --entry" in await call.details()


async def test_a_revision_is_acknowledged_when_all_that_is_asked_for_is_answered(
    node: Node, channel: grpc.aio.Channel
) -> None:
    node.registry.set_entries(entry())
    node.register()
    first = node.push(cluster("a"), cluster("b"))
    assert node.acked() == first  # nobody is connected: whoever comes gets the newest
    one = stream(channel)
    await one.ask(api.CLUSTER, "a")
    answer = await one.answer()
    await one.ask(api.CLUSTER, "a", nonce=answer.nonce)
    second = node.push(cluster("a", 2), cluster("b"))
    answer = await one.answer()
    assert node.acked() == first
    await one.ask(api.CLUSTER, "a", nonce=answer.nonce)
    await until(lambda: node.acked() == second)
    # Nothing new for it: it has nothing to answer.
    third = node.push(cluster("a", 2), cluster("b", 2))
    await until(lambda: node.acked() == third)
    # And one that goes holds up nobody.
    fourth = node.push(cluster("a", 3), cluster("b", 2))
    await one.answer()
    assert node.acked() == third
    one.end()
    await until(lambda: node.acked() == fourth)


async def test_who_does_not_answer_is_named_and_those_that_do_count(node: Node, channel: grpc.aio.Channel) -> None:
    node.registry.set_entries(entry())
    node.register()
    first = node.push(cluster("a"))
    one = stream(channel)
    await one.ask(api.CLUSTER, "a")
    answer = await one.answer()
    node.data_planes.tell_pending()  # it has never had another: that is no news
    await one.ask(api.CLUSTER, "a", nonce=answer.nonce)
    await until(lambda: node.in_force.newest("acme/web#1/grpc") == first)
    assert [ack.revision for ack in node.acks] == [first]
    second = node.push(cluster("a", 2))
    answer = await one.answer()
    for _ in range(2):
        node.data_planes.tell_pending()
    told = node_pb.ConfigAck(revision=first, pending_revision=second, pending=["acme/web#1/grpc"])
    assert node.acks[1:] == [told]
    await one.ask(api.CLUSTER, "a", nonce=answer.nonce, error="bad")
    await until(lambda: node.acked() == second)
    assert [(nack.message, nack.taken_revision) for nack in node.acks[-1].nacks] == [("bad", first)]
    assert not node.acks[-1].pending
    one.end()


async def test_a_refusal_is_an_answer_and_is_reported_until_it_is_mended(node: Node, channel: grpc.aio.Channel) -> None:
    node.registry.set_entries(entry())
    node.register()
    revision = node.push(cluster("a"))
    one = stream(channel)
    await one.ask(api.CLUSTER, "a")
    answer = await one.answer()
    await one.ask(api.CLUSTER, "a", nonce=answer.nonce, error="bad " + "x" * 9000)
    await until(lambda: node.acks and node.acks[-1].nacks)
    (nack,) = node.acks[-1].nacks
    assert (node.acked(), nack.data_plane, nack.type_url) == (revision, "acme/web#1/grpc", api.CLUSTER)
    assert (nack.message[:5], len(nack.message)) == ("bad x", 4096)
    mended = node.push(cluster("a", 2))
    answer = await one.answer()
    await one.ask(api.CLUSTER, "a", nonce=answer.nonce)
    await until(lambda: node.acked() == mended and not node.acks[-1].nacks)
    one.end()


async def test_what_is_not_known_yet_is_withheld_not_empty(node: Node, channel: grpc.aio.Channel) -> None:
    node.registry.set_entries(entry())
    node.register()
    one = stream(channel)
    await one.ask(api.CLUSTER, "a")
    node.push(cluster("z"), plane="acme/other#1/grpc")
    node.push(cluster("a"))
    answer = await one.answer()
    assert [item.type_url for item in answer.resources] == [api.CLUSTER]  # not an empty one before
    one.end()


async def test_an_envoy_gets_its_certificate_beside_its_configuration(node: Node, channel: grpc.aio.Channel) -> None:
    node.registry.set_entries(entry(envoy=True))
    workload = node.register()
    await node.credentials.ensure(workload, 60)
    (_, ref) = node.planes.refs(workload)
    node.push(outbound(ref.outbound_path), plane="acme/web#1/envoy")
    one = stream(channel)
    await one.ask(api.SECRET, "default", "ROOTCA", agent="envoy")
    answer = await one.answer()
    secrets = {secret.name: secret for secret in map(api.unpack, answer.resources)}
    assert set(secrets) == {"default", "ROOTCA"}
    svid = node.credentials.svid(workload.id)
    assert svid is not None
    assert secrets["default"].tls_certificate.private_key.inline_string == svid.key_pem().decode()
    # Renewed, it comes by itself.
    node.credentials.renew_now("test")
    again = await one.answer()
    (renewed,) = [secret for secret in map(api.unpack, again.resources) if secret.name == "default"]
    assert renewed.tls_certificate != secrets["default"].tls_certificate
    one.end()


async def test_an_envoy_gets_the_secrets_of_its_entry_and_the_newer_ones(node: Node, channel: grpc.aio.Channel) -> None:
    node.registry.set_entries(entry(envoy=True))
    workload = node.register()
    await node.credentials.ensure(workload, 60)
    (_, ref) = node.planes.refs(workload)
    node.push(outbound(ref.outbound_path), plane="acme/web#1/envoy")
    told = node_pb.Secret(name="db", value="hunter2", version=1)
    node.secrets.take(node_pb.EntrySecrets(tenant="acme", entry="web", secrets=[told]))
    others = node_pb.Secret(name="db", value="hunter3", version=1)
    node.secrets.take(node_pb.EntrySecrets(tenant="umbrella", entry="web", secrets=[others]))
    one = stream(channel)
    await one.ask(api.SECRET, "secret/db", "secret/none", agent="envoy")
    (given,) = map(api.unpack, (await one.answer()).resources)
    assert (given.name, given.generic_secret.secret.inline_string) == ("secret/db", "hunter2")
    told.value, told.version = "hunter4", 2
    node.secrets.take(node_pb.EntrySecrets(tenant="acme", entry="web", secrets=[told]))
    (given,) = map(api.unpack, (await one.answer()).resources)
    assert given.generic_secret.secret.inline_string == "hunter4"
    assert "hunter" not in repr(node.secrets.of("acme/web"))
    node.secrets.keep(["umbrella/web"])
    assert node.secrets.of("acme/web") == ()
    one.end()


async def test_an_envoy_waits_until_the_program_was_seen(node: Node, channel: grpc.aio.Channel) -> None:
    node.registry.set_entries(entry(envoy=True, path="/bin/elsewhere"))
    workload = node.register()
    await node.credentials.ensure(workload, 60)
    assert not node.registry.is_admitted(workload.id)
    (_, ref) = node.planes.refs(workload)
    node.push(outbound(ref.outbound_path), plane="acme/web#1/envoy")
    assert node.data_planes.snapshot(workload, "acme/web#1/envoy") is None
    # It has become the program that the entry wants.
    node.registry.set_entries(entry(envoy=True, path=os.path.realpath(sys.executable)))
    node.registry.review()
    assert node.data_planes.snapshot(workload, "acme/web#1/envoy") is not None


async def test_an_ended_workload_gets_nothing_more(node: Node, channel: grpc.aio.Channel) -> None:
    node.registry.set_entries(entry())
    workload = node.register()
    node.push(cluster("a"))
    assert node.data_planes.snapshot(workload, "acme/web#1/grpc") is not None
    node.registry.end(workload.id, "test")
    assert node.data_planes.snapshot(workload, "acme/web#1/grpc") is None
    again = node.register()
    assert again.id == workload.id
    assert node.data_planes.snapshot(workload, "acme/web#1/grpc") is None
    assert node.data_planes.snapshot(again, "acme/web#1/grpc") is not None


async def test_names_are_those_that_the_tenant_is_given(node: Node) -> None:
    node.registry.set_entries(entry())
    names = Names(node.registry, node.scopes)
    assert names.find("acme", "orders") is None
    workload = node.register()
    node.push(client("orders"), client("orders.platform"), Resource(api.LISTENER, "broken", "1", b"\xff"))
    for said in ("orders", "orders.platform", "xds:///orders", "platform/orders"):
        assert names.find("acme", said) == "platform/orders"
    for said in ("", "/", "broken", "billing", "platform/billing", "acme/orders", "xds://", "a/b/c"):
        assert names.find("acme", said) is None
    assert names.find("globex", "orders") is None
    node.push(client("orders.platform"))
    assert names.find("acme", "orders") is None
    # Its last counts come after it has ended.
    node.registry.end(workload.id, "test")
    assert names.find("acme", "orders.platform") == "platform/orders"


async def test_external_services_are_those_that_the_tenants_envoys_are_given(node: Node) -> None:
    node.registry.set_entries(entry(envoy=True))
    names = Names(node.registry, node.scopes)
    workload = node.register()
    assert names.find("acme", "platform/model") is None
    update = node_pb.ConfigUpdate(revision=1)
    update.scopes.add(scope="s", full=True)
    found = resource(
        api.build("envoy.config.listener.v3.Listener", {"name": "egress/platform/model"}), "egress/platform/model"
    )
    update.scopes[0].resources.add(type_url=found.type_url, name=found.name, version=found.version, body=found.body)
    for plane in ("grpc", "envoy"):
        update.data_planes.add(id=f"{workload.id}/{plane}", scopes=["s"])
    node.scopes.apply(update)
    assert names.find("acme", "platform/model") == "platform/model"
    for said in ("model", "model.platform", "egress/platform/model", "platform/other", "outbound", "/"):
        assert names.find("acme", said) is None
    assert names.find("globex", "platform/model") is None
    node.registry.end(workload.id, "test")
    assert names.find("acme", "platform/model") == "platform/model"


def client(name: str) -> Resource:
    manager = {
        "@type": f"{api.TYPE_URL_PREFIX}envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "rds": {"config_source": {"ads": {}}, "route_config_name": "orders.platform"},
    }
    fields = {"name": name, "api_listener": {"api_listener": manager}}
    return resource(api.build("envoy.config.listener.v3.Listener", fields), name)


def outbound(path: str) -> Resource:
    fields = {"name": "outbound", "address": {"pipe": {"path": path}}}
    return resource(api.build("envoy.config.listener.v3.Listener", fields), "outbound")


def inbound(port: int) -> Resource:
    fields = {
        "name": "inbound",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
    }
    return resource(api.build("envoy.config.listener.v3.Listener", fields), "inbound")


@pytest.mark.parametrize(
    ("resources", "fit"),
    [
        ([outbound("/run/o")], True),
        ([outbound("/run/other")], False),
        ([], False),
        ([outbound("/run/o"), inbound(7001)], False),
        ([Resource(api.LISTENER, "outbound", "1", b"\xff")], False),
    ],
)
def test_configuration_for_other_addresses_does_not_fit(resources: list[Resource], fit: bool) -> None:
    ref = node_pb.DataPlaneRef(id="x", dialect=node_pb.DataPlaneRef.ENVOY, outbound_path="/run/o")
    assert fits(Snapshot.of(resources), ref) is fit


@pytest.mark.parametrize(("ratio", "steps"), [(0.0, 0), (1e-9, 1), (0.25, 2500), (0.99999, 10_000), (1.0, 10_000)])
def test_an_envoy_records_none_only_if_it_is_to(ratio: float, steps: int) -> None:
    said = api.parse("envoy.service.runtime.v3.Runtime", runtime.sampling(ratio).body)
    assert api.to_dict(said)["layer"] == {
        "tracing.random_sampling": {"numerator": steps, "denominator": "TEN_THOUSAND"}
    }


@pytest.mark.parametrize(
    ("node", "client"),
    [
        ({"user_agent_name": "gRPC C-core linux", "user_agent_version": "C-core 58.0.0"}, "c-core/58.0.0"),
        ({"user_agent_name": "gRPC Node Pure JS", "user_agent_version": "1.14.1"}, "node/1.14.1"),
        ({"user_agent_name": "gRPC Go", "user_agent_version": "1.85.0-dev"}, "go/1.85.0"),
        ({"user_agent_name": "gRPC Java", "user_agent_version": "1.85.0"}, "java/1.85.0"),
        (
            {
                "user_agent_name": "envoy",
                "user_agent_build_version": {"version": {"major_number": 1, "minor_number": 9}},
            },
            "envoy/1.9.0",
        ),
        ({}, "unknown"),
        ({"user_agent_name": "gRPC C-core, node/1", "user_agent_version": "x" * 9999 + "1"}, "c-core"),
        ({"user_agent_name": "evil\n", "user_agent_version": "9" * 99}, "unknown/999999"),
    ],
)
def test_a_client_is_what_its_node_says_in_so_many_words(node: dict[str, Any], client: str) -> None:
    assert client_of(api.build("envoy.config.core.v3.Node", node)) == client


async def test_the_control_plane_is_asked_anew_when_another_kind_of_client_comes(
    node: Node, channel: grpc.aio.Channel
) -> None:
    node.registry.set_entries(entry())
    workload = node.register()

    def client() -> str:
        return node.interests[-1][0].client if node.interests else ""

    first, second = stream(channel), stream(channel)
    await first.ask(api.CLUSTER, "a", agent="gRPC C-core linux")
    await until(lambda: client() == "c-core")
    told = len(node.interests)
    await second.ask(api.CLUSTER, "a", agent="gRPC Node Pure JS")
    await until(lambda: client() == "c-core, node")
    first.end()
    await until(lambda: client() == "node")
    second.end()
    await until(lambda: not node.data_planes.connected())
    assert len(node.interests) == told + 2, "of none the last stands"
    (ref,) = node.data_planes._interest.refs(workload)
    assert ref.client == "node"
