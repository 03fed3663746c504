"""An authority in a real OpenBao that is opened while that is away: by what was kept of it, and by nothing else."""

import asyncio
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import OpenBao, serve

from meshwarden.certs.authority import kept as module
from meshwarden.certs.authority import vault_client
from meshwarden.certs.authority.kept import KeptFiles
from meshwarden.certs.authority.port import AuthorityUnavailable
from meshwarden.certs.authority.vault import VaultAuthority
from meshwarden.certs.authority.vault_client import VaultClient, VaultDenied
from meshwarden.certs.authority.vault_direct import DirectVaultAuthority
from meshwarden.certs.authority.vault_login import token_login
from meshwarden.certs.authority.vault_memory import VaultMemory
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import verify_chain

WEB = LeafTemplate(SpiffeId.workload("a.test", "acme", "web"), timedelta(hours=1))
FORMS = {"upstream": VaultAuthority, "direct": DirectVaultAuthority}
BOTH = pytest.mark.parametrize("form", FORMS)
PASSPHRASE = "correct horse battery"
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCRYPT_N", 2**10)


class World:
    """A state directory, and a clock that tests move."""

    def __init__(self, bao: OpenBao, directory: Path, form: str, passphrase: str | None = None) -> None:
        self.bao, self.directory, self.form, self.passphrase = bao, directory, form, passphrase
        self.domain, self.ahead = "a.test", timedelta(0)
        self.token = bao.token(policies=(form,))

    def clock(self) -> Any:
        return utc_now() + self.ahead

    async def open(self, address: str = "") -> Any:
        """Opens the authority, as a control plane does when it starts."""
        secret = SecretStr(self.passphrase) if self.passphrase is not None else None
        memory = VaultMemory(KeptFiles(self.directory / "kept", self.domain, secret), "pki")
        client = VaultClient(address or self.bao.address, token_login(self.token), retry_s=0.1)
        more: dict[str, Any] = {} if self.form == "direct" else {"rng": random.Random(1)}
        return await FORMS[self.form].open(client, trust_domain=self.domain, clock=self.clock, memory=memory, **more)

    async def sign(self, authority: Any) -> tuple[x509.Certificate, ...]:
        key = new_key()
        chain: tuple[x509.Certificate, ...] = await authority.sign(WEB, key.public_key(), self.clock(), make_csr(key))
        ders = [certificate.public_bytes(Encoding.DER) for certificate in chain]
        verify_chain(ders, {"a.test": await authority.bundle()}, self.clock())
        return chain

    async def recovered(self, authority: Any) -> None:
        """Lets time pass until the engine is asked again, which it is by itself."""
        async with asyncio.timeout(DEADLINE_S):
            while authority.fault:
                self.ahead += timedelta(seconds=4)
                await authority.roots()
                await authority._client.tend()
                await asyncio.sleep(0.01)


@contextmanager
def sealed(bao: OpenBao) -> Iterator[None]:
    bao.seal()
    try:
        yield
    finally:
        bao.unseal()


async def closed(authority: Any) -> None:
    await authority.close()


@BOTH
async def test_it_starts_with_the_roots_that_there_were_and_recovers(bao: OpenBao, tmp_path: Path, form: str) -> None:
    world = World(bao, tmp_path, form)
    authority = await world.open()
    roots, bundle = await authority.roots(), await authority.bundle()
    await authority.close()
    with sealed(bao):
        again = await world.open()
        assert await again.roots() == roots
        assert (await again.bundle()).roots == bundle.roots
        assert again.fault.startswith("started without Vault, which is asked every few seconds; signing waits for it (")
        assert "Vault is sealed" in again.fault
        with pytest.raises(AuthorityUnavailable, match="sealed") as caught:
            await world.sign(again)
        assert caught.value.wait_s > 0
        for change in (again.prepare(utc_now()), again.taint(roots[0].fingerprint[:16])):
            with pytest.raises(AuthorityUnavailable, match="sealed"):
                await change
        same = await again.bundle()
    await world.recovered(again)
    assert await again.bundle() is same
    await world.sign(again)
    await again.close()
    # Gone altogether: nothing listens there.
    gone = await world.open("http://127.0.0.1:9")
    assert (await gone.bundle()).roots == bundle.roots
    assert "127.0.0.1:9" in gone.fault
    await gone.close()


async def test_with_a_passphrase_the_issuing_key_signs_meanwhile(bao: OpenBao, tmp_path: Path) -> None:
    world = World(bao, tmp_path, "upstream", PASSPHRASE)
    authority = await world.open()
    issuing = (await world.sign(authority))[1]
    await authority.close()
    for number in (issuing.serial_number.to_bytes(20, "big"), PASSPHRASE.encode()):
        assert all(number not in path.read_bytes() for path in (tmp_path / "kept").iterdir())
    with sealed(bao):
        again = await world.open()
        assert (await world.sign(again))[1] == issuing
        until = issuing.not_valid_after_utc.isoformat()
        assert f"the issuing key that was kept signs until {until}" in again.fault
        await again.close()
        # Not beyond its end.
        world.ahead = timedelta(days=8)
        late = await world.open()
        with pytest.raises(AuthorityUnavailable):
            await world.sign(late)
        assert "signing waits for it" in late.fault
        await late.close()
        world.ahead = timedelta(0)
        # Nor under another passphrase, or none.
        for passphrase in ("another passphrase", None):
            world.passphrase = passphrase
            with pytest.raises(AuthorityUnavailable, match="lies under another passphrase"):
                await world.open()
        world.passphrase = PASSPHRASE
        again = await world.open()
    await world.recovered(again)
    # A key that has lain on a disk signs no longer than it has to.
    await again._refresh()
    assert (await world.sign(again))[1] != issuing
    await again.close()
    # The other form has no key of ours, and leaves none.
    world.form, world.token = "direct", bao.token(policies=("direct",))
    await closed(await world.open())
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["key", "roots", "salt"]


@BOTH
async def test_a_root_that_came_to_sign_meanwhile_is_followed(bao: OpenBao, tmp_path: Path, form: str) -> None:
    world, other = World(bao, tmp_path / "a", form, PASSPHRASE), World(bao, tmp_path / "b", form)
    await closed(await world.open())
    bao.seal()
    try:
        authority = await world.open()
    finally:
        bao.unseal()
    before = (await authority.bundle()).roots
    # Somebody else rotates, and we hear of it when we ask again.
    elsewhere = await other.open()
    old = next(root for root in await elsewhere.roots() if root.state == "ACTIVE")
    new = next(root for root in await elsewhere.prepare(utc_now()) if root.state == "PREPARED")
    await elsewhere.activate(new.fingerprint)
    await elsewhere.taint(old.fingerprint)
    await world.recovered(authority)
    states = {root.fingerprint: root.state for root in await authority.roots()}
    assert (states[old.fingerprint], states[new.fingerprint]) == ("TAINTED", "ACTIVE")
    assert (await authority.bundle()).roots != before
    assert (await authority.bundle()).issuer_of((await world.sign(authority))[-1]) != before[-1]
    await authority.close()
    # It is this that is kept now.
    with sealed(bao):
        again = await world.open()
        assert {root.fingerprint: root.state for root in await again.roots()} == states
        await again.close()
    await elsewhere.revoke(old.fingerprint)
    await elsewhere.close()


@BOTH
async def test_whoever_refuses_us_is_there_and_is_believed(bao: OpenBao, tmp_path: Path, form: str) -> None:
    world = World(bao, tmp_path, form, PASSPHRASE)
    await closed(await world.open())
    good, world.token = world.token, SecretStr("hunter2")
    with pytest.raises(VaultDenied, match="unknown to Vault, or has ended") as caught:
        await world.open()
    assert "hunter2" not in str(caught.value)
    # While it is away nobody knows that the token is wrong; afterwards it is said.
    with sealed(bao):
        authority = await world.open()
    async with asyncio.timeout(DEADLINE_S):
        while "unknown to Vault, or has ended" not in authority.fault:
            world.ahead += timedelta(seconds=4)
            await authority.roots()  # which anybody may ask for
            await authority._client.tend()
            await asyncio.sleep(0.01)
    assert "started without" not in authority.fault
    authority._client._login = token_login(good)
    await world.recovered(authority)
    await world.sign(authority)
    await authority.close()


@BOTH
async def test_nothing_that_was_kept_is_nothing_to_start_with(bao: OpenBao, tmp_path: Path, form: str) -> None:
    world = World(bao, tmp_path, form)
    with (
        sealed(bao),
        pytest.raises(AuthorityUnavailable, match=r"nothing was kept of its roots\. Start Vault, or unseal"),
    ):
        await world.open()
    await closed(await world.open())
    path = tmp_path / "kept" / "roots"
    content = path.read_bytes()
    with sealed(bao):
        for other in (b"", content[:-1], content[:40] + bytes([content[40] ^ 1]) + content[41:]):
            path.write_bytes(other)
            with pytest.raises(AuthorityUnavailable, match="kept/roots: "):
                await world.open()
        path.write_bytes(content)
        # Another trust domain's, in the same place.
        world.domain = "b.test"
        with pytest.raises(AuthorityUnavailable, match="another trust domain's"):
            await world.open()
    # Vault's word mends it.
    world.domain = "a.test"
    path.write_bytes(b"")
    await closed(await world.open())
    with sealed(bao):
        await closed(await world.open())


async def test_a_root_that_is_put_in_is_trusted_by_nobody(bao: OpenBao, tmp_path: Path) -> None:
    """Whoever may write the directory, and doesn't know the passphrase, has nobody trust a root of his own."""
    world, evil = World(bao, tmp_path / "a", "upstream", PASSPHRASE), World(bao, tmp_path / "b", "upstream")
    await closed(await world.open())
    await closed(await evil.open())
    evil.passphrase = "of somebody else's"
    await closed(await evil.open())
    with sealed(bao):
        for name in ("roots", "issuing"):
            (tmp_path / "a" / "kept" / name).write_bytes((tmp_path / "b" / "kept" / name).read_bytes())
        with pytest.raises(AuthorityUnavailable, match="was changed"):
            await world.open()
        (tmp_path / "a" / "kept" / "salt").write_bytes((tmp_path / "b" / "kept" / "salt").read_bytes())
        with pytest.raises(AuthorityUnavailable, match="was changed"):
            await world.open()


async def test_a_disk_that_keeps_nothing_is_said_so(bao: OpenBao, tmp_path: Path) -> None:
    world = World(bao, tmp_path, "upstream")
    directory = tmp_path / "kept"
    directory.mkdir()
    (directory / "roots").mkdir()
    authority = await world.open()
    assert "a start without Vault would not know these roots, they can't be kept: " in authority.fault
    (directory / "roots").rmdir()
    await world.recovered(authority)
    with sealed(bao):
        again = await world.open()
    await again.close()
    await authority.close()


async def test_what_has_failed_is_told_until_vault_signs_again(
    bao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may ask for a certificate for half an hour, and it is over long before."""
    monkeypatch.setattr(vault_client, "LOOK_AGAIN", timedelta(seconds=0.05))
    world = World(bao, tmp_path, "direct")
    authority = await world.open()
    with sealed(bao), pytest.raises(AuthorityUnavailable):
        await world.sign(authority)
    assert "sealed" in authority.fault
    task = asyncio.ensure_future(authority.run())
    async with asyncio.timeout(DEADLINE_S):
        while authority.fault:  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await authority.close()
