"""What every authority engine keeps: one suite for memory, disk and Vault."""

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import SecretStr

from meshwarden.certs.authority.disk import DiskAuthority
from meshwarden.certs.authority.issuing import PAUSE
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.port import Authority, AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.vault import VaultAuthority
from meshwarden.certs.authority.vault_direct import DirectVaultAuthority
from meshwarden.certs.bundle import is_authority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import IssueRefused, LeafTemplate, name_text
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import verify_chain
from meshwarden.controlplane.secrets.transit import TransitSecrets

sys.path.insert(0, str(Path(__file__).parent))

from openbao_server import OpenBao, serve

WEB = SpiffeId.workload("a.test", "acme", "web")
PASSPHRASE = SecretStr("correct horse battery")
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class Clock:
    """The real time and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return utc_now() + self.ahead


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


Open = Callable[[], Awaitable[Authority]]
Issued = list[tuple[x509.Certificate, ...]]


@pytest.fixture
def issued() -> Issued:
    """The chains of the issuing certificates that engines told of."""
    return []


# Those that sign by an issuing certificate of their own, whose time is this process's.
ISSUING = pytest.mark.parametrize("start", ["memory", "disk", "transit", "upstream"], indirect=True)


@pytest.fixture(params=["memory", "disk", "transit", "upstream", "direct"])
async def start(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, issued: Issued) -> AsyncIterator[Open]:
    """Opens the engine; opened again, it has the same root (but for memory)."""
    opened: list[Authority] = []

    async def told(chain: tuple[x509.Certificate, ...]) -> None:
        issued.append(chain)

    async def memory() -> Authority:
        return MemoryAuthority("a.test", clock, random.Random(1), on_issued=told)

    async def disk(passphrase: SecretStr = PASSPHRASE) -> Authority:
        return await DiskAuthority.open(
            tmp_path / "ca",
            passphrase=passphrase,
            trust_domain="a.test",
            clock=clock,
            create=True,
            on_issued=told,
        )

    async def transit() -> Authority:
        """On disk, under a passphrase that Vault decrypts."""
        bao: OpenBao = request.getfixturevalue("bao")
        if not (tmp_path / "wrapped").exists():
            bao.wrap(tmp_path / "wrapped", "correct horse battery")
        client = bao.client(bao.token(policies=("transit",)))
        passphrase = await TransitSecrets(client).read(f"transit/meshwarden#{tmp_path}/wrapped")
        client.close()
        return await disk(passphrase)

    async def upstream() -> Authority:
        bao: OpenBao = request.getfixturevalue("bao")
        client = bao.client(bao.token())
        return await VaultAuthority.open(
            client, trust_domain="a.test", clock=clock, rng=random.Random(1), on_issued=told
        )

    async def direct() -> Authority:
        bao: OpenBao = request.getfixturevalue("bao")
        client = bao.client(bao.token(policies=("direct",)))
        return await DirectVaultAuthority.open(client, trust_domain="a.test", clock=clock, on_issued=told)

    async def start() -> Authority:
        engines = {"memory": memory, "disk": disk, "transit": transit, "upstream": upstream, "direct": direct}
        authority = await engines[request.param]()
        opened.append(authority)
        return authority

    yield start
    for authority in opened:
        await authority.close()


async def sign(
    authority: Authority, clock: Clock, ttl: timedelta = HOUR, dns_names: tuple[str, ...] = ()
) -> tuple[x509.Certificate, ...]:
    key = new_key()
    return await authority.sign(LeafTemplate(WEB, ttl, dns_names), key.public_key(), clock(), make_csr(key))


def ders(chain: tuple[x509.Certificate, ...]) -> list[bytes]:
    return [certificate.public_bytes(Encoding.DER) for certificate in chain]


def told_of(certificate: x509.Certificate) -> dict[str, object]:
    """What a certificate says beside key, serial number and time: {extension: (critical, value)}."""
    own = (x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    said: dict[str, object] = {
        extension.oid.dotted_string: (extension.critical, extension.value)
        for extension in certificate.extensions
        if not isinstance(extension.value, (*own, x509.SubjectAlternativeName))
    }
    said["names"] = (names.critical, {str(name) for name in names.value})
    said["subject"] = certificate.subject
    return said


def why_not(chain: tuple[x509.Certificate, ...], root: x509.Certificate, directory: Path, name: str) -> str:
    """Why OpenSSL does not take a chain for a server of that name; empty if it does."""
    for file, certificates in (("root", [root]), ("leaf", chain[:1]), ("between", chain[1:])):
        pem = b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
        (directory / f"{file}.pem").write_bytes(pem)
    between = ("-untrusted", "between.pem") if chain[1:] else ()
    options = ("-x509_strict", "-purpose", "sslserver", "-verify_hostname", name, "-CAfile", "root.pem")
    command = ("openssl", "verify", *options, *between, "leaf.pem")
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


async def test_a_root_for_browsers_proves_its_names_and_no_others(start: Open, tmp_path: Path) -> None:
    authority = await start()
    names = ("localhost", "mesh.example")
    found = await authority.browser_root(names)
    if found is None:
        assert not authority.description.startswith("embedded"), "only where its key is out of reach"
        return
    assert found is await authority.browser_root(names)
    (root,) = (await authority.bundle()).roots
    assert (found.subject, found.not_valid_after_utc) == (root.subject, root.not_valid_after_utc)

    async def refused(by: x509.Certificate, name: str, *named: str) -> str:
        key = new_key()
        chain = await authority.sign(LeafTemplate(WEB, HOUR, named), key.public_key(), utc_now(), make_csr(key))
        return why_not(chain, by, tmp_path, name)

    for name in (*names, "www.mesh.example"):
        assert not await refused(found, name, name)
    for name in ("bank.example", "example", "notmesh.example", "mesh.example.bank.example", "controlplane.a.test"):
        assert not await refused(root, name, name), "the mesh's own root proves any"
        assert "permitted subtree violation" in await refused(found, name, name)
    assert "permitted subtree violation" in await refused(found, names[1], names[1], "bank.example"), (
        "each of its names"
    )


async def test_a_root_for_browsers_is_the_one_that_signs(start: Open) -> None:
    authority = await start()
    before = await authority.browser_root(["localhost"])
    if before is None:
        return
    *_, new = await authority.prepare(utc_now())
    assert await authority.browser_root(["localhost"]) is before
    await authority.activate(new.fingerprint)
    after = await authority.browser_root(["localhost"])
    assert after is not None
    assert (after.subject, after.public_key()) != (before.subject, before.public_key())


async def test_what_it_signs_leads_to_its_bundle(start: Open, clock: Clock) -> None:
    authority = await start()
    chain = await sign(authority, clock)
    bundle = await authority.bundle()
    peer = verify_chain(ders(chain), {"a.test": bundle}, clock())
    assert peer.spiffe_id == WEB
    assert HOUR - timedelta(seconds=1) <= chain[0].not_valid_after_utc - chain[0].not_valid_before_utc <= HOUR
    assert not set(chain) & set(bundle.roots)


async def test_all_engines_make_one_kind_of_leaf(start: Open, clock: Clock) -> None:
    names = ("web.acme.example", "web")
    chain = await sign(await start(), clock, dns_names=names)
    own = await sign(MemoryAuthority("a.test", clock), clock, dns_names=names)
    assert told_of(chain[0]) == told_of(own[0])


async def test_who_signs_is_told_once_before_its_first_leaf(start: Open, clock: Clock, issued: Issued) -> None:
    authority = await start()
    for _ in range(2):
        leaf = (await sign(authority, clock))[0]
    (chain,) = issued
    assert leaf.issuer == chain[0].subject
    assert (await authority.bundle()).roots == chain[-1:]


@ISSUING
async def test_an_intermediate_signs_for_a_week_and_leaves_only(start: Open, clock: Clock) -> None:
    authority = await start()
    leaf, issuing = await sign(authority, clock)
    assert leaf.issuer == issuing.subject
    assert is_authority(issuing)
    assert issuing.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    life = issuing.not_valid_after_utc - issuing.not_valid_before_utc
    assert timedelta(days=7) <= life <= timedelta(days=7, minutes=5)
    names = issuing.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://a.test"]
    assert names.get_values_for_type(x509.DNSName) == []


@ISSUING
async def test_roots_and_bundles_stay(start: Open, clock: Clock) -> None:
    authority = await start()
    bundle = await authority.bundle()
    await sign(authority, clock)
    assert await authority.bundle() is bundle
    clock.ahead = timedelta(days=4)
    await sign(authority, clock)
    assert await authority.bundle() is bundle


@ISSUING
async def test_each_start_has_an_issuing_key_of_its_own(start: Open, clock: Clock) -> None:
    first, second = await sign(await start(), clock), await sign(await start(), clock)
    assert first[1].public_key() != second[1].public_key()
    assert first[1].subject != second[1].subject


@ISSUING
async def test_each_issuing_certificate_is_told_once_before_it_signs(start: Open, clock: Clock, issued: Issued) -> None:
    authority = await start()
    first = (await sign(authority, clock))[1]
    await sign(authority, clock)
    clock.ahead = 4 * DAY
    second = (await sign(authority, clock))[1]
    assert [chain[0] for chain in issued] == [first, second]
    assert {chain[-1] for chain in issued} == set((await authority.bundle()).roots)


async def test_what_cannot_be_told_does_not_sign(clock: Clock) -> None:
    async def told(chain: tuple[x509.Certificate, ...]) -> None:
        raise AuthorityUnavailable("no ear")

    with pytest.raises(AuthorityUnavailable, match="no ear"):
        await sign(MemoryAuthority("a.test", clock, on_issued=told), clock)


async def test_many_at_once_are_signed_by_one_issuer(start: Open, clock: Clock) -> None:
    authority = await start()
    chains = await asyncio.gather(*(sign(authority, clock) for _ in range(20)))
    assert len({chain[1:] for chain in chains}) == 1
    assert len({chain[0].serial_number for chain in chains}) == 20


async def test_what_isnt_sound_is_refused(start: Open, clock: Clock) -> None:
    await start()
    with pytest.raises(IssueRefused):
        LeafTemplate(WEB, 2 * DAY)


async def test_says_who_signs(start: Open, clock: Clock) -> None:
    authority = await start()
    root = (await authority.bundle()).roots[0].subject
    assert name_text(root) in authority.description
    assert "2.5.4" not in authority.description


async def test_renews_at_half_life_and_never_signs_beyond_its_end(clock: Clock) -> None:
    authority = MemoryAuthority("a.test", clock, random.Random(1), intermediate_ttl=timedelta(hours=2))
    first = (await sign(authority, clock))[1]
    clock.ahead = timedelta(minutes=50)
    assert (await sign(authority, clock))[1] == first
    clock.ahead = timedelta(minutes=70)
    second = (await sign(authority, clock))[1]
    assert second != first
    # Not due yet, but too near its end for a longer leaf: renewed first.
    clock.ahead += timedelta(minutes=50)
    third = (await sign(authority, clock, timedelta(minutes=100)))[1]
    assert third != second


async def test_a_clock_that_is_set_back_finds_an_issuer_of_its_time(clock: Clock) -> None:
    authority = MemoryAuthority("a.test", clock, random.Random(1))
    clock.ahead = 5 * DAY
    later = (await sign(authority, clock))[1]
    clock.ahead = 2 * DAY
    chain = await sign(authority, clock)
    assert chain[1] != later
    verify_chain(ders(chain), {"a.test": await authority.bundle()}, clock())
    clock.ahead = -DAY
    with pytest.raises(AuthorityError, match="not valid"):
        await sign(authority, clock)
    clock.ahead = 2 * DAY
    assert await sign(authority, clock)


class Away(MemoryAuthority):
    """An authority whose upstream takes its time, and then says no."""

    asked = 0
    away = True

    async def _sign_intermediate(self, key: ec.EllipticCurvePrivateKey, now: datetime) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise AuthorityUnavailable("away")
        return await super()._sign_intermediate(key, now)


async def test_many_who_cannot_be_served_do_not_wait_for_one_another(clock: Clock) -> None:
    authority = Away("a.test", clock)
    answers = await asyncio.gather(*(sign(authority, clock) for _ in range(50)), return_exceptions=True)
    assert {str(answer) for answer in answers} == {"away"}
    assert authority.asked == 1
    authority.away = False
    clock.ahead = PAUSE
    assert await sign(authority, clock)
    assert authority.asked == 2


async def test_nobody_signs_when_the_root_ends_too_soon(clock: Clock) -> None:
    authority = MemoryAuthority("a.test", clock, random.Random(1), root_ttl=2 * HOUR)
    await sign(authority, clock)
    clock.ahead = timedelta(minutes=90)
    with pytest.raises(AuthorityUnavailable, match="ends"):
        await sign(authority, clock)
    assert await sign(authority, clock, timedelta(minutes=10))
    clock.ahead = 3 * HOUR
    with pytest.raises(AuthorityUnavailable, match="root has ended"):
        await sign(authority, clock, timedelta(minutes=10))


@ISSUING
async def test_a_revocation_list_is_taken_by_others(start: Open, clock: Clock, tmp_path: Path) -> None:
    authority = await start()
    revoked, good = await sign(authority, clock), await sign(authority, clock)
    body = await authority.sign_crl({revoked[0].serial_number: clock(), 7: clock()}, 3, clock())
    crl = x509.load_der_x509_crl(body)
    assert crl.is_signature_valid(revoked[1].public_key())
    assert crl.issuer == revoked[0].issuer
    assert {entry.serial_number for entry in crl} == {revoked[0].serial_number, 7}
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3
    assert timedelta(minutes=10) <= crl.next_update_utc - crl.last_update_utc <= timedelta(minutes=11)
    assert crl.last_update_utc <= clock() <= crl.next_update_utc
    root = (await authority.bundle()).roots[0]
    files = {"root": root, "issuing": revoked[1], "revoked": revoked[0], "good": good[0], "crl": crl}
    for name, item in files.items():
        (tmp_path / name).write_bytes(item.public_bytes(Encoding.PEM))

    def verdict(name: str) -> str:
        shown = ("-CAfile", tmp_path / "root", "-untrusted", tmp_path / "issuing", "-CRLfile", tmp_path / "crl")
        command = ["openssl", "verify", "-crl_check", "-x509_strict", *shown, tmp_path / name]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    assert "certificate revoked" in verdict("revoked")
    assert verdict("good") == ""


@pytest.mark.parametrize("start", ["direct"], indirect=True)
async def test_vault_signs_no_revocation_list_of_ours(start: Open, clock: Clock) -> None:
    authority = await start()
    with pytest.raises(AuthorityError, match="/v1/pki/crl"):
        await authority.sign_crl({7: clock()}, 3, clock())
