"""The life of roots: what every authority engine that has slots keeps; one suite for memory, disk and Vault."""

import asyncio
import itertools
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import SecretStr

from meshwarden.certs.authority import disk
from meshwarden.certs.authority.disk import DiskAuthority
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.port import Authority
from meshwarden.certs.authority.slot import MAX_ROOTS, RootRefused, Roots, SlotState, fingerprint_of
from meshwarden.certs.authority.vault import VaultAuthority
from meshwarden.certs.authority.vault_direct import DirectVaultAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import PeerRefused, verify_chain

sys.path.insert(0, str(Path(__file__).parent))

from openbao_server import OpenBao, role, root, serve

MOUNTS = itertools.count()
WEB = SpiffeId.workload("a.test", "acme", "web")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Clock:
    """The real time and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return utc_now() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        yield server


Open = Callable[[], Awaitable[Authority]]


@pytest.fixture(params=["memory", "disk", "upstream", "direct"])
async def start(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Open]:
    """Opens the engine; opened again, it has the same roots: the same object where they end with the process."""
    monkeypatch.setattr(disk, "SCRYPT_N", 2**10)  # what it costs is shown elsewhere
    opened: list[Authority] = []
    mount = f"pki-{next(MOUNTS)}"

    async def start() -> Authority:
        if request.param == "memory":
            opened.append(opened[0] if opened else MemoryAuthority("a.test", clock, random.Random(1)))
        elif request.param in ("upstream", "direct"):
            bao: OpenBao = request.getfixturevalue("bao")
            if not opened:
                root(bao.admin, mount)
                role(bao.admin, mount)
                bao.policy(request.param, mount)
            words = {"trust_domain": "a.test", "clock": clock, "mount": mount}
            engine = VaultAuthority if request.param == "upstream" else DirectVaultAuthority
            opened.append(await engine.open(bao.client(bao.token(policies=(mount,))), **words))
        else:
            passphrase = SecretStr("correct horse battery")
            directory = tmp_path / "ca"
            opened.append(
                await DiskAuthority.open(
                    directory, passphrase=passphrase, trust_domain="a.test", clock=clock, create=True
                )
            )
        return opened[-1]

    yield start
    for authority in opened:
        await authority.close()


async def sign(authority: Authority, clock: Clock, ttl: timedelta = HOUR) -> tuple[x509.Certificate, ...]:
    key = new_key()
    return await authority.sign(LeafTemplate(WEB, ttl), key.public_key(), clock(), make_csr(key))


async def verify(authority: Authority, chain: tuple[x509.Certificate, ...], clock: Clock) -> None:
    ders = [certificate.public_bytes(Encoding.DER) for certificate in chain]
    verify_chain(ders, {"a.test": await authority.bundle()}, clock())


def states(roots: Roots) -> list[str]:
    return [root.state.value for root in roots]


async def test_one_root_is_active(start: Open) -> None:
    authority = await start()
    (root,) = await authority.roots()
    (certificate,) = (await authority.bundle()).roots
    assert root.fingerprint == fingerprint_of(certificate)
    assert root.state is SlotState.ACTIVE
    assert (root.not_before, root.not_after) == (certificate.not_valid_before_utc, certificate.not_valid_after_utc)


async def test_a_whole_rotation(start: Open, clock: Clock) -> None:
    authority = await start()
    first = await sign(authority, clock)
    before = await authority.bundle()
    roots = await authority.prepare(clock())
    assert states(roots) == ["ACTIVE", "PREPARED"]
    bundle = await authority.bundle()
    assert [fingerprint_of(root) for root in bundle.roots] == [root.fingerprint for root in roots]
    assert bundle.revision > before.revision
    # A root that is prepared signs nothing.
    assert (await sign(authority, clock))[-1].issuer == first[-1].issuer
    roots = await authority.activate(roots[1].fingerprint)
    assert states(roots) == ["OLD", "ACTIVE"]
    assert (await authority.bundle()).roots == bundle.roots
    second = await sign(authority, clock)
    assert second[-1].issuer == bundle.roots[1].subject
    assert len(second) == len(first)
    await verify(authority, first, clock)
    await verify(authority, second, clock)
    roots = await authority.taint(roots[0].fingerprint)
    assert states(roots) == ["TAINTED", "ACTIVE"]
    await verify(authority, first, clock)
    roots = await authority.revoke(roots[0].fingerprint)
    assert states(roots) == ["ACTIVE"]
    assert (await authority.bundle()).roots == bundle.roots[1:]
    await verify(authority, second, clock)
    with pytest.raises(PeerRefused):
        await verify(authority, first, clock)


async def test_it_lasts(start: Open, clock: Clock) -> None:
    authority = await start()
    prepared = (await authority.prepare(clock()))[1]
    again = await start()
    assert await again.roots() == await authority.roots()
    await again.activate(prepared.fingerprint)
    await (await start()).prepare(clock())
    last = await start()
    assert states(await last.roots()) == ["OLD", "ACTIVE", "PREPARED"]
    assert len((await last.bundle()).roots) == 3
    assert (await sign(last, clock))[-1].issuer == (await last.bundle()).roots[1].subject


async def test_another_process_follows(start: Open, clock: Clock) -> None:
    one, other = await start(), await start()
    old = await sign(other, clock)
    prepared = (await one.prepare(clock()))[1]
    await other.roots()
    assert (await other.bundle()).roots == (await one.bundle()).roots
    # Who did not look has not missed it: a change is made to what there is.
    roots = await one.activate(prepared.fingerprint)
    assert states(await other.taint(roots[0].fingerprint)) == ["TAINTED", "ACTIVE"]
    assert (await sign(other, clock))[-1].issuer != old[-1].issuer


async def test_what_would_break_the_mesh_is_refused(start: Open, clock: Clock) -> None:
    authority = await start()
    (active,) = await authority.roots()
    for forbidden in (authority.taint, authority.revoke):
        with pytest.raises(RootRefused, match="prepare another, activate that first"):
            await forbidden(active.fingerprint)
    with pytest.raises(RootRefused, match="is ACTIVE: only one that is prepared"):
        await authority.activate(active.fingerprint)
    prepared = (await authority.prepare(clock()))[1]
    with pytest.raises(RootRefused, match=f"activate {prepared.fingerprint[:16]} first"):
        await authority.revoke(active.fingerprint)
    with pytest.raises(RootRefused, match="is prepared already"):
        await authority.prepare(clock())
    await authority.activate(prepared.fingerprint)
    with pytest.raises(RootRefused, match="is OLD: only one that is prepared"):
        await authority.activate(active.fingerprint)
    assert states(await authority.roots()) == ["OLD", "ACTIVE"]


@pytest.mark.parametrize("name", ["", "abc", "zzzzzzzz", "0" * 64, "\0", "../../etc/passwd", "%" * 10_000])
async def test_what_names_no_root_is_refused(start: Open, name: str) -> None:
    authority = await start()
    before = await authority.roots()
    for change in (authority.activate, authority.taint, authority.revoke):
        with pytest.raises(RootRefused, match=r"there is none|means several") as caught:
            await change(name)
        assert len(str(caught.value)) < 500
    assert await authority.roots() == before


async def test_a_beginning_of_a_fingerprint_is_enough(start: Open, clock: Clock) -> None:
    authority = await start()
    prepared = (await authority.prepare(clock()))[1]
    assert states(await authority.activate(prepared.fingerprint[:8].upper())) == ["OLD", "ACTIVE"]


async def test_a_prepared_root_that_leaked_never_signs(start: Open, clock: Clock) -> None:
    authority = await start()
    prepared = (await authority.prepare(clock()))[1]
    assert states(await authority.taint(prepared.fingerprint)) == ["ACTIVE", "TAINTED"]
    with pytest.raises(RootRefused, match="is TAINTED"):
        await authority.activate(prepared.fingerprint)
    assert states(await authority.prepare(clock())) == ["ACTIVE", "TAINTED", "PREPARED"]


async def test_there_are_only_so_many(start: Open, clock: Clock) -> None:
    authority = await start()
    for _ in range(MAX_ROOTS - 1):
        await authority.activate((await authority.prepare(clock()))[-1].fingerprint)
    with pytest.raises(RootRefused, match="revoke one"):
        await authority.prepare(clock())


async def test_one_that_has_ended_is_not_activated(start: Open, clock: Clock) -> None:
    authority = await start()
    prepared = (await authority.prepare(clock()))[1]
    clock.ahead = prepared.not_after - utc_now()
    with pytest.raises(RootRefused, match="not valid now"):
        await authority.activate(prepared.fingerprint)


async def test_changes_at_once_follow_one_another(start: Open, clock: Clock) -> None:
    one, other = await start(), await start()
    done = await asyncio.gather(*(a.prepare(clock()) for a in (one, other) * 4), return_exceptions=True)
    assert sum(isinstance(outcome, tuple) for outcome in done) == 1
    assert all(isinstance(outcome, tuple | RootRefused) for outcome in done)
    assert states(await one.roots()) == states(await other.roots()) == ["ACTIVE", "PREPARED"]


async def test_leaves_signed_meanwhile_lead_to_the_bundle(start: Open, clock: Clock) -> None:
    authority = await start()
    prepared = (await authority.prepare(clock()))[1]

    async def many() -> list[tuple[x509.Certificate, ...]]:
        return [await sign(authority, clock) for _ in range(10)]

    *batches, _ = await asyncio.gather(many(), many(), authority.activate(prepared.fingerprint))
    for chain in (chain for batch in batches for chain in batch):
        await verify(authority, chain, clock)
    assert (await sign(authority, clock))[-1].issuer == (await authority.bundle()).roots[1].subject
