"""SPIRE's suite `force-rotation-jwt-authority`: the key of JWT-SVIDs is prepared, activated, tainted and revoked.

A real control plane and agent; an unmodified client of the Workload API. And a banned node's tokens prove nothing.
"""

import asyncio
import os
import socket
import ssl
import urllib.request
from typing import Any

import grpc
import pytest
from spiffe.workloadapi.errors import WorkloadApiError

from meshwarden.certs import jose
from meshwarden.certs.bundle_document import parse_document
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1.node_service_pb2 import SignJwtRequest
from meshwarden.v1.node_service_pb2_grpc import NodeServiceStub
from meshwarden.v1.resource_service_pb2 import ApplyRequest
from spiffe import WorkloadApiClient

MANIFEST = """
kind: Tenant
metadata: {tenant: acme, name: acme}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: GRPC}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: web}
spec: {service: web, nodes: [node-a, node-b], selectors: {uid: %d}}
"""
Change = admin.ChangeRootRequest


def kid_of(token: str) -> str:
    return str(jose.read_object(jose.decode(token.partition(".")[0]))["kid"])


class Workload:
    """A program that knows the Workload API and nothing of us."""

    def __init__(self, agent: Any) -> None:
        self.socket = f"unix://{agent.workload_api}"

    async def token(self, audience: str = "orders") -> str:
        def ask() -> str:
            with WorkloadApiClient(self.socket) as client:
                return str(client.fetch_jwt_svid({audience}).token)

        return await asyncio.to_thread(ask)

    async def judges(self, token: str) -> str:
        """What is said of a token; empty if it is good."""

        def ask() -> str:
            with WorkloadApiClient(self.socket) as client:
                try:
                    client.validate_jwt_svid(token, "orders")
                except WorkloadApiError as error:
                    return str(error)
                return ""

        return await asyncio.to_thread(ask)


async def published(url: str) -> set[str]:
    """The ids that our endpoint shows to other trust domains."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def read() -> bytes:
        with urllib.request.urlopen(f"{url}/bundle.json", timeout=60, context=context) as answer:  # noqa: S310 - loopback
            found: bytes = answer.read()
            return found

    document = await asyncio.to_thread(read)
    return set(parse_document("mesh.test", document).jwt.keys)


async def test_a_leaked_key_is_replaced_and_no_workload_keeps_its_tokens(
    start: Any, agent_of: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_PASSPHRASE", "correct horse battery staple")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = {"listen": f"127.0.0.1:{port}"}
    mesh = await start(jwt_passphrase="env:JWT_PASSPHRASE", spiffe_endpoint=endpoint)
    await mesh.resources.Apply(ApplyRequest(resources=[m.resource for m in parse(MANIFEST % os.geteuid(), "m.yaml")]))
    agent = agent_of(mesh)
    (agent.directory / "token").write_text(await mesh.token("node-a"))
    await agent.ready()
    web = Workload(agent)

    async def change(change: int, kid: str = "", **more: Any) -> dict[str, str]:
        answer = await mesh.admin.ChangeJwtKey(admin.ChangeJwtKeyRequest(change=change, kid=kid, **more))
        return {admin.RootState.State.Name(key.state): key.kid for key in answer.keys}

    before = await web.token()
    first = kid_of(before)
    assert await web.judges(before) == ""

    second = (await change(Change.PREPARE))["PREPARED"]
    assert await published(f"https://127.0.0.1:{port}") == {first, second}

    async def acknowledged() -> bool:
        keys = (await mesh.admin.ListJwtKeys(admin.ListJwtKeysRequest())).keys
        return [list(key.missing) for key in keys if key.kid == second] == [[]]

    await until(acknowledged, "the node judges by it")
    for refused in (
        admin.ChangeJwtKeyRequest(change=Change.ACTIVATE, kid=second),  # nobody can have read of it yet
        admin.ChangeJwtKeyRequest(change=Change.TAINT, kid=first),
        admin.ChangeJwtKeyRequest(change=Change.REVOKE, kid=first),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.admin.ChangeJwtKey(refused)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await change(Change.ACTIVATE, second[:12], force=True) == {"OLD": first, "ACTIVE": second}
    # What is good is kept: the token, and what it proves.
    assert await web.token() == before
    assert kid_of(await web.token("new")) == second

    await change(Change.TAINT, first, reason="it has leaked")

    async def replaced() -> bool:
        return kid_of(await web.token()) == second

    await until(replaced, "the workload has a token of the new key")
    assert await web.judges(before) == ""
    assert await change(Change.REVOKE, first) == {"ACTIVE": second}

    async def proves_nothing() -> bool:
        return "not signed by a key" in await web.judges(before)

    await until(proves_nothing, "the old token proves nothing")
    assert await published(f"https://127.0.0.1:{port}") == {second}
    assert await web.judges(await web.token()) == ""

    # A node that is banned takes the tokens of its workloads with it, and no others.
    theirs = await mesh.attest_by_token(await mesh.token("node-b"))
    async with mesh.channel(theirs) as channel:
        stub: Any = NodeServiceStub(channel)
        asked = SignJwtRequest(tenant="acme", entry="web", audience=["orders"])
        leaked = (await stub.SignJwt(asked, timeout=60)).token
    ours = await web.token()
    assert [await web.judges(token) for token in (leaked, ours)] == ["", ""]
    await mesh.admin.BanNode(admin.BanNodeRequest(node="node-b", reason="stolen"))

    async def goes_with_its_node() -> bool:
        return "the node of this token was banned" in await web.judges(leaked)

    await until(goes_with_its_node, "the banned node's token proves nothing")
    assert await web.judges(ours) == ""
