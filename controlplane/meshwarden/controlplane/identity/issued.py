"""Which workload certificates each node has, so that they can be refused when the node is banned.

/identity/issued/<node>/<when the last of them ends, in seconds>-<serial of the first>      one batch

A batch is written before its certificates are handed out, and only while the node's record stands: what was given
before a ban is in the list that the ban reads, and after it nothing is given. What has ended is deleted by the batches
that follow.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.record import NodeRecord, RecordError
from meshwarden.controlplane.store.port import Ambiguous, Check, Conflict, Delete, Op, Put, Store

ISSUED: Final = "/identity/issued/"
ATTEMPTS: Final = 3
_DELETED: Final = 8
_END_DIGITS: Final = 12

log = structlog.get_logger()


@dataclass(frozen=True)
class Certificate:
    """A certificate that was issued: whose it is, its serial number in hexadecimal, when it ends."""

    spiffe_id: str
    serial: str
    not_after: datetime


class Issued:
    """Keeps the certificates that nodes have had signed, until they end."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store, self._clock = store, clock

    async def add(self, node: NodeRecord, certificates: Sequence[Certificate]) -> None:
        """Records certificates that are about to be handed to a node.

        Raises:
            Denied: the node was banned, evicted or forgotten meanwhile: hand nothing out.
            StoreError: they aren't recorded: hand nothing out.
        """
        if not certificates:
            return
        put = Put(_key(node.node, certificates), _encode(certificates))
        old = await self._ended(node.node)
        for attempt in range(ATTEMPTS):
            stored, _ = await self._store.get(node.key)
            if stored is None:
                raise Denied(f"node {node.node} was removed meanwhile")
            try:
                await self._store.commit([Check(node.key, stored.revision), put, *old])
                return
            except (Conflict, Ambiguous):
                # Its own certificate was renewed just now, or another replica swept; the batch is the same each time.
                if attempt + 1 == ATTEMPTS:
                    raise

    async def live(self, node: str) -> list[Certificate]:
        """Returns the certificates of a node that have not ended."""
        found, at, start = [], 0, ""
        while True:
            page = await self._store.range(f"{ISSUED}{node}/", start=start, at=at)
            at, start = page.revision, page.next_key
            for record in page.records:
                try:
                    found += _decode(record.key, record.value)
                except RecordError as error:  # one that can't be read must not hide the others
                    log.error("record.unreadable", key=record.key, reason=str(error))
            if not start:
                return [one for one in found if one.not_after >= self._clock()]

    async def _ended(self, node: str) -> list[Op]:
        """Deletes some of the batches that have ended: they stand first, for their keys say when."""
        page = await self._store.range(f"{ISSUED}{node}/", limit=_DELETED)
        now = f"{int(self._clock().timestamp()):0{_END_DIGITS}}"
        ended = [item for item in page.records if item.key.rpartition("/")[2].partition("-")[0] < now]
        return [Delete(item.key) for item in ended]


def _key(node: str, certificates: Sequence[Certificate]) -> str:
    end = max(int(certificate.not_after.timestamp()) for certificate in certificates)
    return f"{ISSUED}{node}/{end:0{_END_DIGITS}}-{certificates[0].serial}"


def _encode(certificates: Sequence[Certificate]) -> bytes:
    # Few identities have many certificates, and those of a batch end together.
    grouped: dict[str, dict[str, list[str]]] = {}
    for one in certificates:
        grouped.setdefault(one.spiffe_id, {}).setdefault(one.not_after.isoformat(), []).append(one.serial)
    return json.dumps({"v": 1, "issued": grouped}).encode()


def _decode(key: str, value: bytes) -> list[Certificate]:
    try:
        return [
            Certificate(spiffe_id, str(serial), datetime.fromisoformat(end))
            for spiffe_id, ends in json.loads(value)["issued"].items()
            for end, serials in ends.items()
            for serial in serials
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RecordError(f"store key {key}: not a batch of certificates") from None
