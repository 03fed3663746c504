"""Simulated agents: a thousand connections of mTLS, each with one stream that takes what comes and acknowledges it.

A fleet lives in the process of the benchmark and uses the channel that the agent itself uses. What it says and how it
reads is a `Dialect`, so the control plane and the bare server are held by the same code.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import anyio
import grpc.aio
from anyio.abc import TaskGroup

from benchmarks.process import Broken
from meshwarden.certs.svid import X509Svid

CONNECTING_AT_ONCE = 32
WAIT_S = 600.0
Way = Callable[[X509Svid], grpc.aio.Channel]
"""Opens a channel to the server for who has this SVID."""
SLOTS = 100
"""Parts of an interval in which heartbeats are said together."""


class Dialect(Protocol):
    """What one agent says."""

    def first(self) -> bytes:
        """Opens the stream."""

    def take(self, message: bytes) -> tuple[int, list[bytes]]:
        """Takes a message; returns the mark that it brings the agent to (0: none) and what to answer."""

    def heartbeat(self) -> bytes | None:
        """A sign of life; None if none is wanted."""


class _Agent:
    def __init__(self, channel: grpc.aio.Channel, dialect: Dialect) -> None:
        self.channel, self.dialect = channel, dialect
        self.call: Any = None
        self.turn = asyncio.Lock()  # a call takes one write at a time
        self.mark = 0
        self.marked_s = 0.0

    async def say(self, message: bytes) -> None:
        async with self.turn:
            await self.call.write(message)


class Fleet:
    """The agents of one server, connected."""

    def __init__(self) -> None:
        self._agents: list[_Agent] = []
        self._goal = 0
        self._behind: set[_Agent] = set()
        self._reached = asyncio.Event()
        self._beating = asyncio.Event()
        self._beating.set()
        self.payload = b""
        """The newest message that brought an agent to a mark."""

    async def wait(self, mark: int) -> float:
        """Waits until every agent has acknowledged `mark`; returns when the last had, on the loop's clock."""
        self._goal = mark
        self._behind = {agent for agent in self._agents if agent.mark < mark}
        self._reached.clear()
        if self._behind:
            async with asyncio.timeout(WAIT_S):
                await self._reached.wait()
        return max(agent.marked_s for agent in self._agents)

    async def listen(self, agent: _Agent) -> None:
        """Takes what an agent is told and acknowledges it, until it is cancelled."""
        loop = asyncio.get_running_loop()
        self._agents.append(agent)
        while (message := await agent.call.read()) is not grpc.aio.EOF:
            mark, answers = agent.dialect.take(message)
            for answer in answers:
                await agent.say(answer)
            if mark:
                agent.mark, agent.marked_s, self.payload = mark, loop.time(), message
                if mark >= self._goal and agent in self._behind:
                    self._behind.discard(agent)
                    if not self._behind:
                        self._reached.set()
            del message  # it may be megabytes, and the next one may not come for long
        raise Broken(f"a stream has ended: {await agent.call.code()}: {await agent.call.details()}")

    async def live(self, interval_s: float) -> None:
        """Says that the agents live, each once an interval, spread over it; also where this process is late.

        Who has something to say already says that it lives by this, and holds up no other.
        """
        async with anyio.create_task_group() as group:
            await self._live(interval_s, group)

    async def _live(self, interval_s: float, group: TaskGroup) -> None:
        loop, slot_s = asyncio.get_running_loop(), interval_s / SLOTS
        said = int(loop.time() / slot_s)
        while True:
            await anyio.sleep(slot_s)
            if not self._beating.is_set():
                await self._beating.wait()
                said = int(loop.time() / slot_s)
            now = int(loop.time() / slot_s)
            due = [
                agent for slot in range(max(said, now - SLOTS), now) for agent in self._agents[slot % SLOTS :: SLOTS]
            ]
            said = now
            for agent in due:
                if not agent.turn.locked() and (beat := agent.dialect.heartbeat()) is not None:
                    group.start_soon(agent.say, beat)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Holds heartbeats back; not for long, unless acknowledgements show that the agents live."""
        self._beating.clear()
        try:
            yield
        finally:
            self._beating.set()


@asynccontextmanager
async def fleet(
    way: Way,
    svids: Sequence[X509Svid],
    method: str,
    dialects: Sequence[Dialect],
    heartbeat_s: float,
    at_once: int = CONNECTING_AT_ONCE,
) -> AsyncIterator[Fleet]:
    """Connects an agent for each SVID, so many at once, and keeps them connected for the length of the block.

    Each takes what it is told from when it is connected, whether the others are or not.

    Raises:
        Broken: a stream has ended.
    """
    turn, connected, channels = asyncio.Semaphore(at_once), Fleet(), list[grpc.aio.Channel]()

    async def connect(group: TaskGroup, svid: X509Svid, dialect: Dialect) -> None:
        agent = _Agent(way(svid), dialect)
        channels.append(agent.channel)
        async with turn:
            await agent.channel.channel_ready()
            agent.call = agent.channel.stream_stream(method)()
            await agent.say(dialect.first())
        group.start_soon(connected.listen, agent)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(connected.live, heartbeat_s)
            await asyncio.gather(*(connect(group, *one) for one in zip(svids, dialects, strict=True)))
            yield connected
            group.cancel_scope.cancel()
    except BaseExceptionGroup as failed:
        raise _first(failed) from None
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def _first(error: BaseException) -> BaseException:
    """What went wrong first; what came of it is of no interest."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
