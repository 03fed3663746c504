"""Codes and sessions of browsers, by a clock of their own."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.identity import browser_session as under_test
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.browser_session import BrowserSession, BrowserSessions
from meshwarden.controlplane.identity.rate import Limited

CHAIN = (b"leaf", b"issuer")


class World:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.events: list[tuple[str, dict[str, object]]] = []
        self.sessions = BrowserSessions(self, lambda: self.now)

    async def record(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    async def record_all(self, event: str, rows: Any) -> None:
        raise AssertionError

    def note(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def later(self, **delta: float) -> None:
        self.now += timedelta(**delta)

    async def code(self, name: str = "ann", ttl: timedelta = timedelta(hours=8)) -> str:
        spiffe_id = SpiffeId.for_operator("a.test", name)
        peer: Any = SimpleNamespace(spiffe_id=spiffe_id, not_after=self.now + ttl, serial="5e")
        return (await self.sessions.code(peer, CHAIN, "192.0.2.9:1"))[0]

    async def begin(self, code: str, address: str = "192.0.2.1:1") -> tuple[str, BrowserSession]:
        return await self.sessions.begin(code, address)

    async def refused(self, code: str) -> None:
        with pytest.raises(Denied) as caught:
            await self.begin(code)
        assert caught.value.status is grpc.StatusCode.UNAUTHENTICATED
        assert code not in str(caught.value)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_code_begins_one_session(world: World) -> None:
    code = await world.code()
    text, session = await world.begin(code)
    assert (session.owner, session.chain_der, session.over()) == ("spiffe://a.test/operator/ann", CHAIN, "")
    assert session.until == world.now + timedelta(hours=1)
    assert world.sessions.find(text) is session
    assert world.sessions.find(code) is None, "a code is no session"
    await world.refused(code)
    await world.refused(text)
    assert [event for event, _ in world.events] == ["session.code", "session.begin"]


async def test_whose_a_code_is_can_be_asked_before_it_is_spent(world: World) -> None:
    code = await world.code()
    for _ in range(3):
        found = world.sessions.look(code, "192.0.2.7:1")
        assert (found.owner, found.chain_der) == ("spiffe://a.test/operator/ann", CHAIN)
        assert (found.until - world.now, world.sessions.until(found) - world.now) == (
            timedelta(minutes=1),
            timedelta(hours=1),
        )
    assert [event for event, _ in world.events] == ["session.code"], "nothing has begun"
    await world.begin(code)
    spent, late, short = code, await world.code("bob"), await world.code("eve", timedelta(minutes=7))
    assert world.sessions.until(world.sessions.look(short, "192.0.2.7:1")) == world.now + timedelta(minutes=7)
    world.later(minutes=1)
    for gone in (spent, late, "none"):
        with pytest.raises(Denied) as caught:
            world.sessions.look(gone, "192.0.2.7:1")
        assert (caught.value.status, gone in str(caught.value)) == (grpc.StatusCode.UNAUTHENTICATED, gone == "none")


async def test_a_code_is_good_for_a_minute(world: World) -> None:
    code, late = await world.code(), await world.code()
    world.later(seconds=59.9)
    await world.begin(code)
    world.later(seconds=0.1)
    await world.refused(late)
    await world.refused(late)


async def test_nothing_outlives_the_certificate(world: World) -> None:
    code = await world.code(ttl=timedelta(seconds=20))
    world.later(seconds=20)
    await world.refused(code)
    _, session = await world.begin(await world.code(ttl=timedelta(minutes=5)))
    world.later(minutes=5)
    assert "has ended" in session.over()


async def test_a_session_ends_by_itself(world: World) -> None:
    _, idle = await world.begin(await world.code())
    _, used = await world.begin(await world.code())
    _, open_ = await world.begin(await world.code())
    with open_.used():
        for _ in range(3):
            world.later(minutes=14)
            with used.used():
                pass
        assert "15 minutes" in idle.over()
        assert (used.over(), open_.over()) == ("", "")
        world.later(minutes=18)
        assert "has ended" in used.over(), "an hour is all"
        assert "has ended" in open_.over()


async def test_who_logs_out_is_out(world: World) -> None:
    text, session = await world.begin(await world.code())
    await world.sessions.end(session)
    assert "was ended" in session.over()
    assert world.sessions.find(text) is None
    assert world.events[-1] == (
        "session.end",
        {"spiffe_id": session.owner, "session": session.number, "reason": "log out"},
    )


async def test_one_operator_has_so_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, other = await world.begin(await world.code("bob"))
    made = []
    for _ in range(under_test.SESSIONS_EACH + 1):
        world.later(seconds=2)
        made.append((await world.begin(await world.code()))[1])
    assert "was ended" in made[0].over(), "the oldest makes room"
    assert [one.over() for one in (*made[1:], other)] == [""] * (under_test.SESSIONS_EACH + 1)
    codes = [await world.code() for _ in range(under_test.CODES_EACH + 1)]
    await world.refused(codes[0])
    await world.begin(codes[1])
    world.later(minutes=1)
    monkeypatch.setattr(under_test, "MOST", len(world.sessions._sessions))
    code = await world.code("eve")
    with pytest.raises(Limited):
        await world.begin(code)
    world.later(minutes=16)  # what has ended leaves its place
    await world.begin(await world.code("eve"))
    assert len(world.sessions._sessions) == 1
    monkeypatch.setattr(under_test, "MOST", 1)
    await world.code("ann")
    with pytest.raises(Limited):
        await world.code("eve")


async def test_who_guesses_waits(world: World) -> None:
    code = await world.code()
    for number in range(under_test.BEGIN_PACE.burst):
        await world.refused(f"guess-{number}")
    with pytest.raises(Limited) as caught:
        await world.begin(code)
    assert caught.value.wait_s > 0
    with pytest.raises(Limited):
        await world.begin(code, "192.0.2.1:9"), "another port is the same address"
    with pytest.raises(Limited):
        world.sessions.look(code, "192.0.2.1:1")
    await world.begin(code, "192.0.2.2:1")
    for _ in range(under_test.CODE_PACE.burst - 1):
        await world.code()
    with pytest.raises(Limited):
        await world.code()


async def test_what_shows_a_session_stands_nowhere(world: World) -> None:
    code = await world.code()
    text, session = await world.begin(code)
    said = repr((session, vars(world.sessions), world.events, world.sessions.find(text)))
    assert code not in said
    assert text not in said
    assert len(text) == 43
    assert text != (await world.begin(await world.code()))[0]
