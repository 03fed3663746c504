"""A server that says that it is about to stop: it is told to have its callers leave, for as long as it says so."""

import asyncio
from typing import Any

import grpc
import pytest
from xds_node import Node, cluster, entry, stream, until

from meshwarden.agents.workload import leaving
from meshwarden.agents.workload.leaving import without_callers
from meshwarden.controlplane.policy.grpc import server
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.v1.workload_service_pb2 import LeaveRequest
from meshwarden.v1.workload_service_pb2_grpc import WorkloadServiceStub
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, Snapshot

OWN = server.listener("127.0.0.1:7021", Name("acme", "web"))


def is_closed(item: Resource) -> bool:
    """Whether a listener fits no connection to an address that anybody has."""
    listener: Any = api.parse("envoy.config.listener.v3.Listener", item.body)
    ranges = [
        [place.address_prefix for place in chain.filter_chain_match.prefix_ranges] for chain in listener.filter_chains
    ]
    return ranges == [["255.255.255.255"]] and not listener.HasField("default_filter_chain")


def test_only_what_is_served_is_closed() -> None:
    client = Resource(api.LISTENER, "orders", "1", b"whatever a client is told")
    scoped = Snapshot.of([OWN, client, cluster("a")])
    closed = without_callers(scoped)
    assert closed.resources[api.CLUSTER] is scoped.resources[api.CLUSTER]
    named = closed.resources[api.LISTENER]
    assert named["orders"] is client
    assert is_closed(named[OWN.name])
    assert not is_closed(OWN)
    assert named[OWN.name].version != OWN.version
    kept: Any = api.parse("envoy.config.listener.v3.Listener", named[OWN.name].body)
    for chain in kept.filter_chains:
        chain.ClearField("filter_chain_match")
    assert kept.SerializeToString(deterministic=True) == OWN.body
    nothing = Snapshot.of([cluster("a")])
    assert without_callers(nothing).resources == nothing.resources


async def test_its_listener_is_closed_as_long_as_it_says_so(node: Node, channel: grpc.aio.Channel) -> None:
    node.registry.set_entries(entry())
    workload = node.register()
    node.push(OWN, cluster("a"))
    plane = stream(channel)
    await plane.ask(api.LISTENER, OWN.name)
    answer = await plane.answer()
    await plane.ask(api.LISTENER, OWN.name, nonce=answer.nonce)
    call: Any = WorkloadServiceStub(channel).Leave(LeaveRequest())
    told = asyncio.ensure_future(call.read())
    answer = await plane.answer()
    assert is_closed(Resource(api.LISTENER, OWN.name, "", answer.resources[0].value))
    assert workload in node.leaving
    # It says so once the server has heard of it, and no sooner.
    assert not told.done()
    await plane.ask(api.LISTENER, OWN.name, nonce=answer.nonce)
    await asyncio.wait_for(told, 60)
    # What is pushed meanwhile is closed as well.
    node.push(server.listener("127.0.0.1:7021", Name("acme", "other")), cluster("a"))
    answer = await plane.answer()
    assert is_closed(Resource(api.LISTENER, OWN.name, "", answer.resources[0].value))
    await plane.ask(api.LISTENER, OWN.name, nonce=answer.nonce)
    call.cancel()  # it goes on: another server is started in its place
    answer = await plane.answer()
    assert not is_closed(Resource(api.LISTENER, OWN.name, "", answer.resources[0].value))
    await until(lambda: workload not in node.leaving)
    plane.end()


async def test_who_does_not_hear_of_it_is_not_waited_for(
    node: Node, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "ANSWER_S", 0.0)
    node.registry.set_entries(entry())
    node.register()
    node.push(OWN)
    plane = stream(channel)
    await plane.ask(api.LISTENER, OWN.name)
    await plane.answer()
    call: Any = WorkloadServiceStub(channel).Leave(LeaveRequest())
    assert await asyncio.wait_for(call.read(), 60) is not grpc.aio.EOF
    call.cancel()
    plane.end()


async def test_a_stranger_is_refused_and_so_are_too_many(node: Node, channel: grpc.aio.Channel) -> None:
    stub = WorkloadServiceStub(channel)
    stranger: Any = stub.Leave(LeaveRequest())
    assert await stranger.code() is grpc.StatusCode.PERMISSION_DENIED
    node.registry.set_entries(entry())
    workload = node.register()
    calls: list[Any] = [stub.Leave(LeaveRequest()) for _ in range(leaving._MAX_STREAMS)]
    for call in calls:
        await asyncio.wait_for(call.read(), 60)
    more: Any = stub.Leave(LeaveRequest())
    assert await more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()
    await until(lambda: workload not in node.leaving)
