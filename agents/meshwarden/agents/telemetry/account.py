"""Accounts of what came in and what was dropped on the way: part of every batch, and never dropped themselves."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from meshwarden.agents.telemetry.segment import Damage, Items
from meshwarden.v1 import report_pb2 as pb

SDK: Final = "sdk"
RECEIVE: Final = "agent.receive"
SPOOL: Final = "agent.spool"

# (stage, signal, reason, tenant)
Drops = Counter[tuple[str, str, str, str]]


def lost(items: Items, reason: str, tenant: str, stage: str = SPOOL) -> Drops:
    """The account of things that were dropped for one reason."""
    return Counter({(stage, signal, reason, tenant): n for signal, n in items._asdict().items() if n})


def damaged(damage: Damage, tenant: str) -> Drops:
    """The account of what cannot be read any more; one record of unknown content if nothing is left to tell."""
    if damage.is_known:
        return lost(damage.items, "corrupt", tenant)
    return Counter({(SPOOL, "record", "corrupt", tenant): 1})


def encode(drops: Mapping[tuple[str, str, str, str], int]) -> bytes:
    """The account as part of a batch."""
    return pb.ExportRequest(drops=_messages(drops)).SerializeToString()


def merge(ledgers: Iterable[bytes], drops: Drops) -> bytes:
    """Several accounts as one."""
    total = Counter(drops)
    for ledger in ledgers:
        if ledger:
            for drop in pb.ExportRequest.FromString(ledger).drops:
                total[drop.stage, drop.signal, drop.reason, drop.tenant] += drop.count
    return encode(total)


def _messages(drops: Mapping[tuple[str, str, str, str], int]) -> Iterator[pb.Drop]:
    for (stage, signal, reason, tenant), count in drops.items():
        if count > 0:
            yield pb.Drop(stage=stage, signal=signal, reason=reason, tenant=tenant, count=count)
