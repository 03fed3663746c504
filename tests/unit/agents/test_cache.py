"""The cache on disk: what is written is read, what is damaged is set aside and never raised."""

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshwarden.agents.cache import Cache
from meshwarden.agents.seal import CREDENTIAL, KeyUnusable, given_secret
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2 as resources

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"


def update(
    revision: int, *names: str, scope: str = "client/acme/grpc", full: bool = False, planes: tuple[str, ...] = ("p",)
) -> node_pb.ConfigUpdate:
    change = node_pb.ScopeUpdate(scope=scope, full=full)
    for name in names:
        change.resources.add(type_url=CLUSTER, name=name, version=f"{name}-{revision}", body=b"x")
    scopes = [node_pb.DataPlaneScopes(id=plane, scopes=["client/acme/grpc"]) for plane in planes]
    return node_pb.ConfigUpdate(revision=revision, scopes=[change], data_planes=scopes)


def test_what_is_saved_is_loaded_and_private(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.save("item", b"one")
    cache.save("item", b"two\n\0")
    assert Cache(tmp_path / "cache").load("item") == b"two\n\0"
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache/item").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["item"]


def test_what_the_disk_refuses_is_kept_for_later(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    cache = Cache(directory)
    cache.keep("gone", b"0")
    directory.rename(tmp_path / "away")
    directory.write_text("no directory")  # refuses root too
    cache.keep("item", b"1")
    cache.keep("item", b"2")
    cache.keep("gone", b"3")
    cache.remove("gone")
    cache.save_rest()
    directory.unlink()
    (tmp_path / "away").rename(directory)
    assert cache.load("item") is None
    cache.save_rest()
    assert (cache.load("item"), cache.load("gone")) == (b"2", b"0")


def test_drafts_of_a_crash_are_cleared_away(tmp_path: Path) -> None:
    Cache(tmp_path).save("item", b"1")
    (tmp_path / ".svid-acme.web.0123456789ab").write_bytes(b"half a key")
    Cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["item"]


def test_an_item_is_not_another(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.save("one", b"1")
    (tmp_path / "one").rename(tmp_path / "two")
    assert cache.load("two") is None
    assert (tmp_path / "two.aside").exists()


def test_a_newer_format_is_kept_for_who_can_read_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.save("item", b"1")
    content = (tmp_path / "item").read_bytes()
    (tmp_path / "item").write_bytes(content.replace(b" 2 ", b" 3 ", 1))
    assert cache.load("item") is None
    assert (tmp_path / "item.aside").read_bytes().startswith(b"meshwarden-agent-cache 3 item")
    assert list(cache.names("")) == []


def clear(directory: Path, name: str, body: bytes) -> None:
    """Writes an item as agents did before they encrypted."""
    directory.mkdir(exist_ok=True)
    header = f"meshwarden-agent-cache 1 {name} {hashlib.sha256(body).hexdigest()}\n"
    (directory / name).write_bytes(header.encode() + body)


def holds(directory: Path, word: bytes) -> bool:
    return any(word in path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_what_an_earlier_agent_has_left_is_encrypted_and_not_lost(tmp_path: Path) -> None:
    clear(tmp_path / "cache", "svid-acme.web", b"PRIVATE KEY")
    clear(tmp_path / "cache", "entries", b"entries")
    clear(tmp_path / "cache", "old.aside", b"PRIVATE KEY")
    cache = Cache(tmp_path / "cache")
    assert not holds(tmp_path, b"PRIVATE KEY")
    key = tmp_path / "cache-key"
    assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "cache-key"]
    for one in (cache, Cache(tmp_path / "cache")):
        assert (one.load("svid-acme.web"), one.load("entries")) == (b"PRIVATE KEY", b"entries")


def test_an_interrupted_take_over_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "cache"
    for name in ("a", "b", "c"):
        clear(directory, name, name.encode())
    save = Cache.save

    def full(self: Cache, name: str, body: bytes) -> None:
        if name == "b":
            raise OSError(28, "No space left on device")
        save(self, name, body)

    with monkeypatch.context() as patched:
        patched.setattr(Cache, "save", full)
        cache = Cache(directory)
        assert "No space left" in cache.refusal
        assert [cache.load(name) for name in ("a", "b", "c")] == [b"a", b"b", b"c"]
    assert [Cache(directory).load(name) for name in ("a", "b", "c")] == [b"a", b"b", b"c"]
    assert (tmp_path / "cache-key").exists()


def test_clear_text_is_not_taken_again_and_not_kept(tmp_path: Path) -> None:
    """Whoever can write to the disk, and has no key, gets nothing believed."""
    directory = tmp_path / "cache"
    Cache(directory).save("bundle", b"ours")
    clear(directory, "bundle", b"theirs")
    cache = Cache(directory)
    assert cache.load("bundle") is None
    assert not holds(tmp_path, b"theirs")
    given = Cache(tmp_path / "given", b"s" * 32)
    clear(tmp_path / "given", "bundle", b"theirs")
    assert given.load("bundle") is None
    assert not (tmp_path / "given-key").exists()


def test_an_item_of_another_key_or_another_header_is_not_taken(tmp_path: Path) -> None:
    one, two = Cache(tmp_path / "one", b"1" * 32), Cache(tmp_path / "two", b"2" * 32)
    one.save("item", b"body")
    two.save("item", b"body")
    (tmp_path / "one/item").replace(tmp_path / "two/item")
    assert two.load("item") is None
    one.save("item", b"body")
    two.save("item", b"body")
    header = (tmp_path / "two/item").read_bytes().partition(b"\n")[0]
    sealed = (tmp_path / "one/item").read_bytes().partition(b"\n")[2]
    (tmp_path / "two/item").write_bytes(header + b"\n" + sealed)
    assert two.load("item") is None
    one.save("a", b"body")
    (tmp_path / "one/b").write_bytes((tmp_path / "one/a").read_bytes().replace(b" a ", b" b ", 1))
    assert one.load("b") is None


@pytest.mark.parametrize("damage", ["short", "long", "open to others", "gone", "a link"])
def test_a_key_that_cannot_be_used_costs_the_cache_and_no_more(tmp_path: Path, damage: str) -> None:
    directory, key = tmp_path / "cache", tmp_path / "cache-key"
    Cache(directory).save("item", b"body")
    content = key.read_bytes()
    if damage in ("gone", "a link"):
        key.unlink()
    if damage == "a link":
        (tmp_path / "elsewhere").write_bytes(content)
        (tmp_path / "elsewhere").chmod(0o600)
        key.symlink_to(tmp_path / "elsewhere")
    if damage in ("short", "long"):
        key.write_bytes(content[:-1] if damage == "short" else content + b"x")
    if damage == "open to others":
        key.chmod(0o604)
    cache = Cache(directory)
    assert cache.load("item") is None
    cache.save("item", b"again")
    assert Cache(directory).load("item") == b"again"
    assert key.read_bytes() != content
    assert not key.is_symlink()


def test_what_systemd_gives(tmp_path: Path) -> None:
    assert given_secret(None) is given_secret("") is given_secret(str(tmp_path)) is None
    path = tmp_path / CREDENTIAL
    for content in (b"", b"x" * 31, b"x" * 4097):
        path.write_bytes(content)
        with pytest.raises(KeyUnusable, match="systemd-creds encrypt"):
            given_secret(str(tmp_path))
    path.write_bytes(b"x" * 32)
    secret = given_secret(str(tmp_path))
    assert secret == b"x" * 32
    Cache(tmp_path / "cache", secret).save("item", b"body")
    assert Cache(tmp_path / "cache", secret).load("item") == b"body"
    path.unlink()
    path.mkdir()
    with pytest.raises(KeyUnusable):
        given_secret(str(tmp_path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.binary(max_size=600), st.integers(0, 200), st.integers(0, 200))
def test_no_damage_raises_or_yields_what_was_not_saved(tmp_path: Path, junk: bytes, start: int, cut: int) -> None:
    cache = Cache(tmp_path)
    cache.save("item", b"the content")
    path = tmp_path / "item"
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + junk + whole[start + cut :])
    assert cache.load("item") in (None, b"the content")


def test_a_snapshot_is_one_object_until_it_changes(tmp_path: Path) -> None:
    store = ScopeStore(Cache(tmp_path))
    heard: list[int] = []
    store.listen(lambda: heard.append(store.revision))
    assert store.snapshot("p") is None
    store.apply(update(1, "a", "b", full=True, planes=("p", "q")))
    first = store.snapshot("p")
    assert first is not None
    assert set(first.named(CLUSTER)) == {"a", "b"}
    store.apply(node_pb.ConfigUpdate(revision=2))
    assert store.snapshot("p") is first
    removal = node_pb.ScopeUpdate(
        scope="client/acme/grpc", removed=[node_pb.XdsResourceName(type_url=CLUSTER, name="a")]
    )
    store.apply(node_pb.ConfigUpdate(revision=3, scopes=[removal]))
    second = store.snapshot("p")
    assert second is not None
    assert set(second.named(CLUSTER)) == {"b"}
    assert set(first.named(CLUSTER)) == {"a", "b"}
    assert heard == [1, 2, 3]


def test_a_data_plane_with_a_scope_that_is_missing_gets_nothing_yet(tmp_path: Path) -> None:
    store = ScopeStore(Cache(tmp_path))
    plane = node_pb.DataPlaneScopes(id="p", scopes=["client/acme/grpc", "server/acme/web/grpc"])
    store.apply(node_pb.ConfigUpdate(revision=1, scopes=update(1, "a").scopes, data_planes=[plane]))
    assert store.snapshot("p") is None


def test_a_refused_data_plane_gets_nothing(tmp_path: Path) -> None:
    store = ScopeStore(Cache(tmp_path))
    store.apply(update(1, "a"))
    store.apply(node_pb.ConfigUpdate(revision=2, data_planes=[node_pb.DataPlaneScopes(id="p", refused="no entry")]))
    assert store.snapshot("p") is None
    assert store.refusals() == {"p": "no entry"}


def test_limits_stay_until_they_change(tmp_path: Path) -> None:
    store = ScopeStore(Cache(tmp_path))
    first = update(1, "a")
    spec = first.scopes[0].limits.policies.add(policy="acme/limit").spec
    spec.limits.append(resources.RateLimit(tenant="*", requests=20))
    store.apply(first)
    store.apply(update(2, "b"))
    limits = store.limits("p")
    assert limits is not None
    assert [said.policy for said in limits.policies] == ["acme/limit"]
    assert store.limits("unknown") is None


def test_configuration_survives_a_restart(tmp_path: Path) -> None:
    store = ScopeStore(Cache(tmp_path))
    store.apply(update(7, "a", "b"))
    store.apply(node_pb.ConfigUpdate(revision=8, scopes=[node_pb.ScopeUpdate(scope="unused", full=True)]))
    store.flush()
    again = ScopeStore(Cache(tmp_path))
    assert again.revision == 8
    snapshot = again.snapshot("p")
    assert snapshot is not None
    assert snapshot.named(CLUSTER)["a"].version == "a-7"


@pytest.mark.parametrize("seed", range(5))
def test_damaged_scopes_withhold_and_do_not_raise(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    store = ScopeStore(Cache(tmp_path))
    store.apply(update(7, "a", "b"))
    store.flush()
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(content))
    assert ScopeStore(Cache(tmp_path)).snapshot("p") is None
