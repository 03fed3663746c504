"""What was used of each bucket since this process began, in bounded memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from meshwarden.controlplane.quota.tree import Bucket

MAX_BUCKETS: Final = 8192
OTHER: Final = "_other"
"""The tenant under whose name the usage of those is counted for which there was no room."""
MOST: Final = 1_000_000_000


@dataclass(slots=True)
class Used:
    """What went on, what was refused, and what would have been but for shadow mode; in the policy's unit."""

    allowed: int = 0
    denied: int = 0
    shadowed: int = 0


class Usages:
    """Usage by bucket."""

    def __init__(self) -> None:
        self._used: dict[Bucket, Used] = {}

    @property
    def all(self) -> Mapping[Bucket, Used]:
        """All there is: a view that changes with it."""
        return MappingProxyType(self._used)

    def add(self, bucket: Bucket, allowed: int, denied: int, shadowed: int) -> None:
        """Counts a report."""
        if bucket not in self._used and len(self._used) >= MAX_BUCKETS:
            bucket = Bucket(bucket.policy, (OTHER,))
        used = self._used.setdefault(bucket, Used())
        used.allowed += min(allowed, MOST)
        used.denied += min(denied, MOST)
        used.shadowed += min(shadowed, MOST)

    def of_policy(self, policy: str) -> Iterator[tuple[Bucket, Used]]:
        """The usage of one policy's buckets."""
        return ((bucket, used) for bucket, used in self._used.items() if bucket.policy == policy)

    def forget(self, policy: str) -> None:
        """The policy is gone."""
        self._used = {bucket: used for bucket, used in self._used.items() if bucket.policy != policy}
