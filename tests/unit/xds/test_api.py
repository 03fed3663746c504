"""The private pool, and resources as bytes."""

import subprocess
import sys

import pytest
from google.protobuf import json_format

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
        ({"connect_timeout": 1}, "connect_timeout"),
        ({"name": 7}, "name"),
        ({"type": "NONE"}, "NONE"),
        ({"load_assignment": []}, "load_assignment"),
        ({"load_assignment": {"endpoints": {"priority": 1}}}, "endpoints"),
        ({"alt_stat_name": ["x"]}, "alt_stat_name"),
        ({"transport_socket": {"typed_config": {"sni": "x"}}}, "@type"),
        ({"transport_socket": {"typed_config": {"@type": "type.googleapis.com/no.such.Type"}}}, "no.such.Type"),
        ({"transport_socket": {"typed_config": {"@type": TLS, "snj": "x"}}}, "snj"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(api.InvalidMessage, match=said):
        api.build(CLUSTER, fields)


def test_it_fills_as_protobuf_does() -> None:
    fields = {
        "name": "a",
        "type": "EDS",
        "per_connection_buffer_limit_bytes": 7,
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "zone_aware_lb_config": {}},
        "load_assignment": {
            "cluster_name": "a",
            "endpoints": [{"lb_endpoints": [{"load_balancing_weight": 2}], "priority": 1}, {}],
            "named_endpoints": {"x": {}, "y": {"address": {"pipe": {"path": "/p", "mode": 0o666}}}},
        },
        "typed_extension_protocol_options": {"o": {"@type": TLS, "sni": "x"}},
        "filters": [{"name": "f", "typed_config": {"@type": TLS, "common_tls_context": {"alpn_protocols": ["h2"]}}}],
        "metadata": FIELDS["metadata"],
        "cluster_type": None,
    }
    kind = api.message_class(CLUSTER)
    wanted = json_format.ParseDict(fields, kind(), descriptor_pool=api.pool())
    assert api.build(CLUSTER, fields) == wanted
    secret = {"tls_certificate": {"private_key": {"inline_bytes": "AAH/"}}}
    built = api.build("envoy.extensions.transport_sockets.tls.v3.Secret", secret)
    assert built.tls_certificate.private_key.inline_bytes == b"\0\1\xff"


def test_what_an_any_holds_is_the_same_bytes_in_every_process() -> None:
    """Replicas compile alike, and a control plane that was started anew pushes nothing anew."""
    code = (
        "from meshwarden.xds import api\n"
        "rbac = 'type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC'\n"
        "rules = {'policies': {f'p{n}': {'permissions': [{'any': True}]} for n in range(50)}}\n"
        "fields = {'name': 'x', 'typed_config': {'@type': rbac, 'rules': rules}}\n"
        "message = api.build('envoy.config.core.v3.TypedExtensionConfig', fields)\n"
        "print(message.SerializeToString(deterministic=True).hex())"
    )
    said = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(3)}
    assert len(said) == 1


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
