"""The SPIFFE Workload API of a real agent, read by the unmodified client of the `spiffe` package and by hand."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from spiffe.workloadapi.errors import WorkloadApiError

from meshwarden.agents.workload_api import schema
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import spki
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.jwt_svid import JwtTemplate, sign_jwt_svid
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2 as resources
from spiffe import JwtSvid, WorkloadApiClient

# Both schemas in one process, in either order: their files bear the same names.
CLIENT = """
import sys, json
from meshwarden.agents.workload_api import schema
from spiffe import WorkloadApiClient
from cryptography.hazmat.primitives.serialization import Encoding
with WorkloadApiClient() as client:
    context = client.fetch_x509_context()
svid = context.default_svid
print(json.dumps([str(svid.spiffe_id), len(svid.cert_chain), [str(b) for b in context.x509_bundle_set.bundles]]))
sys.stdin.read()
"""

# Prints the serial number at the start and at each change.
SOURCE = """
import time
from spiffe import X509Source
source, seen = X509Source(), None
while True:
    serial = source.svid.leaf.serial_number
    if serial != seen:
        seen = serial
        print(serial, flush=True)
    time.sleep(0.02)
"""


@pytest.fixture
async def channel(agent: Any) -> AsyncIterator[grpc.aio.Channel]:
    await agent.ready()
    async with grpc.aio.insecure_channel(f"unix:{agent.workload_api}") as channel:
        yield channel


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a stream ends, whatever comes before."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code(), str(error.details())
    return grpc.StatusCode.OK, ""


def stream(channel: grpc.aio.Channel, method: str, *metadata: tuple[str, str]) -> Any:
    return channel.unary_stream(f"/SpiffeWorkloadAPI/{method}")(b"", metadata=metadata, timeout=60)


async def ask(channel: grpc.aio.Channel, method: str, request: bytes, *metadata: tuple[str, str]) -> bytes:
    call: Any = channel.unary_unary(f"/SpiffeWorkloadAPI/{method}")
    return bytes(await call(request, metadata=metadata, timeout=60))


HEADER = ("workload.spiffe.io", "true")


async def test_an_unmodified_client_of_a_registered_program(agent: Any) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", CLIENT)
    text = await asyncio.wait_for(asyncio.to_thread(program.stdout.readline), 60)
    assert text, program.stderr.read()
    spiffe_id, chain, _ = json.loads(text)
    assert spiffe_id == "spiffe://mesh.test/tenant/acme/service/web"
    assert chain == 2


async def test_who_did_not_register_gets_the_one_entry_that_it_fits(agent: Any, control_plane: Any) -> None:
    await agent.ready()

    def fetch() -> Any:
        with WorkloadApiClient(f"unix://{agent.workload_api}") as client:
            return client.fetch_x509_context()

    context = await asyncio.to_thread(fetch)
    svid = context.default_svid
    assert str(svid.spiffe_id) == "spiffe://mesh.test/tenant/acme/service/web"
    assert svid.private_key.public_key() == svid.leaf.public_key()
    trusted = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    assert {root.public_bytes(Encoding.DER) for root in trusted.x509_authorities} == set(control_plane.bundle.ders)
    assert [w["pid"] for w in (await agent.status())["workloads"]] == [os.getpid()]


async def test_a_rotation_reaches_an_open_source(agent: Any, control_plane: Any) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SOURCE)
    serials = []
    for _ in range(3):
        text = await asyncio.wait_for(asyncio.to_thread(program.stdout.readline), 60)
        assert text, program.stderr.read()
        serials.append(text)
        control_plane.push(renew_now=node_pb.RenewNow(reason="test"))
    assert len(set(serials)) == 3


async def test_who_fits_several_entries_is_told_which(agent: Any, control_plane: Any, entry: Any) -> None:
    control_plane.push(entries=entry.set(entry.of("acme", "web"), entry.of("acme", "api")))
    await agent.ready()
    with pytest.raises(WorkloadApiError, match=r"acme/api, acme/web.*meshwarden-agent exec --entry"):
        await asyncio.to_thread(
            lambda: WorkloadApiClient(f"unix://{agent.workload_api}", default_timeout=60).fetch_x509_context()
        )


async def test_who_fits_none_is_refused(channel: grpc.aio.Channel, control_plane: Any, entry: Any, until: Any) -> None:
    control_plane.push(entries=entry.set(entry.of("acme", "web", selectors=resources.Selectors(uid=4242))))

    async def is_refused() -> bool:
        try:
            async for _ in stream(channel, "FetchX509SVID", HEADER):
                return False
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.PERMISSION_DENIED and "fits no entry" in str(error.details())
        return False

    await until(is_refused, "the caller is refused")


@pytest.mark.parametrize("metadata", [(), (("workload.spiffe.io", "false"),), (HEADER, HEADER)])
async def test_the_security_header_is_required(channel: grpc.aio.Channel, metadata: Any) -> None:
    for method in ("FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"):
        code, _ = await refused(stream(channel, method, *metadata))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    for method in ("FetchJWTSVID", "ValidateJWTSVID"):
        with pytest.raises(grpc.aio.AioRpcError, match="security header missing"):
            await ask(channel, method, b"", *metadata)


async def test_bundles(channel: grpc.aio.Channel, control_plane: Any) -> None:
    async for message in stream(channel, "FetchX509Bundles", HEADER):
        answer = schema.X509BundlesResponse.FromString(message)
        assert dict(answer.bundles) == {"spiffe://mesh.test": b"".join(control_plane.bundle.ders)}
        break


async def test_a_registration_that_ends_ends_the_stream(
    channel: grpc.aio.Channel, control_plane: Any, entry: Any
) -> None:
    call = stream(channel, "FetchX509SVID", HEADER)
    assert schema.X509SVIDResponse.FromString(await call.read()).svids
    control_plane.push(entries=entry.set(entry.of("globex", "other")))
    code, _ = await refused(call)
    assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_caller_that_fits_no_more_gets_no_more(
    channel: grpc.aio.Channel, control_plane: Any, entry: Any
) -> None:
    call = stream(channel, "FetchX509SVID", HEADER)
    assert schema.X509SVIDResponse.FromString(await call.read()).svids
    control_plane.push(entries=entry.set(entry.of("acme", "web", selectors=resources.Selectors(path="/bin/another"))))
    control_plane.push(renew_now=node_pb.RenewNow(reason="test"))
    code, message = await refused(call)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "the entry wants /bin/another" in message


async def test_a_certificate_that_ends_is_not_served(agent: Any, control_plane: Any, until: Any) -> None:
    control_plane.ttl = timedelta(seconds=8)
    await agent.ready()
    async with grpc.aio.insecure_channel(f"unix:{agent.workload_api}") as channel:
        call = stream(channel, "FetchX509SVID", HEADER)
        assert schema.X509SVIDResponse.FromString(await call.read()).svids
        control_plane.sign_refusal = "no more"
        code, message = await refused(call)
    assert (code, message) == (grpc.StatusCode.PERMISSION_DENIED, "the workload's certificate has ended")
    assert not list((agent.state_dir / "run/workloads").glob("*/credentials/tls.key"))


async def test_an_unmodified_client_gets_tokens_and_judges_them(agent: Any, control_plane: Any) -> None:
    """SPIRE's `fetch-jwt-svids`: from the cache the second time."""
    await agent.ready()

    def use() -> Any:
        with WorkloadApiClient(f"unix://{agent.workload_api}") as client:
            first, second = client.fetch_jwt_svid({"orders", "x"}), client.fetch_jwt_svid({"x", "orders"})
            judged = client.validate_jwt_svid(first.token, "orders")
            bundles = client.fetch_jwt_bundles()
            mine = bundles.get_bundle_for_trust_domain(first.spiffe_id.trust_domain)
            JwtSvid.parse_and_validate(first.token, mine, {"orders"})
            with pytest.raises(WorkloadApiError, match="isn't for 'web'"):
                client.validate_jwt_svid(first.token, "web")
            return first, second, judged

    first, second, judged = await asyncio.to_thread(use)
    assert str(first.spiffe_id) == str(judged.spiffe_id) == "spiffe://mesh.test/tenant/acme/service/web"
    assert first.audience == {"orders", "x"}
    assert (first.token, control_plane.jwts) == (second.token, 1)


async def test_tokens_while_the_control_plane_is_away(agent: Any, control_plane: Any) -> None:
    await agent.ready()
    async with grpc.aio.insecure_channel(f"unix:{agent.workload_api}") as channel:
        request = schema.JWTSVIDRequest(audience=["orders"]).SerializeToString()
        first = schema.JWTSVIDResponse.FromString(await ask(channel, "FetchJWTSVID", request, HEADER)).svids[0]
        await control_plane.stop()
        again = schema.JWTSVIDResponse.FromString(await ask(channel, "FetchJWTSVID", request, HEADER)).svids[0]
        assert again.svid == first.svid
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, "FetchJWTSVID", schema.JWTSVIDRequest(audience=["new"]).SerializeToString(), HEADER)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # The keys that tokens are judged by are on the disk.
    agent.stop()
    await agent.ready()
    async with grpc.aio.insecure_channel(f"unix:{agent.workload_api}") as channel:
        judge = schema.ValidateJWTSVIDRequest(audience="orders", svid=first.svid).SerializeToString()
        answer = schema.ValidateJWTSVIDResponse.FromString(await ask(channel, "ValidateJWTSVID", judge, HEADER))
        assert answer.spiffe_id == "spiffe://mesh.test/tenant/acme/service/web"
        assert answer.claims["aud"] == ["orders"]
    await control_plane.start_again()


async def test_a_new_key_reaches_open_streams(channel: grpc.aio.Channel, control_plane: Any) -> None:
    call = stream(channel, "FetchJWTBundles", HEADER)
    first = json.loads(schema.JWTBundlesResponse.FromString(await call.read()).bundles["spiffe://mesh.test"])
    assert [key["kid"] for key in first["keys"]] == ["k"]
    keys = [*control_plane.jwt_bundle.to_proto(), node_pb.JwtKey(kid="next", public_key=spki(new_key().public_key()))]
    control_plane.push(trust_bundles=node_pb.TrustBundles(jwt_keys=[keys[0], node_pb.JwtKey(kid="x")]))  # refused whole
    control_plane.push(trust_bundles=node_pb.TrustBundles(jwt_keys=keys))
    second = json.loads(schema.JWTBundlesResponse.FromString(await call.read()).bundles["spiffe://mesh.test"])
    assert [key["kid"] for key in second["keys"]] == ["k", "next"]


ASKED = schema.JWTSVIDRequest
JUDGED = schema.ValidateJWTSVIDRequest
REFUSED = [
    ("FetchJWTSVID", ASKED(), "INVALID_ARGUMENT"),
    ("FetchJWTSVID", ASKED(audience=[""]), "INVALID_ARGUMENT"),
    ("FetchJWTSVID", ASKED(audience=["a\n"]), "INVALID_ARGUMENT"),
    ("FetchJWTSVID", ASKED(audience=[str(number) for number in range(17)]), "INVALID_ARGUMENT"),
    (
        "FetchJWTSVID",
        ASKED(audience=["a"], spiffe_id="spiffe://mesh.test/tenant/acme/service/api"),
        "PERMISSION_DENIED",
    ),
    ("ValidateJWTSVID", JUDGED(svid="x.y.z"), "INVALID_ARGUMENT"),
    ("ValidateJWTSVID", JUDGED(audience="a"), "INVALID_ARGUMENT"),
    ("ValidateJWTSVID", JUDGED(audience="a", svid="x.y.z"), "INVALID_ARGUMENT"),
    ("ValidateJWTSVID", JUDGED(audience="a", svid="x" * 9000), "INVALID_ARGUMENT"),
    ("ValidateJWTSVID", JUDGED(audience="a" * 5000, svid="x.y.z"), "INVALID_ARGUMENT"),
]


async def test_requests_of_the_jwt_profile_that_are_refused(channel: grpc.aio.Channel) -> None:
    for method, request, code in REFUSED:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, method, request.SerializeToString(), HEADER)
        assert (caught.value.code().name, request) == (code, request)


async def test_who_has_no_identity_gets_nothing_of_the_jwt_profile(agent: Any, control_plane: Any, entry: Any) -> None:
    control_plane.push(entries=entry.set(entry.of("acme", "web", selectors=resources.Selectors(uid=4242))))
    await agent.ready()
    async with grpc.aio.insecure_channel(f"unix:{agent.workload_api}") as channel:
        for method in ("FetchJWTSVID", "ValidateJWTSVID"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(channel, method, schema.JWTSVIDRequest(audience=["a"]).SerializeToString(), HEADER)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        code, _ = await refused(stream(channel, "FetchJWTBundles", HEADER))
        assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_foreign_bundle_reaches_open_streams_and_proves_its_own_identities_alone(
    channel: grpc.aio.Channel, control_plane: Any
) -> None:
    """SPIRE's `ghostunnel-federation`, as far as the Workload API goes."""
    own, foreign = stream(channel, "FetchX509SVID", HEADER), stream(channel, "FetchX509Bundles", HEADER)
    assert not schema.X509SVIDResponse.FromString(await own.read()).federated_bundles
    await foreign.read()
    key, theirs = new_key(), await MemoryAuthority("b.test").bundle()
    told = node_pb.ForeignBundle(trust_domain="b.test", roots=theirs.ders)
    told.jwt_keys.extend(JwtBundle.of("b.test", [("theirs", key.public_key())]).to_proto())
    control_plane.push(trust_bundles=node_pb.TrustBundles(jwt_keys=control_plane.jwt_bundle.to_proto(), foreign=[told]))
    roots = b"".join(theirs.ders)
    response = schema.X509SVIDResponse.FromString(await own.read())
    assert dict(response.federated_bundles) == {"spiffe://b.test": roots}
    assert response.svids[0].bundle == b"".join(control_plane.bundle.ders)
    bundles = schema.X509BundlesResponse.FromString(await foreign.read()).bundles
    assert bundles["spiffe://b.test"] == roots
    assert set(bundles) == {"spiffe://b.test", "spiffe://mesh.test"}

    async def judge(domain: str, key: Any, kid: str) -> str:
        who = SpiffeId.parse(f"spiffe://{domain}/ns/x")
        token = sign_jwt_svid(JwtTemplate(who, ("web",)), key, kid, utc_now()).token
        asked = JUDGED(audience="web", svid=token).SerializeToString()
        answer = await ask(channel, "ValidateJWTSVID", asked, HEADER)
        return str(schema.ValidateJWTSVIDResponse.FromString(answer).spiffe_id)

    assert await judge("b.test", key, "theirs") == "spiffe://b.test/ns/x"
    for domain, signer, kid in (
        ("mesh.test", key, "theirs"),
        ("mesh.test", key, "k"),
        ("b.test", control_plane.jwt_key, "k"),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="not signed by a key of its trust domain"):
            await judge(domain, signer, kid)
    control_plane.push(trust_bundles=node_pb.TrustBundles(jwt_keys=control_plane.jwt_bundle.to_proto()))
    assert not schema.X509SVIDResponse.FromString(await own.read()).federated_bundles
    with pytest.raises(grpc.aio.AioRpcError, match="isn't trusted here"):
        await judge("b.test", key, "theirs")
