"""Tokens on a node: asked for once, given until half-life, kept while the control plane is away, forgotten in time."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from meshwarden.agents.cache import Cache
from meshwarden.agents.identity.jwt_svids import JwtSvids, NoToken
from meshwarden.agents.identity.trust import Trust
from meshwarden.agents.workload_api import schema
from meshwarden.agents.workload_api.jwt import JwtProfile, JwtRefused
from meshwarden.certs import jose
from meshwarden.certs.deny import Deny, DenyList
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.jwt_svid import JwtTemplate, sign_jwt_svid, token_id
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.v1 import node_service_pb2 as node_pb

WEB: Any = SimpleNamespace(entry_name="acme/web", spiffe_id=SpiffeId.workload("a.test", "acme", "web"))
API: Any = SimpleNamespace(entry_name="acme/api", spiffe_id=SpiffeId.workload("a.test", "acme", "api"))


class World:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 26, 10, tzinfo=UTC)
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.error: Exception | None = None
        self.deny_list = DenyList()
        self.svids = JwtSvids(self.sign, lambda: self.now)

    async def sign(self, request: node_pb.SignJwtRequest) -> node_pb.SignJwtResponse:
        await asyncio.sleep(0)
        self.asked.append((request.entry, tuple(request.audience)))
        if self.error is not None:
            raise self.error
        answer = node_pb.SignJwtResponse(token=f"token-{len(self.asked)}")
        answer.expire_time.FromDatetime(self.now + timedelta(minutes=5))
        return answer

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def refusal(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="no")


@pytest.fixture
def world() -> World:
    return World()


async def test_one_is_asked_for_at_half_life(world: World) -> None:
    assert [await world.svids.fetch(WEB, ("a",)) for _ in range(2)] == ["token-1"] * 2
    world.pass_time(149)
    assert await world.svids.fetch(WEB, ("a",)) == "token-1"
    world.pass_time(1)
    assert await world.svids.fetch(WEB, ("a",)) == "token-2"


async def test_who_asks_at_once_gets_the_same(world: World) -> None:
    assert set(await asyncio.gather(*(world.svids.fetch(WEB, ("a",)) for _ in range(20)))) == {"token-1"}
    assert not world.svids._asking


async def test_entries_and_audiences_are_told_apart(world: World) -> None:
    tokens = {await world.svids.fetch(who, audience) for who in (WEB, API) for audience in (("a",), ("b",), ("a", "b"))}
    assert len(tokens) == 6


@pytest.mark.parametrize("error", [OSError("away"), refusal(grpc.StatusCode.UNAVAILABLE)])
async def test_the_old_one_while_nobody_signs_until_it_ends(world: World, error: Exception) -> None:
    await world.svids.fetch(WEB, ("a",))
    world.error = error
    world.pass_time(299)
    assert await world.svids.fetch(WEB, ("a",)) == "token-1"
    world.pass_time(1)
    with pytest.raises(NoToken) as caught:
        await world.svids.fetch(WEB, ("a",))
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE


async def test_a_refusal_ends_what_was_given(world: World) -> None:
    await world.svids.fetch(WEB, ("a",))
    await world.svids.fetch(WEB, ("b",))
    world.pass_time(200)
    world.error = refusal(grpc.StatusCode.PERMISSION_DENIED)
    for audience in ("a", "b"):
        with pytest.raises(NoToken) as caught:
            await world.svids.fetch(WEB, (audience,))
        assert caught.value.status is grpc.StatusCode.PERMISSION_DENIED


async def test_what_an_entry_may_hold(world: World) -> None:
    await world.svids.fetch(API, ("mine",))
    for number in range(100):
        await world.svids.fetch(WEB, (str(number),))
    assert len(world.svids._held["acme/web", str(WEB.spiffe_id)]) == 64
    before = len(world.asked)
    await world.svids.fetch(API, ("mine",))
    assert len(world.asked) == before


async def test_entries_that_are_gone_are_forgotten(world: World) -> None:
    await world.svids.fetch(WEB, ("a",))
    await world.svids.fetch(API, ("a",))
    world.svids.forget({"acme/api"})
    await world.svids.fetch(API, ("a",))
    await world.svids.fetch(WEB, ("a",))
    assert [entry for entry, _ in world.asked] == ["web", "api", "web"]


KEY, HEADER = new_key(), b'{"alg":"ES256","kid":"k"}'


def profile(world: World, tmp_path: Any) -> tuple[JwtProfile, Trust]:
    trust = Trust(Cache(tmp_path), "a.test")
    return JwtProfile(world.svids, trust, lambda: world.deny_list, lambda: world.now), trust


def own() -> node_pb.TrustBundles:
    return node_pb.TrustBundles(jwt_keys=JwtBundle.of("a.test", [("k", KEY.public_key())]).to_proto())


def judged(claims_of: Callable[[], Any], profile: JwtProfile) -> Any:
    return profile.validate(schema.ValidateJWTSVIDRequest(audience="orders", svid=claims_of()))


def test_keys_come_back_from_the_disk_and_rubbish_is_set_aside(world: World, tmp_path: Any) -> None:
    changes: list[int] = []
    _, trust = profile(world, tmp_path)
    trust.listen(lambda: changes.append(1))
    trust.take(own())
    known = trust.jwt()
    trust.take(own())
    trust.take(node_pb.TrustBundles(jwt_keys=[node_pb.JwtKey(kid="k", public_key=b"rubbish")]))
    assert (len(changes), trust.jwt()) == (1, known)
    assert Trust(Cache(tmp_path), "a.test").jwt() == known
    Cache(tmp_path).save("trust", b"\xff\xff")
    assert not Trust(Cache(tmp_path), "a.test").jwt()["a.test"].keys
    assert (tmp_path / "trust.aside").exists()


def test_a_token_is_judged_and_its_claims_are_told(world: World, tmp_path: Any) -> None:
    jwt, trust = profile(world, tmp_path)
    made = sign_jwt_svid(JwtTemplate(WEB.spiffe_id, ("orders",)), KEY, "k", world.now).token
    with pytest.raises(JwtRefused, match="not signed by a key"):
        judged(lambda: made, jwt)
    trust.take(own())
    answer = judged(lambda: made, jwt)
    assert answer.spiffe_id == str(WEB.spiffe_id)
    assert (answer.claims["sub"], list(answer.claims["aud"])) == (str(WEB.spiffe_id), ["orders"])
    world.pass_time(300)
    with pytest.raises(JwtRefused, match="has ended"):
        judged(lambda: made, jwt)


def test_a_claim_that_no_message_holds(world: World, tmp_path: Any) -> None:
    jwt, trust = profile(world, tmp_path)
    trust.take(own())
    start = int(world.now.timestamp())
    for value in ("1" + "0" * 400, '"\\ud800"'):
        claims = f'{{"sub":"{WEB.spiffe_id}","aud":"orders","exp":{start + 60},"x":{value}}}'
        content = ".".join((jose.encode(HEADER), jose.encode(claims.encode())))
        made = f"{content}.{jose.encode(jose.sign(KEY, content.encode()))}"
        with pytest.raises(JwtRefused, match="a claim that can't be told") as caught:
            judged(lambda made=made: made, jwt)
        assert caught.value.status is grpc.StatusCode.INVALID_ARGUMENT


async def test_who_is_denied_gets_no_token_and_proves_nothing(world: World, tmp_path: Any) -> None:
    jwt, trust = profile(world, tmp_path)
    trust.take(own())
    asked = schema.JWTSVIDRequest(audience=["orders"])
    made = sign_jwt_svid(JwtTemplate(WEB.spiffe_id, ("orders",)), KEY, "k", world.now).token
    await jwt.fetch(WEB, asked)
    judged(lambda: made, jwt)
    world.deny_list = DenyList([Deny.of(str(WEB.spiffe_id), "", world.now + timedelta(hours=1))])
    with pytest.raises(JwtRefused, match="was revoked"):
        await jwt.fetch(WEB, asked)
    with pytest.raises(JwtRefused, match="was revoked") as caught:
        judged(lambda: made, jwt)
    assert caught.value.status is grpc.StatusCode.PERMISSION_DENIED


def test_the_token_of_a_banned_node_proves_nothing(world: World, tmp_path: Any) -> None:
    jwt, trust = profile(world, tmp_path)
    trust.take(own())
    made = [
        sign_jwt_svid(JwtTemplate(WEB.spiffe_id, ("orders",), token_id=token_id(serial, bytes(8))), KEY, "k", world.now)
        for serial in ("ab12", "ab13", "")
    ]
    world.deny_list = DenyList([Deny.of("", "ab12", world.now + timedelta(minutes=6))])
    with pytest.raises(JwtRefused, match="was banned") as caught:
        judged(lambda: made[0].token, jwt)
    assert caught.value.status is grpc.StatusCode.PERMISSION_DENIED
    for other in made[1:]:
        judged(lambda other=other: other.token, jwt)


async def test_what_a_forsaken_key_has_signed_is_dropped_and_fetched_anew(world: World) -> None:
    def token(kid: str) -> str:
        return sign_jwt_svid(JwtTemplate(WEB.spiffe_id, ("a",)), KEY, kid, world.now).token

    tokens = iter([token("old"), token("old"), token("new"), token("new")])

    async def sign(request: node_pb.SignJwtRequest) -> node_pb.SignJwtResponse:
        answer = await world.sign(request)
        answer.token = next(tokens)
        return answer

    svids = JwtSvids(sign, lambda: world.now)
    runs = asyncio.ensure_future(svids.run())
    for audience in ("a", "b"):
        await svids.fetch(WEB, (audience,))
    svids.leave(lambda kid: kid == "another")
    await asyncio.sleep(0)
    assert len(world.asked) == 2
    svids.leave(lambda kid: kid == "old")
    while len(world.asked) < 4:  # noqa: ASYNC110 - of its own it sets no event
        await asyncio.sleep(0)
    kept = [await svids.fetch(WEB, (audience,)) for audience in ("a", "b")]
    assert [jose.read_object(jose.decode(text.partition(".")[0]))["kid"] for text in kept] == ["new"] * 2
    assert len(world.asked) == 4
    # Whom nobody signs for has none, and asks when he wants one.
    world.error = refusal(grpc.StatusCode.UNAVAILABLE)
    svids.leave(lambda kid: True)
    while len(world.asked) < 6:  # noqa: ASYNC110
        await asyncio.sleep(0)
    with pytest.raises(NoToken):
        await svids.fetch(WEB, ("a",))
    runs.cancel()


def test_what_is_tainted_or_revoked_is_forsaken(world: World, tmp_path: Any) -> None:
    _, trust = profile(world, tmp_path)
    changes: list[int] = []
    trust.listen(lambda: changes.append(1))
    trust.take(own())
    assert [trust.forsaken(kid) for kid in ("k", "other")] == [False, True]
    tainted = own()
    tainted.jwt_keys[0].tainted = True
    trust.take(tainted)
    assert trust.forsaken("k")
    assert Trust(Cache(tmp_path), "a.test").forsaken("k")
    assert len(changes) == 2
