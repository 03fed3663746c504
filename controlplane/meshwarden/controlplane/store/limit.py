"""The port's limits, checked in one place before any engine: what one engine takes, every engine takes.

Source: research on etcd, which takes 128 operations and 1.5 MiB a transaction and no key twice.
"""

from collections.abc import AsyncIterator, Sequence

from meshwarden.controlplane.store.port import (
    ANY,
    Batch,
    Check,
    InvalidKey,
    Lease,
    Op,
    Page,
    Put,
    Record,
    Store,
    TooLarge,
)

# A batch of a hundred resources, and room for the guards beside it.
MAX_OPS = 110
# A megabyte of resources, and room for their history, which is compressed.
MAX_COMMIT_BYTES = 1_400_000
MAX_KEY_BYTES = 1024
MAX_PAGE = 1000
# A page that holds so much ends there: with one more record of the largest it passes gRPC's 4 MiB with ease.
MAX_PAGE_BYTES = 1_000_000
MIN_TTL_S = 1.0
MAX_TTL_S = 3600.0


def check_key(key: str, *, may_be_empty: bool = False) -> int:
    """Returns the key's size in bytes.

    Raises:
        InvalidKey: it is empty, too long, or not text that UTF-8 can carry.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKey("a key holds a lone surrogate, which UTF-8 can't carry") from None
    if size > MAX_KEY_BYTES:
        raise InvalidKey(f"a key of {size} bytes; the limit is {MAX_KEY_BYTES}")
    if not size and not may_be_empty:
        raise InvalidKey("a key is empty")
    if "\0" in key:
        raise InvalidKey("a key holds a NUL")
    return size


def check_ops(ops: Sequence[Op]) -> None:
    """Holds a commit against the limits.

    Raises:
        TooLarge: too many operations or bytes, or one key twice.
        InvalidKey: see `check_key`.
    """
    if len(ops) > MAX_OPS:
        raise TooLarge(f"{len(ops)} operations in one commit; the limit is {MAX_OPS}")
    size = sum(check_key(op.key) + (len(op.value) if isinstance(op, Put) else 0) for op in ops)
    if size > MAX_COMMIT_BYTES:
        raise TooLarge(f"{size} bytes in one commit; the limit is {MAX_COMMIT_BYTES}")
    seen: set[str] = set()
    for op in ops:
        if op.key in seen:
            raise TooLarge(f"{op.key} twice in one commit; the limit is once")
        if op.expect < (0 if isinstance(op, Check) else ANY):
            raise ValueError(f"{op.key}: cannot expect revision {op.expect}")
        seen.add(op.key)


class Limited:
    """A store that refuses what exceeds the limits before its engine sees it."""

    def __init__(self, engine: Store) -> None:
        self._engine = engine

    @property
    def incarnation(self) -> str:
        """See `Store.incarnation`."""
        return self._engine.incarnation

    async def get(self, key: str) -> tuple[Record | None, int]:
        """See `Store.get`."""
        check_key(key)
        return await self._engine.get(key)

    async def range(self, prefix: str, *, start: str = "", limit: int = 500, at: int = 0) -> Page:
        """See `Store.range`."""
        check_key(prefix, may_be_empty=True)
        check_key(start, may_be_empty=True)
        if not 0 < limit <= MAX_PAGE:
            raise TooLarge(f"a page of {limit} records; the limit is {MAX_PAGE}")
        return await self._engine.range(prefix, start=start, limit=limit, at=at)

    async def commit(self, ops: Sequence[Op], *, fence: Lease | None = None) -> int:
        """See `Store.commit`."""
        check_ops(ops)
        return await self._engine.commit(ops, fence=fence)

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        """See `Store.watch`."""
        check_key(prefix, may_be_empty=True)
        return self._engine.watch(prefix, after=after)

    async def compact(self, revision: int) -> None:
        """See `Store.compact`."""
        await self._engine.compact(revision)

    async def mark(self, has_newer: bool) -> None:
        """See `Store.mark`."""
        await self._engine.mark(has_newer)

    async def acquire(self, name: str, owner: str, ttl_s: float) -> Lease:
        """See `Store.acquire`."""
        check_key(name)
        check_key(owner)
        if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise TooLarge(f"a lease of {ttl_s} s; the limits are {MIN_TTL_S} s and {MAX_TTL_S} s")
        return await self._engine.acquire(name, owner, ttl_s)

    async def renew(self, lease: Lease, *, release: bool = False) -> Lease:
        """See `Store.renew`."""
        return await self._engine.renew(lease, release=release)
