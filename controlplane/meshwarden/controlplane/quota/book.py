"""The ledgers of quotas by hour, day and month in the store, written before anything is given out of them.

    quota/<tenant>/<policy>/<DAY requests Europe/Berlin>/<start>            when it ends, and the ledger's turn
    quota/<tenant>/<policy>/<DAY requests Europe/Berlin>/<start>/<tenant>   accounts: what was given, and used of that

A record holds sums, never what was added, and only the holder of the allocator's lease writes it. So a commit of which
nobody knows whether it was written is simply made again.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Final, cast, get_args

import structlog

from meshwarden.controlplane.quota.ledger import Account
from meshwarden.controlplane.quota.ledgers import Book, Name, Terms, Write
from meshwarden.controlplane.quota.period import Kind, Period, period_of
from meshwarden.controlplane.store import port

ROOT: Final = "quota/"
_PAGE: Final = 500
_BATCH: Final = 100
_SPENT: Final = 1e18
log = structlog.get_logger()


async def load(store: port.Store) -> dict[Name, Book]:
    """All that is written; whoever reads it holds the lease, so that nobody writes meanwhile.

    Of what can't be read nothing is given: all of it counts as spent.
    """
    books: dict[Name, Book] = {}
    start = ""
    while True:
        page = await store.range(ROOT, start=start, limit=_PAGE)
        for record in page.records:
            _read(record, books)
        if not page.next_key:
            return books
        start = page.next_key


async def write(store: port.Store, writes: Sequence[Write], fence: port.Lease) -> None:
    """Writes records, a hundred in a commit.

    Raises:
        StoreError: not all of it may be written.
    """
    for first in range(0, len(writes), _BATCH):
        await store.commit([_op(item) for item in writes[first : first + _BATCH]], fence=fence)


def _op(item: Write) -> port.Op:
    key = _key(item.name, item.tenant)
    if item.is_over:
        return port.Delete(key)
    if not item.tenant:
        book = item.book
        said: Any = {"end": book.period.end_s, "turn": book.turn, "before": book.before_s}
    else:
        said = [[path, one.granted, one.used] for path, one in item.accounts.items()]
    return port.Put(key, json.dumps(said, separators=(",", ":")).encode())


def _key(name: Name, tenant: str) -> str:
    kind, zone, unit = name.terms
    key = f"{ROOT}{name.policy}/{kind} {unit} {zone.replace('/', ':')}/{int(name.start_s)}"
    return f"{key}/{tenant}" if tenant else key


def _read(record: port.Record, books: dict[Name, Book]) -> None:
    try:
        owner, policy, terms, start, *tenant = record.key.removeprefix(ROOT).split("/")
        kind, unit, zone = terms.split(" ")
        name = Name(f"{owner}/{policy}", Terms(_kind(kind), zone.replace(":", "/"), unit), float(start))
    except ValueError as error:
        log.error("quota.record_unknown", key=record.key, reason=str(error))
    else:
        if tenant:
            _read_accounts(record, tenant[0], books.get(name))
        else:
            books[name] = _book(record, name)


def _book(record: port.Record, name: Name) -> Book:
    try:
        said = json.loads(record.value)
        return Book(Period(name.start_s, float(said["end"])), int(said["turn"]), float(said["before"]))
    except (ValueError, TypeError, KeyError) as error:
        log.error("quota.ledger_unreadable", key=record.key, reason=str(error))
        return Book(period_of(name.terms.kind, name.terms.zone, name.start_s), record.revision)


def _read_accounts(record: port.Record, tenant: str, book: Book | None) -> None:
    if book is None:
        return
    try:
        for path, granted, used in json.loads(record.value):
            book.accounts[tuple(map(str, path))] = Account(_sum(granted), _sum(used))
    except (ValueError, TypeError) as error:
        log.error("quota.ledger_unreadable", key=record.key, reason=str(error))
        book.accounts[tenant,] = Account(_SPENT, 0.0)


def _kind(text: str) -> Kind:
    if text not in get_args(Kind):
        raise ValueError(f"{text!r} is no period")
    return cast("Kind", text)


def _sum(number: Any) -> float:
    if not (isinstance(number, int | float) and math.isfinite(number) and number >= 0):
        raise ValueError(f"{number!r} is no sum")
    return float(number)
