"""What a node has goes with its clock, whether anybody is there to say so or not."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshwarden.agents.cache import Cache
from meshwarden.agents.xds import scopes as module
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.v1 import node_service_pb2 as pb
from meshwarden.xds.scope_digest import scope_digest

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
KIND = "type.googleapis.com/x"


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def item(version: str, name: str = "access") -> pb.XdsResource:
    return pb.XdsResource(type_url=KIND, name=name, version=version, body=version.encode())


def access(policy: str) -> pb.ServerAccess:
    return pb.ServerAccess(policies=[pb.PolicyAccess(policy=policy)])


def form(minutes: int, version: str) -> pb.ScopeForm:
    made = pb.ScopeForm(resources=[item(version)], access=access(version))
    getattr(made, "from").FromDatetime(NOON + timedelta(minutes=minutes))
    return made


def update(*forms: pb.ScopeForm) -> pb.ConfigUpdate:
    scope = pb.ScopeUpdate(
        scope="server/a",
        full=True,
        resources=[item("open"), item("other", "other")],
        access=access("open"),
        later=pb.LaterForms(forms=forms),
    )
    return pb.ConfigUpdate(revision=1, scopes=[scope], data_planes=[pb.DataPlaneScopes(id="p", scopes=["server/a"])])


def versions(store: ScopeStore) -> tuple[str, ...]:
    """Those of the resources, and what the SDK is told."""
    snapshot, said = store.snapshot("p"), store.access("p")
    assert snapshot is not None
    assert said is not None
    found = {name: one.version for name, one in snapshot.resources[KIND].items()}
    assert found["other"] == "other"
    return found["access"], said.policies[0].policy


def test_an_envoy_has_the_limits_of_its_service_and_of_what_it_calls_outside(tmp_path: Path) -> None:
    store = ScopeStore(Cache(tmp_path))
    change = pb.ConfigUpdate(revision=1)
    for scope in ("server/a", "egress/b", "egress/c", "client/d"):
        change.scopes.add(scope=scope, full=True)
        if not scope.startswith("client"):
            change.scopes[-1].limits.policies.add(policy=scope)
    change.data_planes.add(id="all", scopes=["server/a", "egress/b", "egress/c", "client/d"])
    change.data_planes.add(id="one", scopes=["server/a", "client/d"])
    change.data_planes.add(id="none", scopes=["client/d"])
    store.apply(change)
    said = {name: store.limits(name) for name in ("all", "one", "none")}
    assert [policy.policy for policy in said["all"].policies] == ["server/a", "egress/b", "egress/c"]
    assert [policy.policy for policy in said["one"].policies] == ["server/a"]
    assert said["none"] is None


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_closes_when_that_time_comes_and_stays_closed(tmp_path: Path, clock: Clock) -> None:
    store, calls = ScopeStore(Cache(tmp_path), clock), []
    store.apply(update(form(10, "next"), form(20, "closed")))
    store.listen(lambda: calls.append(1))
    before = store.snapshot("p")
    assert store.turn() == 1.0, "it looks at least once a second"
    assert versions(store) == ("open", "open")
    clock.now = NOON + timedelta(minutes=10) - timedelta(milliseconds=100)
    assert store.turn() == pytest.approx(0.1)
    assert (store.snapshot("p"), calls) == (before, []), "nothing is pushed anew before that"
    clock.now = NOON + timedelta(minutes=10)
    store.turn()
    assert (versions(store), len(calls)) == (("next", "next"), 1)
    clock.now = NOON + timedelta(days=3)  # as after sleep
    store.turn()
    assert (versions(store), len(calls)) == (("closed", "closed"), 2)
    clock.now = NOON
    store.turn()
    assert versions(store) == ("closed", "closed"), "a clock that goes back opens nothing"
    assert len(calls) == 2


def test_a_start_without_a_control_plane_begins_with_what_holds_by_then(tmp_path: Path, clock: Clock) -> None:
    first = ScopeStore(Cache(tmp_path), clock)
    first.apply(update(form(10, "next"), form(20, "closed")))
    first.flush()
    clock.now = NOON + timedelta(minutes=15)
    assert versions(ScopeStore(Cache(tmp_path), clock)) == ("next", "next")
    clock.now = NOON + timedelta(minutes=25)
    assert versions(ScopeStore(Cache(tmp_path), clock)) == ("closed", "closed")


def test_what_is_pushed_then_takes_its_place(tmp_path: Path, clock: Clock) -> None:
    store = ScopeStore(Cache(tmp_path), clock)
    store.apply(update(form(10, "next")))
    clock.now = NOON + timedelta(minutes=10)
    store.turn()
    snapshot = store.snapshot("p")
    change = pb.ScopeUpdate(scope="server/a", resources=[item("next")], access=access("next"))
    change.later.SetInParent()
    store.apply(pb.ConfigUpdate(revision=1, scopes=[change]))
    assert versions(store) == ("next", "next")
    after = store.snapshot("p")
    assert snapshot is not None
    assert after is not None
    assert after.resources[KIND]["access"].version == snapshot.resources[KIND]["access"].version
    clock.now = NOON + timedelta(days=1)
    store.turn()
    assert versions(store) == ("next", "next"), "nothing more is to become of it"
    # What is not said again stands.
    store.apply(pb.ConfigUpdate(revision=2, scopes=[pb.ScopeUpdate(scope="server/a")]))
    assert versions(store) == ("next", "next")


def whole(name: str, *items: pb.XdsResource) -> pb.ScopeUpdate:
    return pb.ScopeUpdate(scope=name, full=True, resources=items)


async def test_what_it_says_that_it_holds_is_what_was_told_at_any_time_and_after_a_start(
    tmp_path: Path, clock: Clock
) -> None:
    store = ScopeStore(Cache(tmp_path), clock)
    store.apply(update(form(10, "next")))
    held = await store.held()
    assert {name: len(digest) for name, digest in held.items()} == {"server/a": 32}
    clock.now = NOON + timedelta(minutes=10)
    store.turn()
    assert versions(store) == ("next", "next")
    assert await store.held() == held, "whatever form it has by now"
    store.flush()
    assert await ScopeStore(Cache(tmp_path), clock).held() == held
    store.apply(pb.ConfigUpdate(revision=2, scopes=[pb.ScopeUpdate(scope="server/a", resources=[item("new")])]))
    assert (await store.held())["server/a"] != held["server/a"]


async def test_a_cache_that_was_spoilt_is_held_against_it_and_mended(tmp_path: Path) -> None:
    """Also a body that is not what its version says."""
    good, bad = item("v"), item("v")
    bad.body = b"other"
    store, other = ScopeStore(Cache(tmp_path / "a")), ScopeStore(Cache(tmp_path / "b"))
    for one, told in ((store, good), (other, bad)):
        one.apply(pb.ConfigUpdate(scopes=[whole("client/a", told)], data_planes=[{"id": "p", "scopes": ["client/a"]}]))
    assert await store.held() != await other.held()
    other.apply(pb.ConfigUpdate(scopes=[whole("client/a", good)]))
    assert await store.held() == await other.held()


async def test_it_says_no_more_than_a_control_plane_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did would never have a session again."""
    store = ScopeStore(Cache(tmp_path))
    names = ["", "x" * 513, "small", "large", "empty"]
    scopes = [whole(name, *(item(name, str(n)) for n in range(len(name)))) for name in names[:-1]]
    store.apply(pb.ConfigUpdate(scopes=[*scopes, whole("empty")], data_planes=[{"id": "p", "scopes": names}]))
    assert set(await store.held()) == {"small", "large", "empty"}
    monkeypatch.setattr(module, "MOST_HELD", 2)
    assert set(await store.held()) == {"small", "large"}
    monkeypatch.setattr(module, "MOST_HELD_BYTES", 513 + 5)
    assert len(await store.held()) == 1


async def test_what_it_does_not_know_of_an_access_it_holds_and_of_a_scope_it_does_not(
    tmp_path: Path, clock: Clock
) -> None:
    """A newer control plane tells the one whole again and not the other: what is here once this agent is newer, too."""
    unknown = bytes([15 << 3, 1])
    told = pb.ScopeUpdate(scope="server/a", full=True)
    told.access.MergeFromString(unknown)
    for update, is_held in ((told, True), (pb.ScopeUpdate.FromString(told.SerializeToString() + unknown), False)):
        store = ScopeStore(Cache(tmp_path / str(is_held)), clock)
        store.apply(pb.ConfigUpdate(scopes=[update], data_planes=[{"id": "p", "scopes": ["server/a"]}]))
        store.flush()
        for one in (store, ScopeStore(Cache(tmp_path / str(is_held)), clock)):
            assert ((await one.held())["server/a"] == scope_digest(update, ())) is is_held
