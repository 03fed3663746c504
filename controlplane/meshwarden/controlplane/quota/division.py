"""Divides the limits of the mesh among those who ask: one process at a time, by a lease of the store.

While it holds the lease it takes what nodes report, divides anew twice a second and at once when somebody goes short,
and says what changes. Whoever takes the lease next knows nothing and so gives nothing for one term (`Leases`); nodes of
a process that has lost it are sent away, and find the holder.
"""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Final

import anyio
import structlog

from meshwarden.certs.spiffe_id import account_of
from meshwarden.controlplane.policy import rate
from meshwarden.controlplane.policy.mesh import Impact, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.quota import book, period_view
from meshwarden.controlplane.quota.excess import Path
from meshwarden.controlplane.quota.leases import Leases
from meshwarden.controlplane.quota.ledgers import Ledgers
from meshwarden.controlplane.quota.node import NodeStream
from meshwarden.controlplane.quota.policy import grant_to_proto, share_to_proto, terms_of, tree_of
from meshwarden.controlplane.quota.tree import Level
from meshwarden.controlplane.quota.usage import Usages
from meshwarden.controlplane.quota.view import states
from meshwarden.controlplane.resources.reach import covers
from meshwarden.controlplane.store import port
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.admin_service_pb2 import QuotaState

LEASE: Final = "quota-allocator"
LEASE_TTL_S: Final = 9.0
EVERY_S: Final = 0.5
LEAST_S: Final = 0.1
_RETRY_S: Final = 1.0

log = structlog.get_logger()


class NotAllocator(Exception):
    """This process does not divide limits at present."""


class Division:
    """The limits, as far as this process divides them. Used on the event loop's thread alone."""

    def __init__(
        self,
        store: port.Store,
        mesh: Mesh,
        owner: str,
        now_s: Callable[[], float],
        wall_s: Callable[[], float],
        new_turn: Callable[[], int],
        region: str = "default",
    ) -> None:
        """Does nothing until `run`.

        Args:
            store: whose lease says who divides.
            mesh: the resources; `touch` says what of them has changed.
            owner: this process's name, the same when it starts again.
            now_s: the clock of the store's leases, `time.monotonic`.
            wall_s: the clock that says which hour, day and month it is, in seconds since 1970.
            new_turn: gives a number below 2^63 that nobody was ever given; see `Ledgers`.
            region: whose part of each limit is divided here.
        """
        self._store, self.mesh, self._owner, self._now_s = store, mesh, owner, now_s
        self._wall_s, self._new_turn, self._region = wall_s, new_turn, region
        self.leases: Leases | None = None
        """All leases; None while another process divides."""
        self.ledgers = Ledgers({}, new_turn)
        """What there is of amounts for periods, while this process divides."""
        self._usages, self._ignored = Usages(), Counter[str]()
        self._trees: dict[str, Level] = {}
        self._streams: dict[str, NodeStream] = {}
        # Until when the store's lease holds in any case.
        self._until_s = -math.inf
        self._work, self._wanted, self._asked = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Divides, whenever it holds the lease, until it is cancelled."""
        while True:
            await self._wanted.wait()
            try:
                lease = await self._store.acquire(LEASE, self._owner, LEASE_TTL_S)
                await self._divide_while(lease)
            except port.LeaseHeld as held:
                log.debug("quota.standby", reason=str(held))
            except port.StoreError as error:
                log.warning("quota.no_lease", reason=str(error))
            await asyncio.sleep(_RETRY_S)

    def touch(self, impact: Impact) -> None:
        """Takes note of changed policies."""
        for policy in impact.rates:
            self._arrange(policy)

    @property
    def usages(self) -> Usages:
        """What was used, of each bucket."""
        return self._usages

    def is_tenant(self, tenant: str) -> bool:
        """Whether there is such a tenant, or another trust domain whose callers together are called so."""
        return self.mesh.find("Tenant", tenant, tenant) is not None or tenant in map(account_of, self.mesh.foreign)

    def tree(self, policy: str) -> Level | None:
        """The tree of a policy that is divided here."""
        return self._trees.get(policy)

    def hosts(self, node: str, service: str) -> bool:
        """Whether a node may speak for a service: it runs it."""
        tenant, _, name = service.partition("/")
        return self.mesh.owns(node, tenant, name)

    def covers(self, policy: str, service: str, tenant: str) -> bool:
        """Whether servers of a service hold a policy, as far as it is about a tenant's calls.

        A policy of an external service is held by whoever calls that, each for its own tenant.
        """
        owner, _, name = policy.partition("/")
        resource = self.mesh.find("RatePolicy", owner, name)
        if resource is None:
            return False
        own, _, called = service.partition("/")
        limited = Name(owner, resource.spec.service)
        if self.mesh.is_external(limited):
            return own == tenant and self.mesh.sees(own, limited)
        return covers(owner, resource.spec, (own, called))

    def policies(self) -> Iterable[str]:
        """The policies that are divided."""
        return sorted(self._trees)

    def states(self, policy: str, shown: Callable[[str], bool], *, whole: bool) -> list[QuotaState]:
        """How a policy's limits are divided at this moment; see `view.states`."""
        tree = self.tree(policy)
        if self.leases is None or tree is None:
            return []
        if policy in self.ledgers:
            return period_view.states(policy, self.ledgers, self._usages, shown, self._now_s(), whole=whole)
        return states(policy, tree, self.leases, self._usages, shown, self._now_s(), whole=whole)

    def excess(self, policy: str) -> Mapping[Path, float]:
        """What was let in beyond each level of a policy's rates; see `Leases.excess`."""
        return self.leases.excess(policy, self._now_s()) if self.leases is not None else {}

    def open(self, node: str) -> NodeStream:
        """A node's stream, which takes the place of its older one; `close` ends it.

        Raises:
            NotAllocator: another process divides.
        """
        if self.leases is None or self._has_lapsed:
            raise NotAllocator("this control plane does not divide limits at present: ask again")
        if (older := self._streams.get(node)) is not None:
            older.end("a newer stream of this node has replaced this one")
        stream = self._streams[node] = NodeStream(node, self, self.leases, self.ledgers)
        return stream

    def ignored(self) -> dict[str, int]:
        """What nodes said and was not believed, by reason: how many of it."""
        found = Counter(self._ignored)
        for stream in self._streams.values():
            found.update(stream.ignored)
        if self.leases is not None:
            found.update(asdict(self.leases.ignored))
            found["too_many"] += self.ledgers.too_many
            found["kept_for_others"] += self.ledgers.held_back
        return dict(found)

    def close(self, stream: NodeStream) -> None:
        """The node's stream has ended; what its points have they have until their leases run out."""
        self._ignored.update(stream.ignored)
        if self._streams.get(stream.node) is stream:
            del self._streams[stream.node]

    def now_s(self) -> float:
        """The present."""
        return self._now_s()

    def took(self) -> None:
        """A report was taken."""
        if self._has_lapsed:
            self._end_streams()  # before it is answered, which would prolong what somebody else gives by now
        if self.leases is not None and self.leases.presses:
            self._work.set()
        if self.ledgers.presses:
            self._asked.set()

    async def _divide_while(self, lease: port.Lease) -> None:
        """Divides for as long as the store's lease holds."""
        self.ledgers, self._until_s = Ledgers(await book.load(self._store), self._new_turn), lease.deadline_s
        self.leases = Leases(self._now_s(), learn=True)
        self._trees = {}
        for key in self.mesh.all():
            if key.kind == "RatePolicy":
                self._arrange(Name(key.tenant, key.name))
        self.ledgers.plan(self._now_s(), self._wall_s())  # so that what nodes say first finds the ledgers of today
        log.info("quota.dividing", policies=len(self._trees))
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._tick_steadily)
                # Its token stays the same for as long as it is ours.
                group.start_soon(self._grant_steadily, lease)
                while True:
                    await asyncio.sleep(LEASE_TTL_S / 3)
                    lease = await self._renewed(lease)
                    self._until_s = lease.deadline_s
        except* port.StoreError as failed:
            # What is raised here would come out as a group again.
            log.warning("quota.lease_lost", reason=str(failed.exceptions[0]))
        finally:
            self.leases, self.ledgers = None, Ledgers({}, self._new_turn)
            self._end_streams()

    @property
    def _has_lapsed(self) -> bool:
        """Whether the store's lease may be somebody else's: this process was held up for longer than it lasts."""
        return self._now_s() >= self._until_s

    def _end_streams(self) -> None:
        for stream in self._streams.values():
            stream.end("this control plane does not divide limits any more")
        self._streams = {}

    async def _renewed(self, lease: port.Lease) -> port.Lease:
        """The lease, prolonged if the store can; it holds until its deadline in any case.

        Raises:
            StoreError: it is lost.
        """
        try:
            async with asyncio.timeout(lease.deadline_s - self._now_s()):
                return await self._store.renew(lease)
        except TimeoutError:
            raise port.LeaseLost("the store did not answer for as long as it lasts") from None
        except port.LeaseLost:
            raise
        except port.StoreError:
            if self._now_s() + LEASE_TTL_S / 3 >= lease.deadline_s:
                raise
            return lease

    async def _tick_steadily(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._work.wait()
            self._work.clear()
            begun_s = loop.time()
            self.divide()
            # However large the mesh is, no more than a fifth of the time.
            await asyncio.sleep(max(LEAST_S, 4 * (loop.time() - begun_s)))

    def divide(self) -> None:
        """Divides anew, and tells nodes what changes."""
        if self.leases is None or self._has_lapsed:
            return
        number, told = self.leases.tick(self._now_s())
        by_node: dict[str, list[pb.PointShares]] = {}
        for point, shares in told.items():
            said = [share_to_proto(share, self._trees[share.bucket.policy].unit) for share in shares]
            message = pb.PointShares(point=point.name, shares=said)
            by_node.setdefault(point.node, []).append(message)
        for node, points in by_node.items():
            if (stream := self._streams.get(node)) is not None:
                stream.say(pb.ShareResponse(sequence=number, points=points))

    async def _grant_steadily(self, lease: port.Lease) -> None:
        """Gives out of amounts for periods: what is charged is written, in as few commits as can be, and then told.

        Raises:
            Fenced: the lease is another's.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._asked.wait()
            self._asked.clear()
            writes = self.ledgers.plan(self._now_s(), self._wall_s())
            try:
                await book.write(self._store, writes, lease)
            except port.Fenced:
                raise
            except port.StoreError as error:
                # Nobody was told; it is charged, and is written with the next.
                log.warning("quota.not_written", reason=str(error))
                await asyncio.sleep(_RETRY_S)
                continue
            self._tell_grants()
            await asyncio.sleep(LEAST_S)

    def _tell_grants(self) -> None:
        now_s, wall_s = self._now_s(), self._wall_s()
        by_node: dict[str, dict[str, list[pb.Share]]] = {}
        for policy, turn, grant in self.ledgers.written():
            stream, period = self._streams.get(grant.point.node), self.ledgers.period(policy)
            if stream is not None and period is not None:
                until_s = period.end_s - wall_s + now_s - stream.heard_s
                share = grant_to_proto(policy, self._trees[policy].unit, turn, grant, until_s)
                by_node.setdefault(grant.point.node, {}).setdefault(grant.point.name, []).append(share)
        for node, points in by_node.items():
            told = [pb.PointShares(point=name, shares=shares) for name, shares in points.items()]
            number = self.leases.number if self.leases is not None else 0
            self._streams[node].say(pb.ShareResponse(sequence=number, points=told))

    def _arrange(self, named: Name) -> None:
        """Puts a policy in force as it is now."""
        limits, policy = rate.of_policy(self.mesh, named), str(named)
        tree = tree_of(limits, self._region) if limits is not None and limits.mesh else None
        if tree is not None:
            self._wanted.set()  # a mesh without such policies has nobody who divides
        if self.leases is None:
            return
        before = self._trees.pop(policy, None)
        terms = terms_of(limits) if limits is not None else None
        if tree is not None:
            self._trees[policy] = tree
        elif before is not None:
            self._usages.forget(policy)
        if policy in self.ledgers:
            before = None  # of another kind
        if tree is not None and terms is not None:
            self.ledgers.put(policy, terms, tree)
            self._asked.set()
        else:
            self.ledgers.drop(policy)
        rates = tree if terms is None else None
        if rates != before or terms is not None:
            self.leases.put(policy, rates)
            self._work.set()
