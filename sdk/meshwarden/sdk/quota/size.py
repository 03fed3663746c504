"""How many bytes of messages each tenant may exchange with one server, as its share of a limit across the mesh.

How large a call will be nobody knows when it comes: it is let in while there is something left, and what its messages
take then may be more, which is owed. Nothing further is let in, and streams wait, until that is paid.
"""

from typing import ClassVar, Final

from meshwarden.sdk.quota.bucket import Bucket, Large
from meshwarden.sdk.quota.lease import Leases
from meshwarden.sdk.quota.limit import Decision

_CALLS: Final = 100
"""The mean size is that of about so many calls."""


class Sized(Large):
    """A bucket of bytes, which knows how large calls are."""

    __slots__ = ("calls", "size_bytes")

    def __init__(self, most: tuple[float, float], now_s: float) -> None:
        super().__init__(most, now_s)
        self.calls = self.size_bytes = 0.0

    @property
    def mean_bytes(self) -> float:
        """What a call takes, as they come."""
        return max(1.0, self.size_bytes / self.calls) if self.calls else 1.0

    def count(self, calls: float, size_bytes: float) -> None:
        """Notes more of them."""
        if self.calls >= _CALLS:
            self.calls, self.size_bytes = self.calls / 2, self.size_bytes / 2
        self.calls, self.size_bytes = max(0.0, self.calls + calls), max(0.0, self.size_bytes + size_bytes)


class Sizes(Leases):
    """The bytes of one server under one policy. Safe to share between threads.

    What was refused is counted as large as other calls are: otherwise a point that refuses all would seem to want
    nothing, and would get no share to pay with.
    """

    _make: ClassVar[type[Bucket]] = Sized

    def take(self, tenant: str, method: str, amount: float, now_s: float, free: float | None = None) -> Decision:
        """Lets a call in while something is left, and takes the first of what it is going to take."""
        decision = super().take(tenant, method, amount, now_s, free)
        if decision.allowed:
            with self._lock:
                bucket = self._open_bucket(tenant, method)
                if bucket is not None:
                    bucket.count(1, amount)
        return decision

    def charge(self, tenant: str, method: str, amount: float, now_s: float) -> float:
        """Takes what messages take; with an amount of 0, asks whether there is something to wait for."""
        wait_s = super().charge(tenant, method, amount, now_s)
        with self._lock:
            bucket = self._open_bucket(tenant, method)
            if bucket is None:
                return 0.0
            bucket.count(0, amount)
            if self._spec.shadow:
                return 0.0
            if wait_s > 0 and amount == 0:  # somebody waits, and would go on
                bucket.denied += bucket.mean_bytes
                self._ask(now_s)
        return wait_s

    def _refuse(self, bucket: Bucket, amount: float, level: str) -> Decision:
        size_bytes = bucket.mean_bytes if isinstance(bucket, Sized) else amount
        decision = super()._refuse(bucket, size_bytes, level)
        if decision.allowed:  # in shadow: what it takes is counted as it comes
            bucket.allowed += amount - size_bytes
            return decision
        return Decision(False, bucket.wait_s(0), level, decision.policy)

    def _open_bucket(self, tenant: str, method: str) -> Sized | None:
        known = self._tenants.get(tenant)
        if known is None:
            return None
        bucket = known.parts.get(known.keys.get(method, ""), known.rest)
        return bucket if isinstance(bucket, Sized) else None
