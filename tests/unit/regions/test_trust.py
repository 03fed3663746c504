"""What other regions' certificates lead to: who is believed, what holds while one is away, and what all is trusted."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.slot import MAX_ROOTS, SlotState, fingerprint_of
from meshwarden.certs.csr import spki
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import PeerRefused, verify_chain
from meshwarden.controlplane.regions.authority import RegionalAuthority
from meshwarden.controlplane.regions.trust import (
    MAX_KEYS_OF_OTHERS,
    MAX_ROOTS_OF_OTHERS,
    MAX_TRUSTED,
    PREFIX,
    SILENT,
    RegionTrust,
    Untrue,
)
from meshwarden.controlplane.store.port import ANY, Put, Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1.admin_service_pb2 import RootState
from meshwarden.v1.node_service_pb2 import JwtKey
from meshwarden.v1.region_service_pb2 import GetTrustResponse, RegionRoot

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WEB = SpiffeId.workload("a.test", "acme", "web")


class World:
    """A region, eu, with another one, us."""

    def __init__(self, store: Store) -> None:
        self.store, self.now = store, NOW
        self.ours, self.theirs = MemoryAuthority("a.test", self.clock), MemoryAuthority("a.test", self.clock)

    def clock(self) -> datetime:
        return self.now

    async def open(self, *regions: str) -> None:
        self.roots = await RegionTrust.open(self.store, regions, self.clock)
        self.authority = RegionalAuthority(self.ours, self.roots)

    async def said(self, *trusted: str) -> GetTrustResponse:
        """What us says of itself."""
        answer = GetTrustResponse(trusted=trusted)
        states = {state.fingerprint: state.state for state in await self.theirs.roots()}
        for root in (await self.theirs.bundle()).roots:
            answer.roots.append(told(root, states[fingerprint_of(root)]))
        return answer

    async def leaf(self, authority: Any) -> list[bytes]:
        chain = await authority.sign(LeafTemplate(WEB, timedelta(hours=1)), new_key().public_key(), self.now)
        return [certificate.public_bytes(Encoding.DER) for certificate in chain]

    async def believes(self, authority: Any) -> bool:
        try:
            verify_chain(await self.leaf(authority), {"a.test": await self.authority.bundle()}, self.now)
        except PeerRefused:
            return False
        return True

    async def listed(self) -> list[tuple[str, str]]:
        return [(root.region, root.state.value) for root in await self.authority.roots()]


def told(root: x509.Certificate, state: SlotState = SlotState.ACTIVE) -> RegionRoot:
    made = RegionRoot(certificate=root.public_bytes(Encoding.DER), state=RootState.State.Value(state.value))
    made.since.FromDatetime(NOW)
    return made


def jwt_key(kid: str, tainted: bool = False) -> JwtKey:
    return JwtKey(kid=kid, public_key=spki(new_key().public_key()), tainted=tainted)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_store(tmp_path / "store.sqlite") as store:
        made = World(store)
        await made.open("us")
        yield made


async def test_browsers_are_given_the_root_of_this_region(world: World) -> None:
    await world.open("eu", "us")
    found = await world.authority.browser_root(["localhost"])
    assert found is not None
    assert found is await world.ours.browser_root(["localhost"])


async def test_what_a_region_tells_is_trusted_and_stays_so_over_a_restart(world: World) -> None:
    assert not await world.believes(world.theirs)
    await world.roots.hear("us", await world.said())
    assert await world.believes(world.theirs)
    assert await world.believes(world.ours)
    assert await world.listed() == [("", "ACTIVE"), ("us", "ACTIVE")]
    await world.open("us")
    assert await world.believes(world.theirs)
    assert world.roots.missing("ab" * 32) == {"region us": "does not say whether its nodes trust it"}


async def test_keys_of_tokens_are_told_and_stay_over_a_restart(world: World) -> None:
    heard: list[list[str]] = []
    world.roots.listen(lambda: heard.append([key.kid for key in world.roots.keys]))
    answer = await world.said()
    answer.jwt_keys.extend([jwt_key("a"), jwt_key("b", tainted=True)])
    await world.roots.hear("us", answer)
    await world.roots.hear("us", answer)
    assert heard == [["a", "b"]]
    before = world.roots.keys
    await world.open("us")
    assert [(key.kid, spki(key.key), key.tainted) for key in world.roots.keys] == [
        (key.kid, spki(key.key), key.tainted) for key in before
    ]
    assert [key.tainted for key in world.roots.keys] == [False, True]
    del answer.jwt_keys[0]
    await world.roots.hear("us", answer)
    assert [key.kid for key in world.roots.keys] == ["b"]


async def test_a_region_that_is_one_no_more_is_forgotten(world: World) -> None:
    await world.roots.hear("us", await world.said())
    await world.open()
    assert not await world.believes(world.theirs)
    await world.open("us")
    assert not await world.believes(world.theirs)


async def test_the_bundle_is_the_same_object_until_a_root_changes(world: World) -> None:
    await world.roots.hear("us", await world.said())
    bundle = await world.authority.bundle()
    await world.roots.hear("us", await world.said("ab" * 32))
    assert await world.authority.bundle() is bundle
    await world.theirs.prepare(world.now)
    await world.roots.hear("us", await world.said())
    wider = await world.authority.bundle()
    assert len(wider.roots) == 3
    await world.ours.prepare(world.now)
    widest = await world.authority.bundle()
    assert len(widest.roots) == 4
    assert bundle.revision < wider.revision < widest.revision


async def test_a_copy_of_our_root_is_ours_and_trusted_as_long_as_one_has_it(world: World) -> None:
    world.theirs = world.ours
    await world.roots.hear("us", await world.said())
    assert await world.listed() == [("", "ACTIVE")]
    assert len((await world.authority.bundle()).roots) == 1
    before = await world.leaf(world.ours)
    (old,) = await world.ours.roots()
    await world.authority.prepare(world.now)
    new = (await world.ours.roots())[-1].fingerprint
    await world.authority.activate(new)
    assert [state for _, state in await world.listed()] == ["OLD", "ACTIVE"]
    await world.authority.revoke(old.fingerprint)
    assert await world.listed() == [("", "ACTIVE"), ("us", "ACTIVE")]
    verify_chain(before, {"a.test": await world.authority.bundle()}, world.now)
    await world.roots.hear("us", await world.said())
    with pytest.raises(PeerRefused, match="no valid path"):
        verify_chain(before, {"a.test": await world.authority.bundle()}, world.now)


async def test_that_a_root_we_sign_by_has_leaked_elsewhere_is_a_fault(world: World) -> None:
    (root,) = (await world.ours.bundle()).roots
    await world.roots.hear("us", GetTrustResponse(roots=[told(root)]))
    await world.authority.roots()
    assert world.authority.fault == ""
    await world.roots.hear("us", GetTrustResponse(roots=[told(root, SlotState.TAINTED)]))
    assert "region us has tainted root" in world.authority.fault
    assert "ACTIVE here" in world.authority.fault


async def test_a_region_is_missing_until_it_says_so_and_when_it_falls_silent(world: World) -> None:
    new = "cd" * 32
    assert "does not say" in world.roots.missing(new)["region us"]
    await world.roots.hear("us", await world.said())
    assert "not all acknowledged" in world.roots.missing(new)["region us"]
    await world.roots.hear("us", await world.said(new))
    assert world.roots.missing(new) == {}
    world.now += SILENT + timedelta(seconds=1)
    assert "does not say" in world.roots.missing(new)["region us"]


async def test_a_region_is_missing_until_its_nodes_know_a_jwt_key(world: World) -> None:
    assert "does not say" in world.roots.missing_jwt("k")["region us"]
    answer = await world.said("k")  # a root of that name says nothing of keys
    await world.roots.hear("us", answer)
    assert "not all acknowledged" in world.roots.missing_jwt("k")["region us"]
    answer.jwt_trusted.extend(["j", "k"])
    await world.roots.hear("us", answer)
    assert world.roots.missing_jwt("k") == {}
    assert "not all acknowledged" in world.roots.missing("j")["region us"]
    world.now += SILENT + timedelta(seconds=1)
    assert "does not say" in world.roots.missing_jwt("k")["region us"]
    await world.open()
    assert world.roots.missing_jwt("k") == {}


async def hostile(world: World) -> list[GetTrustResponse]:
    (root,) = (await world.theirs.bundle()).roots
    leaf, issuing = await world.leaf(world.theirs)
    sound = told(root)
    many = [MemoryAuthority("a.test", world.clock) for _ in range(MAX_ROOTS + 1)]
    timeless = told(root)
    timeless.since.seconds = 2**62
    return [
        GetTrustResponse(),
        GetTrustResponse(roots=[told((await one.bundle()).roots[0]) for one in many]),
        GetTrustResponse(roots=[sound], trusted=["x"] * (MAX_TRUSTED + 1)),
        GetTrustResponse(roots=[sound], jwt_trusted=["x"] * (MAX_TRUSTED + 1)),
        GetTrustResponse(roots=[RegionRoot(certificate=b"", state=RootState.ACTIVE)]),
        GetTrustResponse(roots=[RegionRoot(certificate=b"\x30\x82" + b"\xff" * 64, state=RootState.ACTIVE)]),
        GetTrustResponse(roots=[RegionRoot(certificate=sound.certificate + bytes(20_000), state=RootState.ACTIVE)]),
        GetTrustResponse(roots=[RegionRoot(certificate=sound.certificate)]),
        GetTrustResponse(roots=[RegionRoot(certificate=sound.certificate, state=77)]),  # type: ignore[arg-type]
        GetTrustResponse(roots=[RegionRoot(certificate=leaf, state=RootState.ACTIVE)]),
        GetTrustResponse(roots=[RegionRoot(certificate=issuing, state=RootState.ACTIVE)]),
        GetTrustResponse(roots=[sound, timeless]),
        GetTrustResponse(roots=[sound], jwt_keys=[JwtKey(kid="", public_key=spki(new_key().public_key()))]),
        GetTrustResponse(roots=[sound], jwt_keys=[JwtKey(kid="k", public_key=b"\x30\x00")]),
        GetTrustResponse(roots=[sound], jwt_keys=[jwt_key("k"), jwt_key("k")]),
        GetTrustResponse(roots=[sound], jwt_keys=[jwt_key(str(number)) for number in range(MAX_KEYS_OF_OTHERS + 1)]),
    ]


async def test_what_no_control_plane_would_say_changes_nothing(world: World) -> None:
    await world.roots.hear("us", await world.said())
    before, revision = await world.authority.bundle(), (await world.store.range(PREFIX)).records[0].revision
    for answer in await hostile(world):
        with pytest.raises(Untrue):
            await world.roots.hear("us", answer)
        assert await world.authority.bundle() is before
    assert (await world.store.range(PREFIX)).records[0].revision == revision


async def test_regions_together_tell_no_more_than_nodes_can_read(world: World) -> None:
    regions = [f"r{number}" for number in range(MAX_ROOTS_OF_OTHERS // MAX_ROOTS + 1)]
    await world.open(*regions)
    authorities = [MemoryAuthority("a.test", world.clock) for _ in range(MAX_ROOTS)]
    answer = GetTrustResponse(roots=[told((await one.bundle()).roots[0]) for one in authorities])
    for region in regions[:-1]:
        await world.roots.hear(region, answer)
    with pytest.raises(Untrue, match="too many for nodes"):
        await world.roots.hear(regions[-1], answer)


@pytest.mark.parametrize("value", [b"", b"[]", b'{"roots":[{}]}', b'{"roots":[{"certificate":"AAAA","state":"X"}]}'])
async def test_what_is_unreadable_in_the_store_is_asked_for_again(world: World, value: bytes) -> None:
    await world.store.commit([Put(PREFIX + "us", value, ANY)])
    await world.open("us")
    assert await world.listed() == [("", "ACTIVE")]
    await world.roots.hear("us", await world.said())
    assert await world.believes(world.theirs)
