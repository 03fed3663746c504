"""Tokens for entries: who gets one, what is recorded, and how the keys live."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest

from meshwarden.certs.jwt_svid import InvalidJwtSvid, validate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.jwt_key import ACTIVATE_AT, HOLD, KEYS, LIFE, PREPARE_AT
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.identity.rate import Limited
from meshwarden.controlplane.identity.record import NodeRecord
from meshwarden.controlplane.identity.workload import JWT_PACE
from meshwarden.controlplane.store.port import Put
from meshwarden.v1 import node_service_pb2 as v1

N1 = SpiffeId.for_node("a.test", "eu", "n1")
WEB = SpiffeId.workload("a.test", "acme", "web")


@pytest.fixture
async def jwt(world: Any) -> JwtAuthority:
    """An authority; node n1 has joined, and has the entry acme/web."""
    await world.store.commit([Put(record.key, record.encode()) for record in [NodeRecord("n1", world.now, "", "1")]])
    await world.entry("web", "n1")
    return await opened(world)


async def opened(world: Any) -> JwtAuthority:
    authority = JwtAuthority(world.store, world.audit, world.clock, trust_domain="a.test", issuer="https://id.a.test")
    await authority.open()
    return authority


def identity(world: Any, jwt: JwtAuthority, denied: Callable[[SpiffeId], str] = lambda _: "") -> NodeIdentity:
    parts = (world.authority, world.store, {}, world.audit, world.clock)
    return NodeIdentity(*parts, trust_domain="a.test", region="eu", denied=denied, jwt=jwt)


async def sign(world: Any, jwt: JwtAuthority, *audience: str, entry: str = "web", node: SpiffeId = N1) -> str:
    nodes = identity(world, jwt)
    request = v1.SignJwtRequest(tenant="acme", entry=entry, audience=audience or ("orders",))
    return str((await nodes.sign_jwt(node, request)).token)


def proves(world: Any, token: str, jwt: JwtAuthority, audience: str = "orders") -> bool:
    try:
        return validate(token, audience, {"a.test": jwt.bundle()}, world.now).spiffe_id == WEB
    except InvalidJwtSvid:
        return False


async def test_a_token_of_an_entry_that_names_the_node(world: Any, jwt: JwtAuthority) -> None:
    token = await sign(world, jwt)
    proved = validate(token, "orders", {"a.test": jwt.bundle()}, world.now)
    assert (proved.spiffe_id, proved.claims["iss"]) == (WEB, "https://id.a.test")
    (event,) = await world.events("workload.jwt")
    assert (event["spiffe_id"], event["audience"], event["node"]) == (str(WEB), ["orders"], "n1")
    assert token not in (world.directory / "audit.jsonl").read_text()


@pytest.mark.parametrize("entry", ["api", "", "../web", "WEB", "web\n"])
async def test_no_token_of_another_entry(world: Any, jwt: JwtAuthority, entry: str) -> None:
    await world.entry("api", "n2")
    with pytest.raises(Denied, match="names node n1") as caught:
        await sign(world, jwt, entry=entry)
    assert caught.value.status is grpc.StatusCode.PERMISSION_DENIED
    assert (await world.events("workload.jwt_denied"))[0]["entry"] == entry
    assert not await world.events("workload.jwt")


async def test_no_token_for_who_has_not_joined(world: Any, jwt: JwtAuthority) -> None:
    for node in (SpiffeId.for_node("a.test", "eu", "n2"), SpiffeId.for_node("b.test", "eu", "n1"), WEB):
        with pytest.raises(Denied):
            await sign(world, jwt, node=node)


@pytest.mark.parametrize("audience", ["", "a\n", "x" * 513])
async def test_no_token_for_an_audience_that_is_none(world: Any, jwt: JwtAuthority, audience: str) -> None:
    with pytest.raises(Denied, match="audience") as caught:
        await sign(world, jwt, audience)
    assert caught.value.status is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_entry_has_so_many_tokens_a_second_and_no_other_loses_by_it(world: Any, jwt: JwtAuthority) -> None:
    await world.entry("api", "n1")
    nodes = identity(world, jwt)
    request = v1.SignJwtRequest(tenant="acme", entry="web", audience=["orders"])
    for _ in range(JWT_PACE.burst):
        await nodes.sign_jwt(N1, request)
    with pytest.raises(Limited, match="try again in") as caught:
        await nodes.sign_jwt(N1, request)
    assert caught.value.wait_s == 0.1
    assert await nodes.sign_jwt(N1, v1.SignJwtRequest(tenant="acme", entry="api", audience=["orders"]))


async def test_a_key_lives_and_is_followed(world: Any, jwt: JwtAuthority) -> None:
    """Prepared long before it signs; the old one is good as long as anything that it has signed."""
    first = set(jwt.bundle().keys)
    world.pass_time(PREPARE_AT.total_seconds() - 1)
    await jwt.tend()
    assert set(jwt.bundle().keys) == first
    world.pass_time(1)
    await jwt.tend()
    (second,) = set(jwt.bundle().keys) - first
    world.pass_time((ACTIVATE_AT - PREPARE_AT).total_seconds() - 600)
    await jwt.tend()  # all had lapsed, and is published anew
    world.pass_time(540)
    await jwt.tend()
    old = await sign(world, jwt)
    world.pass_time(60)
    await jwt.tend()
    new = await sign(world, jwt)
    assert proves(world, old, jwt)
    assert proves(world, new, jwt)
    kids = [json.loads(world_part(token))["kid"] for token in (old, new)]
    assert kids == [*first, second]
    world.pass_time(HOLD.total_seconds())
    await jwt.tend()
    assert set(jwt.bundle().keys) == {second}
    page = await world.store.range(KEYS)
    assert [record.key for record in page.records] == [KEYS + second]
    assert timedelta(0) < HOLD < LIFE - ACTIVATE_AT


def world_part(token: str) -> bytes:
    from meshwarden.certs.jose import decode

    return decode(token.partition(".")[0])


async def test_control_planes_that_share_a_store_prove_each_others_tokens(world: Any, jwt: JwtAuthority) -> None:
    other = await opened(world)
    token = await sign(world, jwt)
    assert proves(world, token, other)
    assert len(other.bundle().keys) == 2


async def test_a_control_plane_that_ends_is_forgotten_after_an_hour(world: Any, jwt: JwtAuthority) -> None:
    token, other = await sign(world, jwt), await opened(world)
    world.pass_time(60)
    assert proves(world, token, other)
    world.pass_time(HOLD.total_seconds())
    await other.tend()
    assert len(other.bundle().keys) == 1


async def test_one_that_starts_again_and_again_pushes_out_nobody_who_lives(world: Any, jwt: JwtAuthority) -> None:
    (alive,) = jwt.bundle().keys
    for number in range(70):
        world.pass_time(10)
        other = await opened(world)
        if number % 30 == 29:
            await jwt.tend()
    assert alive in other.bundle().keys
    assert len(other.bundle().keys) == 48


async def test_a_record_that_is_none_hides_no_other(world: Any, jwt: JwtAuthority) -> None:
    for number, value in enumerate((b"", b"{}", b'{"jwk":{"kty":"EC"},"end":"x"}', b"[]")):
        await world.store.commit([Put(f"{KEYS}{number}", value)])
    other = await opened(world)
    assert len(other.bundle().keys) == 2


async def test_the_private_key_is_nowhere(world: Any, jwt: JwtAuthority) -> None:
    assert jwt._signing is not None
    number = jwt._signing[1].private_numbers().private_value
    page = await world.store.range("")
    for record in page.records:
        assert f"{number:x}".encode() not in record.value
        assert b'"d"' not in record.value


async def test_no_token_for_who_is_denied(world: Any, jwt: JwtAuthority) -> None:
    nodes = identity(world, jwt, lambda spiffe_id: "it has leaked" if spiffe_id == WEB else "")
    with pytest.raises(Denied, match="it has leaked"):
        await nodes.sign_jwt(N1, v1.SignJwtRequest(tenant="acme", entry="web", audience=["orders"]))
