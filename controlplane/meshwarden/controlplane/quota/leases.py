"""Who may use how much of each bucket: the leases of all enforcement points. Pure: time is passed in, in seconds.

A rate is never in two hands. A lease counts as held, at the highest rate that its point may still believe in, until the
point has acknowledged a lower one, has left, or its lease has run out by our clock, which begins after the point's.
Decreases go out at once; increases only as far as every level above has room for what is held.

Whoever starts anew doesn't know what its predecessor has given: for one term it gives nothing more, while the points
say what they hold. It takes nothing away either, as long as that fits: who wants how much isn't known yet, and
what each holds is taken for that.

Source: Gray and Cheriton, "Leases" (SOSP 1989) for terms and clocks; Doorman's learning mode for the restart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from meshwarden.controlplane.quota.absent import Absent
from meshwarden.controlplane.quota.excess import Excess, Path
from meshwarden.controlplane.quota.lease import Lease, Share, Usage
from meshwarden.controlplane.quota.pool import Pool
from meshwarden.controlplane.quota.tree import Bucket, Level, Point
from meshwarden.sdk.quota.slot import STARTER
from meshwarden.sdk.quota.unit import CONCURRENT

TTL_S: Final = 3.0
"""How long a share may be used after the sending of the report that it answers."""
TERM_S: Final = TTL_S * 1.01
"""The same by our clock: a point's may be a hundredth slower."""
SILENT_S: Final = 1.5
"""Of a point that has said nothing for so long another may take the place: points report each second."""
PARKED_S: Final = 30.0
"""So long it is known what a point held of a bucket that is gone."""
MAX_LEASES: Final = 65_536
"""Of one node. What a node wants beyond it is counted, and gets nothing."""


@dataclass(slots=True)
class Ignored:
    """What was reported and not believed, by reason."""

    unknown: int = 0
    garbage: int = 0
    too_many: int = 0
    overdrawn: int = 0


@dataclass(slots=True)
class _Told:
    """How a point stands with us.

    Attributes:
        until_s: when its leases run out.
        leases: what it has, by bucket.
        learned: the buckets of which is known what it wants, and not since when it counts what it says next.
    """

    until_s: float
    leases: dict[Bucket, Lease]
    learned: set[Bucket] = field(default_factory=set)

    @property
    def heard_s(self) -> float:
        """When it reported last."""
        return self.until_s - TERM_S


class Leases:
    """All leases of one allocator."""

    def __init__(self, now_s: float, *, learn: bool) -> None:
        """Begins with nobody holding anything.

        Args:
            now_s: of a clock that never goes back.
            learn: whether a predecessor may have given leases that still run.
        """
        self._learns_until_s = now_s + TERM_S if learn else -math.inf
        self._pools: dict[str, Pool] = {}
        self._points: dict[Point, _Told] = {}
        self._of_node: dict[str, int] = {}
        self._absent = Absent()
        # {policy: {(point, bucket): (a lease that went with its bucket, until when that is remembered)}}
        self._parked: dict[str, dict[tuple[Point, Bucket], tuple[Lease, float]]] = {}
        self._number = 0
        self._wanting = False
        self.ignored = Ignored()
        self._excess, self._ticked_s = Excess(), now_s

    @property
    def number(self) -> int:
        """Under which points acknowledge what `tick` told last."""
        return self._number

    def learns(self, now_s: float) -> bool:
        """Whether it still hears what a predecessor has given, and gives nothing more."""
        return now_s < self._learns_until_s

    @property
    def presses(self) -> bool:
        """Whether a point wants more than it did, or a rate came back, since the last `tick`: better now than later."""
        return self._wanting

    def put(self, policy: str, tree: Level | None) -> None:
        """Puts a policy's tree in force, or ends it.

        The leases of buckets that it doesn't have any more are gone. If a bucket comes again soon they count as held
        once more: their points may not have heard of either.
        """
        pool = self._pools.get(policy)
        if pool is not None and tree is not None and pool.tree.unit != tree.unit:
            self.put(policy, None)
            self._parked.pop(policy, None)  # what was given is worth nothing in another unit
            pool = None
        if tree is None:
            self._excess.forget(policy)
            gone = pool.leases if pool is not None else []
        elif pool is None:
            self._pools[policy], gone = Pool(tree), []
        else:
            gone = pool.change(tree)
        for lease in gone:
            self._park(policy, lease)
        if tree is None:
            self._pools.pop(policy, None)
        else:
            self._unpark(policy, tree)
        self._wanting = True

    def learn(self, point: Point, held: Mapping[Bucket, float], now_s: float) -> bool:
        """Hears at the start of a point's stream what it holds, by bucket in calls a second.

        While we learn it is believed, up to the bucket's ceiling, and that it is wanted: of what the point has used it
        isn't known since when. Later it is believed only as far as we know of it ourselves. Whoever carries shares to
        the point lets those go that were told before this was heard: they are counted no more.

        Returns:
            Whether it believes that it has more than it holds: its leases may begin anew only with what `tick` says.
        """
        overdrawn = self.ignored.overdrawn
        told = self._heard(point, now_s)
        learns = self.learns(now_s)
        for bucket, rate in held.items():
            tree = self._tree_of(bucket)
            if tree is None or not _sane(rate):
                self._ignore(tree is None)
                continue
            lease = told.leases.get(bucket)
            known = lease.held if lease is not None else 0.0
            if learns:
                known = max(known, tree.least_ceiling(bucket.path))
            if rate > known:
                self.ignored.overdrawn += 1
            is_new, lease = lease is None, lease or self._open(point, bucket, now_s)
            if lease is not None:
                lease.say(min(rate, known), believed=rate)
                if learns:
                    lease.demand.rate = max(lease.demand.rate, lease.held)
                if learns or (is_new and lease.demand.rate > 0):  # it was away
                    told.learned.add(bucket)
        for bucket, lease in told.leases.items():
            if bucket not in held:
                lease.say(0.0, believed=0.0)
        self._wanting = True
        return self.ignored.overdrawn > overdrawn

    def report(self, point: Point, usages: Mapping[Bucket, Usage], now_s: float, *, acknowledged: int = 0) -> None:
        """Takes what a point has used since its last report; that renews all its leases.

        Args:
            point: who reports.
            usages: by bucket; a bucket that is new to us is a wish for a share.
            now_s: when the report came.
            acknowledged: the number of the last shares that the point obeys.
        """
        told = self._heard(point, now_s)
        if acknowledged > self._number:
            self.ignored.garbage += 1
            acknowledged = 0
        for bucket, lease in told.leases.items():
            before = lease.held
            if (said := usages.get(bucket)) is not None and (said.in_use or lease.in_use):
                self._note_in_use(lease, said.in_use, now_s)
            lease.acknowledge(acknowledged)
            self._wanting |= lease.held < before
        for bucket, usage in usages.items():
            tree = self._tree_of(bucket)
            if tree is None or not (_sane(usage.allowed) and _sane(usage.denied) and _sane(usage.spilled or 0.0)):
                self._ignore(tree is None)
                continue
            known = told.leases.get(bucket)
            using = known or self._open(point, bucket, now_s)
            if using is None:
                continue
            if tree.unit == CONCURRENT:
                if known is None:
                    self._note_in_use(using, usage.in_use, now_s)
                using.demand.peak(_wanted(usage), now_s, tree.least_ceiling(bucket.path))
                self._wanting |= usage.denied > 0
            else:
                if usage.allowed > usage.shadowed:
                    more = usage.allowed - usage.shadowed
                    self._excess.add(bucket, tree, more, using.demand.since_s, now_s)
                if usage.spilled is not None:
                    # No more than it had to spill: a point that says more would have others given what nobody had.
                    spilled = min(usage.spilled, using.held * (now_s - using.demand.since_s))
                    self._pools[bucket.policy].spares.hear(using, spilled, usage.denied + usage.shadowed)
                if bucket in told.learned:
                    # Since when that was counted isn't known, and it may have been refused for long.
                    if usage.allowed or usage.denied:
                        told.learned.discard(bucket)
                    using.demand.begin(now_s)
                else:
                    wanted = usage.allowed + usage.denied
                    self._wanting |= using.demand.add(wanted, now_s, tree.least_ceiling(bucket.path))
            if usage.allowed or usage.denied or usage.in_use:
                using.used_s = now_s
            self._wanting |= using.given == 0

    def leave(self, point: Point) -> None:
        """Notes that a point has ended: what it held is free."""
        if (told := self._points.pop(point, None)) is not None:
            self._remember(point, told, is_gone=True)
            for lease in list(told.leases.values()):
                self._drop(lease)
            for parked in self._parked.values():
                for key in [key for key in parked if key[0] == point]:
                    del parked[key]
        self._wanting = True

    def tick(self, now_s: float) -> tuple[int, dict[Point, list[Share]]]:
        """Divides anew.

        Returns:
            The number under which points acknowledge this, and what to tell whom: only what differs.
        """
        self._number += 1
        self._wanting = False
        self._look_for_silent(now_s)
        shares: dict[Point, list[Share]] = {}
        for policy, pool in self._pools.items():
            rates = dict(pool.divide(now_s, self._absent.gone(policy), learning=self.learns(now_s)))
            for lease, rate in rates.items():
                held = lease.held
                lease.tell(self._number, rate)
                pool.spares.grow(lease, lease.held - held)
            spare = {} if self.learns(now_s) else pool.hand_out(now_s)
            for lease in {**rates, **spare}:
                shares.setdefault(lease.point, []).append(pool.share(lease, lease.given, spare.get(lease, 0.0)))
            for lease in pool.returned():
                self._drop(lease)
            for path, many in pool.excess().items():
                self._excess.note(policy, path, many * (now_s - self._ticked_s))
        self._ticked_s = now_s
        return self._number, shares

    def heard_s(self, point: Point) -> float:
        """When a point was heard of last, which has leases."""
        return self._points[point].heard_s

    def excess(self, policy: str, now_s: float) -> dict[Path, float]:
        """What was let in beyond each level of a policy since this began, as far as can be told."""
        pool = self._pools.get(policy)
        return self._excess.of_policy(policy, pool.tree, now_s) if pool is not None else {}

    def away(self, bucket: Bucket) -> int:
        """How many points that wanted a bucket a while ago are away."""
        return len(self._absent.gone(bucket.policy).get(bucket.path, ()))

    def find(self, policy: str) -> list[Lease]:
        """The leases of a policy, to be looked at."""
        pool = self._pools.get(policy)
        return list(pool.leases) if pool else []

    def _heard(self, point: Point, now_s: float) -> _Told:
        told = self._points.get(point)
        if told is None:
            told = self._points[point] = _Told(now_s, {})
        told.until_s = now_s + TERM_S
        return told

    def _tree_of(self, bucket: Bucket) -> Level | None:
        """The tree that a bucket is of, if it is a bucket of it."""
        pool = self._pools.get(bucket.policy)
        return pool.tree if pool is not None and pool.tree.find(bucket.path) is not None else None

    def _open(self, point: Point, bucket: Bucket, now_s: float) -> Lease | None:
        if self._of_node.get(point.node, 0) >= MAX_LEASES:
            self.ignored.too_many += 1
            return None
        lease = Lease(point, bucket, 0.0, now_s)
        # An Envoy that was started again, for one, tells what is wanted of it after five seconds.
        lease.demand.rate = self._absent.take(point, bucket, now_s)
        self._take_in(self._points[point], lease)
        return lease

    def _take_in(self, told: _Told, lease: Lease) -> None:
        self._of_node[lease.point.node] = self._of_node.get(lease.point.node, 0) + 1
        told.leases[lease.bucket] = lease
        self._pools[lease.bucket.policy].add(lease)

    def _look_for_silent(self, now_s: float) -> None:
        """Lets those go whose leases ran out, and forgets what was wanted long ago."""
        silent = [(point, told) for point, told in self._points.items() if now_s - told.heard_s > SILENT_S]
        for point, told in silent:
            if told.until_s <= now_s:
                self.leave(point)
            else:
                self._remember(point, told, is_gone=False)
        for policy, parked in list(self._parked.items()):
            self._parked[policy] = {key: kept for key, kept in parked.items() if now_s < kept[1]}
            if not self._parked[policy]:
                del self._parked[policy]
        self._absent.look(now_s)

    def _park(self, policy: str, lease: Lease) -> None:
        """Lets a lease go whose bucket is gone, and remembers it until its point has surely heard of that."""
        self._parked.setdefault(policy, {})[lease.point, lease.bucket] = lease, self._ticked_s + PARKED_S
        self._drop(lease)

    def _unpark(self, policy: str, tree: Level) -> None:
        """Takes the leases in again whose buckets have come back."""
        for (point, bucket), (lease, _) in list(self._parked.get(policy, {}).items()):
            told = self._points.get(point)
            if told is not None and bucket not in told.leases and tree.find(bucket.path) is not None:
                del self._parked[policy][point, bucket]
                lease.given = 0.0  # whoever has heard that the bucket was gone has nothing, and is told anew
                self._take_in(told, lease)

    def _remember(self, point: Point, told: _Told, *, is_gone: bool) -> None:
        for bucket, lease in told.leases.items():
            self._absent.remember(point, bucket, lease.demand.rate, told.heard_s, is_gone=is_gone)

    def _drop(self, lease: Lease) -> None:
        told = self._points.get(lease.point)
        if told is not None:
            told.leases.pop(lease.bucket, None)
        pool = self._pools.get(lease.bucket.policy)
        if pool is not None:
            pool.remove(lease)
        left = self._of_node[lease.point.node] - 1
        if left:
            self._of_node[lease.point.node] = left
        else:
            del self._of_node[lease.point.node]

    def _note_in_use(self, lease: Lease, in_use: int, now_s: float) -> None:
        """Believes how many calls run at a point, as far as it may have let them in.

        That is what it holds, or the one that a bucket is opened with; while we learn, up to the bucket's ceiling. A
        point that exaggerates would keep everybody else from getting more. In shadow mode more may run, and counts as
        that.
        """
        if (tree := self._tree_of(lease.bucket)) is None or tree.unit != CONCURRENT:
            return
        most = max(lease.held, STARTER)
        if self.learns(now_s):
            most = max(most, tree.least_ceiling(lease.bucket.path))
        if in_use > most and not tree.shadow:
            self.ignored.overdrawn += 1
        lease.in_use = min(float(in_use), most)

    def _ignore(self, unknown: bool) -> None:
        if unknown:
            self.ignored.unknown += 1
        else:
            self.ignored.garbage += 1


def _wanted(usage: Usage) -> float:
    """How many calls at once are wanted, where so many passed in the time in which so many were refused.

    Source: Little's law; those refused would have stayed for as long as the others.
    """
    return usage.in_use + max(usage.in_use, 1) * usage.denied / max(usage.allowed, 1)


def _sane(count: float) -> bool:
    return 0 <= count < 1e15
