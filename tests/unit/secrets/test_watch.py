"""Secrets are read when wanted, kept while Vault is away, gone when deleted, forgotten when nobody wants them."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from meshwarden.controlplane.secrets import watch as module
from meshwarden.controlplane.secrets.port import SecretAway, SecretError, SecretGone, Version, VersionedSecrets
from meshwarden.controlplane.secrets.watch import SecretWatch

A, B = ("kv", "a"), ("kv", "b")


class Vault(VersionedSecrets):
    """What a test says that there is: {path: version, or what is raised}."""

    def __init__(self) -> None:
        self.there: dict[tuple[str, str], Version | SecretError] = {}
        self.asked: Counter[str] = Counter()

    async def read_version(self, mount: str, path: str) -> Version:
        self.asked[f"read {path}"] += 1
        return self._find(mount, path)

    async def newest(self, mount: str, path: str) -> int:
        self.asked[f"look {path}"] += 1
        return self._find(mount, path).number

    def _find(self, mount: str, path: str) -> Version:
        found = self.there.get((mount, path), SecretGone("there is nothing"))
        if isinstance(found, SecretError):
            raise found
        return found


class World:
    def __init__(self) -> None:
        self.vault, self.now_s, self.moved = Vault(), 0.0, 0
        self.watch = SecretWatch(lambda: self.vault, random.Random(1), lambda: self.now_s, poll_s=30)
        self.watch.listen(lambda _: self._count())

    def _count(self) -> None:
        self.moved += 1

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def poll(self) -> None:
        """Lets time pass and the watch look."""
        before = self.vault.asked.total()
        self.now_s += 60
        self.watch._wake.set()
        await self.until(lambda: self.vault.asked.total() > before)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    task = asyncio.ensure_future(made.watch.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_is_read_once_and_again_when_its_version_moves(world: World) -> None:
    world.vault.there[A] = Version(1, {"key": "old"})
    world.watch.want("n1", [A])
    assert not world.watch.find(A).asked
    await world.until(lambda: world.watch.find(A).version is not None)
    await world.poll()
    assert world.vault.asked == {"read a": 1, "look a": 1}
    world.vault.there[A] = Version(2, {"key": "new"})
    await world.poll()
    found = world.watch.find(A).version
    assert found is not None
    assert found.text("key", "a").get_secret_value() == "new"
    assert world.vault.asked["read a"] == 2
    assert world.moved == 2
    assert "new" not in repr(world.watch.find(A)) + repr(found)


@pytest.mark.parametrize("fault", [SecretAway("Vault is sealed"), SecretError("the login may not")])
async def test_the_last_value_stands_while_it_cannot_be_read(world: World, fault: SecretError) -> None:
    world.vault.there[A] = Version(1, {"key": "old"})
    world.watch.want("n1", [A])
    await world.until(lambda: world.watch.find(A).version is not None)
    world.vault.there[A] = fault
    await world.poll()
    assert world.watch.find(A).version == Version(1, {"key": "old"})
    assert world.watch.faults() == [str(fault)]
    world.vault.there[A] = Version(1, {"key": "old"})
    await world.poll()
    assert world.watch.faults() == []


async def test_one_that_is_deleted_is_gone(world: World) -> None:
    world.vault.there[A] = Version(1, {"key": "old"})
    world.watch.want("n1", [A])
    await world.until(lambda: world.watch.find(A).version is not None)
    del world.vault.there[A]
    await world.poll()
    assert world.watch.find(A).version is None
    assert world.watch.faults() == ["there is nothing"]


async def test_what_nobody_wants_is_forgotten(world: World) -> None:
    world.vault.there[A] = world.vault.there[B] = Version(1, {"key": "old"})
    world.watch.want("n1", [A, B])
    world.watch.want("n2", [A])
    await world.until(lambda: world.watch.find(A).asked and world.watch.find(B).asked)
    world.watch.want("n1", [])
    assert world.watch.find(A).version is not None
    assert world.watch.find(B).version is None
    world.watch.want("n2", [])
    assert world.watch.find(A).version is None


async def test_while_vault_is_away_nobody_waits_for_many(world: World) -> None:
    """Each try may take seconds: after one that failed the others are told why, and asked for later."""
    paths = [("kv", str(number)) for number in range(100)]
    world.vault.there = {path: SecretAway("away") for path in paths}
    world.watch.want("n1", paths)
    await world.until(lambda: all(world.watch.find(path).asked for path in paths))
    assert world.vault.asked.total() == module.AT_ONCE
    assert world.watch.faults() == ["away"]
    world.vault.there = dict.fromkeys(paths, Version(1, {}))
    world.now_s += 2 * module.PAUSE_S
    world.watch._wake.set()
    await world.until(lambda: not world.watch.faults())


async def test_more_than_can_be_watched_is_said_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PATHS", 1)
    world.watch.want("n1", [A, B])
    assert "more than 1" in world.watch.find(B).fault


async def test_without_vault_it_says_so() -> None:
    watch = SecretWatch(None, random.Random(1), lambda: 0.0)
    watch.want("n1", [A])
    await watch.run()
    assert "no Vault is configured" in watch.find(A).fault


@pytest.mark.parametrize("values", [{}, {"key": ""}, {"key": 1}, {"key": "x" * 70_000}, {"key": "é" * 40_000}])
def test_what_is_no_text_of_a_bounded_size_is_none(values: dict[str, object]) -> None:
    with pytest.raises(SecretGone):
        Version(1, values).text("key", "vault:kv/a#key")
