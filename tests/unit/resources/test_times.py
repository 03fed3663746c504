"""Times that protobuf carries and nobody can read."""

from datetime import UTC
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.resources.times import time_faults
from meshwarden.controlplane.resources.validate import rule_faults
from meshwarden.v1 import node_service_pb2, resource_service_pb2, resources_pb2

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-10, 10) | st.sampled_from([253_402_300_799, -62_135_596_800])
NANOS = st.integers(-(2**31), 2**31 - 1) | st.integers(-10, 10)
UNREADABLE: list[dict[str, int]] = [
    {"seconds": 10**15},
    {"seconds": -(10**15)},
    {"seconds": 5, "nanos": -1},
    {"seconds": 5, "nanos": 10**9},
]


def can_be_read(message: Any) -> bool:
    """Whether protobuf itself takes it for one."""
    try:
        json_format.MessageToJson(message)
        if isinstance(message, Timestamp):
            message.ToDatetime(UTC)
    except (ValueError, json_format.SerializeToJsonError):
        return False
    return True


@given(NUMBERS, NANOS)
def test_what_is_taken_for_a_time_protobuf_can_read(seconds: int, nanos: int) -> None:
    health = node_service_pb2.AgentHealth(not_after={"seconds": seconds, "nanos": nanos})
    assert can_be_read(health.not_after) is not bool(list(time_faults(health)))


@given(NUMBERS, NANOS)
def test_what_is_taken_for_a_span_of_time_protobuf_can_write(seconds: int, nanos: int) -> None:
    found = Duration(seconds=seconds, nanos=nanos)
    welcome = node_service_pb2.Welcome(heartbeat_interval=found)
    if not list(time_faults(welcome)):
        assert can_be_read(found)


@pytest.mark.parametrize("said", UNREADABLE)
def test_a_time_is_found_wherever_it_is(said: dict[str, int]) -> None:
    workloads = node_service_pb2.SyncRequest()
    workloads.workloads.workloads.add(id="acme/web#0", tenant="acme", entry="web")
    workloads.workloads.workloads.add(id="acme/web#1", tenant="acme", entry="web", not_before=said)
    (fault,) = rule_faults(workloads)
    assert fault.field == "workloads.workloads[1].notBefore"
    assert "between the years" in fault.message
    service = resources_pb2.Service(kind="Service", metadata={"tenant": "acme", "name": "web"})
    service.spec.protocol = resources_pb2.ServiceSpec.HTTP
    service.spec.permissive.methods.append("GET /")
    service.spec.permissive.until.CopyFrom(Timestamp(**said))
    request = resource_service_pb2.ApplyRequest(resources=[resources_pb2.Resource(service=service)])
    assert [fault.field for fault in rule_faults(request)] == ["resources[0].spec.permissive.until"]
