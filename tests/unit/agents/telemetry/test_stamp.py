"""Who reports is the agent's word, whatever has been said before and by whom."""

from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from meshwarden.agents.telemetry.stamp import Stamp
from meshwarden.agents.workload.bootstrap import NodePlace
from meshwarden.agents.workload.workload import Workload
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.tracing import wire
from meshwarden.v1 import resources_pb2 as resources

WEB = Workload(
    id="acme/web#1",
    entry=resources.WorkloadEntry(metadata=resources.Metadata(tenant="acme", name="web")),
    service=resources.Service(),
    spiffe_id=SpiffeId.workload("mesh.test", "acme", "web"),
    pid=1,
    start_time=1,
    pidfd=-1,
    uid=0,
    gid=0,
    port=0,
    directory=Path("/nowhere"),
    number=1,
)
SHOP = SpiffeId.workload("mesh.test", "globex", "shop")


@pytest.fixture
def stamp() -> Stamp:
    return Stamp(NodePlace("node-a", "eu", "z", Path("/a.sock"), Path("/w.sock")))


def told(stamp: Stamp, workload: Workload, url: str = "", **attributes: str) -> tuple[dict[str, str], str]:
    pairs = [KeyValue(key=key.replace("_", "."), value=AnyValue(string_value=text)) for key, text in attributes.items()]
    message = ResourceSpans(resource=Resource(attributes=pairs), schema_url=url)
    found = ResourceSpans.FromString(stamp.head(wire.Resource.FromString(message.SerializeToString()), workload))
    assert len(found.resource.attributes) == len({pair.key for pair in found.resource.attributes})
    return {pair.key: pair.value.string_value for pair in found.resource.attributes}, found.schema_url


def test_the_same_words_of_another_are_the_others(stamp: Stamp) -> None:
    lie = {"service_name": "orders.platform", "mesh_tenant": "platform", "host_name": "h"}
    for workload in (WEB, replace(WEB, id="globex/shop#1", spiffe_id=SHOP), replace(WEB, spiffe_id=SHOP), WEB):
        found, _ = told(stamp, workload, **lie)
        identity = workload.spiffe_id
        assert found == {
            "host.name": "h",
            "service.name": f"{identity.service}.{identity.tenant}",
            "mesh.tenant": identity.tenant,
            "mesh.service": identity.service,
            "mesh.workload": workload.id,
            "mesh.node": "node-a",
            "mesh.region": "eu",
        }


def test_other_words_are_other_words(stamp: Stamp) -> None:
    for host, url in (("a", "u"), ("b", "u"), ("a", "v"), ("a", "u")):
        found, schema_url = told(stamp, WEB, url, host_name=host)
        assert (found["host.name"], schema_url) == (host, url)


def test_made_up_words_take_bounded_memory(stamp: Stamp) -> None:
    for number in range(1000):
        assert told(stamp, WEB, host_name=str(number))[0]["host.name"] == str(number)
    assert told(stamp, WEB, host_name="h" * 3000)[0]["host.name"] == "h" * 3000
    assert len(stamp._known) <= 256
    assert all(len(said[2][0]) <= 2048 for said in stamp._known)
