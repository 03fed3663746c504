"""What one node says of its enforcement points, as far as it may speak of them, and what it is to be told."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

from google.protobuf.duration_pb2 import Duration

from meshwarden.controlplane.quota.holding import Chunks
from meshwarden.controlplane.quota.lease import Usage
from meshwarden.controlplane.quota.leases import TTL_S, Leases
from meshwarden.controlplane.quota.ledgers import Ledgers
from meshwarden.controlplane.quota.policy import bucket_of
from meshwarden.controlplane.quota.tree import Bucket, Level, Point
from meshwarden.controlplane.quota.usage import MOST, Usages
from meshwarden.sdk.quota.unit import told
from meshwarden.v1 import quota_service_pb2 as pb

MAX_POINTS: Final = 1024
"""Of one node; agents take no more themselves."""
MAX_UNREAD: Final = 1024
"""How many messages wait for a node that doesn't read them, before its stream is ended."""
_Item = TypeVar("_Item", pb.Share, pb.BucketUsage)
_TTL: Final = Duration(seconds=int(TTL_S))


class SayAgain(Exception):
    """The stream has ended, or has to: what we knew of a point has run out, so what it holds must be told whole."""


class Limits(Protocol):
    """What a node's word is held against."""

    @property
    def usages(self) -> Usages:
        """Where usage is counted."""

    def tree(self, policy: str) -> Level | None:
        """The tree of a policy that is divided."""

    def hosts(self, node: str, service: str) -> bool:
        """Whether a node may speak for a service."""

    def covers(self, policy: str, service: str, tenant: str) -> bool:
        """Whether servers of a service hold a policy, as far as it is about a tenant's calls."""

    def is_tenant(self, tenant: str) -> bool:
        """Whether there is such a tenant, or another trust domain that is called so."""

    def now_s(self) -> float:
        """The present."""

    def took(self) -> None:
        """A report was taken."""

    def divide(self) -> None:
        """Divides anew, and tells all nodes what changes."""


class NodeStream:
    """One stream of a node."""

    def __init__(self, node: str, limits: Limits, leases: Leases, ledgers: Ledgers) -> None:
        self.node = node
        self.heard_s = limits.now_s()
        """When that came which it was answered last."""
        self.ended = ""
        """Why we end it; empty while we don't."""
        self.ignored: Counter[str] = Counter()
        """What it said that was not believed: how much, by reason."""
        self._limits, self._leases, self._ledgers = limits, leases, ledgers
        # When the leases of a point run out, by its name.
        self._until_s: dict[str, float] = {}
        self._out: list[pb.ShareResponse] = []
        self._wake = asyncio.Event()

    def take(self, request: pb.ShareRequest) -> None:
        """Takes what the node says, which prolongs the leases of the points that are in it.

        Raises:
            SayAgain: the node was silent about a point for too long, or the stream has ended.
        """
        if self.ended:
            raise SayAgain(self.ended)
        now_s = self.heard_s = self._limits.now_s()
        # One that has left may be back under its name in the same message.
        for report in request.last:
            for bucket, usage in self._own(report.service, report.usages):
                if bucket.policy in self._ledgers and (chunks := self._chunks(usage)) is not None:
                    self._ledgers.end(Point(self.node, report.point), bucket, chunks)
        for name in request.left:
            if self._until_s.pop(name, None) is not None:
                self._leases.leave(Point(self.node, name))
                self._ledgers.leave(Point(self.node, name))
        overdrawn = [self._take(report, now_s) for report in request.points]
        self._limits.took()
        answer = pb.ShareResponse(answers=request.sequence, ttl=_TTL)
        if any(overdrawn):
            # With the answer leases begin anew that had run out: in the same message is what they may use from now on.
            before = len(self._out)
            self._limits.divide()
            if len(self._out) > before:
                self._out[-1].MergeFrom(answer)
                return
        self.say(answer)

    def say(self, response: pb.ShareResponse) -> None:
        """Tells the node something, in turn."""
        if len(self._out) >= MAX_UNREAD:
            self._out = []
            self.end("this node does not read what it is told")
        if self.ended:
            return
        self._out.append(response)
        self._wake.set()

    def end(self, reason: str) -> None:
        """Ends the stream."""
        self.ended = reason
        self._wake.set()

    async def next(self) -> list[pb.ShareResponse]:
        """Waits until there is something to tell; nothing if the stream has to end."""
        await self._wake.wait()
        self._wake.clear()
        out, self._out = self._out, []
        return [] if self.ended else out

    def _take(self, report: pb.PointReport, now_s: float) -> bool:
        """Takes a point's report; whether it believes that it has more than it holds."""
        until_s = self._until_s.get(report.point)
        if until_s is None and len(self._until_s) >= MAX_POINTS and not self._forget(now_s):
            self.ignored["points"] += 1
            return False
        if until_s is not None and now_s >= until_s and not report.begins:
            raise SayAgain(f"nothing was heard of {report.point} for {TTL_S:g} s: begin anew")
        point = Point(self.node, report.point)
        overdrawn = False
        if until_s is None or report.begins:
            held = {bucket: share.rate for bucket, share in self._own(report.service, report.held)}
            overdrawn = self._leases.learn(point, held, now_s)
        self._until_s[report.point] = now_s + TTL_S
        usages = {}
        self._ledgers.hear(point, now_s)
        for bucket, usage in self._own(report.service, report.usages):
            if bucket.policy in self._ledgers:
                self._use(point, bucket, usage, now_s, again=report.begins)
                continue
            counts = usage.allowed, usage.denied, usage.in_use, usage.shadowed
            self.ignored["absurd"] += max(counts) >= MOST  # an agent says no more in any case
            spilled = usage.spilled if usage.HasField("spilled") else None
            allowed, denied, in_use, shadowed = (min(count, MOST) for count in counts)
            usages[bucket] = Usage(allowed, denied, in_use, shadowed, spilled)
            self._limits.usages.add(bucket, usage.allowed, usage.denied, usage.shadowed)
        self._leases.report(point, usages, now_s, acknowledged=report.acknowledged)
        return overdrawn

    def _use(self, point: Point, bucket: Bucket, usage: pb.BucketUsage, now_s: float, *, again: bool) -> None:
        """Takes what was used of an amount for a period."""
        chunks = self._chunks(usage)
        if chunks is not None:
            self._limits.usages.add(bucket, usage.allowed, usage.denied, usage.shadowed)
            wanted = min(usage.allowed, MOST) + min(usage.denied, MOST)
            self._ledgers.report(point, bucket, chunks, wanted, now_s, again=again)

    def _chunks(self, usage: pb.BucketUsage) -> Chunks | None:
        """What a point says that it has; None, and counted, if that can't be."""
        said = usage.chunks
        chunks = Chunks(said.series, said.turn, said.amount, said.left, said.returned, said.wanted)
        if said.series and chunks.is_sane():
            return chunks
        self.ignored["garbage"] += 1
        return None

    def _own(self, service: str, items: Iterable[_Item]) -> Iterable[tuple[Bucket, _Item]]:
        """Those whose buckets the node may speak of, for a point of that service."""
        may: dict[tuple[str, str], Level | None] = {}
        hosts = self._limits.hosts(self.node, service)
        for item in items:
            named = item.bucket
            whose = named.policy, named.tenant
            if whose not in may:
                its = hosts and self._limits.covers(named.policy, service, named.tenant)
                may[whose] = self._limits.tree(named.policy) if its else None
            tree = may[whose]
            if tree is None or not self._limits.is_tenant(named.tenant):
                self.ignored["foreign"] += 1
                continue
            bucket = bucket_of(named, tree, service)
            if tree.find(bucket.path) is None or named.unit != told(tree.unit):
                self.ignored["unknown"] += 1
                continue
            yield bucket, item

    def _forget(self, now_s: float) -> bool:
        """Forgets points whose leases ran out; whether there is room then."""
        self._until_s = {name: until_s for name, until_s in self._until_s.items() if until_s > now_s}
        return len(self._until_s) < MAX_POINTS
