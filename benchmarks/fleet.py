"""Simulated agents: a thousand connections of mTLS, each with one stream that takes what comes and acknowledges it.

A fleet lives in the process of the benchmark and uses the channel that the agent itself uses. What it says and how it
reads is a `Dialect`, so the control plane and the bare server are held by the same code.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import anyio
import grpc.aio

from benchmarks.process import Broken
from meshwarden.agents.channel import ControlPlane, open_channel
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.svid import X509Svid

CONNECTING_AT_ONCE = 32
WAIT_S = 600.0


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

    def __init__(self, agents: list[_Agent]) -> None:
        self._agents = agents
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
        raise Broken(f"a stream has ended: {await agent.call.code()}: {await agent.call.details()}")

    async def live(self, interval_s: float) -> None:
        """Says that the agents live, each once an interval, one after the other."""
        while True:
            for agent in self._agents:
                await anyio.sleep(interval_s / len(self._agents))
                await self._beating.wait()
                if (beat := agent.dialect.heartbeat()) is not None:
                    await agent.say(beat)

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
    place: ControlPlane,
    bundle: Bundle,
    svids: Sequence[X509Svid],
    method: str,
    dialects: Sequence[Dialect],
    heartbeat_s: float,
    at_once: int = CONNECTING_AT_ONCE,
) -> AsyncIterator[Fleet]:
    """Connects an agent for each SVID, so many at once, and keeps them connected for the length of the block.

    Raises:
        Broken: a stream has ended.
    """
    turn = asyncio.Semaphore(at_once)

    async def connect(svid: X509Svid, dialect: Dialect) -> _Agent:
        agent = _Agent(open_channel(place, bundle, svid), dialect)
        async with turn:
            await agent.channel.channel_ready()
            agent.call = agent.channel.stream_stream(method)()
            await agent.say(dialect.first())
        return agent

    agents = list(await asyncio.gather(*map(connect, svids, dialects)))
    connected = Fleet(agents)
    try:
        async with anyio.create_task_group() as group:
            for agent in agents:
                group.start_soon(connected.listen, agent)
            group.start_soon(connected.live, heartbeat_s)
            yield connected
            group.cancel_scope.cancel()
    except BaseExceptionGroup as failed:
        raise _first(failed) from None
    finally:
        for agent in agents:
            agent.call.cancel()
        await asyncio.gather(*(agent.channel.close() for agent in agents))


def _first(error: BaseException) -> BaseException:
    """What went wrong first; what came of it is of no interest."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
