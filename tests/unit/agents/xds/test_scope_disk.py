"""Configuration on disk: a change costs what it changes, a crash loses nothing saved, and older agents read it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshwarden.agents.cache import Cache
from meshwarden.agents.xds import scope_disk
from meshwarden.agents.xds.scope import Scope
from meshwarden.agents.xds.scope_disk import ScopeDisk, State
from meshwarden.v1 import node_service_pb2 as pb

KIND = "type.googleapis.com/x"
LARGE = 5000

Told = dict[str, dict[str, str]]
"""{scope: {resource: version}}"""


def item(name: str, version: str) -> pb.XdsResource:
    return pb.XdsResource(type_url=KIND, name=name, version=version, body=version.encode() * LARGE)


def scope(**versions: str) -> Scope:
    return Scope({}).changed(pb.ScopeUpdate(resources=[item(*pair) for pair in versions.items()]))


def planes(*scopes: str) -> dict[str, pb.DataPlaneScopes]:
    return {"p": pb.DataPlaneScopes(id="p", scopes=scopes)}


def told(state: State) -> Told:
    return {name: {key[1]: one.version for key, one in found.resources.items()} for name, found in state.scopes.items()}


def files(path: Path) -> dict[str, tuple[int, int]]:
    """Which file there is by each name, and its size."""
    return {one.name: (one.stat().st_ino, one.stat().st_size) for one in path.iterdir() if one.is_file()}


class OldAgent:
    """What agents did before there were changes."""

    def __init__(self, path: Path) -> None:
        self.cache = Cache(path)

    def load(self) -> State:
        scopes = {}
        for name in self.cache.names("scope-"):
            update = pb.ScopeUpdate.FromString(self.cache.load(name) or b"")
            scopes[update.scope] = Scope({}).changed(update)
        summary = pb.ConfigUpdate.FromString(self.cache.load("planes") or b"")
        return State(summary.revision, scopes, {plane.id: plane for plane in summary.data_planes})

    def save(self, state: State) -> None:
        for name, one in state.scopes.items():
            digest = hashlib.sha256(name.encode()).hexdigest()[:32]
            self.cache.save(f"scope-{digest}", one.to_update(name).SerializeToString())
        summary = pb.ConfigUpdate(revision=state.revision, data_planes=state.planes.values())
        self.cache.save("planes", summary.SerializeToString())


@pytest.fixture
def first() -> State:
    return State(1, {"a": scope(**{f"r{n}": "1" for n in range(20)}), "b": scope(x="1")}, planes("a", "b"))


def after(state: State, revision: int, name: str, update: pb.ScopeUpdate) -> State:
    return State(revision, {**state.scopes, name: state.scopes[name].changed(update)}, state.planes)


def test_a_change_is_one_small_file_and_the_rest_stays_as_it_is(tmp_path: Path, first: State) -> None:
    disk = ScopeDisk(Cache(tmp_path))
    disk.save(1, first)
    before = files(tmp_path)
    assert "changes" not in before
    update = pb.ScopeUpdate(
        scope="a", resources=[item("r3", "2")], removed=[pb.XdsResourceName(type_url=KIND, name="r4")]
    )
    second = after(first, 2, "a", update)
    disk.save(2, second)
    now = files(tmp_path)
    assert now.pop("changes")[1] < 2 * LARGE
    assert now == before
    found = ScopeDisk(Cache(tmp_path)).load()
    assert (found.revision, told(found), found.planes) == (2, told(second), second.planes)


def test_a_revision_of_which_nothing_matters_here_is_kept(tmp_path: Path, first: State) -> None:
    disk = ScopeDisk(Cache(tmp_path))
    disk.save(1, first)
    disk.save(2, State(9, first.scopes, first.planes))
    assert ScopeDisk(Cache(tmp_path)).load().revision == 9


def test_all_of_it_is_written_anew_once_its_size_was_spent_on_changes(tmp_path: Path, first: State) -> None:
    disk, state = ScopeDisk(Cache(tmp_path)), first
    disk.save(1, state)
    most, wholes = 0, 0
    for number in range(2, 102):
        name = f"r{number % 20}"
        before = OldAgent(tmp_path).load().revision
        state = after(state, number, "a", pb.ScopeUpdate(scope="a", resources=[item(name, str(number % 9))]))
        disk.save(number, state)
        wholes += OldAgent(tmp_path).load().revision != before
        most = max(most, files(tmp_path).get("changes", (0, 0))[1])
        if number % 37 == 0:
            assert told(ScopeDisk(Cache(tmp_path)).load()) == told(state)
    assert most < 20 * LARGE
    assert 5 < wholes < 50
    assert told(ScopeDisk(Cache(tmp_path)).load()) == told(state)


def test_all_that_goes_with_a_scope_is_kept(tmp_path: Path) -> None:
    disk = ScopeDisk(Cache(tmp_path))
    base = State(1, {"a": scope(x="1").changed(pb.ScopeUpdate(limits=pb.ServerLimits()))}, planes("a"))
    disk.save(1, base)
    limits = pb.ServerLimits(policies=[pb.PolicyLimits(policy="t/p")])
    later = pb.LaterForms(forms=[pb.ScopeForm(resources=[item("x", "2")])])
    state = after(base, 2, "a", pb.ScopeUpdate(scope="a", limits=limits, later=later))
    disk.save(2, state)
    found = ScopeDisk(Cache(tmp_path)).load().scopes["a"]
    assert (found.limits, found.told, found.access) == (limits, later, None)
    state = after(state, 3, "a", pb.ScopeUpdate(scope="a", later=pb.LaterForms(), access=pb.ServerAccess()))
    disk.save(3, state)
    found = ScopeDisk(Cache(tmp_path)).load().scopes["a"]
    assert (found.limits, found.later, found.access) == (limits, (), pb.ServerAccess())
    disk.save(4, State(4, {"a": scope(x="1")}, planes("a")))
    assert ScopeDisk(Cache(tmp_path)).load().scopes["a"].limits is None


def test_an_older_state_is_not_saved_over_a_newer(tmp_path: Path, first: State) -> None:
    disk = ScopeDisk(Cache(tmp_path))
    disk.save(2, State(2, first.scopes, first.planes))
    disk.save(1, first)
    assert ScopeDisk(Cache(tmp_path)).load().revision == 2


def test_an_agent_before_finds_all_of_it_after_a_stop_and_what_it_is_based_on_after_a_crash(
    tmp_path: Path, first: State
) -> None:
    disk = ScopeDisk(Cache(tmp_path))
    disk.save(1, first)
    second = after(first, 2, "a", pb.ScopeUpdate(scope="a", resources=[item("r3", "2")]))
    disk.save(2, second)
    found = OldAgent(tmp_path).load()
    assert (found.revision, told(found)) == (1, told(first))
    disk.save(2, second, whole=True)
    assert "changes" not in files(tmp_path)
    found = OldAgent(tmp_path).load()
    assert (found.revision, told(found)) == (2, told(second))


def test_changes_are_not_put_on_top_of_what_an_agent_before_has_written_since(tmp_path: Path, first: State) -> None:
    disk = ScopeDisk(Cache(tmp_path))
    disk.save(1, first)
    disk.save(2, after(first, 2, "b", pb.ScopeUpdate(scope="b", resources=[item("x", "2")])))
    third = State(3, {**first.scopes, "a": scope(r1="3")}, first.planes)
    OldAgent(tmp_path).save(third)
    found = ScopeDisk(Cache(tmp_path)).load()
    assert (found.revision, told(found)) == (3, told(third))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda head: head | {"format": 2},
        lambda head: head | {"scopes": {}},
        lambda head: head | {"scopes": 1},
        lambda head: {},
        lambda head: [],
        lambda head: "",
    ],
)
def test_changes_that_are_none_are_set_aside(
    tmp_path: Path, first: State, spoil: Callable[[dict[str, object]], object]
) -> None:
    cache = Cache(tmp_path)
    disk = ScopeDisk(cache)
    disk.save(1, first)
    disk.save(2, after(first, 2, "b", pb.ScopeUpdate(scope="b", resources=[item("x", "2")])))
    head, _, rest = (cache.load("changes") or b"").partition(b"\n")
    cache.save("changes", json.dumps(spoil(json.loads(head))).encode() + b"\n" + rest)
    found = ScopeDisk(Cache(tmp_path)).load()
    assert (found.revision, told(found)) == (1, told(first))
    assert (tmp_path / "changes.aside").exists()
    cache.save("changes", b"\xff" * 100)
    assert told(ScopeDisk(Cache(tmp_path)).load()) == told(first)


class Failing(Cache):
    """A disk that takes so many writes."""

    left = 1 << 30

    def save(self, name: str, body: bytes) -> None:
        if not self.left:
            raise OSError("No space left on device")
        self.left -= 1
        super().save(name, body)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["one", "full", "remove", "map", "nothing"]),
        st.sampled_from(["a", "b"]),
        st.integers(0, 3),
        st.one_of(st.none(), st.integers(0, 3)),
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(STEPS)
def test_whenever_the_disk_fails_each_scope_is_as_saved_last_or_newer(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int, int | None]]
) -> None:
    path = tmp_path_factory.mktemp("cache")
    cache = Failing(path)
    disk, revision = ScopeDisk(cache), 1
    state = State(1, {"a": scope(r0="1", r1="1"), "b": scope(r0="1")}, planes("a", "b"))
    disk.save(1, state)
    # What each scope may be by now, in the order of time, the first as was saved last.
    may = {name: [found] for name, found in told(state).items()}
    for what, name, number, fails in steps:
        revision += 1
        wanted = dict(state.scopes)
        if what == "one":
            wanted[name] = wanted[name].changed(pb.ScopeUpdate(resources=[item(f"r{number}", str(revision))]))
        elif what == "full":
            wanted[name] = wanted[name].changed(pb.ScopeUpdate(full=True, resources=[item("r0", str(number))]))
        elif what == "remove":
            gone = pb.XdsResourceName(type_url=KIND, name=f"r{number}")
            wanted[name] = wanted[name].changed(pb.ScopeUpdate(removed=[gone]))
        state = State(revision, wanted, planes("a", "b", *["a"] * number) if what == "map" else state.planes)
        for one, found in told(state).items():
            may[one].append(found)
        cache.left = 1 << 30 if fails is None else fails
        try:
            disk.save(revision, state)
        except OSError:
            assert fails is not None
        else:
            may = {one: [found] for one, found in told(state).items()}
        found = told(ScopeDisk(Cache(path)).load())
        for one, versions in found.items():
            assert versions in may[one]
            may[one] = may[one][max(at for at, known in enumerate(may[one]) if known == versions) :]
        if fails is not None and number % 2:  # it starts again from there
            cache = Failing(path)
            disk, revision = ScopeDisk(cache), revision + 1
            state = disk.load()
            revision = max(revision, state.revision)
            may = {one: [versions] for one, versions in told(state).items()}


def test_the_least_that_may_be_spent_is_not_the_size_of_nothing(tmp_path: Path) -> None:
    disk = ScopeDisk(Cache(tmp_path))
    state = State(1, {"a": scope(x="1")}, planes("a"))
    disk.save(1, state)
    for number in range(2, 6):
        state = after(state, number, "a", pb.ScopeUpdate(scope="a", resources=[item("x", str(number))]))
        disk.save(number, state)
        assert files(tmp_path)["changes"][1] < scope_disk.LEAST_BYTES
