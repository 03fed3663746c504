"""Asks one region for what it has counted, again and again, and goes on where it stopped.

It is believed for what its own region has counted, and for nothing else.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Final

import grpc
import structlog

from meshwarden.controlplane.gather.call import Call, Refused, parse
from meshwarden.controlplane.gather.gather import Unwritten
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.tail.tail import TailSampler
from meshwarden.controlplane.gather.tail.word import ids_of
from meshwarden.controlplane.gather.tally import Tally
from meshwarden.controlplane.regions.inbox import Inbox
from meshwarden.controlplane.regions.link import Link, Own, Peer
from meshwarden.v1.region_service_pb2 import KeptCursor, KeptTraces, PullRequest, PullResponse

INTERVAL_S: Final = 1.0
PULL_S: Final = 10.0
_LAST_BACKOFF_S: Final = 5.0
MAX_ROWS: Final = 4096
# More calls than all of a region's nodes make in a minute, and few enough that SQLite can add up a ledger full of them.
MAX_COUNT: Final = 2**40
MAX_SEQUENCE: Final = 2**63 - 1
# A region's nodes may be behind or ahead of us by a fault of a clock; the record is kept all the same.
NEWEST: Final = timedelta(hours=24)

log = structlog.get_logger()


class Untrue(Exception):
    """A page that no control plane of ours would send."""


class Puller:
    """Keeps what is known of one region current.

    Attributes:
        peer: the region.
        error: why it does not answer; empty while it does, None before the first try.
    """

    def __init__(
        self,
        peer: Peer,
        own: Own,
        inbox: Inbox,
        ledger: Ledger,
        tail: TailSampler,
        tally: Tally,
        settle: Callable[[], Awaitable[None]],
        clock: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        """Makes one; `run` asks.

        Args:
            peer: the region.
            own: who asks.
            inbox: takes what it tells.
            ledger: of this region.
            tail: of this region, which is to know what the peer keeps.
            tally: counts rows.
            settle: returns once all that the inbox has taken is on disk.
            clock: the present, aware.
            rng: spreads tries.
        """
        self.peer, self._link = peer, Link(peer, own)
        self.error: str | None = None
        self._trust_domain = own.trust_domain
        self._inbox, self._ledger, self._tally = inbox, ledger, tally
        self._tail, self._kept = tail, KeptCursor()
        self._settle, self._clock, self._rng = settle, clock, rng

    async def run(self) -> None:
        """Asks until it is cancelled."""
        backoff_s = INTERVAL_S
        try:
            while True:
                backoff_s = INTERVAL_S if await self._tried() else min(backoff_s * 2, _LAST_BACKOFF_S)
                await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
        finally:
            await self._link.close()

    async def pull(self) -> None:
        """Asks once, for all that has changed.

        Raises:
            grpc.aio.AioRpcError: the peer does not answer, or refuses.
            Untrue: it tells what it can't know.
            Unwritten: our disk refuses.
        """
        cursor, began = self._inbox.cursor(self.peer.region), self._clock()
        kept = self._kept if self._tail.is_on else None
        request = PullRequest(incarnation=cursor.incarnation, after=cursor.sequence, kept=kept)
        call = (await self._link.stub()).Pull(request, timeout=PULL_S, compression=grpc.Compression.Gzip)
        try:
            async for page in call:
                if page.HasField("kept"):
                    self._hear(page.kept)
                    continue
                self._take(page)
                await self._settle()
        finally:
            call.cancel()
        self._inbox.caught_up(self.peer.region, began)

    async def _tried(self) -> bool:
        before = self._inbox.cursor(self.peer.region)
        try:
            await self.pull()
        except grpc.aio.AioRpcError as error:
            # What takes longer than one call has the time for goes on in the next.
            is_slow = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if is_slow and self._inbox.cursor(self.peer.region) != before:
                return True
            self._lost(f"{error.code().name}: {error.details()}")
            return False
        except (Untrue, Unwritten, OSError) as error:
            self._lost(f"{type(error).__name__}: {error}")
            return False
        except asyncio.CancelledError:
            # grpc.aio raises it for a call that it has ended itself.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._lost("the call was ended")
            return False
        if self.error != "":
            log.info("region answers", region=self.peer.region, address=self.peer.address)
        self.error = ""
        return True

    def _lost(self, reason: str) -> None:
        if self.error != reason:
            log.warning("region does not answer", region=self.peer.region, address=self.peer.address, reason=reason)
        self.error = reason

    def _take(self, page: PullResponse) -> None:
        """Checks a page and hands it on.

        Raises:
            Untrue: it is none that can be gone on with.
        """
        region, cursor = self.peer.region, self._inbox.cursor(self.peer.region)
        if not page.incarnation or len(page.incarnation) > 64 or not page.incarnation.isalnum():
            raise Untrue("a page of no incarnation")
        if page.incarnation == self._ledger.incarnation:
            raise Untrue("a page of our own ledger")
        if not 0 <= page.sequence <= MAX_SEQUENCE or len(page.rows) > MAX_ROWS:
            raise Untrue(f"a page of {len(page.rows)} rows up to change {page.sequence}")
        if page.incarnation != cursor.incarnation:
            log.info("region tells from the beginning", region=region, incarnation=page.incarnation)
        # What we would forget at once is not taken, and no loss.
        rows = [row for row in page.rows if row.minute.seconds >= self._ledger.oldest_s()]
        calls = []
        self._tally.received(f"region.{region}", "row", "", len(rows))
        for row in rows:
            try:
                calls.append(self._check(row))
            except Refused as refused:
                self._tally.drop(f"region.{region}", "row", refused.reason, "")
        self._tally.passed(f"region.{region}", "row", "", len(calls))
        self._inbox.put(region, page.incarnation, page.sequence, calls)

    def _hear(self, kept: KeptTraces) -> None:
        """Checks which traces the peer keeps, and hands that on.

        Raises:
            Untrue: it is nothing that can be gone on with.
        """
        if not kept.epoch or len(kept.epoch) > 64 or not kept.epoch.isalnum() or kept.sequence > MAX_SEQUENCE:
            raise Untrue(f"traces up to {kept.sequence} of no epoch")
        try:
            trace_ids = ids_of(kept.trace_ids)
        except ValueError as error:
            raise Untrue(str(error)) from None
        self._kept = KeptCursor(epoch=kept.epoch, after=kept.sequence)
        self._tail.hear(trace_ids)

    def _check(self, row: Any) -> Call:
        if row.region or row.exemplars:
            raise Refused("malformed")
        call = parse(row, self._trust_domain, self.peer.region, MAX_COUNT)
        if call.minute > (self._clock() + NEWEST).timestamp():
            raise Refused("out_of_time")
        return call
