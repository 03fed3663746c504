"""What proves our identities to the world: the endpoint over real TLS, and a real OpenBao that takes our word.

SPIRE's `oidc-discovery-provider`.
"""

import asyncio
import json
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import hvac
import pytest
import requests

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import OpenBao, serve_stored
from tests.shell import Shell
from tests.web_certificate import web_pair

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.bundle_document import parse_document
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import verify_chain
from meshwarden.controlplane.api.spiffe_endpoint import EndpointError, SpiffeEndpoint
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.identity.bundle_document import BundleDocument
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.jwt_key import PREPARE_AT
from meshwarden.controlplane.store.port import Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.scrape import serve_public_pages

WEB = SpiffeId.workload("a.test", "acme", "web")
PAGE = "docs/spiffe.md"


async def issue(authority: MemoryAuthority, identity: SpiffeId, *dns: str) -> X509Svid:
    key = new_key()
    template = LeafTemplate(identity, timedelta(hours=1), dns)
    chain = await authority.sign(template, key.public_key(), utc_now())
    return X509Svid.of(chain, key)


@dataclass
class World:
    """An endpoint with the web's certificate, and what is behind it; `now` moves when a test moves it."""

    store: Store
    audit: FileAuditLog
    authority: MemoryAuthority
    files: tuple[Path, Path]
    stack: AsyncExitStack
    now: datetime
    port: int = 0

    async def open(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.jwt = await self.other_jwt()
        self.endpoint = SpiffeEndpoint(self.document(), lambda: None, issuer=self.url, files=self.files)
        pages = serve_public_pages("127.0.0.1", self.port, self.endpoint.find, self.endpoint.tls)
        await self.stack.enter_async_context(pages)

    async def other_jwt(self) -> JwtAuthority:
        jwt = JwtAuthority(self.store, self.audit, lambda: self.now, trust_domain="a.test", issuer=self.url)
        await jwt.open()
        return jwt

    def document(self, jwt: JwtAuthority | None = None) -> BundleDocument:
        return BundleDocument(self.store, self.authority, jwt or self.jwt, "a.test")

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def get(self, path: str) -> requests.Response:
        return await asyncio.to_thread(requests.get, self.url + path, verify=str(self.files[0]), timeout=60)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(tmp_path / "store.sqlite"))
        audit = await stack.enter_async_context(FileAuditLog.open(tmp_path / "audit.jsonl", utc_now))
        world = World(store, audit, MemoryAuthority("a.test"), web_pair(tmp_path), stack, utc_now())
        await world.open()
        yield world


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve_stored(tmp_path_factory.mktemp("bao")) as server:
        yield server


def terminal(bao: OpenBao, directory: Path) -> Shell:
    """Where commands of the pages are typed, by whoever keeps Vault."""
    where = {"BAO_ADDR": bao.address, "BAO_CACERT": str(bao.ca_file), "HOME": str(directory)}
    return Shell({**os.environ, **where, "BAO_TOKEN": bao.admin.token}, directory)


async def test_a_workload_logs_in_to_vault_with_its_token(world: World, bao: OpenBao, tmp_path: Path) -> None:
    """As docs/spiffe.md says: Vault finds our keys by OpenID Connect, and again after a rotation."""
    shell = terminal(bao, tmp_path)

    def set_up() -> None:
        shell.types(PAGE, "bao auth enable jwt")
        shell.types(
            PAGE,
            "bao write auth/jwt/config oidc_discovery_url=https://oidc.mesh.example",
            {"https://oidc.mesh.example": f"{world.url} oidc_discovery_ca_pem=@{world.files[0]}"},
        )
        shell.types(
            PAGE,
            "bao write auth/jwt/role/web role_type=jwt bound_audiences=vault user_claim=sub token_policies=web"
            " bound_subject=spiffe://mesh.example/tenant/acme/service/web",
            {"token_policies=web": "token_policies=secrets", "mesh.example": "a.test"},
        )

    def log_in(token: str) -> Any:
        client = hvac.Client(bao.address, verify=str(bao.ca_file), timeout=60)
        try:
            return client.auth.jwt.jwt_login("web", token)["auth"]
        finally:
            client.adapter.close()

    await asyncio.to_thread(set_up)
    shell.environment["TOKEN"] = token = world.jwt.sign(WEB, ("vault",), utc_now()).token
    said = await asyncio.to_thread(log_in, token)
    typed = await asyncio.to_thread(lambda: shell.types(PAGE, 'bao write auth/jwt/login role=web jwt="$TOKEN"'))
    assert "token_policies" in typed
    assert said["policies"] == ["default", "secrets"]
    assert said["metadata"]["role"] == "web"
    for wrong in (
        world.jwt.sign(WEB, ("orders",), utc_now()),
        world.jwt.sign(SpiffeId.workload("a.test", "acme", "api"), ("vault",), utc_now()),
        world.jwt.sign(WEB, ("vault",), utc_now() - timedelta(minutes=20)),
    ):
        with pytest.raises(hvac.exceptions.InvalidRequest):
            await asyncio.to_thread(log_in, wrong.token)
    # A control plane that has started again signs by another key.
    after = await world.other_jwt()
    world.endpoint._document = world.document(after)
    assert await asyncio.to_thread(log_in, after.sign(WEB, ("vault",), utc_now()).token)


async def test_a_workload_logs_in_to_vault_with_its_certificate(world: World, bao: OpenBao, tmp_path: Path) -> None:
    shell = terminal(bao, tmp_path)

    def set_up(roots_pem: str) -> None:
        (tmp_path / "ca.pem").write_text(roots_pem)
        shell.types(PAGE, "bao auth enable cert")
        shell.types(
            PAGE,
            "bao write auth/cert/certs/web certificate=@ca.pem token_policies=web"
            " allowed_uri_sans=spiffe://mesh.example/tenant/acme/service/web",
            {"token_policies=web": "token_policies=secrets", "mesh.example": "a.test"},
        )

    def log_in(svid: X509Svid) -> Any:
        (tmp_path / "tls.crt").write_bytes(svid.chain_pem())
        (tmp_path / "tls.key").write_bytes(svid.key_pem())
        pair = (str(tmp_path / "tls.crt"), str(tmp_path / "tls.key"))
        client = hvac.Client(bao.address, verify=str(bao.ca_file), cert=pair, timeout=60)
        try:
            return client.auth.cert.login(name="web")["auth"]
        finally:
            client.adapter.close()

    await asyncio.to_thread(set_up, (await world.authority.bundle()).pem().decode())
    said = await asyncio.to_thread(log_in, await issue(world.authority, WEB, "web.acme.test"))
    assert said["policies"] == ["default", "secrets"]
    assert said["metadata"]["common_name"] == "web.acme.test"
    shell.environment["MESHWARDEN_CREDENTIALS"] = str(tmp_path)
    credentials = "-client-cert=$MESHWARDEN_CREDENTIALS/tls.crt -client-key=$MESHWARDEN_CREDENTIALS/tls.key"
    await asyncio.to_thread(lambda: shell.types(PAGE, f"bao login -method=cert {credentials} name=web"))
    api = SpiffeId.workload("a.test", "acme", "api")
    for authority, who in ((world.authority, api), (MemoryAuthority("a.test"), WEB)):
        with pytest.raises(hvac.exceptions.InvalidRequest):
            await asyncio.to_thread(log_in, await issue(authority, who, "web.acme.test"))


async def test_the_pages(world: World) -> None:
    bundle = parse_document("a.test", (await world.get("/bundle.json")).content)
    assert bundle.x509 is not None
    assert bundle.x509.ders == (await world.authority.bundle()).ders
    assert (bundle.jwt, bundle.sequence, bundle.refresh) == (world.jwt.bundle(), 1, timedelta(minutes=5))
    said = (await world.get("/.well-known/openid-configuration")).json()
    assert (said["issuer"], said["jwks_uri"]) == (world.url, f"{world.url}/keys")
    (key,) = (await world.get("/keys")).json()["keys"]
    assert (key["kid"], key["alg"], key["use"]) == (*world.jwt.bundle().keys, "ES256", "sig")
    assert "d" not in key
    for path in ("/", "/keys/", "/metrics", "/bundle.json/..", "//keys"):
        assert (await world.get(path)).status_code == 404
    assert (await asyncio.to_thread(requests.post, world.url + "/keys", verify=str(world.files[0]))).status_code == 405


async def test_the_sequence_grows_with_each_change_and_is_the_same_at_all_control_planes(world: World) -> None:
    async def numbers(*documents: BundleDocument) -> list[int]:
        return [json.loads(await document.read())["spiffe_sequence"] for document in documents]

    own = world.document()
    assert await numbers(own, own) == [1, 1]
    world.now += PREPARE_AT
    await world.jwt.tend()
    other = await world.other_jwt()
    await world.jwt._load()
    assert await numbers(own, world.document(other)) == [2, 2]
    # One that lags behind publishes what it knows, and nobody's number goes back.
    assert await numbers(world.document(other), own) == [2, 2]


async def test_without_an_issuer_there_is_none(world: World) -> None:
    endpoint = SpiffeEndpoint(world.document(), lambda: None, files=world.files)
    assert endpoint.find("/.well-known/openid-configuration") is None
    assert endpoint.find("/keys") is not None


def shown(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 60) as plain, context.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True) or b""


async def test_https_spiffe_shows_our_own_certificate_and_the_next_one(world: World) -> None:
    me = SpiffeId.control_plane("a.test", "eu")
    svids = [await issue(world.authority, me)]
    endpoint = SpiffeEndpoint(world.document(), lambda: svids[-1])
    async with serve_public_pages("127.0.0.1", 0, endpoint.find, endpoint.tls) as port:
        for _ in range(2):
            leaf = await asyncio.to_thread(shown, port)
            chain = [leaf, *svids[-1].chain_der()[1:]]
            assert verify_chain(chain, {"a.test": await world.authority.bundle()}, utc_now()).spiffe_id == me
            assert leaf == svids[-1].chain_der()[0]
            svids.append(await issue(world.authority, me))
            endpoint._load(endpoint.tls)


async def test_files_that_change_are_shown_and_files_that_are_no_pair_are_not(world: World, tmp_path: Path) -> None:
    first = await asyncio.to_thread(shown, world.port)
    kept = world.files[0].read_bytes()
    (tmp_path / "new").mkdir()
    chain, key = web_pair(tmp_path / "new")
    world.files[0].write_bytes(chain.read_bytes())  # its key follows later
    with pytest.raises(EndpointError, match="no certificate with its key"):
        world.endpoint._load(world.endpoint.tls)
    assert await asyncio.to_thread(shown, world.port) == first
    world.files[1].write_bytes(key.read_bytes())
    world.endpoint._load(world.endpoint.tls)
    assert await asyncio.to_thread(shown, world.port) != first
    assert world.files[0].read_bytes() != kept
    world.files[1].unlink()
    with pytest.raises(EndpointError, match="No such file"):
        SpiffeEndpoint(world.document(), lambda: None, files=world.files).tls  # noqa: B018


async def test_who_shakes_no_hands_keeps_nobody_out(world: World) -> None:
    """More connections than there are places, and rubbish in place of TLS."""
    idle = [await asyncio.open_connection("127.0.0.1", world.port) for _ in range(100)]
    for _, writer in idle[:20]:
        writer.write(b"GET /keys HTTP/1.1\r\n\r\n")
    assert (await world.get("/keys")).status_code == 200
    gone = [reader for reader, _ in idle[:30] if await asyncio.wait_for(_ended(reader), 60)]
    assert len(gone) == 30
    for _, writer in idle:
        writer.close()


async def _ended(reader: asyncio.StreamReader) -> bool:
    try:
        while await reader.read(4096):
            pass
    except ConnectionError:
        pass
    return True


async def test_a_head_without_an_end(world: World) -> None:
    context = ssl.create_default_context(cafile=str(world.files[0]))
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=context)
    writer.write(b"GET /keys HTTP/1.1\r\nx: " + b"x" * 100_000)
    assert (await reader.readline()).startswith(b"HTTP/1.1 431")
    writer.close()
