"""Who belongs to the mesh and who not any more: nodes are evicted, forgotten and banned.

Evicting ends a node's record: its certificates are no good from then on, and it comes back only by attesting.
Forgetting does that for a node that is gone for good, with all that is left of it. A ban is sticky: nothing that the
node can show lets it back in, and the certificates of its workloads are refused everywhere.

    InvalidNode      no node has such a name
    NoSuchNode       there is no such node, or no such ban
    StillConnected   a node that is here can't be forgotten
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from meshwarden.certs import jwt_svid
from meshwarden.certs.deny import last_end
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.deny import Denies
from meshwarden.controlplane.identity.issued import Issued
from meshwarden.controlplane.identity.node_name import NODE_NAME
from meshwarden.controlplane.identity.record import BanRecord, NodeRecord, RecordError, ban_key, node_key
from meshwarden.controlplane.store.limit import MAX_OPS
from meshwarden.controlplane.store.port import ANY, Ambiguous, Conflict, Delete, Op, Put, Store
from meshwarden.sdk.tracing import own_span

ATTEMPTS: Final = 3


class InvalidNode(ValueError):
    """No node has such a name."""


class NoSuchNode(Exception):
    """There is no such node, or no such ban."""


class StillConnected(Exception):
    """A node that is here can't be forgotten."""


class Roster:
    """What operators do with nodes. Each change is one commit, so that all replicas see it whole."""

    def __init__(
        self, store: Store, denies: Denies, issued: Issued, audit: AuditLog, clock: Callable[[], datetime]
    ) -> None:
        self._store, self._denies, self._issued = store, denies, issued
        self._audit, self._clock = audit, clock

    async def ban(self, node: str, reason: str, by: str) -> int:
        """Bans a node, whether it has joined or not, and denies the certificates of its workloads.

        A second ban of the same node keeps the first, and denies what a failure has left.

        Returns:
            How many certificates were denied.

        Raises:
            InvalidNode: it can't be a node's name.
            InvalidDeny: the node is banned, but the deny list has no room for its workloads' certificates.
            StoreError: it isn't banned; or it is, and its workloads' certificates aren't denied: ban it again.
        """
        _check(node)
        stored, _ = await self._store.get(ban_key(node))
        if stored is not None:
            serial = BanRecord.decode(stored.key, stored.value).serial
        else:
            serial = await self._joined_with(node)
            record = BanRecord(node, self._clock(), by, reason, serial)
            revision = await self._commit([Put(record.key, record.encode()), Delete(node_key(node), ANY)])
            own_span.note_revision(revision, f"BANNED node {node}")
            await self._audit.record("node.ban", node=node, reason=reason, by=by)
        certificates = await self._issued.live(node)
        for first in range(0, len(certificates), MAX_OPS):
            some = certificates[first : first + MAX_OPS]
            await self._denies.deny(
                serials={one.serial: one.spiffe_id for one in some},
                until=max(one.not_after for one in some),
                reason=f"node {node} is banned: {reason}"[:500],
                by=by,
            )
        if serial:  # by which the tokens of its workloads are known
            until = last_end(jwt_svid.TTL, self._clock())
            await self._denies.deny(serials={serial: ""}, until=until, reason=f"node {node} is banned"[:500], by=by)
        return len(certificates)

    async def _joined_with(self, node: str) -> str:
        """The serial number of the certificate that a node has joined with; empty if it hasn't."""
        stored, _ = await self._store.get(node_key(node))
        try:
            return NodeRecord.decode(stored.key, stored.value).serial if stored is not None else ""
        except RecordError:  # such a node gets nothing signed
            return ""

    async def unban(self, node: str, by: str) -> None:
        """Takes a ban back. The node has to attest anew; certificates that were denied stay so.

        Raises:
            NoSuchNode: it isn't banned.
            StoreError: it is still banned.
        """
        _check(node)
        await self._end(ban_key(node), f"node {node} isn't banned")
        await self._audit.record("node.unban", node=node, by=by)

    async def evict(self, node: str, reason: str, by: str) -> None:
        """Ends a node's record, so that it has to attest again. Its workloads' certificates last until they end.

        Raises:
            NoSuchNode: it hasn't joined.
            StoreError: its record stands.
        """
        _check(node)
        await self._end(node_key(node), f"node {node} has not joined")
        await self._audit.record("node.evict", node=node, reason=reason, by=by)

    async def forget(self, node: str, endpoints: Sequence[str], by: str, *, is_known: bool, is_connected: bool) -> None:
        """Ends the record of a node that is gone for good, and those of its endpoints. A ban of it stays.

        Args:
            node: its name.
            endpoints: the store keys of its endpoints.
            by: who wants it.
            is_known: whether anything else is known of it.
            is_connected: whether it has a session.

        Raises:
            NoSuchNode: nothing is known of it.
            StillConnected: it is here.
            StoreError: not all is gone; forget it again.
        """
        _check(node)
        if is_connected:
            raise StillConnected(f"node {node} is connected: stop its agent first, or evict it")
        stored, _ = await self._store.get(node_key(node))
        if stored is None and not endpoints and not is_known:
            raise NoSuchNode(f"node {node} has not joined, and nothing is known of it")
        ops: list[Op] = [Delete(key) for key in endpoints]
        if stored is not None:
            ops.append(Delete(node_key(node), stored.revision))
        for first in range(0, len(ops), MAX_OPS):
            await self._commit(ops[first : first + MAX_OPS])
        await self._audit.record("node.forget", node=node, endpoints=len(endpoints), by=by)

    async def _end(self, key: str, missing: str) -> None:
        """Deletes a record that must be there.

        Raises:
            NoSuchNode: it isn't.
        """
        for _ in range(ATTEMPTS):
            stored, _ = await self._store.get(key)
            if stored is None:
                raise NoSuchNode(missing)
            try:
                await self._store.commit([Delete(key, stored.revision)])
                return
            except (Conflict, Ambiguous) as error:
                failure = error
        raise failure

    async def _commit(self, ops: Sequence[Op]) -> int:
        """Commits what is the same however often it is done."""
        for _ in range(ATTEMPTS):
            try:
                return await self._store.commit(ops)
            except Ambiguous as error:
                failure = error
        raise failure


def _check(node: str) -> None:
    if NODE_NAME.fullmatch(node) is None:
        raise InvalidNode(f"node {node[:100]!r}: use a-z, 0-9 and inner '-', at most 63")
