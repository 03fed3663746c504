"""SPIRE's suite `node-re-attestation`: a certificate brings a node back that was evicted, a token doesn't."""

from typing import Any

import grpc

from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.node_service_pb2_grpc import NodeServiceStub

HELLO = v1.SyncRequest(hello=v1.NodeHello(agent_version="1"))


async def test_who_may_come_back(mesh: Any, refusal: Any) -> None:
    files, token = mesh.machines.issue("node-a"), await mesh.token("node-b")
    svid, other = await mesh.attest_by_certificate(*files), await mesh.attest_by_token(token)
    streams = []
    for one in (svid, other):
        stream = NodeServiceStub(mesh.channel(one)).Sync(timeout=60)
        await stream.write(HELLO)
        assert (await stream.read()).HasField("welcome")
        streams.append(stream)
    for name in ("node-a", "node-b"):
        await mesh.admin.EvictNode(admin.EvictNodeRequest(node=name))
    for one, stream in zip((svid, other), streams, strict=True):
        # Its session ends by itself, and says what the agent is to do.
        assert (await refusal(_ended(stream)))[2] == "unknown-node"
        assert (await refusal(mesh.renew(one)))[2] == "unknown-node"
    code, message, _ = await refusal(mesh.attest_by_token(token))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "used up" in message
    back = await mesh.attest_by_certificate(*files)
    assert await mesh.renew(back)
    assert (await refusal(mesh.renew(svid)))[2] == "unknown-node"
    assert (await mesh.attest_by_token(await mesh.token("node-b"))).spiffe_id == other.spiffe_id


async def _ended(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass
