"""The ledgers of quotas by hour, day and month in the store, written before anything is given out of them.

    quota/<tenant>/<policy>/<DAY requests Europe:Berlin>/<start>            when it ends, and its turn
    quota/<tenant>/<policy>/<DAY requests Europe:Berlin>/<start>/<digest>   an account

A record holds sums, never what was added, and only the holder of the allocator's lease writes it. So a commit of which
nobody knows whether it was written is simply made again.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, Final, cast, get_args

import structlog

from meshwarden.controlplane.quota.holding import Account
from meshwarden.controlplane.quota.ledgers import Book, Name, Terms, Write
from meshwarden.controlplane.quota.period import Kind, Period, period_of
from meshwarden.controlplane.quota.tree import Path
from meshwarden.controlplane.store import port

ROOT: Final = "quota/"
_PAGE: Final = 500
_BATCH: Final = 100
log = structlog.get_logger()


async def load(store: port.Store) -> dict[Name, Book]:
    """All that is written; whoever reads it holds the lease, so that nobody writes meanwhile.

    Out of a ledger of which an account can't be read nothing is given.
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
    key, value = _key(item.name, item.path), item.value
    if value is None:
        return port.Delete(key)
    if isinstance(value, Account):
        said: Any = [item.path, value.granted, value.used, list(value.series.items())]
    else:
        said = {"end": value.period.end_s, "turn": value.turn, "before": value.before_s}
    return port.Put(key, json.dumps(said, separators=(",", ":")).encode())


def _key(name: Name, path: Path) -> str:
    kind, zone, unit = name.terms
    key = f"{ROOT}{name.policy}/{kind} {unit} {zone.replace('/', ':')}/{int(name.start_s)}"
    # A path may have any text in it, and more than a key takes.
    return f"{key}/{hashlib.sha256(json.dumps(path).encode()).hexdigest()[:32]}" if path else key


def _read(record: port.Record, books: dict[Name, Book]) -> None:
    try:
        owner, policy, terms, start, *account = record.key.removeprefix(ROOT).split("/")
        kind, unit, zone = terms.split(" ")
        name = Name(f"{owner}/{policy}", Terms(_kind(kind), zone.replace(":", "/"), unit), float(start))
    except ValueError as error:
        log.error("quota.record_unknown", key=record.key, reason=str(error))
    else:
        if account:
            _read_account(record, books.get(name))
        else:
            books[name] = _book(record, name)


def _book(record: port.Record, name: Name) -> Book:
    try:
        said = json.loads(record.value)
        return Book(Period(name.start_s, float(said["end"])), int(said["turn"]), float(said["before"]))
    except (ValueError, TypeError, KeyError) as error:
        log.error("quota.ledger_unreadable", key=record.key, reason=str(error))
        return Book(period_of(name.terms.kind, name.terms.zone, name.start_s), record.revision)


def _read_account(record: port.Record, book: Book | None) -> None:
    if book is None:
        return
    try:
        path, granted, used, series = json.loads(record.value)
        known = {int(number): _sum(amount) for number, amount in series}
        book.accounts[tuple(map(str, path))] = Account(_sum(granted), _sum(used), known)
    except (ValueError, TypeError) as error:
        log.error("quota.ledger_unreadable", key=record.key, reason=str(error))
        book.is_whole = False


def _kind(text: str) -> Kind:
    if text not in get_args(Kind):
        raise ValueError(f"{text!r} is no period")
    return cast("Kind", text)


def _sum(number: Any) -> float:
    if not (isinstance(number, int | float) and math.isfinite(number) and number >= 0):
        raise ValueError(f"{number!r} is no sum")
    return float(number)
