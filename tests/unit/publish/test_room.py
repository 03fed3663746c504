"""Bytes under way: bounded together, in order, and never lost, whoever is cancelled where."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.publish.room import Room


async def test_what_is_small_waits_for_nothing_and_what_is_larger_than_all_takes_all() -> None:
    room = Room(100, 10)
    async with room.hold(1000):
        assert room.free_bytes == 0
        async with room.hold(10):
            assert room.free_bytes == 0
    assert room.free_bytes == 100


async def test_first_come_first_served() -> None:
    room, order = Room(100, 10), []

    async def take(name: str, size: int) -> None:
        async with room.hold(size):
            order.append(name)

    async with room.hold(60):
        tasks = [asyncio.ensure_future(take(name, size)) for name, size in (("large", 80), ("small", 20))]
        await asyncio.sleep(0)
        assert order == [], "who needs little does not go before who has waited longer"
    await asyncio.gather(*tasks)
    assert order == ["large", "small"]


async def test_who_gives_up_lets_the_next_one_in() -> None:
    room, over = Room(100, 10), asyncio.Event()

    async def take(size: int) -> None:
        async with room.hold(size):
            await over.wait()

    async with room.hold(50):
        large, small = (asyncio.ensure_future(take(size)) for size in (80, 40))
        await asyncio.sleep(0)
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        await asyncio.sleep(0)
        assert room.free_bytes == 10
    over.set()
    await small
    assert room.free_bytes == 100


@given(
    st.lists(st.tuples(st.integers(1, 150), st.sampled_from(["run", "cancel at once", "cancel later"])), max_size=12)
)
def test_all_of_it_comes_back(steps: list[tuple[int, str]]) -> None:
    async def go() -> None:
        room = Room(100, 10)

        async def take(size: int) -> None:
            async with room.hold(size):
                assert room.free_bytes >= 0
                await asyncio.sleep(0)

        tasks = []
        for size, what in steps:
            task = asyncio.ensure_future(take(size))
            tasks.append((task, what))
            await asyncio.sleep(0)
            if what == "cancel at once":
                task.cancel()
        for task, what in tasks:
            if what == "cancel later":
                task.cancel()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert room.free_bytes == 100

    asyncio.run(go())
