"""Two trust domains learn each other's bundles over real TLS; what a foreign endpoint may and may not do to us."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.bundle_document import format_document, parse_document
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.api.spiffe_endpoint import SpiffeEndpoint
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.identity import fetch as fetching
from meshwarden.controlplane.identity.bundle_document import BundleDocument
from meshwarden.controlplane.identity.federation import Federation
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.publish.trust import Trust
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.mtls.tls import load_identity, web_context
from meshwarden.sdk.scrape import serve_public_pages
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.resources_pb2 import BundleEndpoint, Metadata, TrustDomain, TrustDomainSpec

WEB, SPIFFE = BundleEndpoint.HTTPS_WEB, BundleEndpoint.HTTPS_SPIFFE
SERVER = "spiffe://b.test/region/eu/controlplane"


class Domain:
    """A trust domain's control plane, as far as bundles go."""

    def __init__(self, name: str, store: Any, audit: Any, web_roots: Path) -> None:
        self.name, self.now = name, utc_now()
        self.store, self.audit, self.web_roots = store, audit, web_roots
        self.authority = MemoryAuthority(name)
        self.jwt = JwtAuthority(store, audit, utc_now, trust_domain=name)
        self.document = BundleDocument(store, self.authority, self.jwt, name)
        self.bundle: Any = None
        self.federation = self.new_federation()

    async def open(self) -> "Domain":
        await self.jwt.open()
        self.bundle = await self.authority.bundle()
        self.svid = await self.issue(SpiffeId.control_plane(self.name, "eu"))
        return self

    async def issue(self, identity: SpiffeId, *dns: str) -> X509Svid:
        key = new_key()
        template = LeafTemplate(identity, timedelta(hours=1), dns)
        return X509Svid.of(await self.authority.sign(template, key.public_key(), utc_now()), key)

    async def kept(self) -> bytes:
        """What is stored of b.test."""
        record, _ = await self.store.get("/identity/foreign/b.test")
        return b"" if record is None else bytes(record.value.partition(b"\n")[2])

    def clock(self) -> datetime:
        return self.now

    def new_federation(self) -> Federation:
        rng, own = random.Random(1), lambda: {self.name: self.bundle}
        return Federation(
            self.store,
            self.audit,
            self.clock,
            rng,
            own=own,
            trust_domain=self.name,
            web_roots=str(self.web_roots),
        )

    @asynccontextmanager
    async def serve(self, port: int = 0, svid: X509Svid | None = None) -> AsyncIterator[int]:
        endpoint = SpiffeEndpoint(self.document, lambda: svid or self.svid)
        async with serve_public_pages("127.0.0.1", port, endpoint.find, endpoint.tls) as at:
            yield at


@pytest.fixture
async def domains(tmp_path: Path) -> AsyncIterator[tuple[Domain, Domain]]:
    async with AsyncExitStack() as stack:
        made = []
        for name in ("a.test", "b.test"):
            store = await stack.enter_async_context(open_store(tmp_path / name / "store.sqlite"))
            audit = await stack.enter_async_context(FileAuditLog.open(tmp_path / name / "audit.jsonl", utc_now))
            made.append(await Domain(name, store, audit, tmp_path / "web.pem").open())
        (tmp_path / "web.pem").write_bytes(made[1].bundle.pem())
        yield made[0], made[1]


def wanted(
    port: int, profile: Any = SPIFFE, spiffe_id: str = SERVER, bundle: str = "", path: str = "/bundle.json"
) -> Any:
    endpoint = BundleEndpoint(
        url=f"https://127.0.0.1:{port}{path}", profile=profile, spiffe_id=spiffe_id if profile == SPIFFE else ""
    )
    spec = TrustDomainSpec(trust_domain="b.test", bundle_endpoint=endpoint, bundle=bundle)
    return TrustDomain(kind="TrustDomain", metadata=Metadata(tenant="platform", name="b"), spec=spec)


@asynccontextmanager
async def running(federation: Federation) -> AsyncIterator[Callable[[Callable[[], Any]], Any]]:
    """Runs it; yields what waits for a condition."""

    async def until(condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(60):
            while not (found := condition()):  # noqa: ASYNC110 - nothing signals it
                await anyio.sleep(0.01)
        return found

    async with anyio.create_task_group() as group:
        group.start_soon(federation.run)
        yield until
        group.cancel_scope.cancel()


async def test_a_bundle_is_fetched_told_kept_and_survives_the_outage(domains: tuple[Domain, Domain]) -> None:
    ours, theirs = domains
    pinned = (await theirs.document.read()).decode()
    said: list[v1.SyncResponse] = []
    with Trust(ours.jwt, ours.federation).following(said.append):
        async with theirs.serve() as port, running(ours.federation) as until:
            ours.federation.want([wanted(port, bundle=pinned)])
            await until(ours.federation.bundles)
            await theirs.jwt.prepare("spiffe://b.test/operator/bo")  # they rotate
            ours.now += timedelta(minutes=5)
            ours.federation.want([wanted(port, bundle=pinned)])
            await until(lambda: len(ours.federation.bundles()[0].jwt.keys) == 2)
            assert not ours.federation.faults()
            async with asyncio.timeout(60):
                while await ours.kept() != await theirs.document.read():  # noqa: ASYNC110 - a store tells nobody
                    await anyio.sleep(0.01)
        foreign = said[-1].trust_bundles.foreign
        assert [item.trust_domain for item in foreign] == ["b.test"]
        assert list(foreign[0].roots) == list(theirs.bundle.ders)
        assert len(foreign[0].jwt_keys) == 2
        # Their endpoint is away, and our control plane starts again.
        again = ours.new_federation()
        async with running(again) as until:
            again.want([wanted(port, bundle=pinned)])
            await until(again.faults)
            assert len(again.bundles()[0].jwt.keys) == 2
            # What an operator takes back is gone at once, and what is said anew isn't what was fetched before.
            again.want([])
            assert not again.bundles()
            again.want([wanted(port, bundle=pinned, path="/other")])
            await until(again.bundles)
            assert len(again.bundles()[0].jwt.keys) == 1


async def fetch(ours: Domain, resource: Any, bundles: Any) -> bytes:
    return await fetching.fetch(resource.spec.bundle_endpoint, bundles, utc_now(), str(ours.web_roots))


async def test_who_the_server_must_be(domains: tuple[Domain, Domain]) -> None:
    ours, theirs = domains
    trusted = {"a.test": ours.bundle, "b.test": theirs.bundle}
    async with theirs.serve() as port:
        assert parse_document("b.test", await fetch(ours, wanted(port), trusted)).x509 is not None
        for resource, bundles, reason in (
            (wanted(port, spiffe_id="spiffe://b.test/other"), trusted, "its server is spiffe://b.test/region"),
            (wanted(port), {"a.test": ours.bundle}, "isn't trusted here"),
            # Its authority proves it in its own trust domain alone.
            (wanted(port), {"b.test": ours.bundle}, "not proved"),
            (wanted(port, WEB), trusted, "verify failed"),
        ):
            with pytest.raises(fetching.FetchFailed, match=reason):
                await fetch(ours, resource, bundles)


@asynccontextmanager
async def answering(domain: Domain, answer: bytes | None, ends: bool = True) -> AsyncIterator[int]:
    """A server that proves who it is and then answers just this; None answers nothing."""
    context: ssl.SSLContext = web_context()
    load_identity(context, domain.svid.chain_pem(), domain.svid.key_pem())

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            if answer is not None:
                writer.write(answer)
                await writer.drain()
            if ends:
                writer.close()
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\n\r\n", "answers 302; only 200"),
        (b"HTTP/1.1 500 no\r\n\r\nsecret", "answers 500"),
        (b"", "no HTTP"),
        (b"\x00" * 1000, "no HTTP"),
        (OK + b"Content-Length: 10\r\n\r\n{}", "no HTTP"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "no HTTP"),
        (OK + b"x: y\r\n" * 500 + b"\r\n{}", "no HTTP"),
        (OK + b"x: " + b"y" * 100_000 + b"\r\n\r\n{}", "no HTTP"),
        (OK + b"\r\n" + b" " * (3 << 20), "more than"),
    ],
)
async def test_what_a_server_may_not_answer(domains: tuple[Domain, Domain], answer: bytes, reason: str) -> None:
    ours, theirs = domains
    async with answering(theirs, answer) as port:
        with pytest.raises(fetching.FetchFailed, match=reason) as caught:
            await fetch(ours, wanted(port), {"b.test": theirs.bundle})
    assert "secret" not in str(caught.value)


async def test_chunks_are_taken(domains: tuple[Domain, Domain]) -> None:
    ours, theirs = domains
    async with answering(theirs, OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n") as port:
        assert await fetch(ours, wanted(port), {"b.test": theirs.bundle}) == b"{}"


@pytest.mark.parametrize("answer", [None, OK])
async def test_a_server_that_never_ends(
    domains: tuple[Domain, Domain], answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = domains
    monkeypatch.setattr(fetching, "TIMEOUT_S", 0.5)
    async with answering(theirs, answer, ends=False) as port:
        with pytest.raises(fetching.FetchFailed, match="no whole answer within"):
            await fetch(ours, wanted(port), {"b.test": theirs.bundle})


async def test_what_cant_be_used_changes_nothing(domains: tuple[Domain, Domain]) -> None:
    ours, theirs = domains
    document = await theirs.document.read()
    old = parse_document("b.test", document)
    pinned = format_document(type(old)("b.test", old.x509, old.jwt, 7)).decode()
    for body, reason in ((b"{}", "`keys` is missing"), (document, "sequence number went back")):
        async with (
            answering(theirs, OK + b"\r\n" + body) as port,
            running(federation := ours.new_federation()) as until,
        ):
            federation.want([wanted(port, bundle=pinned)])
            assert reason in (await until(federation.faults))["b.test"]
            assert federation.bundles()[0].sequence == 7


async def test_nobody_speaks_for_our_own_trust_domain(domains: tuple[Domain, Domain]) -> None:
    ours, _ = domains
    resource = wanted(1)
    resource.spec.trust_domain = "a.test"
    resource.spec.bundle = (await ours.document.read()).decode()
    async with running(ours.federation) as until:
        other = wanted(1, bundle='{"keys":[]}')
        ours.federation.want([resource, other])
        await until(ours.federation.bundles)
        assert [bundle.trust_domain for bundle in ours.federation.bundles()] == ["b.test"]
