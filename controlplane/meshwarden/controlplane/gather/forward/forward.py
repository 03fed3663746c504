"""Sends what waits in the queue on to one backend, again and again until it is taken, or refused for good."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import structlog

from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.forward.backend import Away, Backend, Limited, Rejected, TooLarge
from meshwarden.controlplane.gather.forward.queue import Lane, Queue, Row, stage_of
from meshwarden.controlplane.gather.tally import Tally

BATCH_BYTES: Final = 1 << 20
BATCH_ROWS: Final = 512
_ALL: Final = 2**63 - 1
FIRST_BACKOFF_S: Final = 0.5
LAST_BACKOFF_S: Final = 30.0
MAX_ASKED_S: Final = 300.0
"""How long a backend is left alone at its own wish, at most."""

log = structlog.get_logger()


class _Limit(NamedTuple):
    """A lane that is left alone: the last backoff, and until when on the loop's clock."""

    pause_s: float
    until_s: float


class Forwarder:
    """One backend's sender. Lanes take turns; what is refused for good goes again row by row, to find what is bad."""

    def __init__(
        self,
        backend: Backend,
        durable: Durable,
        queue: Queue,
        tally: Tally,
        settle: Callable[[], Awaitable[None]],
        rng: random.Random,
        *,
        first_backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        """Sends nothing until `run`.

        Args:
            backend: where to.
            durable: holds the queue.
            queue: what to send.
            tally: counts what becomes of it.
            settle: returns once all is written.
            rng: spreads retries.
            first_backoff_s: the pause after the first failure.
        """
        self._backend, self._durable, self._queue, self._tally = backend, durable, queue, tally
        self._settle, self._rng, self._first_backoff_s = settle, rng, first_backoff_s
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._after: dict[Lane, int] = {}
        self._until: dict[Lane, int] = {}
        # How many more rows of a lane go one by one.
        self._single: dict[Lane, int] = {}
        self._limits: dict[Lane, _Limit] = {}
        self._tried: Lane | None = None
        self.fault = ""
        """Why the backend takes nothing; empty if it does."""

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self._backend.name

    def wake(self) -> None:
        """Says that something was written."""
        self._idle.clear()
        self._work.set()

    async def wait_idle(self) -> None:
        """Returns once nothing waits."""
        await self._idle.wait()

    async def run(self) -> None:
        """Sends until cancelled."""
        pause_s = self._first_backoff_s
        try:
            while True:
                self._work.clear()
                try:
                    sent = await self._round()
                except Exception as error:  # of the backend or a disk, or a defect of ours: none may end the server
                    self._fail(str(error) if isinstance(error, Away) else f"{type(error).__name__}: {error}")
                    await asyncio.sleep(self._pause_s(pause_s, error))
                    pause_s = min(pause_s * 2, LAST_BACKOFF_S)
                    continue
                pause_s = self._first_backoff_s
                if not sent:
                    await self._rest()
        finally:
            await self._backend.transport.close()

    async def _rest(self) -> None:
        """Returns when there is something to send, or a lane may be tried again."""
        if not self._limits:
            self._idle.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min((limit.until_s for limit in self._limits.values()), default=None)):
                await self._work.wait()

    async def _round(self) -> bool:
        """Sends a batch of each lane; whether there was any."""
        sent = False
        now_s = asyncio.get_running_loop().time()
        for lane in self._lanes():
            if lane in self._limits and self._limits[lane].until_s > now_s:
                continue
            self._tried = lane
            rows = await self._read(lane)
            if not rows:
                continue
            try:
                await self._send(lane, rows)
            except Away as error:
                # Where it takes others' it isn't away: something of this lane's is too much for it.
                if not sent and not isinstance(error, Limited):
                    raise
                self._limit(lane, error, now_s)
            else:
                sent = True
        if sent:
            # What is sent stays in the queue until this is written: after a crash it goes once more.
            with contextlib.suppress(Exception):
                await self._settle()
        return sent

    def _lanes(self) -> Sequence[Lane]:
        """Those that have something, from the one behind the last that was tried: one that fails comes last then."""
        lanes = self._queue.lanes(self._backend.name)
        behind = lanes.index(self._tried) + 1 if self._tried in lanes else 0
        return [*lanes[behind:], *lanes[:behind]]

    async def _read(self, lane: Lane) -> list[Row]:
        after, until = self._after.get(lane, 0), self._until.get(lane, _ALL)
        most = 1 if self._single.get(lane) else BATCH_ROWS
        # Between two flushes: nothing may be dropped between the reading and the holding.
        rows = await self._durable.work(lambda db: Queue.read(db, lane, after, until, most, BATCH_BYTES))
        if rows:
            # Whatever becomes of it: it goes again as it was.
            self._until[lane] = rows[-1].id
            self._queue.hold(lane, rows[-1].id)
        return rows

    async def _send(self, lane: Lane, rows: list[Row]) -> None:
        items = sum(row.items for row in rows)
        try:
            rejected = await self._backend.transport.send(lane.signal, lane.tenant, [row.body for row in rows])
        except (Rejected, TooLarge) as error:
            if len(rows) > 1:
                self._single[lane] = len(rows)
                del self._until[lane]
                return
            log.warning("telemetry not taken", backend=self._backend.name, signal=lane.signal, reason=str(error))
            rejected = items
        rejected = min(rejected, items)
        self._limits.pop(lane, None)
        if self.fault and not self._limits:
            log.info("backend takes telemetry again", backend=self._backend.name)
            self.fault = ""
        stage = stage_of(lane.backend)
        self._tally.passed(stage, lane.signal, lane.tenant, items - rejected)
        self._tally.drop(stage, lane.signal, "rejected", lane.tenant, rejected)
        self._queue.done(lane, rows)
        self._after[lane] = rows[-1].id
        del self._until[lane]
        if lane in self._single:
            self._single[lane] -= len(rows)
            if self._single[lane] <= 0:
                del self._single[lane]

    def _limit(self, lane: Lane, error: Away, now_s: float) -> None:
        """Leaves one tenant's for a while, so that what is wrong with it holds up no other."""
        before = self._limits.get(lane)
        pause_s = self._first_backoff_s if before is None else min(before.pause_s * 2, LAST_BACKOFF_S)
        self._limits[lane] = _Limit(pause_s, now_s + self._pause_s(pause_s, error))
        self._fail(f"{lane.tenant or 'the mesh itself'}: {error}")

    def _pause_s(self, backoff_s: float, error: Exception) -> float:
        asked_s = min(error.retry_s, MAX_ASKED_S) if isinstance(error, Away) else 0.0
        return max(backoff_s * self._rng.uniform(0.5, 1.0), asked_s)

    def _fail(self, reason: str) -> None:
        if not self.fault:
            log.warning("backend takes nothing", backend=self._backend.name, reason=reason)
        self.fault = reason
