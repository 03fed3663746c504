"""What the control plane shows for itself when it starts while whoever signs is away: what was kept, if it is good."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from meshwarden.certs.authority.kept import KeptFiles
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.slot import SlotState
from meshwarden.certs.svid import X509Svid
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.jwt_key import KEYS, JwtKeyRecord
from meshwarden.controlplane.identity.operator import OperatorCredential
from meshwarden.controlplane.identity.serving import KEPT, ServingIdentity
from meshwarden.controlplane.secrets.port import SecretAway


class Away(MemoryAuthority):
    """Has its roots, and signs nothing while `why` is set."""

    why: AuthorityError | None = None

    async def sign(self, *args: Any, **more: Any) -> Any:
        if self.why is not None:
            raise self.why
        return await super().sign(*args, **more)


GONE = AuthorityUnavailable("https://vault:1: Vault is sealed; unseal it")


@pytest.fixture
def authority(world: Any) -> Away:
    return Away("a.test", world.clock)


@pytest.fixture
def serving(world: Any, authority: Away) -> Callable[..., ServingIdentity]:
    def make(region: str = "eu", domain: str = "a.test") -> ServingIdentity:
        more: dict[str, Any] = {"audit": world.audit, "clock": world.clock, "rng": random.Random(1)}
        return ServingIdentity(authority, domain, region, kept=KeptFiles(world.directory / "kept", domain), **more)

    return make


async def test_what_was_kept_serves_until_there_is_another(
    world: Any, authority: Away, serving: Callable[..., ServingIdentity]
) -> None:
    first = serving()
    await first.start()
    svid = first.svid()
    assert svid is not None
    authority.why = GONE
    world.pass_time(50 * 60)
    again = serving()
    await again.start()
    found = again.svid()
    assert found is not None
    assert (found.serial, found.key.public_key()) == (svid.serial, svid.key.public_key())
    assert again.context() is not None
    assert again.bundles() == {"a.test": await authority.bundle()}
    # It is renewed as soon as that can be, however much of its life is left.
    assert again._due <= world.now
    authority.why = None
    await again.issue()
    renewed = again.svid()
    assert renewed is not None
    assert renewed.serial != found.serial
    authority.why = GONE
    third = serving()
    await third.start()
    last = third.svid()
    assert last is not None
    assert last.serial == renewed.serial


async def refused(one: ServingIdentity) -> str:
    with pytest.raises(AuthorityUnavailable) as caught:
        await one.start()
    said = str(caught.value)
    assert said.startswith(str(GONE))
    assert "Start Vault, or unseal it" in said
    assert one.svid() is None
    return said


async def test_what_has_ended_or_was_not_kept_serves_nobody(
    world: Any, authority: Away, serving: Callable[..., ServingIdentity]
) -> None:
    authority.why = GONE
    assert "none was kept by an earlier run" in await refused(serving())
    authority.why = None
    one = serving()
    await one.start()
    svid = one.svid()
    assert svid is not None
    authority.why = GONE
    world.now = svid.not_after
    assert f"the one that was kept has ended, {svid.not_after.isoformat()}" in await refused(serving())
    # Whoever refuses is believed, whatever was kept.
    world.now = svid.not_before + timedelta(minutes=5)
    authority.why = AuthorityError("the role is of no use")
    with pytest.raises(AuthorityError, match="of no use"):
        await serving().start()
    # Without a place to keep it there is none.
    authority.why = GONE
    bare = ServingIdentity(authority, "a.test", "eu", audit=world.audit, clock=world.clock, rng=random.Random(1))
    assert "none was kept" in await refused(bare)


async def test_what_is_anothers_serves_nobody(
    world: Any, authority: Away, serving: Callable[..., ServingIdentity]
) -> None:
    one = serving()
    await one.start()
    authority.why = GONE
    said = await refused(serving(region="us"))
    assert "is spiffe://a.test/region/eu/controlplane's, this is spiffe://a.test/region/us/controlplane" in said
    assert "another trust domain's" in await refused(serving(domain="b.test"))
    path = world.directory / "kept" / KEPT
    content = path.read_bytes()
    for other in (b"", content[:-1], content[:50] + bytes([content[50] ^ 1]) + content[51:]):
        path.write_bytes(other)
        await refused(serving())
    files = KeptFiles(world.directory / "kept", "a.test")
    for body in (b"", b"{}", b"[]", b"[" * 100_000, b'{"chain": ["AAAA"], "key": "AAAA"}', b'{"chain": [], "key": ""}'):
        files.write(KEPT, body)
        assert "can't be read" in await refused(serving())


async def test_what_leads_to_no_root_or_a_tainted_one_serves_nobody(
    world: Any, authority: Away, serving: Callable[..., ServingIdentity]
) -> None:
    one = serving()
    await one.start()
    old = next(root for root in await authority.roots() if root.state is SlotState.ACTIVE)
    new = next(root for root in await authority.prepare(world.now) if root.state is SlotState.PREPARED)
    await authority.activate(new.fingerprint)
    authority.why = GONE
    good = serving()
    await good.start()
    assert good.svid() is not None
    await authority.taint(old.fingerprint)
    assert "leads to a root that is tainted" in await refused(serving())
    await authority.revoke(old.fingerprint)
    await refused(serving())


async def test_a_disk_that_keeps_nothing_ends_nothing(serving: Callable[..., ServingIdentity], world: Any) -> None:
    (world.directory / "kept" / KEPT).mkdir(parents=True)
    one = serving()
    await one.start()
    assert one.svid() is not None


async def test_an_operators_certificate_stays_as_it_is(world: Any, authority: Away) -> None:
    place = world.directory / "operator"

    def credential(name: str = "ann") -> OperatorCredential:
        more: dict[str, Any] = {"audit": world.audit, "clock": world.clock, "rng": random.Random(1)}
        return OperatorCredential(authority, "a.test", name, place, **more)

    def published() -> tuple[bytes, bytes]:
        return (place / "tls.crt").read_bytes(), (place / "tls.key").read_bytes()

    authority.why = GONE
    await credential().start()
    assert not place.exists()
    authority.why = None
    await credential().start()
    before = published()
    authority.why = GONE
    again = credential()
    await again.start()
    assert again._svid is not None
    assert again._svid.serial == X509Svid.load(*before).serial
    assert again._due <= world.now
    assert published() == before
    # Another's, and one that has ended, is nothing to go on with; the control plane starts all the same.
    for other in (credential("bob"), credential()):
        await other.start()
        assert other._svid is None
        world.now = X509Svid.load(*before).not_after


async def test_a_jwt_key_that_was_made_without_the_passphrase_is_sealed_when_that_is_there(world: Any) -> None:
    why: list[str] = ["vault:kv/mesh#jwt: Vault is sealed"]

    async def read() -> SecretStr:
        if why:
            raise SecretAway(why[0])
        return SecretStr("correct horse battery staple")

    def authority() -> JwtAuthority:
        return JwtAuthority(world.store, world.audit, world.clock, trust_domain="a.test", passphrase=read)

    async def records() -> list[JwtKeyRecord]:
        return [JwtKeyRecord.decode(one.key, one.value) for one in (await world.store.range(KEYS)).records]

    jwt = authority()
    await jwt.open()
    assert jwt.fault == f"jwt_passphrase: keys of JWT-SVIDs are in memory alone until it can be read: {why[0]}"
    (made,) = await records()
    assert made.sealed == ""
    await jwt.tend()
    assert jwt.fault != ""
    why.clear()
    await jwt.tend()
    assert jwt.fault == ""
    (sealed,) = await records()
    assert (sealed.kid, bool(sealed.sealed)) == (made.kid, True)
    again = authority()
    await again.open()
    assert again.slots()[0] == sealed
    # While it is away once more, who starts has a key of its own beside that, and gets the other later.
    why.append("away")
    third = authority()
    await third.open()
    assert third.slots()[0] != sealed
    assert len(third.bundle().keys) == 2
    why.clear()
    await third.tend()
    assert all(record.sealed for record in await records())
    fourth = authority()
    await fourth.open()
    assert fourth.slots() == third.slots()
