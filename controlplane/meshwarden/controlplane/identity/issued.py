"""Which workload certificates each node has, so that they can be refused when the node is banned.

/identity/issued/<node>/<when the last of them ends, in seconds>-<serial of the first>      one batch

A batch is written before its certificates are handed out, and only while the node's record stands: what was given
before a ban is in the list that the ban reads, and after it nothing is given. What has ended is deleted by the batches
that follow.
"""

import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

import structlog

from meshwarden.controlplane.identity.record import NodeRecord, RecordError
from meshwarden.controlplane.store.limit import MAX_OPS
from meshwarden.controlplane.store.port import Check, Delete, Put, Store

ISSUED: Final = "/identity/issued/"
_DELETED: Final = 8
MAX_GUARDS: Final = MAX_OPS - _DELETED - 2
"""Beside the node's record, the batch, and those that have ended."""
CAPACITY: Final = 100_000
_END_DIGITS: Final = 12

log = structlog.get_logger()


@dataclass(frozen=True)
class Certificate:
    """A certificate that was issued: whose it is, its serial number in hexadecimal, when it ends."""

    spiffe_id: str
    serial: str
    not_after: datetime


@dataclass(frozen=True)
class Batch:
    """Certificates that a node was given at once; `place` is "<node>/<when the last of them ends, in seconds>"."""

    node: str
    place: str
    certificates: tuple[Certificate, ...]


class Issued:
    """Keeps the certificates that nodes have had signed, until they end."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store, self._clock = store, clock
        # {node: before when none of its batches ends}, the longest unheard of first
        self._lasting: OrderedDict[str, str] = OrderedDict()

    async def add(
        self, node: NodeRecord, certificates: Sequence[Certificate], guards: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """Records certificates that are about to be handed to a node.

        Args:
            node: its record.
            certificates: whose they are.
            guards: {key of a record that they say what they say for: its revision}; at most `MAX_GUARDS`.

        Raises:
            Conflict: the node's record or one of the others has changed meanwhile: hand nothing out.
            StoreError: they aren't recorded: hand nothing out.
        """
        if not certificates:
            return
        ended, lasting = await self._ended(node.node)
        checks = [Check(key, revision) for key, revision in {**guards, node.key: node.revision}.items()]
        put = Put(_key(node.node, certificates), _encode(certificates))
        await self._store.commit([*checks, put, *map(Delete, ended)])
        self._lasting.pop(node.node, None)
        if len(ended) < _DELETED:
            self._lasting[node.node] = min(lasting or _end_of(put.key), _end_of(put.key))
        while len(self._lasting) > CAPACITY:
            self._lasting.popitem(last=False)

    async def batches(self, node: str = "", after: str = "") -> AsyncIterator[Batch]:
        """Yields what was given to a node, or to every node, by node and by when it ends.

        Args:
            node: the node; empty for all.
            after: the `place` of a batch: go on behind all that have that.
        """
        prefix = f"{ISSUED}{node}/" if node else ISSUED
        # In keys a dash follows what is a place; nothing that begins with it is greater than it with a dot.
        at, start = 0, f"{ISSUED}{after}." if after else ""
        while True:
            page = await self._store.range(prefix, start=start, at=at)
            at, start = page.revision, page.next_key
            for record in page.records:
                place = record.key.removeprefix(ISSUED).rpartition("-")[0]
                try:
                    yield Batch(place.rpartition("/")[0], place, tuple(_decode(record.key, record.value)))
                except RecordError as error:  # one that can't be read must not hide the others
                    log.error("record.unreadable", key=record.key, reason=str(error))
            if not start:
                return

    async def live(self, node: str) -> list[Certificate]:
        """Returns the certificates of a node that have not ended."""
        found = [one async for batch in self.batches(node) for one in batch.certificates]
        return [one for one in found if one.not_after >= self._clock()]

    async def _ended(self, node: str) -> tuple[list[str], str]:
        """Returns the keys of some of the batches that have ended, and when the first of the others ends, or empty.

        Those that have ended stand first, for their keys say when.
        """
        now = f"{int(self._clock().timestamp()):0{_END_DIGITS}}"
        lasting = self._lasting.get(node, "")
        if now <= lasting:
            return [], lasting
        page = await self._store.range(f"{ISSUED}{node}/", limit=_DELETED)
        ended = [record.key for record in page.records if _end_of(record.key) < now]
        return ended, next((_end_of(record.key) for record in page.records[len(ended) :]), "")


def _end_of(key: str) -> str:
    return key.rpartition("/")[2].partition("-")[0]


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
