"""One enforcement point as its agent knows it: what it has used, what it may use, and what it has yet to be told.

Between a point and the control plane stand two streams, either of which may begin anew by itself. So the numbers of
messages are each stream's own, and an acknowledgement goes up only if the word that it is for came on the stream that
is open now.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Final, NamedTuple

from google.protobuf.duration_pb2 import Duration

from meshwarden.v1 import quota_service_pb2 as pb

MAX_COUNT: Final = 1_000_000_000
MAX_BUCKETS: Final = 16_384
MAX_BYTES: Final = 1 << 20
"""Of all the buckets in a report of one point; more of them are not told, so that no point's report is in the way."""
MAX_UNACKNOWLEDGED: Final = 256
_AROUND_BYTES: Final = 64  # what a message puts around a bucket's name
_MAX_NAMES: Final = {"policy": 127, "tenant": 264, "method": 512, "unit": 16}


class Key(NamedTuple):
    """The name of a bucket: what is counted in another unit is another."""

    policy: str
    tenant: str
    method: str
    unit: str = ""

    @classmethod
    def of(cls, bucket: pb.Bucket) -> "Key":
        """The name in a message."""
        return cls(bucket.policy, bucket.tenant, bucket.method, bucket.unit)

    @property
    def size_bytes(self) -> int:
        """What it takes in a message, about."""
        return _AROUND_BYTES + sum(len(part.encode()) for part in self)

    def to_proto(self) -> pb.Bucket:
        """The name as a message has it."""
        return pb.Bucket(policy=self.policy, tenant=self.tenant, method=self.method, unit=self.unit)


class Amount(NamedTuple):
    """Calls a second, and how many at once."""

    rate: float
    burst: float

    @classmethod
    def of(cls, share: pb.Share) -> "Amount":
        """What a share says; what is no number, or below 0, is 0."""
        # Every comparison with what is no number is false.
        numbers = (share.rate, share.burst)
        return cls(*(number if 0 < number < MAX_COUNT else MAX_COUNT if number > 0 else 0.0 for number in numbers))


class Point:
    """One enforcement point. Used on the event loop's thread alone."""

    def __init__(self, name: str, service: str, policies: Callable[[], Container[str]]) -> None:
        """A point of a service, "platform/orders"; its name is unique on the node.

        Args:
            name: its own.
            service: what it serves.
            policies: says whose buckets it may speak of at present.
        """
        self.name, self.service, self._policies = name, service, policies
        self.foreign = 0
        """Buckets in its reports that are none of its own, or whose names are none."""
        self._is_told = self._is_known = False
        self.news = False
        """Whether it has reported since it was last told of."""
        self._usages: dict[Key, list[int]] = {}
        # Calls at once that run, by its last word.
        self._in_use: dict[Key, int] = {}
        # What ran over, of those that say it; what else is to be put into its buckets, once.
        self._spilled: dict[Key, float] = {}
        self._more: dict[Key, float] = {}
        self._held: dict[Key, Amount] = {}
        self._granted: dict[Key, Amount] = {}
        self._out: dict[Key, Amount] = {}
        # Of amounts for periods: what it said last that it has, and what it was given, with when that ends.
        self._chunks: dict[Key, pb.Chunks] = {}
        self._given: dict[Key, tuple[pb.Chunk, float]] = {}
        self._reported, self._size_bytes = 0, 0
        # When its reports came, and when that came that it was last answered.
        self._came_s: OrderedDict[int, float] = OrderedDict()
        self._base_s = 0.0
        self._answers, self._ttl = 0, Duration()
        self._sent = 0
        self._source: tuple[int, int] = (0, 0)
        # (number of our message, stream to the control plane, number of its message)
        self._unacknowledged: deque[tuple[int, int, int]] = deque(maxlen=MAX_UNACKNOWLEDGED)
        self._acknowledged: tuple[int, int] = (0, 0)
        self._wake = asyncio.Event()

    def begin(self) -> None:
        """A stream to the control plane begins: all that may be used is to be told anew."""
        self._is_told = self._is_known = False

    def take(self, sequence: int, report: pb.PointReport, now_s: float) -> bool:
        """Takes a report; whether it should go up soon: a call was refused, a bucket is new, or a share is obeyed."""
        self.news, self._reported = True, sequence
        self._came_s[sequence] = now_s
        if len(self._came_s) > MAX_UNACKNOWLEDGED:
            self._came_s.popitem(last=False)
        presses = self._acknowledge(report.acknowledged)
        for share in report.held[:MAX_BUCKETS]:
            if (key := self._own(share.bucket)) is not None and self._has_room(key, self._held):
                self._held[key] = self._granted[key] = Amount.of(share)
        for usage in report.usages[:MAX_BUCKETS]:
            key = self._own(usage.bucket)
            if key is None or not self._has_room(key, self._usages):
                continue
            if usage.HasField("chunks"):
                if not self._has_room(key, self._chunks):
                    continue
                self._chunks[key] = usage.chunks
                presses = presses or usage.chunks.asks
            else:
                presses = presses or usage.denied > 0 or key not in self._granted
            known = self._usages.setdefault(key, [0, 0, 0, 0])
            for number, count in enumerate((usage.allowed, usage.denied, usage.shadowed)):
                known[number] = min(known[number] + count, MAX_COUNT)
            known[3] = max(known[3], min(usage.in_use, MAX_COUNT))
            if usage.HasField("spilled"):
                self._spilled[key] = _plus(self._spilled.get(key, 0.0), usage.spilled)
            if not usage.in_use:
                self._in_use.pop(key, None)
            elif self._has_room(key, self._in_use):
                self._in_use[key] = known[3]
        return presses

    def report(self, stream: int) -> tuple[int, pb.PointReport]:
        """The number of its last report, and all that the control plane is to be told on that stream."""
        number = self._acknowledged[1] if self._acknowledged[0] == stream else 0
        report = pb.PointReport(point=self.name, acknowledged=number, begins=not self._is_told, service=self.service)
        policies = self._policies()
        self._chunks = {key: said for key, said in self._chunks.items() if key.policy in policies}
        if not self._is_told:
            for key, in_use in self._in_use.items():
                self._usages.setdefault(key, [0, 0, 0, in_use])
            for key in self._chunks:
                self._usages.setdefault(key, [0, 0, 0, 0])
        for key, (allowed, denied, shadowed, in_use) in self._usages.items():
            usage = report.usages.add(bucket=key.to_proto(), allowed=allowed, denied=denied, shadowed=shadowed)
            usage.in_use = in_use
            if key in self._spilled:
                usage.spilled = self._spilled[key]
            if (chunks := self._chunks.get(key)) is not None:
                usage.chunks.CopyFrom(chunks)
        if not self._is_told:
            for key, amount in self._held.items():
                report.held.add(bucket=key.to_proto(), rate=amount.rate, burst=amount.burst)
        self._usages, self._spilled, self.news, self._is_told = {}, {}, False, True
        if 2 * len(self._chunks) * self._size_bytes > MAX_BYTES:  # what is used up, and told, makes room
            self._chunks = {key: said for key, said in self._chunks.items() if said.left > 0}
        return self._reported, report

    def grant(self, stream: int, sequence: int, shares: Iterable[pb.Share], base_s: float) -> None:
        """Hands shares down, that came in such a message of such a stream; the ends of periods count from `base_s`.

        Those from before the control plane has heard what the point holds are let go: it counts on that since.
        """
        if not self._is_known:
            return
        self._source = (stream, sequence)
        for share in shares:
            key, amount = Key.of(share.bucket), Amount.of(share)
            if share.HasField("chunk"):
                self._given[key] = share.chunk, base_s + share.chunk.until.seconds + share.chunk.until.nanos / 1e9
                continue
            self._out[key] = self._granted[key] = amount
            self._more[key] = _plus(self._more.get(key, 0.0), share.more)
            held = self._held.get(key, amount)
            # Until it has obeyed it may use what it had.
            self._held[key] = Amount(max(held.rate, amount.rate), max(held.burst, amount.burst))
        self._wake.set()

    def prolong(self, answers: int, ttl: Duration) -> None:
        """Its leases hold for `ttl` from the sending of that report of its, which the control plane has heard."""
        self._is_known = True
        self._answers, self._ttl = answers, ttl
        self._base_s = self._came_s.get(answers, self._base_s)
        self._wake.set()

    async def next(self) -> pb.ShareResponse:
        """Waits until there is something to tell it, and returns that."""
        await self._wake.wait()
        self._wake.clear()
        self._sent += 1
        self._unacknowledged.append((self._sent, *self._source))
        response = pb.ShareResponse(sequence=self._sent, answers=self._answers, ttl=self._ttl)
        if self._out or self._given:
            shares = response.points.add(point=self.name).shares
            for key, amount in self._out.items():
                shares.add(bucket=key.to_proto(), rate=amount.rate, burst=amount.burst, more=self._more[key])
            for key, (chunk, until_s) in self._given.items():
                # Counted from when its report came, it ends no later on the point's clock, which began before.
                chunk.until.FromNanoseconds(max(0, round((until_s - self._base_s) * 1e9)))
                shares.add(bucket=key.to_proto(), chunk=chunk)
        self._out, self._more, self._given, self._answers = {}, {}, {}, 0
        return response

    def held(self) -> dict[Key, Amount]:
        """What it may use now, at most."""
        return dict(self._held)

    def _acknowledge(self, number: int) -> bool:
        """Takes its acknowledgement; whether it is news to the control plane."""
        before = self._acknowledged
        while self._unacknowledged and self._unacknowledged[0][0] <= number:
            _, *source = self._unacknowledged.popleft()
            self._acknowledged = (source[0], source[1])
        if not self._unacknowledged and not self._out and number:
            self._held = {key: amount for key, amount in self._granted.items() if amount.rate > 0}
            self._granted = dict(self._held)
        return self._acknowledged != before

    def _has_room(self, key: Key, told: Mapping[Key, object]) -> bool:
        """Whether one more bucket can be told; one that can't is counted as none of its own."""
        if key in told or (len(told) + 1) * self._largest(key) <= MAX_BYTES:
            return True
        self.foreign += 1
        return False

    def _largest(self, key: Key) -> int:
        self._size_bytes = max(self._size_bytes, key.size_bytes)
        return self._size_bytes

    def _own(self, bucket: pb.Bucket) -> Key | None:
        if bucket.policy not in self._policies() or any(
            len(getattr(bucket, name)) > most for name, most in _MAX_NAMES.items()
        ):
            self.foreign += 1
            return None
        return Key.of(bucket)


def _plus(known: float, more: float) -> float:
    """A sum; of what is no number, or below 0, nothing is added."""
    return min(known + more, MAX_COUNT) if more > 0 else known
