"""The life of the roots, driven: a root is prepared, comes to sign, grows old and is dropped, and nobody is cut off.

    half of the active root's life    the next one is prepared: every node learns to trust it
    five sixths                       it is activated, once every connected node has acknowledged it; at once where
                                      whoever keeps the roots in Vault has made it the one that is to sign
    a day later                       the old one is dropped: the last leaf that leads to it has ended

What is due is done by whoever takes the store's lease for it; all who share the roots follow. Nodes that use a root
that is tainted are told to renew, those that come later as soon as they say what they use.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import structlog

from meshwarden.certs.authority import slot
from meshwarden.certs.authority.port import Authority
from meshwarden.certs.authority.slot import RootRefused, Roots, RootState, SlotState
from meshwarden.certs.clock import Clock
from meshwarden.certs.error import CertsError
from meshwarden.certs.issue import MAX_LEAF_TTL
from meshwarden.controlplane.audit.port import AuditError, AuditLog
from meshwarden.controlplane.identity.node import NODE_TTL
from meshwarden.controlplane.store.port import LeaseHeld, Store, StoreError

LEASE: Final = "ca-rotation"
LEASE_TTL_S: Final = 60.0
TICK_S: Final = 5.0
# A node that goes on using a tainted root is told so again.
TOLD_AGAIN: Final = timedelta(minutes=1)
# From so long before the active root's end on no leaf of the longest life could be signed: nothing waits any more.
LAST_MOMENT: Final = 2 * MAX_LEAF_TTL
# Within which every connection of the mesh ends: ten minutes, a tenth either way, and what its calls get to end.
CONNECTION_LIFE: Final = timedelta(minutes=12)
BY_ITSELF: Final = "rotation"

log = structlog.get_logger()


@dataclass(frozen=True)
class NodeTrust:
    """What a node has said of roots, by their fingerprints; None is one that has said nothing yet."""

    node: str
    connected: bool
    # None if it was not heard of since the control plane has started.
    last_seen: datetime | None
    trusted: frozenset[str] | None
    used: frozenset[str]
    # The ids of the JWT keys that it knows; empty if it doesn't say.
    jwt_keys: frozenset[str] = frozenset()


class Act(StrEnum):
    """What becomes of roots."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    TAINT = "taint"
    REVOKE = "revoke"


@dataclass(frozen=True)
class Step:
    """What becomes of a root by itself, and when; a root that is to be prepared has no fingerprint yet."""

    act: Act
    fingerprint: str
    time: datetime


def plan(roots: Sequence[RootState]) -> list[Step]:
    """Returns what is to become of the roots as they are."""
    roots = slot.own(roots)
    signing, waiting = slot.active(roots), slot.prepared(roots)
    begin, life = signing.not_before, signing.not_after - signing.not_before
    if waiting is None:
        steps = [Step(Act.PREPARE, "", begin + life / 2)]
    else:
        steps = [Step(Act.ACTIVATE, waiting.fingerprint, begin if waiting.wanted else begin + life * 5 / 6)]
    ended = (root for root in roots if root.state in (SlotState.OLD, SlotState.TAINTED))
    return steps + [
        Step(Act.REVOKE, root.fingerprint, min(root.not_after, root.since + MAX_LEAF_TTL)) for root in ended
    ]


class RootRotation:
    """Moves roots on, for operators and by itself, and tells whoever has to know."""

    def __init__(
        self,
        authority: Authority,
        store: Store,
        nodes: Callable[[], Sequence[NodeTrust]],
        renew: Callable[[Sequence[str], str], object],
        audit: AuditLog,
        clock: Clock,
        *,
        owner: str,
        regions: Callable[[str], Mapping[str, str]] = lambda _: {},
    ) -> None:
        """Does nothing until `run`.

        Args:
            authority: has the roots.
            store: whose lease says who does what is due.
            nodes: what the nodes that have joined say of the roots.
            renew: has nodes renew all their certificates, for a reason.
            audit: learns of each change.
            clock: the present, aware.
            owner: this process's name, the same when it starts again.
            regions: the other regions that would be cut off if certificates led to a root by now, {"region us": why}.
        """
        self._regions = regions
        self._authority, self._store, self._nodes, self._renew = authority, store, nodes, renew
        self._audit, self._clock, self._owner = audit, clock, owner
        self._started = clock()
        self._listeners: list[Callable[[Roots], Awaitable[None]]] = []
        self._telling = asyncio.Lock()
        self._told: dict[str, datetime] = {}
        self._complaint = ""
        self.known: Roots = ()
        """The roots as they were last seen."""

    def listen(self, callback: Callable[[Roots], Awaitable[None]]) -> None:
        """Calls back after each change of the roots; the next one is called when the one before has returned."""
        self._listeners.append(callback)

    async def run(self) -> None:
        """Follows the roots, and does what is due, until it is cancelled."""
        while True:
            try:
                await self.look()
                self._complaint = ""
            except (CertsError, StoreError, AuditError) as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.warning("roots.not_moved", reason=str(error))
            await asyncio.sleep(TICK_S)

    async def follow(self) -> None:
        """Sees what others have changed.

        Raises:
            CertsError: the authority can't say.
        """
        await self._tell(await self._authority.roots())

    async def look(self) -> None:
        """Sees what others have changed, has nodes leave tainted roots, and does what is due.

        Raises:
            CertsError: the authority can't.
            StoreError: it is not known who may.
            AuditError: it can't be recorded.
        """
        await self.follow()
        self._leave_tainted()
        if any(self._is_due(step) for step in self._plan()):
            await self._do_due()

    def next_of(self, root: RootState) -> Step | None:
        """What becomes of a root by itself; of the one that signs, that another is prepared."""
        if root.region:
            return None
        for step in self._plan():
            if step.fingerprint == root.fingerprint or (not step.fingerprint and root.state is SlotState.ACTIVE):
                return step
        return None

    def missing(self, fingerprint: str) -> dict[str, str]:
        """The nodes and other regions that would be cut off if certificates led to a root by now: {which: why}."""
        return self.missing_here(fingerprint) | dict(self._regions(fingerprint))

    def missing_here(self, fingerprint: str) -> dict[str, str]:
        """The same of our own nodes alone."""
        return self._lagging(lambda node: node.trusted is not None and fingerprint in node.trusted)

    def missing_jwt(self, kid: str) -> dict[str, str]:
        """Our own nodes that would refuse the tokens that a JWT key signs by now: {which: why}."""
        return self._lagging(lambda node: not node.jwt_keys or kid in node.jwt_keys)

    def _lagging(self, knows: Callable[[NodeTrust], bool]) -> dict[str, str]:
        now, found = self._clock(), dict[str, str]()
        for node in self._nodes():
            if knows(node):
                continue
            if node.connected:
                found[node.node] = "has not acknowledged it yet"
            elif node.last_seen is None and now - self._started < NODE_TTL:
                found[node.node] = "was not seen since the control plane has started"
            elif node.last_seen is not None and now - node.last_seen < NODE_TTL:
                found[node.node] = "is away, and may come back with a certificate that is still good"
        return found

    def users(self, fingerprint: str) -> list[str]:
        """The nodes with certificates that lead to a root, as far as those may still be good."""
        now = self._clock()
        return [
            node.node
            for node in self._nodes()
            if fingerprint in node.used
            and (node.connected or (node.last_seen is not None and now - node.last_seen < MAX_LEAF_TTL))
        ]

    async def prepare(self, by: str, reason: str = "") -> Roots:
        """Makes the next root.

        Raises:
            RootRefused: it can't be now.
            AuthorityError: the authority can't.
        """
        if self._authority.fixed:
            raise RootRefused(self._authority.fixed)
        return await self._moved(Act.PREPARE, await self._authority.prepare(self._clock()), "", by, reason)

    async def activate(self, fingerprint: str, by: str, reason: str = "", *, force: bool = False) -> Roots:
        """Has a prepared root sign; `force` if nodes may be cut off by that.

        Raises:
            RootRefused: nodes would be, or it isn't prepared.
            AuthorityError: the authority can't.
        """
        root = await self._find(fingerprint)
        if root.state is SlotState.PREPARED and not force and (missing := self.missing(root.fingerprint)):
            lagging = _listed([f"{node} {why}" for node, why in missing.items()])
            raise RootRefused(
                f"root {root.fingerprint[:16]}: {lagging}; wait for them, or use --force and have them join anew"
            )
        roots = await self._authority.activate(root.fingerprint)
        return await self._moved(Act.ACTIVATE, roots, root.fingerprint, by, reason, forced=force)

    async def taint(self, fingerprint: str, by: str, reason: str = "") -> list[str]:
        """Marks a root as leaked, and has everybody leave it; returns the nodes that were told.

        Raises:
            RootRefused: it is the one that signs.
            AuthorityError: the authority can't.
        """
        root = await self._find(fingerprint)
        roots = await self._authority.taint(root.fingerprint)
        await self._moved(Act.TAINT, roots, root.fingerprint, by, reason)
        return self._leave_tainted(reason)

    async def revoke(self, fingerprint: str, by: str, reason: str = "", *, force: bool = False) -> Roots:
        """Ends the trust in a root; `force` if somebody may be cut off by that.

        Raises:
            RootRefused: somebody would be, or it is the one that signs.
            AuthorityError: the authority can't.
        """
        root = await self._find(fingerprint)
        if root.state is not SlotState.ACTIVE and not force and (users := self.users(root.fingerprint)):
            name = root.fingerprint[:16]
            first = "" if root.state is SlotState.TAINTED else f"`meshwarden ca taint {name}` first, or "
            lead = f"root {name}: certificates of {_listed(users)} lead to it"
            raise RootRefused(f"{lead}; {first}wait, or use --force and cut them off")
        end = root.since + CONNECTION_LIFE
        if root.state in (SlotState.OLD, SlotState.TAINTED) and not force and self._clock() < end:
            raise RootRefused(
                f"root {root.fingerprint[:16]}: connections that were made with its certificates may last until "
                f"{end:%H:%M:%S}Z; wait until then, or use --force and have calls on them refused"
            )
        roots = await self._authority.revoke(root.fingerprint)
        return await self._moved(Act.REVOKE, roots, root.fingerprint, by, reason, forced=force)

    async def _find(self, fingerprint: str) -> RootState:
        root = slot.find(await self._authority.roots(), fingerprint)
        if root.region:
            raise RootRefused(f"root {root.fingerprint[:16]} is region {root.region}'s: change it there")
        return root

    async def _moved(
        self, act: Act, roots: Roots, fingerprint: str, by: str, reason: str, *, forced: bool = False
    ) -> Roots:
        new = slot.prepared(slot.own(roots))
        fingerprint = fingerprint or (new.fingerprint if new is not None else "")
        fields = {"root": fingerprint, "by": by, "reason": reason, "forced": forced}
        log.info(f"root.{act}", **fields)
        await self._tell(roots)
        await self._audit.record(f"root.{act}", **fields)
        return roots

    async def _tell(self, roots: Roots) -> None:
        async with self._telling:
            if roots == self.known:
                return
            for callback in self._listeners:
                await callback(roots)
            self.known = roots

    # -- by itself

    def _plan(self) -> list[Step]:
        return [step for step in plan(self.known) if step.act is not Act.PREPARE or not self._authority.fixed]

    def _is_due(self, step: Step) -> bool:
        now = self._clock()
        if now < step.time:
            return False
        last = now >= slot.active(self.known).not_after - LAST_MOMENT
        return step.act is not Act.ACTIVATE or last or not self.missing(step.fingerprint)

    async def _do_due(self) -> None:
        try:
            lease = await self._store.acquire(LEASE, self._owner, LEASE_TTL_S)
        except LeaseHeld:
            return  # whoever has it does what is due
        try:
            await self.follow()  # somebody else may have done it before
            for step in filter(self._is_due, self._plan()):
                await self._do(step)
        finally:
            with contextlib.suppress(StoreError):
                await self._store.renew(lease, release=True)

    async def _do(self, step: Step) -> None:
        if step.act is Act.PREPARE:
            await self.prepare(BY_ITSELF)
        elif step.act is Act.ACTIVATE:
            await self.activate(step.fingerprint, BY_ITSELF, force=bool(self.missing(step.fingerprint)))
        else:
            await self.revoke(
                step.fingerprint, BY_ITSELF, "the last certificate that leads to it has ended", force=True
            )

    def _leave_tainted(self, reason: str = "") -> list[str]:
        """Has nodes renew whose certificates lead to a tainted root; returns those that were told now."""
        tainted = {root.fingerprint for root in self.known if root.state is SlotState.TAINTED}
        nodes = self._nodes() if tainted else ()
        now, using = self._clock(), [node.node for node in nodes if node.connected and node.used & tainted]
        self._told = {node: time for node, time in self._told.items() if node in using}
        new = [node for node in using if node not in self._told or now - self._told[node] >= TOLD_AGAIN]
        if new:
            self._told |= dict.fromkeys(new, now)
            self._renew(new, f"the root is tainted: {reason}" if reason else "the root is tainted")
        return new


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
