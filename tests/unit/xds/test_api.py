"""The private pool, and resources as bytes."""

import subprocess
import sys

import pytest

from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, Snapshot, resource

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
FIELDS = {
    "name": "orders",
    "connect_timeout": "0.250s",
    "transport_socket": {"name": "tls", "typed_config": {"@type": TLS, "sni": "x"}},
    "metadata": {"filter_metadata": {"m": {"deep": [1.0, {"a": None}]}}},
}
CLUSTER = "envoy.config.cluster.v3.Cluster"


def test_the_json_form_and_back() -> None:
    message = api.build(CLUSTER, FIELDS)
    assert api.to_dict(message) == FIELDS
    assert api.unpack(message.transport_socket.typed_config).sni == "x"
    assert api.unpack(api.pack(message)) == message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"connect_timeout": "soon"}, "soon"),
        ({"transport_socket": {"typed_config": {"@type": "type.googleapis.com/no.such.Type"}}}, "no.such.Type"),
        ({"transport_socket": {"typed_config": {"@type": TLS, "snj": "x"}}}, "snj"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(api.InvalidMessage, match=said):
        api.build(CLUSTER, fields)


def test_an_unknown_message_and_garbage_are_named() -> None:
    with pytest.raises(api.UnknownMessage, match=r"no\.such"):
        api.build("no.such.Type", {})
    with pytest.raises(api.UnknownMessage, match=r"no\.such"):
        api.unpack(api.pack_bytes("type.googleapis.com/no.such.Type", b""))
    with pytest.raises(api.InvalidMessage, match="Cluster"):
        api.parse(CLUSTER, b"\xff\xff")


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 3_000_000])
def test_the_entries_of_responses_are_what_protobuf_reads(size: int) -> None:
    body = api.build(CLUSTER, {"name": "n" * size}).SerializeToString()
    item = Resource(api.CLUSTER, "ñ" * min(size, 300), "v1", body)
    sotw = api.parse("envoy.service.discovery.v3.DiscoveryResponse", item.sotw_entry).resources[0]
    delta = api.parse("envoy.service.discovery.v3.DeltaDiscoveryResponse", item.delta_entry).resources[0]
    assert (sotw.type_url, sotw.value) == (api.CLUSTER, body)
    assert (delta.name, delta.version, delta.resource) == (item.name, "v1", sotw)


def test_versions_follow_content() -> None:
    one, same = (resource(api.build(CLUSTER, FIELDS), "a") for _ in range(2))
    other = resource(api.build(CLUSTER, FIELDS | {"name": "x"}), "a")
    assert one == same
    assert one.version != other.version
    assert Snapshot.of([one]).version(api.CLUSTER) == Snapshot.of([same]).version(api.CLUSTER)
    assert Snapshot.of([one]).version(api.CLUSTER) != Snapshot.of([other]).version(api.CLUSTER)
    assert Snapshot.of([one], "42").version(api.CLUSTER) == "42"


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_it_lives_beside_the_packages_that_bring_the_same_names(first: str) -> None:
    ours = "from meshwarden.xds import api; api.message_class('google.rpc.Status'); api.pool()"
    theirs = (
        "import envoy, spiffe; from google.rpc import status_pb2;"
        "from opentelemetry.proto.collector.trace.v1 import trace_service_pb2;"
        "from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope"
    )
    check = (
        "import sys; from google.protobuf import descriptor_pool as p\n"
        "try: p.Default().FindFileByName('envoy/config/core/v3/base.proto')\n"
        "except KeyError: pass\n"
        "else: sys.exit('it is in the default pool')"
    )
    order = [ours, theirs] if first == "ours" else [theirs, ours]
    subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join([*order, check])], check=True)
