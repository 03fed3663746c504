"""SPIRE's suite `join-token`: a token attests once, its reuse is refused; and what was mended there in 1.14.6."""

import asyncio
from typing import Any

import grpc
from cryptography import x509

from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import new_key
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.node_service_pb2_grpc import NodeServiceStub


async def test_a_token_attests_once(mesh: Any, refusal: Any) -> None:
    token = await mesh.token("node-a")
    svid = await mesh.attest_by_token(token)
    assert str(svid.spiffe_id) == "spiffe://mesh.test/region/eu/node/node-a"
    assert (await mesh.renew(svid)).serial != svid.serial
    code, message, word = await refusal(mesh.attest_by_token(token))
    assert (code, word) == (grpc.StatusCode.PERMISSION_DENIED, "")
    assert "used up" in message
    assert token not in (mesh.directory / "cp" / "audit.jsonl").read_text()


async def test_of_many_at_once_one_attests(mesh: Any) -> None:
    token = await mesh.token("node-a")
    found = await asyncio.gather(*(mesh.attest_by_token(token) for _ in range(6)), return_exceptions=True)
    refused = [one.code() for one in found if isinstance(one, grpc.aio.AioRpcError)]
    assert refused == [grpc.StatusCode.PERMISSION_DENIED] * 5


async def test_a_lost_reply_burns_nothing(mesh: Any) -> None:
    """SPIRE #2910: there an agent whose answer was lost has used its token up."""
    token, key = await mesh.token("node-a"), new_key()
    chains = []
    for _ in range(2):
        async with mesh.anonymous() as channel:
            stub: Any = NodeServiceStub(channel)
            request = v1.AttestRequest(join_token=token, csr=make_csr(key))
            chains.append(list((await stub.Attest(request, timeout=60)).chain))
    assert chains[0] == chains[1]
    assert x509.load_der_x509_certificate(chains[0][0]).public_key() == key.public_key()
