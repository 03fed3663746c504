"""The agent's ADS: what a data plane refuses, and what is refused to a data plane."""

import asyncio
from typing import Any

import grpc
import pytest
from xds_node import ADS, Node, Stream, cluster, entry, stream, until

from meshwarden.agents.xds import data_plane
from meshwarden.sdk.backpressure.allowance import Allowance, Share
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.xds import api


async def test_a_refusal_names_the_resource_and_stands_while_its_siblings_are_taken(
    node: Node, channel: grpc.aio.Channel
) -> None:
    node.registry.set_entries(entry())
    node.register()
    node.push(cluster("good"), cluster("bad"))
    one = stream(channel)
    await one.ask(api.CLUSTER, "good", "bad")
    answer = await one.answer()
    reason = "[resource index 1: bad: INVALID_ARGUMENT: no]"
    names = [api.parse("envoy.config.cluster.v3.Cluster", item.value).name for item in answer.resources]
    reason = reason.replace("index 1", f"index {names.index('bad')}")
    await one.ask(api.CLUSTER, "good", "bad", nonce=answer.nonce, error=reason)
    await until(lambda: node.acks and node.acks[-1].nacks)
    (nack,) = node.acks[-1].nacks
    assert (nack.resource, nack.version, nack.message) == ("bad", cluster("bad").version, reason)
    moved = node.push(cluster("good", 2), cluster("bad"))
    answer = await one.answer()
    await one.ask(api.CLUSTER, "good", "bad", nonce=answer.nonce, error=reason)
    await until(lambda: node.acked() == moved)
    assert [nack.resource for nack in node.acks[-1].nacks] == ["bad"]
    mended = node.push(cluster("good", 2), cluster("bad", 2))
    answer = await one.answer()
    await one.ask(api.CLUSTER, "good", "bad", nonce=answer.nonce)
    await until(lambda: node.acked() == mended and not node.acks[-1].nacks)
    one.end()


async def test_who_does_not_say_which_it_refuses_is_told_with_all_that_it_may_be(
    node: Node, channel: grpc.aio.Channel
) -> None:
    node.registry.set_entries(entry())
    node.register()
    node.push(*(cluster(f"c{number}") for number in range(20)))
    one = stream(channel)
    await one.ask(api.CLUSTER, *(f"c{number}" for number in range(20)))
    answer = await one.answer()
    await one.ask(api.CLUSTER, *(f"c{number}" for number in range(20)), nonce=answer.nonce, error="no " + "x" * 9000)
    await until(lambda: node.acks and node.acks[-1].nacks)
    (nack,) = node.acks[-1].nacks
    assert nack.resource == ""
    assert nack.message.startswith("one of c")
    assert " and 12 more: no x" in nack.message
    assert len(nack.message) == 4096
    one.end()


async def test_names_of_another_tenant_are_names_of_nothing(node: Node, channel: grpc.aio.Channel) -> None:
    node.registry.set_entries(entry())
    node.register()
    update = node_pb.ConfigUpdate(revision=1)
    for tenant in ("acme", "globex"):
        update.data_planes.add(id=f"{tenant}/web#1/grpc", scopes=[f"client/{tenant}/grpc"])
        scope = update.scopes.add(scope=f"client/{tenant}/grpc", full=True)
        item = cluster(f"own.{tenant}")
        scope.resources.add(type_url=item.type_url, name=item.name, version=item.version, body=item.body)
    node.scopes.apply(update)
    one = stream(channel)
    await one.ask(api.CLUSTER, "own.globex", "own.acme")
    answer = await one.answer()
    assert [api.parse("envoy.config.cluster.v3.Cluster", item.value).name for item in answer.resources] == ["own.acme"]
    assert b"globex" not in answer.SerializeToString()
    one.end()


async def test_a_workload_has_so_many_streams_and_no_more(
    node: Node, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_plane, "_MAX_STREAMS", 2)
    node.registry.set_entries(entry())
    node.register()
    node.push(cluster("a"))
    some = [stream(channel) for _ in range(2)]
    for one in some:
        await one.ask(api.CLUSTER, "a")
        await one.answer()
    call: Any = channel.stream_stream(ADS)()
    await Stream(call).ask(api.CLUSTER, "a")
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "acme/web#1 has 2 streams" in await call.details()
    for one in some:
        one.end()
    await until(lambda: not node.data_planes.connected())
    again = stream(channel)
    await again.ask(api.CLUSTER, "a")
    await again.answer()
    again.end()


async def test_who_never_reads_holds_nobody_up_and_is_owed_the_newest_alone(
    node: Node, channel: grpc.aio.Channel
) -> None:
    node.registry.set_entries(entry())
    node.register()
    names = [f"{'c' * 400}{number}" for number in range(500)]  # more than is under way unread
    first, *others = map(cluster, names)
    node.push(first, *others)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{node.path}", options=options) as own:
        silent, reader = stream(own), stream(channel)
        for one in (silent, reader):
            await one.ask(api.CLUSTER, *names)
        answer, pushes = await reader.answer(), 80
        for number in range(pushes):
            await reader.ask(api.CLUSTER, *names, nonce=answer.nonce)
            node.push(cluster(names[0], 2.0 + number), *others)
            answer = await reader.answer()
        newest, read = answer.version_info, 1
        while (late := await silent.answer()).version_info != newest:
            read += 1
        assert [item.value for item in late.resources] == [item.value for item in answer.resources]
        assert read < pushes / 2, "what was in between was never said"
        assert node.data_planes.waiting() == {"acme/web#1/grpc"}, "it has not answered"
        for one in (silent, reader):
            one.end()


async def test_a_workload_that_has_cost_too_much_is_read_when_its_share_has_come_back(
    node: Node, channel: grpc.aio.Channel
) -> None:
    node.registry.set_entries(entry())
    workload = node.register()
    node.push(cluster("a"), cluster("b"))
    now, used = [0.0], [0.0]
    waiting = asyncio.Event()

    class Watched(Allowance):
        async def wait(self, caller: str) -> None:
            if not self.has(caller):
                waiting.set()
            await super().wait(caller)

    node.data_planes.allowance = Watched(Share(0.5, 1.0), lambda: now[0], lambda: used[0])
    one = stream(channel)
    await one.ask(api.CLUSTER, "a")
    answer = await one.answer()
    with node.data_planes.allowance.spend(workload.id):
        used[0] += 5
    await one.ask(api.CLUSTER, "a", "b", nonce=answer.nonce)
    await asyncio.wait_for(waiting.wait(), 60)
    assert node.data_planes.waiting() == {"acme/web#1/grpc"}, "its answer lies unread"
    now[0] += 9
    assert len((await one.answer()).resources) == 2
    one.end()
