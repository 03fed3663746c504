"""The life of roots, driven: what is due when, whom it waits for, and who is told."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs.authority import slot
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.slot import RootRefused, Roots, RootState, SlotState
from meshwarden.certs.issue import MAX_LEAF_TTL, LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import verify_chain
from meshwarden.controlplane.identity import rotation
from meshwarden.controlplane.identity.operator import OperatorCredential
from meshwarden.controlplane.identity.rotation import Act, NodeTrust, RootRotation, plan
from meshwarden.controlplane.identity.serving import ServingIdentity

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
LIFE = 180 * DAY
OPERATOR = "spiffe://a.test/operator/anna"


class Mesh:
    """Nodes that trust and use what a test says, and a control plane that rotates."""

    def __init__(self, world: Any) -> None:
        self.world, self.begun = world, world.now
        world.authority = MemoryAuthority("a.test", world.clock, root_ttl=LIFE)
        self.nodes: dict[str, NodeTrust] = {}
        self.renewed: list[tuple[list[str], str]] = []
        self.told: list[list[str]] = []
        self.rotation = self.control_plane("one")

    def control_plane(self, owner: str, **more: Any) -> RootRotation:
        """One of those that share store and roots."""
        world = self.world
        made = RootRotation(
            world.authority,
            world.store,
            lambda: list(self.nodes.values()),
            lambda nodes, reason: self.renewed.append((list(nodes), reason)),
            world.audit,
            world.clock,
            owner=owner,
            **more,
        )

        async def told(roots: Roots) -> None:
            self.told.append(states(roots))

        made.listen(told)
        return made

    def node(self, name: str, *trusted: str, used: tuple[str, ...] = (), away: timedelta | None = None) -> None:
        seen = self.world.now if away is None else self.world.now - away
        self.nodes[name] = NodeTrust(name, away is None, seen, frozenset(trusted), frozenset(used))

    def at(self, part: float, and_more: timedelta = timedelta(0)) -> None:
        """Moves the clock to a part of the first root's life."""
        self.world.now = self.begun + LIFE * part + and_more

    async def look(self) -> list[str]:
        await self.rotation.look()
        return states(self.rotation.known)

    def fingerprint(self, state: str) -> str:
        return next(root.fingerprint for root in self.rotation.known if root.state == state)


def states(roots: Roots) -> list[str]:
    return [root.state.value for root in roots]


@pytest.fixture
async def mesh(world: Any) -> Mesh:
    return Mesh(world)


async def test_a_root_lives_as_it_should(mesh: Mesh) -> None:
    assert await mesh.look() == ["ACTIVE"]
    mesh.at(0.49)
    assert await mesh.look() == ["ACTIVE"]
    mesh.at(0.501)
    assert await mesh.look() == ["ACTIVE", "PREPARED"]
    mesh.node("n1", *(root.fingerprint for root in mesh.rotation.known))
    mesh.at(0.82)
    assert await mesh.look() == ["ACTIVE", "PREPARED"]
    mesh.at(0.834)
    assert await mesh.look() == ["OLD", "ACTIVE"]
    mesh.at(0.834, MAX_LEAF_TTL - MINUTE)
    assert await mesh.look() == ["OLD", "ACTIVE"]
    mesh.at(0.834, MAX_LEAF_TTL)
    assert await mesh.look() == ["ACTIVE"]
    assert mesh.told == [["ACTIVE"], ["ACTIVE", "PREPARED"], ["OLD", "ACTIVE"], ["ACTIVE"]]
    events = [*(await mesh.world.events("root.activate")), *(await mesh.world.events("root.revoke"))]
    assert [event["by"] for event in events] == ["rotation"] * 2
    assert not events[0]["forced"]


async def test_nobody_is_cut_off_by_the_clock(mesh: Mesh) -> None:
    mesh.at(0.6)
    await mesh.look()
    new, old = mesh.fingerprint("PREPARED"), mesh.fingerprint("ACTIVE")
    mesh.at(0.9)
    mesh.node("slow", old)
    assert await mesh.look() == ["ACTIVE", "PREPARED"]
    mesh.node("slow", old, away=MINUTE)
    assert await mesh.look() == ["ACTIVE", "PREPARED"]
    # Its certificate has ended: it has to join anew in any case.
    mesh.node("slow", old, away=2 * HOUR)
    assert await mesh.look() == ["OLD", "ACTIVE"]
    assert mesh.fingerprint("ACTIVE") == new


async def test_at_the_last_moment_the_mesh_goes_before_who_lags(mesh: Mesh) -> None:
    mesh.at(0.6)
    await mesh.look()
    mesh.node("stuck")
    mesh.at(1.0, -2 * MAX_LEAF_TTL - 2 * MINUTE)
    assert await mesh.look() == ["ACTIVE", "PREPARED"]
    mesh.at(1.0, -2 * MAX_LEAF_TTL)
    assert await mesh.look() == ["OLD", "ACTIVE"]
    (event,) = await mesh.world.events("root.activate")
    assert event["forced"]


async def test_who_holds_the_lease_does_what_is_due_and_the_others_follow(mesh: Mesh) -> None:
    other = mesh.control_plane("other")
    lease = await mesh.world.store.acquire(rotation.LEASE, "somebody", 60.0)
    mesh.at(0.6)
    assert await mesh.look() == ["ACTIVE"]
    await mesh.world.store.renew(lease, release=True)
    await other.look()
    assert await mesh.look() == ["ACTIVE", "PREPARED"]
    assert len(await mesh.world.events("root.prepare")) == 1
    # It is given back as soon as that is done.
    assert (await mesh.world.store.acquire(rotation.LEASE, "third", 60.0)).owner == "third"


async def test_a_control_plane_that_starts_again_goes_on(mesh: Mesh) -> None:
    mesh.at(0.6)
    await mesh.look()
    mesh.nodes["n1"] = NodeTrust("n1", False, None, None, frozenset())
    mesh.at(0.84)
    again = mesh.control_plane("one")
    await again.look()
    # It has not heard of the node yet, which may come back any moment.
    assert states(again.known) == ["ACTIVE", "PREPARED"]
    mesh.at(0.84, 2 * HOUR)
    await again.look()
    assert states(again.known) == ["OLD", "ACTIVE"]


async def test_a_jwt_key_waits_for_nodes_that_say_which_they_know(mesh: Mesh) -> None:
    said = (("n1", None, {"k1"}), ("n2", None, {"k1", "k2"}), ("old", None, ()), ("n3", HOUR * 2, {"k1"}))
    for name, seen, keys in said:
        mesh.node(name, away=seen)
        mesh.nodes[name] = replace(mesh.nodes[name], jwt_keys=frozenset(keys))
    assert mesh.rotation.missing_jwt("k2") == {"n1": "has not acknowledged it yet"}
    mesh.node("n3", away=MINUTE)
    mesh.nodes["n3"] = replace(mesh.nodes["n3"], jwt_keys=frozenset({"k1"}))
    assert mesh.rotation.missing_jwt("k2").keys() == {"n1", "n3"}
    assert not mesh.rotation.missing_jwt("k1")


async def test_an_operator_is_told_who_lags(mesh: Mesh) -> None:
    await mesh.rotation.prepare(OPERATOR, "yearly")
    new = mesh.fingerprint("PREPARED")
    mesh.node("n1", new)
    mesh.node("n2")
    mesh.node("n3", away=MINUTE)
    for number in range(10):
        mesh.node(f"m{number}")
    with pytest.raises(RootRefused, match=r"n2 has not acknowledged it yet.* and 4 more; wait .*--force"):
        await mesh.rotation.activate(new, OPERATOR)
    assert mesh.rotation.missing(new)["n3"].startswith("is away")
    assert states(await mesh.rotation.activate(new[:10], OPERATOR, force=True)) == ["OLD", "ACTIVE"]
    (event,) = await mesh.world.events("root.activate")
    assert (event["by"], event["forced"], event["root"]) == (OPERATOR, True, new)


async def test_who_uses_a_tainted_root_is_told_until_it_does_not(mesh: Mesh) -> None:
    await mesh.rotation.prepare(OPERATOR)
    new, old = mesh.fingerprint("PREPARED"), mesh.fingerprint("ACTIVE")
    mesh.node("n1", new, old, used=(old,))
    mesh.node("n2", new, old, used=(new,))
    await mesh.rotation.activate(new, OPERATOR)
    assert await mesh.rotation.taint(old, OPERATOR, "a laptop was stolen") == ["n1"]
    assert mesh.renewed == [(["n1"], "the root is tainted: a laptop was stolen")]
    await mesh.look()
    assert len(mesh.renewed) == 1
    # One that comes later is told as soon as it says what it uses; one that goes on is told again after a minute.
    mesh.node("n3", new, old, used=(old,))
    await mesh.look()
    assert mesh.renewed[1][0] == ["n3"]
    mesh.world.now += MINUTE
    mesh.node("n3", new, old, used=(new,))
    await mesh.look()
    assert mesh.renewed[2][0] == ["n1"]
    mesh.node("n1", new, old, used=(new, old))
    mesh.world.now += MINUTE
    await mesh.look()
    assert mesh.renewed[3][0] == ["n1"]


async def test_trust_ends_only_when_nobody_needs_it(mesh: Mesh) -> None:
    await mesh.rotation.prepare(OPERATOR)
    new, old = mesh.fingerprint("PREPARED"), mesh.fingerprint("ACTIVE")
    mesh.node("n1", new, old, used=(old,))
    await mesh.rotation.activate(new, OPERATOR)
    with pytest.raises(RootRefused, match=r"certificates of n1 lead to it; `meshwarden ca taint"):
        await mesh.rotation.revoke(old, OPERATOR)
    await mesh.rotation.taint(old, OPERATOR)
    with pytest.raises(RootRefused, match=r"certificates of n1 lead to it; wait"):
        await mesh.rotation.revoke(old, OPERATOR)
    mesh.node("n1", new, old, used=(old,), away=23 * HOUR)
    with pytest.raises(RootRefused, match="n1"):
        await mesh.rotation.revoke(old, OPERATOR)
    mesh.node("n1", new, old, used=(new,))
    with pytest.raises(RootRefused, match="connections"):
        await mesh.rotation.revoke(old, OPERATOR)
    mesh.world.now += rotation.CONNECTION_LIFE
    assert states(await mesh.rotation.revoke(old, OPERATOR)) == ["ACTIVE"]


async def test_force_ends_it_at_once(mesh: Mesh) -> None:
    await mesh.rotation.prepare(OPERATOR)
    new, old = mesh.fingerprint("PREPARED"), mesh.fingerprint("ACTIVE")
    mesh.node("n1", new, old, used=(old,))
    await mesh.rotation.activate(new, OPERATOR)
    assert states(await mesh.rotation.revoke(old, OPERATOR, force=True)) == ["ACTIVE"]
    with pytest.raises(RootRefused, match="the one that signs"):
        await mesh.rotation.revoke(new, OPERATOR, force=True)


async def test_what_becomes_of_a_root_by_itself_is_said(mesh: Mesh) -> None:
    await mesh.rotation.prepare(OPERATOR)
    active, prepared = mesh.rotation.known
    step = mesh.rotation.next_of(prepared)
    assert step is not None
    assert (step.act, step.time) == (Act.ACTIVATE, active.not_before + LIFE * 5 / 6)
    assert mesh.rotation.next_of(active) is None
    with pytest.raises(RootRefused):
        await mesh.rotation.activate("0" * 64, OPERATOR)


@pytest.fixture
async def serving(mesh: Mesh, tmp_path: Path) -> tuple[ServingIdentity, OperatorCredential]:
    """The control plane's own certificates, which follow."""
    world = mesh.world
    more: dict[str, Any] = {"audit": world.audit, "clock": world.clock, "rng": random.Random(1)}
    own = ServingIdentity(world.authority, "a.test", "eu", **more)
    operator = OperatorCredential(world.authority, "a.test", "local", tmp_path / "operator", **more)
    await own.issue()
    await operator.issue()
    mesh.rotation.listen(own.follow)
    mesh.rotation.listen(operator.follow)
    return own, operator


async def test_the_control_plane_itself_follows(
    mesh: Mesh, serving: tuple[ServingIdentity, OperatorCredential], tmp_path: Path
) -> None:
    world, (own, _) = mesh.world, serving

    def serial() -> str:
        svid = own.svid()
        assert svid is not None
        return svid.serial

    first, first_context = serial(), own.context()
    first_pair = (tmp_path / "operator" / "tls.crt").read_bytes()
    await mesh.rotation.prepare(OPERATOR)
    new, old = mesh.fingerprint("PREPARED"), mesh.fingerprint("ACTIVE")
    # It trusts what is prepared, with the certificate that it has.
    assert serial() == first
    assert own.context() is not first_context
    assert (tmp_path / "operator" / "ca.crt").read_text().count("BEGIN") == 2
    await mesh.rotation.activate(new, OPERATOR)
    key = new_key()
    template = LeafTemplate(SpiffeId.for_node("a.test", "eu", "n1"), HOUR)
    svid = X509Svid.of(await world.authority.sign(template, key.public_key(), world.now), key)
    assert verify_chain(svid.chain_der(), own.bundles(), world.now).spiffe_id.node == "n1"
    # A node that was away and knows the old root alone can still come back.
    assert serial() == first
    await mesh.rotation.taint(old, OPERATOR)
    assert serial() != first
    assert (tmp_path / "operator" / "tls.crt").read_bytes() != first_pair
    second = serial()
    await mesh.rotation.revoke(old, OPERATOR, force=True)
    assert serial() == second
    assert (tmp_path / "operator" / "ca.crt").read_text().count("BEGIN") == 1
    (bundle,) = own.bundles().values()
    assert len(bundle.roots) == 1


@given(
    st.lists(st.sampled_from(["OLD", "TAINTED"]), max_size=4),
    st.booleans(),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_plan_is_of_the_future_of_each_root(ended: list[str], waits: bool, begun: float, since: float) -> None:
    start = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
    names = [*ended, "ACTIVE", *(["PREPARED"] if waits else [])]
    roots = tuple(
        RootState(
            f"{number:064x}",
            SlotState(name),
            start + LIFE * begun,
            start + LIFE * (begun + 1),
            start + LIFE * (begun + since),
        )
        for number, name in enumerate(names)
    )
    steps = plan(roots)
    signing = slot.active(roots)
    assert len(steps) == len(ended) + 1
    assert steps[0].act is (Act.ACTIVATE if waits else Act.PREPARE)
    assert signing.not_before < steps[0].time < signing.not_after
    assert signing.fingerprint not in {step.fingerprint for step in steps}
    for step in steps[1:]:
        root = slot.find(roots, step.fingerprint)
        assert root.since <= step.time <= root.not_after


class Kept(MemoryAuthority):
    """Roots that somebody else keeps: none is made here, and a prepared one may be wanted at once."""

    fixed = "make it there"

    async def roots(self) -> Roots:
        found = await super().roots()
        return tuple(replace(root, wanted=root.state is SlotState.PREPARED) for root in found)


async def test_a_root_that_is_wanted_signs_as_soon_as_all_have_acknowledged_it(world: Any) -> None:
    mesh = Mesh(world)
    world.authority = authority = Kept("a.test", world.clock, root_ttl=LIFE)
    mesh.rotation = mesh.control_plane("one")
    mesh.at(0.6)
    assert await mesh.look() == ["ACTIVE"]
    with pytest.raises(RootRefused, match="make it there"):
        await mesh.rotation.prepare(OPERATOR)
    assert mesh.rotation.next_of(mesh.rotation.known[0]) is None
    mesh.at(0.0)
    await authority.prepare(world.now)
    mesh.node("slow")
    assert await mesh.look() == ["ACTIVE", "PREPARED"]
    mesh.node("slow", *(root.fingerprint for root in mesh.rotation.known))
    assert await mesh.look() == ["OLD", "ACTIVE"]
    # What is old ends by itself here too.
    mesh.at(0.0, MAX_LEAF_TTL)
    assert await mesh.look() == ["ACTIVE"]


async def test_other_regions_are_waited_for_as_nodes_are(mesh: Mesh) -> None:
    missing = {"region us": "its nodes have not all acknowledged it yet"}
    mesh.rotation = mesh.control_plane("one", regions=lambda _: missing)
    mesh.at(0.6)
    await mesh.look()
    new = mesh.fingerprint("PREPARED")
    assert mesh.rotation.missing(new) == missing
    assert mesh.rotation.missing_here(new) == {}
    mesh.at(0.9)
    assert await mesh.look() == ["ACTIVE", "PREPARED"]
    with pytest.raises(RootRefused, match="region us its nodes have not all acknowledged it yet"):
        await mesh.rotation.activate(new, OPERATOR)
    missing.clear()
    assert await mesh.look() == ["OLD", "ACTIVE"]


async def test_roots_of_other_regions_are_theirs_to_move_on(mesh: Mesh) -> None:
    other = MemoryAuthority("a.test", mesh.world.clock, root_ttl=LIFE)
    await other.prepare(mesh.world.now)
    ours, theirs = mesh.world.authority, [replace(root, region="us") for root in await other.roots()]
    everywhere = Everywhere(ours, theirs)
    mesh.world.authority = everywhere
    mesh.rotation = mesh.control_plane("one")
    mesh.at(0.6)
    assert await mesh.look() == ["ACTIVE", "PREPARED", "ACTIVE", "PREPARED"]
    assert [root.region for root in mesh.rotation.known] == ["", "", "us", "us"]
    assert all(mesh.rotation.next_of(root) is None for root in mesh.rotation.known[2:])
    for change in (mesh.rotation.activate, mesh.rotation.taint, mesh.rotation.revoke):
        with pytest.raises(RootRefused, match="is region us's: change it there"):
            await change(theirs[1].fingerprint, OPERATOR)
    mesh.at(0.9)
    assert await mesh.look() == ["OLD", "ACTIVE", "ACTIVE", "PREPARED"]


class Everywhere:
    """An authority that knows of another region's roots."""

    fixed = ""

    def __init__(self, own: MemoryAuthority, others: Sequence[RootState]) -> None:
        self.own, self.others = own, tuple(others)

    def __getattr__(self, name: str) -> Any:
        async def asked(*args: Any) -> Any:
            return (*(await getattr(self.own, name)(*args)), *self.others)

        return asked
