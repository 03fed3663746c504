"""Has the tests find what they share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from collections.abc import AsyncIterator
from typing import Any

import anyio
import grpc
import pytest
from xds_node import DOMAIN, Node

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.v1 import workload_service_pb2_grpc
from meshwarden.xds.server import add_ads


class Service(workload_service_pb2_grpc.WorkloadServiceServicer):
    """What the agent's service does of itself for data planes."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def Leave(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for response in self._node.leave.stream(context):
            yield response


@pytest.fixture
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    authority = MemoryAuthority(DOMAIN)
    node = Node(tmp_path_factory.mktemp("n"), authority, await authority.bundle())
    server = grpc.aio.server()
    add_ads(server, node.data_planes, listener_gap_s=0.0)
    workload_service_pb2_grpc.add_WorkloadServiceServicer_to_server(Service(node), server)
    server.add_insecure_port(node.front.inner_target)
    await server.start()
    await node.front.serve_unix(node.path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.credentials.run)
        yield node
        tasks.cancel_scope.cancel()
    await node.front.aclose()
    await server.stop(0)
    node.registry.close()


@pytest.fixture
async def channel(node: Node) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"unix:{node.path}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel
